//! What a pod asks of kernel and runtime, as the kernel tells it: cgroups, users, names, files of variables.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::{api, pods};

const LIMIT: Duration = Duration::from_mins(1);
const PIDS_MAX: &str = "77";

struct Look {
    cluster: Cluster,
    client: Client,
    node: EdgeNode,
    suffix: String,
}

impl Look {
    fn name(&self, pod: &str) -> String {
        format!("{pod}-{}", self.suffix)
    }

    /// The pod once it is Ready.
    async fn ready(&self, pod: &str) -> Result<Value> {
        let path = pods::path(&self.name(pod));

        self.cluster.until(&self.client, &path, "Ready", LIMIT, pods::is_ready).await
    }

    /// What a command in the pod prints.
    async fn said(&self, pod: &str, script: &str) -> Result<String> {
        let said =
            self.cluster.kubectl(&["exec", &self.name(pod), "--", "sh", "-c", script]).await?;

        Ok(said.trim().to_owned())
    }

    /// A file of the pod's own cgroup, by its name on either version.
    async fn of_cgroup(&self, pod: &Value, class: &str, v1: &str, v2: &str) -> Result<String> {
        let uid = pod["metadata"]["uid"].as_str().context("a pod has a UID")?;
        let root = self.node.site().fact("CGROUP_ROOT")?.trim_start_matches('/');
        let below = format!("{root}/kubepods/{class}/pod{uid}");
        let mount = Path::new("/sys/fs/cgroup");
        let (controller, _) = v1.split_once('.').context("a file of a controller")?;
        let v1 = mount.join(controller).join(&below).join(v1);
        let file = if v1.exists() { v1 } else { mount.join(below).join(v2) };
        let text = tokio::fs::read_to_string(&file).await;

        Ok(text.with_context(|| format!("cannot read {}", file.display()))?.trim().to_owned())
    }
}

/// Asks for CPU and memory as a whole; one container has a limit of its own.
fn whole(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    pod["spec"]["resources"] = json!({
        "requests": { "cpu": "100m", "memory": "32Mi" }, "limits": { "cpu": "500m", "memory": "64Mi" },
    });
    let mut other = pod["spec"]["containers"][0].clone();
    other["name"] = json!("other");
    other["resources"] = json!({ "limits": { "memory": "24Mi" } });
    if let Some(containers) = pod["spec"]["containers"].as_array_mut() {
        containers.push(other);
    }

    pod
}

/// Has a long host name, a group without a user, and variables from a file.
fn named(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    pod["spec"]["hostname"] = json!("front");
    pod["spec"]["subdomain"] = json!("inside");
    pod["spec"]["setHostnameAsFQDN"] = json!(true);
    pod["spec"]["volumes"] = json!([{ "name": "made", "emptyDir": {} }]);
    let mut maker = pod["spec"]["containers"][0].clone();
    maker["name"] = json!("maker");
    maker["command"] = json!(["sh", "-c", "printf \"COLOR='dark\\nred'\\n\" > /made/env"]);
    maker["volumeMounts"] = json!([{ "name": "made", "mountPath": "/made" }]);
    pod["spec"]["initContainers"] = json!([maker]);
    let container = &mut pod["spec"]["containers"][0];
    container["securityContext"] = json!({ "runAsGroup": 3000 });
    let from = |key: &str, optional: bool| json!({ "fileKeyRef": { "volumeName": "made", "path": "env", "key": key, "optional": optional } });
    container["env"] = json!([
        { "name": "COLOR", "valueFrom": from("COLOR", false) },
        { "name": "SIZE", "valueFrom": from("SIZE", true) },
    ]);

    pod
}

/// Has users of its own, and all of /proc.
fn apart(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    pod["spec"]["hostUsers"] = json!(false);
    pod["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
    let container = &mut pod["spec"]["containers"][0];
    container["securityContext"] = json!({ "procMount": "Unmasked" });
    container["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);

    pod
}

/// Wants no groups but its own; those of the image's root are more.
fn strict(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    pod["spec"]["securityContext"] = json!({
        "supplementalGroups": [7], "supplementalGroupsPolicy": "Strict",
    });

    pod
}

/// May not write to its volume, nor to what is mounted in it.
fn locked(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    pod["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{
        "name": "data", "mountPath": "/data", "readOnly": true, "recursiveReadOnly": "Enabled",
    }]);

    pod
}

/// Has the files of another image.
fn imaged(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    let image = json!({ "reference": pods::BUSYBOX, "pullPolicy": "IfNotPresent" });
    pod["spec"]["volumes"] = json!([{ "name": "files", "image": image }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([
        { "name": "files", "mountPath": "/files" },
        { "name": "files", "mountPath": "/programs", "subPath": "bin" },
    ]);

    pod
}

async fn limit_processes(node: &EdgeNode, client: &Client) -> Result<()> {
    let config = node.site().path("STATE")?.join("holdfast/edgecore.yaml");
    let text = tokio::fs::read_to_string(&config).await?;
    tokio::fs::write(&config, format!("{text}podPidsLimit: {PIDS_MAX}\n")).await?;
    node.kill_agent().await?;
    node.start_agent().await?;

    node.until_ready(client).await.map(drop)
}

#[tokio::test]
async fn the_kernel_grants_what_a_pod_asks_for() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    limit_processes(&node, &client).await?;
    let score = format!("/proc/{}/oom_score_adj", node.agent_pid().await?);
    let score = tokio::fs::read_to_string(score).await?;
    // A machine may not let it: that is a warning.
    let is_told = node.agent_log().await?.contains("cannot lower oom_score_adj");
    ensure!(is_told || score.trim() == "-999", "{score}");
    let look = Look { cluster, client, node, suffix: unique() };
    let made = |make: fn(&str, &str) -> Value, name: &str| make(&look.name(name), look.node.name());
    let all = [
        made(whole, "whole"),
        made(named, "named"),
        made(apart, "apart"),
        made(strict, "strict"),
        made(locked, "locked"),
        made(imaged, "imaged"),
    ];
    look.cluster.apply(&all).await?;

    let pod = look.ready("whole").await?;
    ensure!(pod["status"]["qosClass"] == "Burstable", "{pod}");
    for (v1, v2, expected) in [
        ("memory.limit_in_bytes", "memory.max", "67108864"),
        ("cpu.cfs_quota_us", "cpu.max", "50000"),
        ("cpu.shares", "cpu.weight", "102"),
        ("pids.max", "pids.max", PIDS_MAX),
    ] {
        let found = look.of_cgroup(&pod, "burstable", v1, v2).await?;
        let found = found.split(' ').next().unwrap_or_default();
        ensure!(found == expected || v2 == "cpu.weight" && found == "4", "{v1}: {found}");
    }
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    ensure!(look.said("whole", limit).await? == "67108864", "a container has the pod's limit");

    look.ready("named").await?;
    let said =
        look.said("named", "hostname; id -g; echo \"$COLOR\"; echo \"${SIZE-unset}\"").await?;
    let expected = "front.inside.default.svc.cluster.local\n3000\ndark\nred\nunset";
    ensure!(said == expected, "{said}");

    let object = look.cluster.get(&look.client, &look.node.path()).await?.context("the Node")?;
    let runtime = object["status"]["nodeInfo"]["containerRuntimeVersion"].as_str();
    if runtime.is_some_and(|runtime| runtime.contains("://v2.") || runtime.contains("://2.")) {
        on_a_new_runtime(&look).await?;
    } else {
        on_an_old_runtime(&look).await?;
    }
    for name in ["whole", "named", "apart", "strict", "locked", "imaged"] {
        api::delete(&look.client, &pods::path(&look.name(name)), Some(0)).await?;
    }

    Ok(())
}

/// One that has user namespaces, mounts images and can leave out their groups.
async fn on_a_new_runtime(look: &Look) -> Result<()> {
    look.ready("apart").await?;
    let script = "touch /data/file; awk '{ print $1, $3 }' /proc/self/uid_map; mount | grep -c ' /proc/'; \
        stat -c %u /data/file";
    let said = look.said("apart", script).await?;
    ensure!(said == "0 65536\n0\n0", "{said}");
    look.ready("imaged").await?;
    let script = "test -x /files/bin/sh && test -x /programs/sh && touch /files/x 2>&1 || true";
    let said = look.said("imaged", script).await?;
    ensure!(said.contains("Read-only file system"), "{said}");
    look.ready("strict").await?;
    let said = look.said("strict", "id -G").await?;
    ensure!(said == "0 7", "{said}");
    let pod = look.ready("locked").await?;
    let mount = &pod["status"]["containerStatuses"][0]["volumeMounts"][0];
    ensure!(mount["recursiveReadOnly"] == "Enabled", "{pod}");

    Ok(())
}

/// One that has nothing of that says so, in the kubelet's words.
async fn on_an_old_runtime(look: &Look) -> Result<()> {
    let name = look.name("apart");
    let field = format!("involvedObject.name={name},reason=FailedCreatePodSandBox");
    let events = format!("/api/v1/namespaces/default/events?fieldSelector={field}");
    let told = |events: &Value| {
        let message = events["items"][0]["message"].as_str().unwrap_or_default();
        message
            .contains("can't set `spec.hostUsers: false`, runtime does not support user namespaces")
    };
    look.cluster.until(&look.client, &events, "why it does not start", LIMIT, told).await?;
    let waits = |pod: &Value, reason: &str, words: &str| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let message = waiting["message"].as_str().unwrap_or_default();
        waiting["reason"] == reason && message.contains(words)
    };
    let path = pods::path(&look.name("imaged"));
    let by_runtime = |pod: &Value| waits(pod, "CreateContainerError", "");
    look.cluster.until(&look.client, &path, "refused by the runtime", LIMIT, by_runtime).await?;
    let path = pods::path(&look.name("locked"));
    let words = "recursive read-only mode, but it is not supported by the runtime";
    let by_us = |pod: &Value| waits(pod, "CreateContainerConfigError", words);
    look.cluster.until(&look.client, &path, words, LIMIT, by_us).await?;
    let path = pods::path(&look.name("strict"));
    let refused = |pod: &Value| pod["status"]["reason"] == "SupplementalGroupsPolicyNotSupported";
    look.cluster.until(&look.client, &path, "refused", LIMIT, refused).await?;

    Ok(())
}
