//! cloudcore may do what it does, and no more: it runs with the manifests that users install. And what it
//! writes about nodes is what a kubelet would.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::process::script;
use system_tests::{api, pods};

const LIMIT: Duration = Duration::from_mins(2);

const ACCOUNT: &str = "system:serviceaccount:holdfast:cloudcore";

/// Whether the account of cloudcore may do this.
async fn may(cluster: &Cluster, what: &str) -> Result<bool> {
    let words = ["auth", "can-i", "--as", ACCOUNT];
    let args: Vec<&str> = words.into_iter().chain(what.split(' ')).collect();
    let output = cluster.kubectl_command(&args)?.output().await?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(said == "yes" || said.starts_with("no"), "can-i {what}: {output:?}");

    Ok(said == "yes")
}

/// A node's whole life needs nothing that the manifests do not grant.
#[tokio::test]
async fn cloudcore_needs_no_more_than_its_manifests_grant() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("granted-{}", unique());
    let mut pod = pods::sleeper(&name, node.name());
    pod["spec"]["containers"][0]["envFrom"] = json!([
        { "configMapRef": { "name": name } }, { "secretRef": { "name": name } },
    ]);
    let data = |kind: &str| {
        json!({
            "apiVersion": "v1", "kind": kind,
            "metadata": { "name": name, "namespace": "default" }, "data": { "KEY": "dmFsdWU=" },
        })
    };
    cluster.apply(&[data("ConfigMap"), data("Secret"), pod]).await?;
    let path = pods::path(&name);
    cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    ensure!(cluster.kubectl(&["logs", &name]).await? == "started\n", "another log");
    let events = format!(
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{name},reason%3DStarted"
    );
    let some = |events: &Value| !events["items"].as_array().is_none_or(Vec::is_empty);
    cluster.until(&client, &events, "an Event of the node", LIMIT, some).await?;
    api::delete(&client, &path, None).await?;
    cluster.until_gone(&client, &path, LIMIT).await?;
    for kind in ["configmaps", "secrets"] {
        api::delete(&client, &format!("/api/v1/namespaces/default/{kind}/{name}"), None).await?;
    }

    let log = script("dev-cloudcore", &["log", "--name", cluster.name()], &[]).await?;
    let refused: Vec<&str> =
        log.lines().filter(|line| line.contains("forbidden") && line.contains(ACCOUNT)).collect();
    ensure!(refused.is_empty(), "cloudcore may not do what it does: {refused:#?}");

    Ok(())
}

/// A repeated Event is counted in the first one, as the kubelet's are.
#[tokio::test]
async fn repeated_events_are_counted() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("loops-{}", unique());
    cluster.apply(&[pods::script_pod(&name, node.name(), "exit 1")]).await?;
    let path = format!(
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{name},reason%3DStarted"
    );
    let counted = |events: &Value| events["items"][0]["count"].as_u64() >= Some(2);
    let events = cluster.until(&client, &path, "counted", LIMIT, counted).await?;
    ensure!(events["items"].as_array().is_some_and(|all| all.len() == 1), "not one: {events}");
    api::delete(&client, &pods::path(&name), Some(0)).await?;

    cluster.until_gone(&client, &pods::path(&name), LIMIT).await
}

/// What would make cloudcore an administrator is not granted.
#[tokio::test]
async fn what_cloudcore_does_not_do_is_not_granted() -> Result<()> {
    let cluster = Cluster::shared().await?;
    for what in [
        "patch pods --subresource status --namespace default",
        "create serviceaccounts --subresource token --namespace default",
        "update leases --namespace holdfast",
        // The mirrors of static pods.
        "create pods --namespace default",
    ] {
        ensure!(may(&cluster, what).await?, "cloudcore may not {what}");
    }
    for what in [
        "create pods --subresource exec --namespace default",
        "update secrets --namespace default",
        "create secrets --namespace kube-system",
        "delete secrets --namespace holdfast",
        "delete nodes",
        "patch nodes",
        "delete leases --namespace kube-node-lease",
        "update leases --namespace kube-system",
        "create namespaces",
        "impersonate users",
        "create clusterrolebindings",
        "create rolebindings --namespace holdfast",
        "create nodes --subresource proxy",
    ] {
        ensure!(!may(&cluster, what).await?, "cloudcore may {what}");
    }

    Ok(())
}
