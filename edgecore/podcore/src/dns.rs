//! The resolver of a pod by its dnsPolicy (`pkg/kubelet/network/dns`).

use cri_api::v1::DnsConfig;

use crate::pod::PodView;

/// Most name servers a pod gets (glibc's limit).
const SERVERS_MAX: usize = 3;
/// Most search domains (Kubernetes' limit).
const SEARCHES_MAX: usize = 32;

/// The cluster's and the node's resolvers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolvers {
    /// Addresses of the cluster DNS; may be empty.
    pub cluster: Vec<String>,
    /// `cluster.local`.
    pub domain: String,
    /// What the node's resolv.conf says.
    pub node: ResolvConf,
}

/// The parts of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The last `search` line.
    pub searches: Vec<String>,
    /// The last `options` line.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads the text of a resolv.conf.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => conf.servers.extend(words.next()),
                Some("search") => conf.searches = words.collect(),
                Some("options") => conf.options = words.collect(),
                _ => {}
            }
        }

        conf
    }
}

/// What the pod's resolv.conf shall say, and whether the policy wanted a cluster DNS that the node
/// does not know (Event `MissingClusterDNS`).
pub fn resolver(pod: &PodView, resolvers: &Resolvers) -> (DnsConfig, bool) {
    let policy = pod.spec().dns_policy.as_deref().unwrap_or("ClusterFirst");
    let wants_cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod.host_network(),
        _ => false,
    };
    let missing = wants_cluster && resolvers.cluster.is_empty();
    let mut config = if policy == "None" {
        DnsConfig::default()
    } else if wants_cluster && !missing {
        cluster_first(pod, resolvers)
    } else {
        DnsConfig {
            servers: resolvers.node.servers.clone(),
            searches: resolvers.node.searches.clone(),
            options: resolvers.node.options.clone(),
        }
    };
    add_own(pod, &mut config);
    config.servers.truncate(SERVERS_MAX);
    config.searches.truncate(SEARCHES_MAX);

    (config, missing)
}

fn cluster_first(pod: &PodView, resolvers: &Resolvers) -> DnsConfig {
    let domain = &resolvers.domain;
    let mut searches =
        vec![format!("{}.svc.{domain}", pod.namespace), format!("svc.{domain}"), domain.clone()];
    append_new(&mut searches, &resolvers.node.searches);

    DnsConfig { servers: resolvers.cluster.clone(), searches, options: vec!["ndots:5".to_owned()] }
}

/// `spec.dnsConfig` adds to every policy; an option of the same name replaces.
fn add_own(pod: &PodView, config: &mut DnsConfig) {
    let Some(own) = &pod.spec().dns_config else { return };
    append_new(&mut config.servers, own.nameservers.as_deref().unwrap_or_default());
    append_new(&mut config.searches, own.searches.as_deref().unwrap_or_default());
    for option in own.options.as_deref().unwrap_or_default() {
        let Some(name) = &option.name else { continue };
        config.options.retain(|other| other.split(':').next() != Some(name));
        config.options.push(match &option.value {
            Some(value) if !value.is_empty() => format!("{name}:{value}"),
            _ => name.clone(),
        });
    }
}

fn append_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resolvers() -> Resolvers {
        Resolvers {
            cluster: vec!["10.96.0.10".to_owned()],
            domain: "cluster.local".to_owned(),
            node: ResolvConf::parse("nameserver 192.0.2.1\nsearch site.example\noptions edns0\n"),
        }
    }

    fn check(spec: &Value, expected: &str) {
        let mut spec = spec.clone();
        spec["containers"] = json!([]);
        let pod = json!({
            "metadata": { "uid": "u", "namespace": "shop", "name": "web" }, "spec": spec,
        });
        let pod = PodView::parse(pod.to_string().as_bytes()).unwrap();
        let (dns, missing) = resolver(&pod, &resolvers());
        let shown = format!("{:?} {:?} {:?} {missing}", dns.servers, dns.searches, dns.options);
        assert_eq!(shown.replace('"', ""), expected, "{spec}");
    }

    #[test]
    fn each_policy() {
        check(
            &json!({}),
            "[10.96.0.10] [shop.svc.cluster.local, svc.cluster.local, cluster.local, site.example] [ndots:5] false",
        );
        check(&json!({ "dnsPolicy": "Default" }), "[192.0.2.1] [site.example] [edns0] false");
        check(&json!({ "hostNetwork": true }), "[192.0.2.1] [site.example] [edns0] false");
        check(
            &json!({ "dnsPolicy": "None", "dnsConfig": {
                "nameservers": ["192.0.2.7"], "options": [{ "name": "ndots", "value": "2" }] } }),
            "[192.0.2.7] [] [ndots:2] false",
        );
        check(
            &json!({ "dnsConfig": { "options": [{ "name": "ndots", "value": "2" }] } }),
            "[10.96.0.10] [shop.svc.cluster.local, svc.cluster.local, cluster.local, site.example] [ndots:2] false",
        );
    }
}
