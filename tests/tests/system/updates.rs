//! What a pod refers to reaches its files, whenever it changes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::Client;
use serde_json::json;
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::{api, pods};

/// A pod's start, or a change's way, on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// Bursts of changes, and changes in each: the last may come at any moment of the work for one before.
const BURSTS: usize = 12;
const CHANGES: usize = 12;

/// Changes the ConfigMap in a row; what it says in the end.
async fn burst(client: &Client, name: &str, number: usize) -> Result<String> {
    let path = format!("/api/v1/namespaces/default/configmaps/{name}");
    for change in 0..CHANGES {
        let data = json!({ "data": { "key": format!("{number}.{change}") } });
        api::merge(client, &path, &data).await?;
    }

    Ok(format!("{number}.{}", CHANGES - 1))
}

#[tokio::test]
async fn the_last_of_many_changes_is_what_a_file_says() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    for number in 0..BURSTS {
        // While the pod starts, and while it runs.
        let name = format!("updates-{}", unique());
        api::create(&client, "/api/v1/namespaces/default/configmaps", &pods::config_map(&name, ""))
            .await?;
        let pod = pods::sleeper_with_map(&name, node.name(), &name);
        let pod = api::create(&client, "/api/v1/namespaces/default/pods", &pod).await?;
        let uid = pod["metadata"]["uid"].as_str().context("a pod has a UID")?;

        let last = burst(&client, &name, number).await?;
        node.until_map_says(uid, &last, LIMIT).await?;
        let last = burst(&client, &name, number + BURSTS).await?;
        node.until_map_says(uid, &last, LIMIT).await?;

        api::delete(&client, &pods::path(&name), None).await?;
        cluster.until_gone(&client, &pods::path(&name), LIMIT).await?;
        cluster.kubectl(&["delete", "configmap", &name]).await?;
    }

    Ok(())
}
