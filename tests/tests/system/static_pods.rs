//! Pods from files of the node: they run without the cloud, which shows them as a stock kubelet's.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::site::Site;
use system_tests::stock::StockNode;
use system_tests::{api, wait};

use crate::alike::general::differences;
use crate::node_alike;

const LIMIT: Duration = Duration::from_mins(2);

/// Says `word`, and as whom. YAML, as people write it.
fn manifest(word: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: static
  labels: {{app: static}}
  annotations: {{note: mine}}
spec:
  terminationGracePeriodSeconds: 5
  priorityClassName: system-node-critical
  containers:
  - name: main
    image: {image}
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo {word} $NAME; trap \"exit 0\" TERM; while :; do sleep 1000 & wait; done']
    env:
    - {{name: NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
    ports: [{{containerPort: 80}}]
    resources: {{limits: {{cpu: 1, memory: 64Mi}}, requests: {{cpu: 0.01}}}}
    readinessProbe: {{exec: {{command: [\"true\"]}}, periodSeconds: 1}}
    volumeMounts: [{{name: scratch, mountPath: /scratch}}, {{name: host, mountPath: /host}}]
  volumes:
  - name: scratch
  - {{name: host, hostPath: {{path: /tmp}}}}
",
        image = pods::BUSYBOX,
    )
}

fn folder(site: &Site) -> Result<PathBuf> {
    Ok(site.path("STATE")?.join("static-pods"))
}

/// As editors save: the file is there in whole or not at all.
async fn save(site: &Site, text: &str) -> Result<()> {
    let dir = folder(site)?;
    tokio::fs::write(dir.join(".new"), text).await?;
    tokio::fs::rename(dir.join(".new"), dir.join("static.yaml")).await?;

    Ok(())
}

async fn ready(cluster: &Cluster, client: &Client, node: &str) -> Result<Value> {
    let path = pods::path(&format!("static-{node}"));

    cluster.until(client, &path, "Ready", LIMIT, pods::is_ready).await
}

/// The pod without what differs from node to node and from moment to moment.
fn plain(pod: &Value) -> Value {
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
    let hash = &pod["metadata"]["annotations"]["kubernetes.io/config.hash"];
    let words = [(node, "NODE"), (hash.as_str().unwrap_or_default().to_owned(), "HASH")];
    let mut pod = pod.clone();
    for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
        pod["metadata"][field] = json!("ANY");
    }
    pod["metadata"]["ownerReferences"][0]["uid"] = json!("ANY");
    let seen = &mut pod["metadata"]["annotations"]["kubernetes.io/config.seen"];
    *seen = json!(if seen.is_string() { "TIME" } else { "none" });
    let status = &mut pod["status"];
    for field in ["hostIP", "hostIPs", "podIP", "podIPs", "startTime"] {
        status[field] = json!(!status[field].is_null());
    }
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["lastTransitionTime"] = json!("TIME");
    }
    if let Some(conditions) = status["conditions"].as_array_mut() {
        conditions.sort_by_key(|condition| condition["type"].to_string());
    }
    let container = &mut status["containerStatuses"][0];
    container["containerID"] = json!("ID");
    container["state"]["running"]["startedAt"] = json!("TIME");
    let mut text = pod.to_string();
    for (word, general) in words {
        text = text.replace(&word, general);
    }

    serde_json::from_str(&text).unwrap_or_default()
}

async fn object(client: &Client, node: &str) -> Result<Value> {
    let request = http::Request::get(format!("/api/v1/nodes/{node}")).body(Vec::new())?;

    Ok(client.request(request).await?)
}

async fn runs(node: &EdgeNode, limit: Duration) -> Result<()> {
    let running = || node.running_containers();

    wait::until("the static pod runs", limit, running, |names| {
        names.iter().any(|n| n.ends_with("/main"))
    })
    .await
    .map(drop)
}

#[tokio::test]
async fn node_and_static_pods_show_as_a_stock_kubelets_and_need_no_cloud() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let (node, stock) =
        tokio::try_join!(EdgeNode::join(&cluster, &client), StockNode::up(&cluster))?;
    let (ours, theirs) =
        tokio::try_join!(object(&client, node.name()), object(&client, stock.name()))?;
    node_alike::ensure_alike(&ours, &theirs)?;
    for site in [node.site(), stock.site()] {
        save(site, &manifest("one")).await?;
    }
    let ours = ready(&cluster, &client, node.name()).await?;
    let theirs = ready(&cluster, &client, stock.name()).await?;
    let found = differences("", &plain(&ours), &plain(&theirs));
    ensure!(found.is_empty(), "the mirror is not a stock kubelet's: {found:#?}");
    let name = format!("static-{}", node.name());
    let log = cluster.kubectl(&["logs", &name]).await?;
    ensure!(log == format!("one {name}\n"), "another log: {log:?}");

    // Who deletes the mirror gets another, of the same container.
    let path = pods::path(&name);
    let before = Incarnation::of(&ours);
    api::delete(&client, &path, None).await?;
    let is_new = |pod: &Value| pods::is_ready(pod) && pod["metadata"]["uid"] != before.uid.as_str();
    let again = cluster.until(&client, &path, "mirrored again", LIMIT, is_new).await?;
    ensure!(Incarnation::of(&again).containers == before.containers, "it was restarted");

    // A broken file is named, and leaves the pod alone.
    save(node.site(), "kind: [").await?;
    let events = format!(
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{},reason%3DInvalidStaticPod",
        node.name()
    );
    let named = |events: &Value| events["items"].to_string().contains("static.yaml: not YAML");
    cluster.until(&client, &events, "the file named", LIMIT, named).await?;

    // Another pod in the file takes the place of the first. It runs in a class of the cluster, also later
    // without the cloud.
    let class = format!("static-{}", unique());
    cluster
        .apply(&[json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": { "name": class }, "handler": "runc" })])
        .await?;
    let in_class = format!("\nspec:\n  runtimeClassName: {class}\n");
    save(node.site(), &manifest("two").replace("\nspec:\n", &in_class)).await?;
    let hash = again["metadata"]["annotations"]["kubernetes.io/config.hash"].clone();
    let replaced = |pod: &Value| {
        pods::is_ready(pod) && pod["metadata"]["annotations"]["kubernetes.io/config.hash"] != hash
    };
    cluster.until(&client, &path, "replaced", LIMIT, replaced).await?;
    let log = cluster.kubectl(&["logs", &name]).await?;
    ensure!(log == format!("two {name}\n"), "another log: {log:?}");
    let mains =
        node.running_containers().await?.into_iter().filter(|name| name.ends_with("/main")).count();
    ensure!(mains == 1, "{mains} pods of one file run");

    // The power goes and comes back without the cloud; the file goes.
    node.site().cut().await?;
    node.site().power_off().await?;
    node.site().power_on().await?;
    node.start_agent().await?;
    runs(&node, LIMIT).await?;
    tokio::fs::remove_file(folder(node.site())?.join("static.yaml")).await?;
    wait::until("it stops with its file", LIMIT, || node.running_containers(), Vec::is_empty)
        .await?;
    ensure!(cluster.get(&client, &path).await?.is_some(), "the mirror went without the cloud");
    node.site().restore().await?;
    cluster.kubectl(&["delete", "runtimeclass", &class, "--wait=false"]).await?;

    cluster.until_gone(&client, &path, LIMIT).await
}

/// What `podcore` fills in is what the API server fills in.
#[tokio::test]
async fn an_api_server_defaults_pods_as_we_do() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let cases = include_str!("../../../edgecore/podcore/src/defaults/cases.json");
    let cases: Vec<Value> = serde_json::from_str(cases)?;
    for case in cases {
        let mut spec = case["sent"].clone();
        spec["nodeName"] = json!("none");
        spec["automountServiceAccountToken"] = json!(false);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "defaults", "namespace": "default" }, "spec": spec,
        });
        let made = api::create(&client, "/api/v1/namespaces/default/pods?dryRun=All", &pod).await;
        let mut given = made.with_context(|| case["what"].to_string())?["spec"].take();
        if let Some(given) = given.as_object_mut() {
            // By admission, not by default.
            for added in [
                "automountServiceAccountToken",
                "nodeName",
                "preemptionPolicy",
                "priority",
                "serviceAccount",
                "serviceAccountName",
                "tolerations",
            ] {
                given.remove(added);
            }
        }
        let found = differences("", &case["given"], &given);
        ensure!(found.is_empty(), "{}: {found:#?}", case["what"]);
    }

    Ok(())
}
