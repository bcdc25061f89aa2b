//! A Node that is deleted although its machine belongs to the cluster costs no pod.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use system_tests::cluster::unique;
use system_tests::node::EdgeNode;
use system_tests::own::OwnCluster;
use system_tests::pods::{self, Incarnation};
use system_tests::{api, bystander};

/// Pod garbage collection alone takes up to a minute.
const LIMIT: Duration = Duration::from_mins(2);

/// T25: the Node is deleted while it is away, once with a cloudcore that sees it and once while there is
/// none; a pod of another deleted Node is collected as garbage, ours is not.
#[tokio::test]
async fn a_deleted_node_is_registered_again_and_keeps_its_pods() -> Result<()> {
    let own = OwnCluster::up().await?;
    let cluster = own.cluster();
    let client = cluster.client().await?;
    let node = EdgeNode::join(cluster, &client).await?;
    cluster.kubectl(&["label", "node", node.name(), "site=berlin"]).await?;
    cluster.apply(&[pods::sleeper("steady", node.name())]).await?;
    let path = pods::path("steady");
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let before = Incarnation::of(&before);
    let record = format!("/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/{}", node.name());
    let is_kept = |record: &Value| {
        let description = record["metadata"]["annotations"]["holdfast.dev/node"].as_str();
        description.is_some_and(|text| text.contains("berlin"))
    };
    cluster.until(&client, &record, "the Node's description", LIMIT, is_kept).await?;
    node.site().cut().await?;
    node.until_unknown(&client).await?;

    let path_of_node = node.path();
    let again = async || {
        let is_again = |node: &Value| node["metadata"]["labels"]["site"] == "berlin";
        cluster.until(&client, &path_of_node, "registered again", LIMIT, is_again).await
    };
    api::delete(&client, &path_of_node, None).await?;
    again().await?;

    let orphan = format!("orphan-{}", unique());
    bystander::register(&client, &orphan).await?;
    let mut control = pods::sleeper(&orphan, "none");
    control["spec"]["nodeName"] = json!(orphan);
    control["spec"]["nodeSelector"] = json!({});
    cluster.apply(&[control]).await?;
    own.kill_cloudcore().await?;
    api::delete(&client, &path_of_node, None).await?;
    bystander::remove(&client, &orphan).await?;
    ensure!(cluster.get(&client, &path_of_node).await?.is_none(), "who registered it?");
    own.start_cloudcore().await?;
    again().await?;
    cluster.until_gone(&client, &pods::path(&orphan), LIMIT).await?;
    let ours = cluster.until(&client, &path, "there", LIMIT, |_| true).await?;
    ensure!(ours["metadata"]["deletionTimestamp"].is_null(), "the pod was collected: {ours}");

    node.site().restore().await?;
    node.until_ready(&client).await?;
    let after = cluster.until(&client, &path, "Ready again", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == before, "{before:?} became {after}");

    Ok(())
}
