//! The /etc/hosts of a pod, as the kubelet writes it (`pkg/kubelet/kubelet_pods.go`).

use std::fmt::Write as _;

use crate::pod::PodView;
use crate::translate::{host_domain, hostname};

/// The file for a pod with a network of its own.
pub fn own(pod: &PodView, ips: &[String], domain: &str) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let host = hostname(pod);
    let full = host_domain(pod, domain).map(|domain| format!("{host}.{domain}"));
    for ip in ips {
        // Writing to a String cannot fail.
        let _ = match &full {
            Some(full) => writeln!(text, "{ip}\t{full}\t{host}"),
            None => writeln!(text, "{ip}\t{host}"),
        };
    }
    add_aliases(pod, &mut text);

    text
}

/// The file for a pod in the node's network: the node's own, and the pod's aliases.
pub fn of_host(pod: &PodView, node_file: &str) -> String {
    let mut text = format!("# Kubernetes-managed hosts file (host network).\n{node_file}");
    add_aliases(pod, &mut text);

    text
}

fn add_aliases(pod: &PodView, text: &mut String) {
    let aliases = pod.spec().host_aliases.as_deref().unwrap_or_default();
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}\t{names}", alias.ip);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_aliases_follow_the_fixed_lines() {
        let pod = json!({
            "metadata": { "uid": "u", "namespace": "shop", "name": "web-0" },
            "spec": { "containers": [], "subdomain": "web",
                "hostAliases": [{ "ip": "192.0.2.9", "hostnames": ["plc", "plc.site"] }] },
        });
        let pod = PodView::parse(pod.to_string().as_bytes()).unwrap();
        let text = own(&pod, &["10.1.0.5".to_owned()], "cluster.local");

        assert!(text.contains("\n10.1.0.5\tweb-0.web.shop.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("# Entries added by HostAliases.\n192.0.2.9\tplc\tplc.site\n"));
    }
}
