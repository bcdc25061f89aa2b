//! Where machines reach cloudcore, as far as the cluster says it.

use k8s_openapi::api::core::v1::{Node, Service};

use super::daemonsets::EDGE;

/// HOST:PORT, by cloudcore's Service and the cluster's nodes; `None` if that does not say it, or not yet.
pub(super) fn of(service: &Service, nodes: &[Node]) -> Option<String> {
    let spec = service.spec.as_ref()?;
    let port = spec.ports.as_ref()?.first()?;
    match spec.type_.as_deref() {
        Some("NodePort") => {
            let node_port = port.node_port?;
            let host = nodes.iter().filter(|node| is_in_cloud(node)).find_map(internal_address)?;

            Some(join(host, node_port))
        }
        Some("LoadBalancer") => {
            let status = service.status.as_ref()?.load_balancer.as_ref()?;
            let ingress = status.ingress.as_ref()?.first()?;
            let host = ingress.ip.as_ref().or(ingress.hostname.as_ref())?;

            Some(join(host, port.port))
        }
        // Nobody outside the cluster reaches it.
        _ => None,
    }
}

fn is_in_cloud(node: &Node) -> bool {
    !node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EDGE))
}

fn internal_address(node: &Node) -> Option<&String> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;

    addresses.iter().find(|address| address.type_ == "InternalIP").map(|found| &found.address)
}

fn join(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(kind: &str, status: &Value) -> Service {
        serde_json::from_value(json!({
            "spec": { "type": kind, "ports": [{ "port": 10000, "nodePort": 30100 }] },
            "status": status,
        }))
        .unwrap()
    }

    fn node(labels: &Value, address: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": { "labels": labels },
            "status": { "addresses": [
                { "type": "Hostname", "address": "n" },
                { "type": "InternalIP", "address": address },
            ] },
        }))
        .unwrap()
    }

    #[test]
    fn the_address_is_what_the_service_says() {
        let nodes = [node(&json!({ EDGE: "" }), "10.9.9.9"), node(&json!({}), "10.0.0.1")];
        let of_kind =
            |kind: &str, status: &Value, nodes: &[Node]| of(&service(kind, status), nodes);
        let none = json!({});
        assert_eq!(of_kind("NodePort", &none, &nodes).as_deref(), Some("10.0.0.1:30100"));
        assert_eq!(of_kind("NodePort", &none, &nodes[..1]), None);
        let six = [node(&json!({}), "fd00::1")];
        assert_eq!(of_kind("NodePort", &none, &six).as_deref(), Some("[fd00::1]:30100"));
        assert_eq!(of_kind("LoadBalancer", &none, &nodes), None);
        let given = json!({ "loadBalancer": { "ingress": [{ "hostname": "lb.example" }] } });
        assert_eq!(of_kind("LoadBalancer", &given, &nodes).as_deref(), Some("lb.example:10000"));
        assert_eq!(of_kind("ClusterIP", &none, &nodes), None);
    }
}
