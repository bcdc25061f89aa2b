//! Containers that are asked how they are, by command, HTTP and TCP, also without the cloud; and the
//! hooks after their start and before their stop.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::process::script;
use system_tests::{api, pods, wait};

const LIMIT: Duration = Duration::from_mins(2);

/// A web server says whether it is alive and ready by the files that it has; beside it a container
/// that is ready when the server listens, and has started when `cloudcore` answered by TLS.
fn asked(name: &str, node: &str, cloudcore: (&str, u16)) -> Value {
    let script = r#"mkdir -p /www/cgi-bin; cd /www/cgi-bin; echo yes >/www/alive
        printf '#!/bin/sh\nprintf "HTTP/1.0 302 Found\\r\\nLocation: ../alive\\r\\n\\r\\n"\n' >alive
        chmod +x alive; httpd -p 8080 -h /www; trap 'exit 0' TERM
        while :; do sleep 1 & wait $!; done"#;
    let mut pod = pods::script_pod(name, node, script);
    let spec = &mut pod["spec"];
    spec["volumes"] = json!([{ "name": "www", "emptyDir": {} }]);
    let page = |path: &str| json!({ "path": path, "port": "web" });
    let server = &mut spec["containers"][0];
    server["ports"] = json!([{ "name": "web", "containerPort": 8080 }]);
    server["volumeMounts"] = json!([{ "name": "www", "mountPath": "/www" }]);
    server["env"] = json!([{ "name": "FILE", "value": "/www/started" }]);
    server["startupProbe"] = json!({
        "exec": { "command": ["test", "-f", "$(FILE)"] }, "periodSeconds": 1,
        "failureThreshold": 300,
    });
    server["readinessProbe"] =
        json!({ "httpGet": page("/is it ready"), "periodSeconds": 1, "failureThreshold": 1 });
    server["livenessProbe"] = json!({
        "httpGet": page("/cgi-bin/alive"), "periodSeconds": 1, "failureThreshold": 2,
        "terminationGracePeriodSeconds": 2,
    });
    let mut beside = pods::sleeper(name, node)["spec"]["containers"][0].clone();
    beside["name"] = json!("beside");
    beside["readinessProbe"] = json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1 });
    let secure = |path: &str| json!({ "scheme": "HTTPS", "host": cloudcore.0, "port": cloudcore.1, "path": path });
    beside["startupProbe"] = json!({ "httpGet": secure("/healthz"), "periodSeconds": 1 });
    beside["lifecycle"] = json!({ "postStart": { "httpGet": secure("/hook") } });
    if let Some(containers) = spec["containers"].as_array_mut() {
        containers.push(beside);
    }

    pod
}

fn status<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let mut all = pod["status"]["containerStatuses"].as_array().into_iter().flatten();

    all.find(|status| status["name"] == container).unwrap_or(&Value::Null)
}

/// Whether the server is seen as started and ready, and the container beside it as ready.
fn is(pod: &Value, started: bool, ready: bool, beside: bool) -> bool {
    let server = status(pod, "main");

    server["started"] == started
        && server["ready"] == ready
        && status(pod, "beside")["ready"] == beside
}

async fn events(cluster: &Cluster, name: &str) -> Result<String> {
    let field = format!("involvedObject.name={name}");
    let columns = "custom-columns=R:.reason,M:.message";

    cluster.kubectl(&["get", "events", "--field-selector", &field, "-o", columns]).await
}

async fn until_event(cluster: &Cluster, name: &str, words: &[&str]) -> Result<()> {
    let told =
        |said: &String| said.lines().any(|line| words.iter().all(|word| line.contains(word)));
    let what = format!("an Event of {words:?}");

    wait::until(&what, LIMIT, || events(cluster, name), told).await.map(drop)
}

/// When the pod became ready.
fn ready_since(pod: &Value) -> Option<&str> {
    let mut conditions = pod["status"]["conditions"].as_array()?.iter();

    conditions.find(|condition| condition["type"] == "Ready")?["lastTransitionTime"].as_str()
}

async fn until_file(path: &Path, limit: Duration) -> Result<()> {
    let what = format!("{} to be written", path.display());

    wait::until(&what, limit, || async { Ok(path.exists()) }, |there| *there).await.map(drop)
}

#[tokio::test]
async fn probes_decide_what_is_ready_and_what_is_restarted() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("asked-{}", unique());
    let path = pods::path(&name);
    let cloudcore = script("dev-cloudcore", &["address", "--name", cluster.name()], &[]).await?;
    let (host, port) = cloudcore.trim().split_once(':').context("an address has a port")?;
    let pod = asked(&name, node.name(), (host, port.parse()?));
    let made = api::create(&client, "/api/v1/namespaces/default/pods", &pod).await?;
    let uid = made["metadata"]["uid"].as_str().context("a pod has a uid")?;
    let www: PathBuf = node.site().path("KUBELET_ROOT")?.join("pods").join(uid);
    let www = www.join("volumes/kubernetes.io~empty-dir/www");
    let until = async |what: &str, holds: fn(&Value) -> bool| {
        cluster.until(&client, &path, what, LIMIT, holds).await
    };

    until("listening, not started", |pod| is(pod, false, false, true)).await?;
    until_event(&cluster, &name, &["Unhealthy", "Startup probe failed"]).await?;
    std::fs::write(www.join("started"), "")?;
    until("started, not ready", |pod| is(pod, true, false, true)).await?;
    std::fs::write(www.join("is it ready"), "")?;
    until("ready", pods::is_ready).await?;
    std::fs::remove_file(www.join("is it ready"))?;
    until("unready", |pod| is(pod, true, false, true) && !pods::is_ready(pod)).await?;
    until_event(&cluster, &name, &["Unhealthy", "Readiness probe failed", "statuscode: 404"])
        .await?;
    std::fs::write(www.join("is it ready"), "")?;
    let before = until("ready", pods::is_ready).await?;

    // What probes came to outlives the agent: the pod stays ready.
    node.kill_agent().await?;
    node.start_agent().await?;
    node.until_ready(&client).await?;
    let after = until("ready", pods::is_ready).await?;
    ensure!(ready_since(&before) == ready_since(&after), "{before} {after}");

    // Without the cloud a container that is not alive is restarted as well.
    node.site().cut().await?;
    std::fs::remove_file(www.join("alive"))?;
    until_file(&www.join("alive"), LIMIT).await?;
    node.site().restore().await?;
    let restarted = |pod: &Value| status(pod, "main")["restartCount"] == 1 && pods::is_ready(pod);
    let after = until("restarted once and ready", restarted).await?;
    ensure!(after["metadata"]["uid"] == uid && status(&after, "beside")["restartCount"] == 0);
    until_event(&cluster, &name, &["Killing", "failed liveness probe, will be restarted"]).await?;

    api::delete(&client, &path, None).await?;
    cluster.until_gone(&client, &path, LIMIT).await
}

#[tokio::test]
async fn hooks_run_after_the_start_and_before_the_stop() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let folder = node.site().path("STATE")?.join("hooks");
    std::fs::create_dir(&folder)?;
    let name = format!("hooked-{}", unique());
    let mut pod = pods::sleeper(&name, node.name());
    let spec = &mut pod["spec"];
    spec["volumes"] = json!([{ "name": "out", "hostPath": { "path": folder } }]);
    let wait = "until [ -e /out/go ]; do sleep 0.1; done; echo $0 >/out/started";
    let container = &mut spec["containers"][0];
    container["volumeMounts"] = json!([{ "name": "out", "mountPath": "/out" }]);
    container["lifecycle"] = json!({
        "postStart": { "exec": { "command": ["sh", "-c", wait, "$(WHO)"] } },
        "preStop": { "exec": { "command": ["sh", "-c", "echo x >/out/stopping; exit 3"] } },
    });
    container["env"] = json!([{ "name": "WHO", "value": "me" }]);
    let path = pods::path(&name);
    api::create(&client, "/api/v1/namespaces/default/pods", &pod).await?;

    until_event(&cluster, &name, &["Started"]).await?;
    let waits =
        |pod: &Value| status(pod, "main")["state"]["waiting"]["reason"] == "ContainerCreating";
    let seen = cluster.until(&client, &path, "being created", LIMIT, waits).await?;
    ensure!(seen["status"]["phase"] == "Pending", "{seen}");
    std::fs::write(folder.join("go"), "")?;
    cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    ensure!(std::fs::read_to_string(folder.join("started"))? == "me\n", "the variable is not set");

    api::delete(&client, &path, None).await?;
    cluster.until_gone(&client, &path, LIMIT).await?;
    ensure!(folder.join("stopping").exists(), "no hook ran before the stop");
    until_event(&cluster, &name, &["FailedPreStopHook", "PreStopHook failed"]).await
}

#[tokio::test]
async fn a_container_whose_hook_fails_is_tried_again() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("unhooked-{}", unique());
    let mut pod = pods::sleeper(&name, node.name());
    pod["spec"]["containers"][0]["lifecycle"] =
        json!({ "postStart": { "exec": { "command": ["sh", "-c", "exit 3"] } } });
    let path = pods::path(&name);
    api::create(&client, "/api/v1/namespaces/default/pods", &pod).await?;

    let again = |pod: &Value| {
        let status = status(pod, "main");
        status["restartCount"].as_i64() > Some(0) && status["lastState"]["terminated"].is_object()
    };
    cluster.until(&client, &path, "tried again", LIMIT, again).await?;
    until_event(&cluster, &name, &["FailedPostStartHook", "PostStartHook failed"]).await?;
    until_event(&cluster, &name, &["Killing", "FailedPostStartHook"]).await?;

    api::delete(&client, &path, Some(0)).await?;
    cluster.until_gone(&client, &path, LIMIT).await
}

#[tokio::test]
async fn a_pod_is_not_ready_before_its_gates_are_open() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("gated-{}", unique());
    let path = pods::path(&name);
    let mut pod = pods::sleeper(&name, node.name());
    pod["spec"]["readinessGates"] = json!([{ "conditionType": "example.com/gate" }]);
    cluster.apply(&[pod]).await?;
    let closed = |pod: &Value, word: &str| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.find(|condition| condition["type"] == "Ready");
        pods::condition(pod, "ContainersReady") == Some("True")
            && ready.is_some_and(|ready| {
                ready["reason"] == "ReadinessGatesNotReady"
                    && ready["message"].as_str().is_some_and(|message| message.contains(word))
            })
    };
    cluster.until(&client, &path, "no gate", LIMIT, |pod| closed(pod, "does not exist")).await?;
    let status = format!("{path}/status");
    let set = |value: &str| json!({ "status": { "conditions": [{ "type": "example.com/gate", "status": value }] } });
    api::strategic_merge(&client, &status, &set("False")).await?;
    cluster.until(&client, &path, "a closed gate", LIMIT, |pod| closed(pod, "but False")).await?;
    api::strategic_merge(&client, &status, &set("True")).await?;
    cluster.until(&client, &path, "an open gate", LIMIT, pods::is_ready).await?;

    api::delete(&client, &path, None).await
}
