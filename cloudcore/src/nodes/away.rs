//! The kubelet ports of nodes that are away: whoever calls is told at once since when, instead of
//! finding no port. A node that comes back, here or at another replica, takes its port again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use proto::ids::NodeName;
use serde_json::Value;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::{Shared, port};
use crate::clock;
use crate::kubelet_api::{self, Absence, Whose};

/// How often Nodes are looked at: for those that were away when this replica started, and those that
/// are another's by now.
pub(super) const LOOK_PERIOD: Duration = Duration::from_mins(1);

/// The session's own listener is closed a moment after the session.
const TRIES: u32 = 20;

/// What answers for nodes that are away.
pub(super) struct Away {
    shared: Arc<Shared>,
    /// Sessions by node: the next may begin before the last has ended.
    sessions: BTreeMap<NodeName, usize>,
    ports: BTreeMap<NodeName, AbortHandle>,
    serving: JoinSet<()>,
}

impl Away {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sessions: BTreeMap::new(), ports: BTreeMap::new(), serving: JoinSet::new() }
    }

    /// A session of the node began: the port is its worker's.
    pub(super) fn began(&mut self, node: &NodeName) {
        *self.sessions.entry(node.clone()).or_default() += 1;
        self.close(node);
    }

    /// A session of the node ended, perhaps the last.
    pub(super) fn ended(&mut self, node: NodeName) {
        let left = self.sessions.remove(&node).unwrap_or_default().saturating_sub(1);
        if left > 0 {
            self.sessions.insert(node, left);
            return;
        }
        if let Some((port, _)) = self.port_of(&node) {
            self.open(node, port, Some(clock::timestamp()));
        }
    }

    /// Opens the ports of nodes that are away, closes those of nodes that are not this replica's.
    pub(super) fn look(&mut self) {
        while self.serving.try_join_next().is_some() {}
        let nodes: Vec<NodeName> = {
            let index = self.shared.cluster.index();
            let nodes = index.all_nodes().map(|(node, _)| node);
            nodes.filter(|node| !self.sessions.contains_key(*node)).cloned().collect()
        };
        let gone = self.ports.keys().filter(|node| !nodes.contains(node)).cloned();
        for node in gone.collect::<Vec<_>>() {
            self.close(&node);
        }
        for node in nodes {
            let is_open = self.ports.get(&node).is_some_and(|port| !port.is_finished());
            match self.port_of(&node) {
                None => self.close(&node),
                Some((port, since)) if !is_open => self.open(node, port, since),
                Some(_) => {}
            }
        }
    }

    fn close(&mut self, node: &NodeName) {
        if let Some(port) = self.ports.remove(node) {
            port.abort();
        }
    }

    fn open(&mut self, node: NodeName, port: u16, since: Option<Timestamp>) {
        self.close(&node);
        let api = Arc::clone(&self.shared.kubelet_api);
        let address = self.shared.advertise_address;
        let absence = Arc::new(Absence { node: node.clone(), since });
        let task = self.serving.spawn(async move {
            for _ in 0..TRIES {
                if let Ok(listener) = kubelet_api::bind(address, port).await {
                    kubelet_api::run(api, Whose::Away(absence), listener).await;
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        });
        self.ports.insert(node, task);
    }

    /// The node's port, if callers look for it at this replica, and since when it is not ready.
    fn port_of(&self, node: &NodeName) -> Option<(u16, Option<Timestamp>)> {
        let object = self.shared.cluster.index().node(node).cloned()?;

        read(&object.bytes, self.shared.advertise_address)
    }
}

fn read(node: &[u8], address: IpAddr) -> Option<(u16, Option<Timestamp>)> {
    let node: Value = serde_json::from_slice(node).ok()?;
    let addresses = node["status"]["addresses"].as_array()?;
    let is_here = addresses.iter().any(|found| found["address"] == address.to_string());
    let port = node["metadata"]["annotations"][port::ANNOTATION].as_str()?.parse().ok()?;
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready");
    let not_ready = ready.filter(|ready| ready["status"] != "True");
    let since = not_ready.and_then(|ready| ready["lastTransitionTime"].as_str()?.parse().ok());

    is_here.then_some((port, since))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_ports_of_this_replica_are_answered_for() {
        let node = |address: &str, ready: &str| {
            let node = json!({
                "metadata": { "annotations": { "holdfast.dev/kubelet-port": "20007" } },
                "status": {
                    "addresses": [{ "type": "InternalIP", "address": address }],
                    "conditions": [{
                        "type": "Ready", "status": ready,
                        "lastTransitionTime": "2026-01-02T03:04:05Z",
                    }],
                },
            });
            read(node.to_string().as_bytes(), "10.0.0.1".parse().unwrap())
        };
        let since = "2026-01-02T03:04:05Z".parse().unwrap();
        assert_eq!(node("10.0.0.1", "Unknown"), Some((20_007, Some(since))));
        assert_eq!(node("10.0.0.1", "True"), Some((20_007, None)));
        assert_eq!(node("10.0.0.2", "Unknown"), None);
        assert_eq!(read(b"{}", "10.0.0.1".parse().unwrap()), None);
    }
}
