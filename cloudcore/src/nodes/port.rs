//! The port of a node's kubelet API: unique in the cluster, chosen once, kept as an annotation.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use proto::ids::NodeName;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::cluster::Cluster;
use crate::kubelet_api::{self, PORT_MAX, PORT_MIN};

/// The Node's annotation with its port.
pub(super) const ANNOTATION: &str = "holdfast.dev/kubelet-port";

/// The session before may still hold the port: it is given this many times a tenth of a second.
const TRIES: u32 = 20;

/// Opens the node's port, or the first free one if it has none.
pub(super) async fn open(
    cluster: &Cluster,
    node: &NodeName,
    address: IpAddr,
) -> Option<(u16, TcpListener)> {
    let (own, taken) = ports(cluster, node);
    if let Some(port) = own {
        for _ in 0..TRIES {
            if let Ok(listener) = kubelet_api::bind(address, port).await {
                return Some((port, listener));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    for port in (PORT_MIN..=PORT_MAX).filter(|port| !taken.contains(port)) {
        if let Ok(listener) = kubelet_api::bind(address, port).await {
            return Some((port, listener));
        }
    }

    None
}

/// The node's own port, and those of all others.
fn ports(cluster: &Cluster, node: &NodeName) -> (Option<u16>, BTreeSet<u16>) {
    let (mut own, mut taken) = (None, BTreeSet::new());
    for (name, object) in cluster.index().all_nodes() {
        let Ok(value) = serde_json::from_slice::<Value>(&object.bytes) else { continue };
        let port = value["metadata"]["annotations"][ANNOTATION].as_str();
        let Some(port) = port.and_then(|port| port.parse().ok()) else { continue };
        if name == node {
            own = Some(port);
        } else {
            taken.insert(port);
        }
    }

    (own.filter(|port| !taken.contains(port)), taken)
}
