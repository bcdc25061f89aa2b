//! The container runtime.

use std::io;

use cri::{CriError, Runtime};
use cri_api::v1;
use edgecore::Config;

use super::Finding;
use crate::cni;

pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let socket = config.runtime_socket.display().to_string();
    let Ok(runtime) = Runtime::new(&socket) else {
        return vec![Finding::fail(
            "runtime",
            format!("{socket} is no socket path"),
            "give another",
        )];
    };
    let version = match runtime.version().await {
        Ok(version) => version,
        Err(error) => return vec![no_runtime(&error)],
    };
    let found = format!("{} {} at {socket}", version.name, version.version);
    let mut findings = vec![Finding::ok("runtime", found)];
    match runtime.status().await {
        Ok(status) => findings.push(network(&status)),
        Err(error) => findings.push(no_runtime(&error)),
    }

    findings
}

fn no_runtime(error: &CriError) -> Finding {
    // Nobody knows what is behind a socket that only root may open.
    if let CriError::NoRuntime { socket, kind: io::ErrorKind::PermissionDenied, .. } = error {
        let found = format!("only root may ask who answers at {socket}");
        return Finding::warn("runtime", found, "check again as root: sudo edgeadm check");
    }
    let remedy = "install containerd 1.6 or newer, or CRI-O 1.26 or newer, and start it; if it has \
                  another socket, give that with --runtime-endpoint";

    Finding::fail("runtime", error.to_string(), remedy)
}

/// Whether it can give pods a network.
fn network(status: &v1::StatusResponse) -> Finding {
    let conditions = status.status.iter().flat_map(|status| &status.conditions);
    let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady");
    match network {
        Some(network) if !network.status => Finding::warn(
            "pod network",
            format!("{}: {}", network.reason, network.message),
            format!(
                "put a CNI configuration into {} and the plugins that it names into /opt/cni/bin",
                cni::DIR
            ),
        ),
        Some(_) | None => Finding::ok("pod network", "the runtime has one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn who_is_not_root_is_not_told_to_install_a_runtime() {
        let verdict = |kind| {
            let (attempted, socket) = ("ask".to_owned(), "/run/runtime.sock".to_owned());
            let found = no_runtime(&CriError::NoRuntime { attempted, socket, kind });
            (found.verdict, found.remedy.contains("install"))
        };
        assert_eq!(verdict(io::ErrorKind::NotFound), (Verdict::Fail, true));
        assert_eq!(verdict(io::ErrorKind::PermissionDenied), (Verdict::Warn, false));
    }

    #[test]
    fn a_runtime_without_a_network_is_told() {
        let with = |status| v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![v1::RuntimeCondition {
                    r#type: "NetworkReady".to_owned(),
                    status,
                    reason: "NetworkPluginNotReady".to_owned(),
                    message: "cni plugin not initialized".to_owned(),
                }],
            }),
            ..v1::StatusResponse::default()
        };
        assert_eq!(network(&with(true)).verdict, Verdict::Ok);
        let found = network(&with(false));
        assert_eq!(found.verdict, Verdict::Warn);
        assert!(found.found.contains("cni plugin not initialized"), "{found:?}");
    }
}
