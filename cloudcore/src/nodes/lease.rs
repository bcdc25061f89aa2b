//! The node's Lease, by which the node controller sees that it lives (KEP-589).

use http::Request;
use jiff::Timestamp;
use kube::Client;
use proto::ids::NodeName;
use serde_json::{Value, json};

/// As the kubelet's (`nodeLeaseDurationSeconds`).
const LEASE_SECONDS: u32 = 40;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// Renews the Lease, or makes it.
pub(super) async fn renew(
    client: &Client,
    node: &NodeName,
    node_uid: &str,
    now: Timestamp,
) -> Result<(), kube::Error> {
    let spec = json!({
        "holderIdentity": node.as_str(),
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": format!("{now:.6}"),
    });
    let patch = Request::patch(format!("{LEASES}/{node}"))
        .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
        .body(json!({ "spec": spec }).to_string().into_bytes());
    match client.request::<Value>(patch.map_err(kube::Error::HttpError)?).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": node.as_str(), "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": node_uid }] },
                "spec": spec,
            });
            let create = Request::post(LEASES)
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(lease.to_string().into_bytes());
            client.request::<Value>(create.map_err(kube::Error::HttpError)?).await.map(drop)
        }
        Err(error) => Err(error),
    }
}
