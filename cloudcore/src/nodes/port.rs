//! Which port a node's kubelet API has: unique in the cluster, chosen once, kept as an annotation.
//!
//! Replicas choose by themselves. Two may give one port to two nodes at the same time: then every replica
//! says of the same one that it keeps the port, and the other node gets another.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use proto::ids::{NodeName, Uid};
use proto::object::{Object, Point};
use serde_json::Value;

use crate::kubelet_api::{PORT_MAX, PORT_MIN};

/// The Node's annotation with its port.
pub(super) const ANNOTATION: &str = "holdfast.dev/kubelet-port";

/// What a Node says.
struct Claim {
    point: Point,
    port: Option<u16>,
    /// Who is less by this is the older one.
    age: (String, Uid),
}

/// What all Nodes say of their ports.
#[derive(Default)]
pub(super) struct Claims {
    by_node: BTreeMap<NodeName, Claim>,
    owners: BTreeMap<u16, NodeName>,
}

impl Claims {
    /// Takes all Nodes that there are now.
    pub(super) fn see<'a>(&mut self, nodes: impl Iterator<Item = (&'a NodeName, &'a Arc<Object>)>) {
        let mut before = mem::take(&mut self.by_node);
        for (node, object) in nodes {
            let point = object.version.point();
            let same = before.remove(node).filter(|claim| claim.point == point);
            let claim = same.unwrap_or_else(|| read(object));
            self.by_node.insert(node.clone(), claim);
        }
        self.owners.clear();
        for (node, claim) in &self.by_node {
            let Some(port) = claim.port else { continue };
            let owner = self.owners.entry(port).or_insert_with(|| node.clone());
            if self.by_node[owner].age > claim.age {
                owner.clone_from(node);
            }
        }
    }

    /// Whose a port is.
    pub(super) fn owner(&self, port: u16) -> Option<&NodeName> {
        self.owners.get(&port)
    }

    /// The port that a node has and keeps.
    pub(super) fn port_of(&self, node: &NodeName) -> Option<u16> {
        let port = self.by_node.get(node)?.port?;

        (self.owner(port) == Some(node)).then_some(port)
    }

    /// All ports and whose they are.
    pub(super) fn all(&self) -> impl Iterator<Item = (u16, &NodeName)> {
        self.owners.iter().map(|(port, node)| (*port, node))
    }

    /// Ports that a node may have which has none. Replicas that choose at once for two nodes hardly choose
    /// the same.
    pub(super) fn free(&self, node: &NodeName) -> impl Iterator<Item = u16> {
        let digest = ring::digest::digest(&ring::digest::SHA256, node.as_str().as_bytes());
        let number =
            digest.as_ref().iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte));
        let count = u32::from(PORT_MAX - PORT_MIN) + 1;
        let start = PORT_MIN + u16::try_from(number % count).unwrap_or_default();

        (start..=PORT_MAX).chain(PORT_MIN..start).filter(|port| self.owner(*port).is_none())
    }
}

/// Whether a Node says that this is its port.
pub(super) fn is_told(node: &Value, port: u16) -> bool {
    told(node) == Some(port)
}

fn told(node: &Value) -> Option<u16> {
    node["metadata"]["annotations"][ANNOTATION].as_str()?.parse().ok()
}

fn read(object: &Object) -> Claim {
    let node: Value = serde_json::from_slice(&object.bytes).unwrap_or_default();
    let metadata = &node["metadata"];
    let created = metadata["creationTimestamp"].as_str().unwrap_or_default().to_owned();

    Claim {
        point: object.version.point(),
        port: told(&node).filter(|port| (PORT_MIN..=PORT_MAX).contains(port)),
        age: (created, object.version.uid.clone()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use index::Index;
    use proto::ids::Kind;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_older_of_two_nodes_keeps_a_port_that_both_were_given() {
        let node = |name: &str| NodeName::new(name).unwrap();
        let object = |name: &str, created: &str, port: &str| {
            let object = json!({
                "metadata": {
                    "name": name, "uid": format!("u-{name}"), "resourceVersion": "7",
                    "creationTimestamp": created, "annotations": { ANNOTATION: port },
                    "labels": { "node-role.kubernetes.io/edge": "" },
                },
                "spec": { "providerID": format!("holdfast://{name}") },
            });
            Bytes::from(object.to_string())
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let mut index = Index::new(1);
        for (name, created, port) in [
            ("a", new, "20007"),
            ("b", old, "20007"),
            ("c", new, "20007"),
            // In the same second: the UID decides.
            ("d", new, "20008"),
            ("e", new, "20008"),
            ("f", new, "80"),
            ("g", new, ""),
        ] {
            index.apply(Kind::Node, object(name, created, port)).unwrap();
        }
        let mut claims = Claims::default();
        claims.see(index.all_nodes());
        let all = || ["a", "b", "c", "d", "e", "f", "g"].map(|name| claims.port_of(&node(name)));
        let none = None;
        assert_eq!(all(), [none, Some(20_007), none, Some(20_008), none, none, none]);

        assert!(!claims.free(&node("a")).any(|port| [20_007, 20_008].contains(&port)));
        assert_eq!(claims.free(&node("a")).count(), 9_998);
        assert_ne!(claims.free(&node("a")).next(), claims.free(&node("c")).next());

        // What has gone gives its port back.
        index.delete(Kind::Node, &object("b", old, "20007")).unwrap();
        claims.see(index.all_nodes());
        assert_eq!(claims.owner(20_007), Some(&node("a")));
    }
}
