//! The network configuration of a machine that has none.

use std::fs;
use std::path::Path;

/// Where CNI configurations are, unless the runtime is told otherwise.
pub const DIR: &str = "/etc/cni/net.d";
/// Where edgeadm writes its own.
pub const FILE: &str = "/etc/cni/net.d/10-holdfast.conflist";

/// Pods of this machine reach each other and, behind its address, everything that it reaches. The
/// range is one that clusters do not use by default; nothing outside the machine sees it.
pub const DEFAULT: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "holdfast",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "holdfast0",
      "isGateway": true,
      "ipMasq": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{ "subnet": "10.231.0.0/22" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    },
    { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true }
  ]
}
"#;

/// Whether the folder has a configuration that a runtime would take.
pub fn is_configured(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();

    entries.map(|entry| entry.path()).any(|path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("conf" | "conflist" | "json"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_written_only_where_none_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_configured(&dir.path().join("missing")) && !is_configured(dir.path()));
        fs::write(dir.path().join("readme.txt"), "").unwrap();
        assert!(!is_configured(dir.path()));
        fs::write(dir.path().join("10-x.conflist"), "").unwrap();
        assert!(is_configured(dir.path()));
    }

    #[test]
    fn the_default_is_a_configuration() {
        let read: serde_json::Value = serde_json::from_str(DEFAULT).unwrap();
        assert_eq!(read["plugins"][0]["type"], "bridge");
        assert!(FILE.starts_with(DIR));
    }
}
