//! Nodes stay registered: one whose Node object is deleted is registered again as it was, also while it
//! is away, because the controller manager removes the pods of a node that has no Node for 40 s.
//!
//! What a Node was like is kept with the record of the node's sessions. Without that record, or with
//! one that is revoked, nothing is registered: that is how a node is removed for good.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Request;
use kube::Client;
use proto::ids::{Kind, NodeName};
use serde_json::{Map, Value, json};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::evidence::Evidence;
use crate::hub::{RECORD_LABEL, is_revoked};
use crate::leader::Leadership;
use crate::nodes::PROVIDER_PREFIX;
use crate::telemetry;

/// Well within the 40 s, with time for an API server that is slow.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3);

/// Nodes registered and descriptions written in one sweep; the rest follow in the next ones.
const WRITES_MAX: usize = 50;

/// Annotation of a node's session record: what its Node was like, as JSON.
const DESCRIPTION: &str = "holdfast.dev/node";

/// Taints that the node controller sets and takes away by itself.
const MANAGED_TAINTS: &str = "node.kubernetes.io/";

#[derive(Debug)]
struct Known {
    description: Value,
    /// The revision of the Node it was read from; zero if from the record.
    revision: u64,
    is_kept: bool,
}

/// What Nodes were like when last seen. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registrations(Arc<Mutex<BTreeMap<NodeName, Known>>>);

impl Registrations {
    /// What the Node was like, as far as it is to be again.
    pub fn description(&self, node: &NodeName) -> Option<Value> {
        self.lock().get(node).map(|known| known.description.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Known>> {
        // Each entry is whole, whatever panicked after it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, node: &NodeName, revision: u64, bytes: &[u8]) {
        let mut known = self.lock();
        if known.get(node).is_some_and(|known| known.revision == revision) {
            return;
        }
        let Some(description) =
            serde_json::from_slice(bytes).ok().and_then(|node: Value| describe(&node))
        else {
            return;
        };
        let before = known.remove(node);
        let is_kept = before.is_some_and(|known| known.is_kept && known.description == description);
        known.insert(node.clone(), Known { description, revision, is_kept });
    }
}

/// What of a Node is to be the same when it is registered again; `None` if it is not one of ours.
fn describe(node: &Value) -> Option<Value> {
    let (metadata, spec) = (&node["metadata"], &node["spec"]);
    if !spec["providerID"].as_str()?.starts_with(PROVIDER_PREFIX) {
        return None;
    }
    let mut kept = Map::new();
    for name in ["podCIDR", "podCIDRs", "providerID", "unschedulable"] {
        if !spec[name].is_null() {
            kept.insert(name.to_owned(), spec[name].clone());
        }
    }
    let taints = spec["taints"].as_array().into_iter().flatten();
    let taints: Vec<_> = taints
        .filter(|taint| !taint["key"].as_str().unwrap_or_default().starts_with(MANAGED_TAINTS))
        .cloned()
        .collect();
    if !taints.is_empty() {
        kept.insert("taints".to_owned(), Value::Array(taints));
    }

    Some(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": metadata["name"], "labels": metadata["labels"],
            "annotations": metadata["annotations"],
        },
        "spec": kept,
    }))
}

/// What registration works with.
pub struct Shared {
    /// Shows which Nodes there are.
    pub cluster: Cluster,
    /// Whether what it shows counts.
    pub evidence: Evidence,
    /// For the records and Nodes.
    pub client: Client,
    /// Where the records are.
    pub namespace: String,
    /// What Nodes were like.
    pub registrations: Registrations,
    /// One replica registers nodes.
    pub leadership: Leadership,
}

/// Sweeps until asked to stop.
pub async fn run(shared: Shared, stop: CancellationToken) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut has_loaded = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if !has_loaded {
            has_loaded = match shared.load().await {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(error = %telemetry::chain(&error), "cannot list the records of nodes");
                    false
                }
            };
        }
        // Every replica remembers: which is the leader may change.
        let found = shared.look();
        if shared.leadership.is_held() {
            shared.sweep(found).await;
        }
    }
}

/// Known nodes without a Node, and those of which it is not yet kept what they are like.
type Found = (Vec<NodeName>, Vec<(NodeName, Value)>);

impl Shared {
    fn records(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }

    /// Reads what earlier lives of cloudcore have kept.
    async fn load(&self) -> Result<(), kube::Error> {
        let path = format!("{}?labelSelector={RECORD_LABEL}", self.records());
        let list = send(&self.client, Request::get(path).body(Vec::new())).await?;
        let mut registrations = self.registrations.lock();
        for record in list["items"].as_array().into_iter().flatten() {
            let name = record["metadata"]["name"].as_str().unwrap_or_default();
            let text = record["metadata"]["annotations"][DESCRIPTION].as_str();
            let description = text.and_then(|text| serde_json::from_str(text).ok());
            if let (Ok(node), Some(description)) = (NodeName::new(name), description) {
                let known = Known { description, revision: 0, is_kept: true };
                registrations.entry(node).or_insert(known);
            }
        }

        Ok(())
    }

    async fn sweep(&self, (absent, unkept): Found) {
        for node in absent.into_iter().take(WRITES_MAX) {
            if let Err(error) = self.register(&node).await {
                tracing::warn!(%node, error = %telemetry::chain(&error), "cannot register a deleted node again");
            }
        }
        for (node, description) in unkept.into_iter().take(WRITES_MAX) {
            match self.keep(&node, &description).await {
                Ok(()) => {
                    if let Some(known) = self.registrations.lock().get_mut(&node) {
                        known.is_kept |= known.description == description;
                    }
                }
                Err(error) => {
                    tracing::debug!(%node, error = %telemetry::chain(&error), "cannot keep what a node is like");
                }
            }
        }
    }

    fn look(&self) -> Found {
        let index = self.cluster.index();
        // Before the first list of an epoch, absence says nothing.
        if index.passed(Kind::Node).epoch != self.evidence.epoch() {
            return (Vec::new(), Vec::new());
        }
        for (node, object) in index.all_nodes() {
            self.registrations.see(node, object.version.revision, &object.bytes);
        }
        let known = self.registrations.lock();
        let is_absent = |node: &&NodeName| index.node(node).is_none();
        let absent = known.keys().filter(is_absent).cloned().collect();
        let unkept = known.iter().filter(|(_, known)| !known.is_kept);
        let unkept = unkept.map(|(node, known)| (node.clone(), known.description.clone()));

        (absent, unkept.collect())
    }

    /// Registers a node again, unless it was removed for good.
    async fn register(&self, node: &NodeName) -> Result<(), kube::Error> {
        let record = Request::get(format!("{}/{node}", self.records())).body(Vec::new());
        let is_removed = match send(&self.client, record).await {
            Ok(record) => is_revoked(&record["metadata"]["annotations"]),
            Err(kube::Error::Api(status)) if status.code == 404 => true,
            Err(error) => return Err(error),
        };
        if is_removed {
            self.registrations.lock().remove(node);
            return Ok(());
        }
        let Some(description) = self.registrations.description(node) else { return Ok(()) };
        let create = Request::post("/api/v1/nodes")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(description.to_string().into_bytes());
        match send(&self.client, create).await {
            Ok(_) => {
                tracing::warn!(%node, "the Node was deleted; it is registered again, because its record is not revoked");
                Ok(())
            }
            // The session of the node was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn keep(&self, node: &NodeName, description: &Value) -> Result<(), kube::Error> {
        let annotations = json!({ DESCRIPTION: description.to_string() });
        let patch = json!({ "metadata": { "annotations": annotations } });
        let request = Request::patch(format!("{}/{node}", self.records()))
            .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
            .body(patch.to_string().into_bytes());

        send(&self.client, request).await.map(drop)
    }
}

async fn send(
    client: &Client,
    request: Result<Request<Vec<u8>>, http::Error>,
) -> Result<Value, kube::Error> {
    client.request::<Value>(request.map_err(kube::Error::HttpError)?).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::tests::api::Api;

    const RECORD: &str = "/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/e";
    const NODE: &str = "/api/v1/nodes/e";

    /// Whether a known node without a Node is registered again, given its record.
    async fn check(record: Option<Value>, is_listed: bool, expected: bool) {
        let api = Api::start().await;
        api.name_cluster("c");
        let evidence =
            Evidence::start(api.client.clone(), "holdfast", "test", "c".to_owned()).await.unwrap();
        let cluster = Cluster::new(evidence.epoch());
        let (client, namespace) = (api.client.clone(), "holdfast".to_owned());
        let (registrations, leadership) = Default::default();
        let shared = Shared { cluster, evidence, client, namespace, registrations, leadership };
        let node = NodeName::new("e").unwrap();
        let description = json!({ "metadata": { "name": "e" } });
        let known = Known { description, revision: 0, is_kept: true };
        shared.registrations.lock().insert(node, known);
        if is_listed {
            shared.cluster.index().reset(Kind::Node, Vec::new(), 5);
        }
        if let Some(record) = &record {
            api.put(RECORD, record.clone());
        }
        shared.sweep(shared.look()).await;
        assert_eq!(api.has(NODE), expected, "{record:?}, listed: {is_listed}");
    }

    #[test]
    fn a_node_is_registered_again_unless_it_was_removed_for_good() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let joined = json!({ "metadata": { "name": "e" } });
            let annotations = json!({ "holdfast.dev/revoked": "true" });
            let revoked = json!({ "metadata": { "name": "e", "annotations": annotations } });
            check(Some(joined.clone()), true, true).await;
            check(Some(joined), false, false).await;
            check(Some(revoked), true, false).await;
            check(None, true, false).await;
        });
    }

    #[test]
    fn what_users_set_is_kept_and_what_controllers_set_is_not() {
        let taint = |key: &str| json!({ "key": key, "effect": "NoSchedule" });
        let mut node = json!({
            "metadata": {
                "name": "e", "uid": "u-1", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "site": "berlin" }, "annotations": { "holdfast.dev/kubelet-port": "20001" },
            },
            "spec": {
                "providerID": "holdfast://e", "unschedulable": true, "podCIDR": "10.1.0.0/24",
                "taints": [taint("dedicated"), taint("node.kubernetes.io/unreachable")],
            },
            "status": { "conditions": [] },
        });
        let expected = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": "e", "labels": { "site": "berlin" },
                "annotations": { "holdfast.dev/kubelet-port": "20001" },
            },
            "spec": {
                "providerID": "holdfast://e", "unschedulable": true, "podCIDR": "10.1.0.0/24",
                "taints": [taint("dedicated")],
            },
        });
        assert_eq!(describe(&node), Some(expected));

        node["spec"]["providerID"] = json!("aws:///i-1");
        assert_eq!(describe(&node), None, "not ours");
    }
}
