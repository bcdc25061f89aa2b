//! Losing the link costs a pod nothing: no eviction, no restart, no lost deletion.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use system_tests::bystander::{self, Healthy};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::{api, wait};

const LIMIT: Duration = Duration::from_mins(1);

/// Longer than toleration (10 s), grace (12 s) and the taint queue (10 s a node) together.
const EVICTION_LIMIT: Duration = Duration::from_mins(2);

/// More than twice the nodes that tests have down at once.
const HEALTHY_NODES: usize = 6;

/// Whether none of the node taints may evict the pod.
fn is_protected(pod: &Value) -> bool {
    let tolerations = pod["spec"]["tolerations"].as_array();

    tolerations.is_some_and(|tolerations| {
        tolerations.iter().all(|toleration| toleration["tolerationSeconds"].is_null())
    })
}

fn is_deleted(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_string()
}

/// T1: the node stays away until a pod without protection is evicted; ours is not, and nothing of it
/// has changed when the node is back.
#[tokio::test]
async fn a_pod_survives_the_eviction_of_its_unreachable_node() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let healthy = Healthy::start(&client, &format!("healthy-{}", unique()), HEALTHY_NODES).await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let silent = format!("silent-{}", unique());
    bystander::register(&client, &silent).await?;

    let name = format!("protected-{}", unique());
    let control = format!("unprotected-{}", unique());
    let mut unprotected = pods::sleeper(&control, "none");
    unprotected["spec"]["nodeName"] = json!(silent);
    unprotected["spec"]["nodeSelector"] = json!({});
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "selector": { "app": name }, "ports": [{ "port": 80 }] },
    });
    cluster.apply(&[pods::sleeper(&name, node.name()), unprotected, service]).await?;
    let path = pods::path(&name);
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let before = Incarnation::of(&before);

    cluster.until(&client, &path, "no limit on its tolerations", LIMIT, is_protected).await?;

    node.site().cut().await?;
    node.until_unknown(&client).await?;
    cluster.until(&client, &pods::path(&control), "evicted", EVICTION_LIMIT, is_deleted).await?;
    let tainted = |node: &Value| {
        node["spec"]["taints"].as_array().is_some_and(|taints| {
            taints.iter().any(|taint| {
                taint["key"] == "node.kubernetes.io/unreachable" && taint["effect"] == "NoExecute"
            })
        })
    };
    cluster.until(&client, &node.path(), "NoExecute taint", LIMIT, tainted).await?;
    // The control pod's toleration (10 s, the cluster's default) ends after ours began to count, so
    // wait for a second eviction on a taint that is younger than ours.
    let later = format!("later-{}", unique());
    bystander::register(&client, &later).await?;
    let second = format!("second-{}", unique());
    let mut unprotected = pods::sleeper(&second, "none");
    unprotected["spec"]["nodeName"] = json!(later);
    unprotected["spec"]["nodeSelector"] = json!({});
    cluster.apply(&[unprotected]).await?;
    cluster.until(&client, &pods::path(&second), "evicted", EVICTION_LIMIT, is_deleted).await?;
    let during = cluster.until(&client, &path, "there", LIMIT, |_| true).await?;
    ensure!(!is_deleted(&during), "the pod was evicted: {during}");

    node.site().restore().await?;
    node.until_ready(&client).await?;
    let after = cluster.until(&client, &path, "Ready again", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == before, "{before:?} became {after}");
    let slices = format!(
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
         ?labelSelector=kubernetes.io/service-name%3D{name}"
    );
    let ready = |slices: &Value| slices["items"][0]["endpoints"][0]["conditions"]["ready"] == true;
    cluster.until(&client, &slices, "endpoint ready", LIMIT, ready).await?;

    for name in [&control, &second, &name] {
        api::delete(&client, &pods::path(name), Some(0)).await?;
    }
    for name in [&silent, &later] {
        bystander::remove(&client, name).await?;
    }

    healthy.stop(&client).await
}

/// T2: what was deleted while the node was away is gone when it is back, and the agent stays.
#[tokio::test]
async fn deletions_made_while_the_node_is_away_happen_at_the_reconnect() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let (plain, forced) = (format!("plain-{}", unique()), format!("forced-{}", unique()));
    let deployment = format!("scaled-{}", unique());
    let template = pods::sleeper(&deployment, node.name());
    cluster
        .apply(&[
            pods::sleeper(&plain, node.name()),
            pods::sleeper(&forced, node.name()),
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": { "name": deployment, "namespace": "default" },
                "spec": {
                    "replicas": 2,
                    "selector": { "matchLabels": { "app": deployment } },
                    "template": {
                        "metadata": { "labels": { "app": deployment } },
                        "spec": template["spec"],
                    },
                },
            }),
        ])
        .await?;
    for name in [&plain, &forced] {
        cluster.until(&client, &pods::path(name), "Ready", LIMIT, pods::is_ready).await?;
    }
    let scaled = format!("/apis/apps/v1/namespaces/default/deployments/{deployment}");
    let available = |want: u64| move |d: &Value| d["status"]["availableReplicas"] == want;
    cluster.until(&client, &scaled, "2 available", LIMIT, available(2)).await?;
    let agent = node.agent_pid().await?;

    node.site().cut().await?;
    node.until_unknown(&client).await?;
    api::delete(&client, &pods::path(&plain), None).await?;
    api::delete(&client, &pods::path(&forced), Some(0)).await?;
    cluster.kubectl(&["scale", "deployment", &deployment, "--replicas=1"]).await?;
    node.site().restore().await?;
    node.until_ready(&client).await?;

    for name in [&plain, &forced] {
        cluster.until_gone(&client, &pods::path(name), LIMIT).await?;
    }
    cluster.until(&client, &scaled, "1 available", LIMIT, available(1)).await?;
    wait::until(
        "one container left on the node",
        LIMIT,
        || node.running_containers(),
        |running| running.len() == 1,
    )
    .await?;
    ensure!(node.agent_pid().await? == agent, "the agent was restarted");

    cluster.kubectl(&["delete", "deployment", &deployment]).await.map(drop)
}
