//! T7: what is deleted and made again under the same name is another object, also if the node was away
//! or the old one is not gone yet.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::held::Held;
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::{api, wait};

const LIMIT: Duration = Duration::from_mins(2);

/// Does not hear TERM.
const DEAF: &str = "trap '' TERM; echo started; while :; do sleep 1; done";

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

/// Waits until the pod is Ready as another one than `old`, and the node holds only that.
async fn until_replaced(
    cluster: &Cluster,
    client: &kube::Client,
    node: &EdgeNode,
    path: &str,
    old: &str,
) -> Result<()> {
    let replaced = |pod: &Value| uid(pod) != old && pods::is_ready(pod);
    let new = cluster.until(client, path, "Ready under a new UID", LIMIT, replaced).await?;
    wait::until(
        "only the new pod on the node",
        LIMIT,
        async || Ok(Held::by(node.site()).await?.differences(std::slice::from_ref(&new))),
        Vec::is_empty,
    )
    .await?;
    let restarts = new["status"]["containerStatuses"][0]["restartCount"].as_u64();
    ensure!(restarts == Some(0), "the new pod was restarted: {new}");

    Ok(())
}

#[tokio::test]
async fn a_config_map_made_anew_while_the_node_is_away_is_the_new_one() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("anew-{}", unique());
    let map = |color: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": "default" }, "data": { "color": color },
        })
    };
    let mut pod = pods::sleeper(&name, node.name());
    pod["spec"]["volumes"] = json!([{ "name": "map", "configMap": { "name": name } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "map", "mountPath": "/map" }]);
    cluster.apply(&[map("red"), pod]).await?;
    let path = pods::path(&name);
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let before = Incarnation::of(&before);
    let color = async || cluster.kubectl(&["exec", &name, "--", "cat", "/map/color"]).await;
    ensure!(color().await? == "red", "the first map");

    node.site().cut().await?;
    node.until_unknown(&client).await?;
    cluster.kubectl(&["delete", "configmap", &name]).await?;
    cluster.apply(&[map("blue")]).await?;
    node.site().restore().await?;
    node.until_ready(&client).await?;
    wait::until("the new map in the container", LIMIT, color, |color| color == "blue").await?;

    // The same with the node there: deleted for a while, the container keeps what it had.
    cluster.kubectl(&["delete", "configmap", &name]).await?;
    ensure!(color().await? == "blue", "a deleted map leaves a running container alone");
    cluster.apply(&[map("green")]).await?;
    wait::until("the third map in the container", LIMIT, color, |color| color == "green").await?;
    let after = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == before, "{before:?} became {after}");
    cluster.kubectl(&["delete", "configmap", &name]).await?;
    api::delete(&client, &path, Some(0)).await?;

    cluster.until_gone(&client, &path, LIMIT).await
}

#[tokio::test]
async fn a_pod_made_anew_is_another_pod() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("again-{}", unique());
    let pod = |script: &str, grace: u32| {
        let mut pod = pods::script_pod(&name, node.name(), script);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
        pod
    };
    let path = pods::path(&name);
    let collection = "/api/v1/namespaces/default/pods";
    api::create(&client, collection, &pod(DEAF, 20)).await?;
    let first = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;

    // While the node is away.
    node.site().cut().await?;
    node.until_unknown(&client).await?;
    api::delete(&client, &path, Some(0)).await?;
    api::create(&client, collection, &pod(DEAF, 20)).await?;
    node.site().restore().await?;
    node.until_ready(&client).await?;
    until_replaced(&cluster, &client, &node, &path, &uid(&first)).await?;

    // While the old one is in its grace.
    let second = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    api::delete(&client, &path, None).await?;
    let killing = async || {
        let events = "/api/v1/namespaces/default/events?fieldSelector=reason%3DKilling,\
                      involvedObject.uid%3D";
        cluster.get(&client, &format!("{events}{}", uid(&second))).await
    };
    let told = |events: &Option<Value>| {
        events.as_ref().is_some_and(|list| list["items"][0]["reason"] == "Killing")
    };
    wait::until("the old pod to be in its grace", LIMIT, killing, told).await?;
    api::delete(&client, &path, Some(0)).await?;
    api::create(&client, collection, &pod(DEAF, 1)).await?;
    until_replaced(&cluster, &client, &node, &path, &uid(&second)).await?;
    api::delete(&client, &path, None).await?;

    cluster.until_gone(&client, &path, LIMIT).await
}

/// The controller waits until the old pod is gone from the API server: by force, for the node is away.
#[tokio::test]
async fn a_pod_of_a_stateful_set_is_replaced_while_the_node_is_away() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("set-{}", unique());
    let template = pods::sleeper(&name, node.name());
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "replicas": 1, "serviceName": name,
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": template["spec"] },
        },
    });
    cluster.apply(&[set]).await?;
    let path = pods::path(&format!("{name}-0"));
    let first = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let hostname = cluster.kubectl(&["exec", &format!("{name}-0"), "--", "hostname"]).await?;
    ensure!(hostname.trim() == format!("{name}-0"), "the pod calls itself {hostname:?}");

    node.site().cut().await?;
    node.until_unknown(&client).await?;
    api::delete(&client, &path, Some(0)).await?;
    let other = |pod: &Value| uid(pod) != uid(&first);
    cluster.until(&client, &path, "made anew", LIMIT, other).await?;
    node.site().restore().await?;
    node.until_ready(&client).await?;
    until_replaced(&cluster, &client, &node, &path, &uid(&first)).await?;
    cluster.kubectl(&["delete", "statefulset", &name]).await?;

    cluster.until_gone(&client, &path, LIMIT).await
}
