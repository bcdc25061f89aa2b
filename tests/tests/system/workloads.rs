//! Kinds of workload on an edge node: what holds on any node holds here.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use system_tests::api;
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods;
use system_tests::wait;

const LIMIT: Duration = Duration::from_mins(1);

/// A Job that finishes while the node is away is reported once, and not run again.
#[tokio::test]
async fn a_job_that_finishes_offline_is_reported_and_not_run_again() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("job-{}", unique());
    let folder = node.site().path("KUBELET_ROOT")?.with_file_name("job");
    let mut template = pods::script_pod(
        &name,
        node.name(),
        "echo run >> /shared/runs; while [ ! -e /shared/finish ]; do sleep 0.1; done",
    );
    template["spec"]["restartPolicy"] = json!("Never");
    template["spec"]["volumes"] = json!([
        { "name": "shared", "hostPath": { "path": folder, "type": "DirectoryOrCreate" } }
    ]);
    template["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "shared", "mountPath": "/shared" }]);
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "backoffLimit": 0, "template": { "spec": template["spec"] } },
    });
    cluster.apply(&[job]).await?;
    let path = format!("/apis/batch/v1/namespaces/default/jobs/{name}");
    let active = |job: &Value| job["status"]["ready"] == 1;
    cluster.until(&client, &path, "running", LIMIT, active).await?;

    node.site().cut().await?;
    node.until_unknown(&client).await?;
    tokio::fs::write(folder.join("finish"), "").await?;
    wait::until("the container's end", LIMIT, || node.running_containers(), Vec::is_empty).await?;
    node.site().restore().await?;
    let complete = |job: &Value| job["status"]["succeeded"] == 1;
    let done = cluster.until(&client, &path, "complete", LIMIT, complete).await?;
    ensure!(done["status"]["failed"].is_null(), "{done}");
    let runs = tokio::fs::read_to_string(folder.join("runs")).await?;
    ensure!(runs.lines().count() == 1, "it ran again: {runs:?}");

    cluster.kubectl(&["delete", "job", &name]).await.map(drop)
}

/// ConfigMap, Secret, downward API and token arrive as files and variables.
#[tokio::test]
async fn what_a_pod_refers_to_arrives_with_it() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("refers-{}", unique());
    let script = "cat /map/color /secret/password /pod/name; echo; echo $COLOR $PASSWORD $NODE; \
                  test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token; \
                  while :; do sleep 1000; done";
    let mut pod = pods::script_pod(&name, node.name(), script);
    pod["spec"]["volumes"] = json!([
        { "name": "map", "configMap": { "name": name } },
        { "name": "secret", "secret": { "secretName": name } },
        { "name": "pod", "downwardAPI": { "items": [
            { "path": "name", "fieldRef": { "fieldPath": "metadata.name" } } ] } },
    ]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([
        { "name": "map", "mountPath": "/map" },
        { "name": "secret", "mountPath": "/secret" },
        { "name": "pod", "mountPath": "/pod" },
    ]);
    pod["spec"]["containers"][0]["env"] = json!([
        { "name": "COLOR", "valueFrom": { "configMapKeyRef": { "name": name, "key": "color" } } },
        { "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": name, "key": "password" } } },
        { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
    ]);
    let metadata = json!({ "name": name, "namespace": "default" });
    cluster
        .apply(&[
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { "color": "red" } }),
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": { "password": "s3cret" } }),
            pod,
        ])
        .await?;
    cluster.until(&client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;
    let expected = format!("reds3cret{name}\nred s3cret {}\ntoken\n", node.name());
    wait::until(
        "the pod's account of what it got",
        LIMIT,
        async || cluster.kubectl(&["logs", &name]).await,
        |log| *log == expected,
    )
    .await?;

    cluster.kubectl(&["delete", "configmap,secret", &name]).await?;
    api::delete(&client, &pods::path(&name), Some(0)).await?;

    cluster.until_gone(&client, &pods::path(&name), LIMIT).await
}
