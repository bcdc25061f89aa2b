//! Containers that run beside those of a pod: sidecars, which come first and go last, and ephemeral
//! containers, which look into a pod that runs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::{api, pods, wait};

const LIMIT: Duration = Duration::from_mins(2);

/// Sidecar `first` is there before `main` starts, and both sidecars outlive it: each says with its exit
/// code whether whom it serves was there before it or had ended.
fn served(name: &str, node: &str) -> Value {
    let mut pod = pods::script_pod(name, node, "test -e /all/up && touch /all/main; sleep 1");
    let template = pod["spec"]["containers"][0].clone();
    let beside = |name: &str, begin: &str, end: &str| {
        let mut container = template.clone();
        let script = format!(
            "{begin}; trap 'if {end}; then exit 0; else exit 9; fi' TERM; while :; do sleep 1000 & wait; done"
        );
        container["name"] = json!(name);
        container["command"] = json!(["/bin/sh", "-c", script]);
        container["restartPolicy"] = json!("Always");
        container
    };
    let mut first = beside("first", "sleep 2; touch /all/up", "test -e /all/second");
    first["startupProbe"] =
        json!({ "exec": { "command": ["test", "-e", "/all/up"] }, "periodSeconds": 1 });
    let second =
        beside("second", "test -e /all/up || exit 8", "touch /all/second && test -e /all/main");
    let spec = &mut pod["spec"];
    spec["restartPolicy"] = json!("Never");
    spec["volumes"] = json!([{ "name": "all", "emptyDir": {} }]);
    spec["initContainers"] = json!([first, second]);
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            container["volumeMounts"] = json!([{ "name": "all", "mountPath": "/all" }]);
        }
    }

    pod
}

fn exit_codes(pod: &Value) -> Vec<(String, Option<i64>)> {
    let lists = ["initContainerStatuses", "containerStatuses"];
    let all = lists.iter().flat_map(|list| pod["status"][*list].as_array().into_iter().flatten());

    all.map(|status| {
        let name = status["name"].as_str().unwrap_or_default().to_owned();
        (name, status["state"]["terminated"]["exitCode"].as_i64())
    })
    .collect()
}

#[tokio::test]
async fn sidecars_come_first_and_go_last() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("served-{}", unique());
    let path = pods::path(&name);
    cluster.apply(&[served(&name, node.name())]).await?;
    let over =
        |pod: &Value| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let pod = cluster.until(&client, &path, "over", LIMIT, over).await?;
    ensure!(pod["status"]["phase"] == "Succeeded", "{pod}");
    let expected = ["first", "second", "main"].map(|name| (name.to_owned(), Some(0)));
    ensure!(exit_codes(&pod) == expected, "{pod}");

    api::delete(&client, &path, None).await
}

#[tokio::test]
async fn an_ephemeral_container_looks_into_a_running_pod() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("looked-{}", unique());
    let path = pods::path(&name);
    cluster.apply(&[pods::sleeper(&name, node.name())]).await?;
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;

    // The process of the target is its first one, seen from there.
    let script = "tr '\\0' ' ' </proc/1/cmdline; cat /proc/1/root/etc/hostname 2>&1; exit 3";
    let look = json!({ "spec": { "ephemeralContainers": [{
        "name": "look", "image": pods::BUSYBOX, "imagePullPolicy": "IfNotPresent",
        "targetContainerName": "main", "command": ["/bin/sh", "-c", script],
    }] } });
    api::strategic_merge(&client, &format!("{path}/ephemeralcontainers"), &look).await?;
    let ended = |pod: &Value| {
        pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
    };
    let pod = cluster.until(&client, &path, "looked into", LIMIT, ended).await?;
    let log = async || cluster.kubectl(&["logs", &name, "-c", "look"]).await;
    let said = |log: &String| log.contains("echo started");
    wait::until("the look to see the pod's process", LIMIT, log, said).await?;
    ensure!(pods::is_ready(&pod), "{pod}");
    let (before, after) = (pods::Incarnation::of(&before), pods::Incarnation::of(&pod));
    ensure!(before == after, "{before:?} became {after:?}");

    // It stays as it ended, also for an agent that starts again.
    node.kill_agent().await?;
    node.start_agent().await?;
    node.until_ready(&client).await?;
    let pod = cluster.get(&client, &path).await?.context("the pod is there")?;
    ensure!(ended(&pod) && pods::Incarnation::of(&pod) == before, "{pod}");

    api::delete(&client, &path, None).await
}
