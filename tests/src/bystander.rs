//! Nodes without an agent: healthy ones that keep the node controller from seeing the whole cluster
//! down (it stops evicting then), and ones that nobody renews, to show that eviction does happen.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::api;

/// Well below the test cluster's node-monitor-grace-period of 12 s.
const RENEW_INTERVAL: Duration = Duration::from_secs(3);

fn now() -> String {
    let now = Timestamp::now();

    format!("{now:.6}")
}

/// Registers a node that says Ready once and is then silent, unless renewed.
pub async fn register(client: &Client, name: &str) -> Result<()> {
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name },
        "spec": { "taints": [{ "key": "holdfast.dev/bystander", "effect": "NoSchedule" }] },
    });
    api::create(client, "/api/v1/nodes", &node).await?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": name, "namespace": "kube-node-lease" },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now() },
    });
    api::create(client, LEASES, &lease).await?;

    api::merge(client, &format!("/api/v1/nodes/{name}/status"), &ready_status()).await.map(drop)
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

fn ready_status() -> Value {
    json!({ "status": {
        "capacity": { "cpu": "1", "memory": "1Gi", "pods": "10" },
        "allocatable": { "cpu": "1", "memory": "1Gi", "pods": "10" },
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Bystander", "message": "",
            "lastHeartbeatTime": now(), "lastTransitionTime": now(),
        }],
    } })
}

/// Removes a node made by [`register`].
pub async fn remove(client: &Client, name: &str) -> Result<()> {
    api::delete(client, &format!("/api/v1/nodes/{name}"), None).await?;

    api::delete(client, &format!("{LEASES}/{name}"), None).await
}

/// Healthy nodes, renewed as long as this lives.
#[derive(Debug)]
pub struct Healthy {
    names: Vec<String>,
    /// Ends the renewal when dropped.
    _renewal: JoinSet<()>,
}

impl Healthy {
    /// Registers `count` nodes named after `prefix` and keeps them Ready.
    pub async fn start(client: &Client, prefix: &str, count: usize) -> Result<Self> {
        let names: Vec<String> = (0..count).map(|i| format!("{prefix}-{i}")).collect();
        for name in &names {
            register(client, name).await?;
        }
        let mut renewal = JoinSet::new();
        let (client, renewed) = (client.clone(), names.clone());
        renewal.spawn(async move {
            let mut ticks = interval(RENEW_INTERVAL);
            loop {
                ticks.tick().await;
                for name in &renewed {
                    let patch = json!({ "spec": { "renewTime": now() } });
                    // A failed renewal is repeated at the next tick, and shows in the node's state.
                    drop(api::merge(&client, &format!("{LEASES}/{name}"), &patch).await);
                }
            }
        });

        Ok(Self { names, _renewal: renewal })
    }

    /// Removes the nodes.
    pub async fn stop(self, client: &Client) -> Result<()> {
        for name in &self.names {
            remove(client, name).await?;
        }

        Ok(())
    }
}
