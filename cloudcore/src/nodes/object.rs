//! The Node object: registered when the node first says how it is, kept current after.

use http::Request;
use jiff::Timestamp;
use kube::Client;
use proto::ids::NodeName;
use proto::wire::Health;
use serde_json::{Value, json};

use super::{PROVIDER_PREFIX, port};

/// Pod loop and runtime must have responded within this.
const RESPONSIVE_MS: u32 = 30_000;

/// The Node's annotation with the edge's own address, which `hostIP` shows.
const NODE_IP_ANNOTATION: &str = "holdfast.dev/node-ip";

/// Labels that every edge node has, besides those of the report.
///
/// The last two keep cloud load balancers and eviction limits from counting on it.
const LABELS: [(&str, &str); 3] = [
    ("node-role.kubernetes.io/edge", ""),
    ("node.kubernetes.io/exclude-disruption", "true"),
    ("node.kubernetes.io/exclude-from-external-load-balancers", "true"),
];

/// Whether the node may be called alive.
pub(super) fn is_responsive(health: &Health) -> bool {
    health.pod_loop_age_ms <= RESPONSIVE_MS && health.runtime_age_ms <= RESPONSIVE_MS
}

fn path(node: &NodeName) -> String {
    format!("/api/v1/nodes/{node}")
}

async fn send(
    client: &Client,
    request: Result<Request<Vec<u8>>, http::Error>,
) -> Result<Value, kube::Error> {
    client.request::<Value>(request.map_err(kube::Error::HttpError)?).await
}

/// Makes the Node object unless it is there; returns its UID. `before` is what it was like, if it was.
///
/// A cloud-controller-manager deletes NotReady nodes that it does not know unless their provider is
/// another's: hence the provider id.
pub(super) async fn ensure(
    client: &Client,
    node: &NodeName,
    before: Option<Value>,
    report: &Value,
) -> Result<String, kube::Error> {
    let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let get = Request::get(path(node)).body(Vec::new());
    match send(client, get).await {
        Ok(object) => return Ok(uid(&object)),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error),
    }
    let object = registered(node, before, report);
    let create = Request::post("/api/v1/nodes")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(object.to_string().into_bytes());
    tracing::info!(%node, "registering the node");

    send(client, create).await.map(|object| uid(&object))
}

/// The Node to be registered: as it was `before`, if it was deleted, with the labels of the report.
fn registered(node: &NodeName, before: Option<Value>, report: &Value) -> Value {
    let is_new = before.is_none();
    let mut object = before.unwrap_or_else(|| {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": node.as_str(), "labels": {} },
            "spec": { "providerID": format!("{PROVIDER_PREFIX}{node}") },
        })
    });
    for (key, value) in report["metadata"]["labels"].as_object().into_iter().flatten() {
        object["metadata"]["labels"][key] = value.clone();
    }
    for (key, value) in LABELS {
        object["metadata"]["labels"][key] = json!(value);
    }
    if is_new && report["spec"]["taints"].is_array() {
        object["spec"]["taints"] = report["spec"]["taints"].clone();
    }

    object
}

/// What of the cloud a node's status names.
#[derive(Clone, Debug)]
pub(super) struct Facing<'a> {
    /// Where API servers find the node's kubelet API.
    pub address: std::net::IpAddr,
    /// The edge's own address.
    pub node_ip: &'a str,
    /// The port of its kubelet API.
    pub port: u16,
    /// How the node is.
    pub health: Option<Health>,
}

/// Writes the status that the node reported.
pub(super) async fn write_status(
    client: &Client,
    node: &NodeName,
    report: &Value,
    facing: &Facing<'_>,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let mut status = report["status"].clone();
    status["addresses"] = json!([
        { "type": "InternalIP", "address": facing.address }, { "$patch": "replace" },
    ]);
    status["daemonEndpoints"] = json!({ "kubeletEndpoint": { "Port": facing.port } });
    let heartbeat = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["lastHeartbeatTime"] = json!(heartbeat);
        let is_stuck = facing.health.as_ref().is_some_and(|health| !is_responsive(health));
        if is_stuck && condition["type"] == "Ready" {
            condition["status"] = json!("False");
            condition["reason"] = json!("AgentNotResponding");
            condition["message"] = json!("pod loop or container runtime did not respond for 30 s");
        }
    }
    let patch = json!({
        "metadata": { "annotations": {
            NODE_IP_ANNOTATION: facing.node_ip,
            port::ANNOTATION: facing.port.to_string(),
        } },
        "status": status,
    });
    let request = Request::patch(format!("{}/status", path(node)))
        .header(http::header::CONTENT_TYPE, "application/strategic-merge-patch+json")
        .body(patch.to_string().into_bytes());

    send(client, request).await.map(drop)
}
