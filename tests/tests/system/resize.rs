//! In-place resize: running containers get what `pods/resize` asks for, as on a stock kubelet.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri::Runtime;
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::held::Held;
use system_tests::node::EdgeNode;
use system_tests::{api, pods};

const LIMIT: Duration = Duration::from_mins(1);

/// What a container has, on either version of cgroups.
const LOOK: &str = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max 2>/dev/null; \
    cat cpu/cpu.cfs_quota_us 2>/dev/null || cut -d ' ' -f 1 cpu.max";

fn amounts(cpu: &str, memory: &str) -> Value {
    let all = json!({ "cpu": cpu, "memory": memory });

    json!({ "limits": all, "requests": all })
}

/// `main` gets more while it runs, `other` starts again for more memory.
fn sized(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    let mut other = pod["spec"]["containers"][0].clone();
    other["name"] = json!("other");
    other["resources"] = amounts("50m", "20Mi");
    other["resizePolicy"] =
        json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    pod["spec"]["containers"][0]["resources"] = amounts("50m", "20Mi");
    if let Some(containers) = pod["spec"]["containers"].as_array_mut() {
        containers.push(other);
    }

    pod
}

fn ask(main: &Value, other: &Value) -> Value {
    json!({ "spec": { "containers": [
        { "name": "main", "resources": main }, { "name": "other", "resources": other } ] } })
}

/// Whether both containers are told to be granted, and to have, these.
fn has(pod: &Value, main: &Value, other: &Value) -> bool {
    let statuses = &pod["status"]["containerStatuses"];
    let fits = |status: &Value, wanted: &Value| {
        status["resources"] == *wanted && status["allocatedResources"] == wanted["requests"]
    };

    fits(&statuses[0], main) && fits(&statuses[1], other) && pods::is_ready(pod)
}

/// The limits of memory and CPU of the pod's own cgroup.
fn of_cgroup(node: &EdgeNode, uid: &str) -> Result<[String; 2]> {
    let root = node.site().fact("CGROUP_ROOT")?.trim_start_matches('/');
    let below = format!("{root}/kubepods/pod{uid}");
    let read = |controller: &str, v1: &str, v2: &str| {
        let mount = Path::new("/sys/fs/cgroup");
        let v1 = mount.join(controller).join(&below).join(v1);
        let file = if v1.exists() { v1 } else { mount.join(&below).join(v2) };
        let text = std::fs::read_to_string(&file);
        let text = text.with_context(|| format!("cannot read {}", file.display()))?;
        anyhow::Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
    };

    Ok([
        read("memory", "memory.limit_in_bytes", "memory.max")?,
        read("cpu", "cpu.cfs_quota_us", "cpu.max")?,
    ])
}

/// Reason and message of a condition of a resize.
fn told<'a>(pod: &'a Value, kind: &str) -> Option<(&'a str, &'a str)> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == kind)?;

    Some((condition["reason"].as_str()?, condition["message"].as_str()?))
}

fn restarts(pod: &Value) -> [Option<u64>; 2] {
    [0, 1].map(|at| pod["status"]["containerStatuses"][at]["restartCount"].as_u64())
}

/// Whether both have these, and no resize is to come.
fn settled(pod: &Value, main: &Value, other: &Value) -> bool {
    let comes = ["PodResizePending", "PodResizeInProgress"];

    has(pod, main, other) && comes.iter().all(|kind| pods::condition(pod, kind).is_none())
}

/// A pod on its node.
struct Look<'a> {
    cluster: &'a Cluster,
    client: &'a Client,
    node: &'a EdgeNode,
    path: String,
}

impl Look<'_> {
    /// The pod of that name beside this one.
    fn beside(&self, name: &str) -> Self {
        Self { path: pods::path(name), ..*self }
    }

    async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        self.cluster.until(self.client, &self.path, what, LIMIT, holds).await
    }

    async fn resize(&self, patch: &Value) -> Result<()> {
        let path = format!("{}/resize", self.path);

        api::strategic_merge(self.client, &path, patch).await.map(drop)
    }

    /// The limits of memory and CPU of the pod's cgroup are these.
    fn cgroup_has(&self, uid: &str, limits: [&str; 2]) -> Result<()> {
        let has = of_cgroup(self.node, uid)?;
        ensure!(has == limits.map(str::to_owned), "the cgroup of the pod has {has:?}");

        Ok(())
    }
}

/// Less than is used is refused, and nothing of it done, until less is used.
async fn lower(look: &Look<'_>, uid: &str, has: &Value, other: &Value) -> Result<()> {
    let runtime = Runtime::new(look.node.site().fact("RUNTIME")?)?;
    let running = Held::by(look.node.site()).await?.running(uid);
    let exec = async |script: &str| {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let done = runtime.exec_sync(&running["main"], command, LIMIT).await?;
        ensure!(done.exit_code == 0, "{script}: {done:?}");
        anyhow::Ok(())
    };
    exec("head -c 13000000 /dev/zero >/dev/shm/full").await?;
    let main = amounts("100m", "12Mi");
    look.resize(&ask(&main, other)).await?;
    let refusal = "cannot decrease memory limits: attempting to set container \"main\" memory \
        limit (12582912) below current usage (";
    let is_refused = |pod: &Value| {
        told(pod, "PodResizeInProgress")
            .is_some_and(|(reason, message)| reason == "Error" && message.starts_with(refusal))
    };
    let pod = look.until("refused", is_refused).await?;
    ensure!(pod["status"]["containerStatuses"][0]["resources"] == *has, "{pod}");
    look.cgroup_has(uid, ["58720256", "18000"])?;
    exec("rm /dev/shm/full").await?;
    let pod = look.until("lowered", |pod| settled(pod, &main, other)).await?;
    ensure!(restarts(&pod) == [Some(0), Some(2)] && pods::is_ready(&pod), "{pod}");

    look.cgroup_has(uid, ["54525952", "18000"])
}

/// A pod that requests that many thousandths of a CPU.
fn requesting(name: &str, node: &str, milli: u64) -> Value {
    let mut pod = pods::sleeper(name, node);
    pod["spec"]["containers"][0]["resources"] =
        json!({ "requests": { "cpu": format!("{milli}m") } });

    pod
}

/// Of two that wait for room the one that matters more gets it, though it has waited less.
async fn contend(look: &Look<'_>) -> Result<()> {
    let Look { cluster, client, node, .. } = look;
    let found = cluster.get(client, &node.path()).await?.context("the node is there")?;
    let cpu = found["status"]["allocatable"]["cpu"].as_str().context("it has CPUs")?;
    let whole = |cpus: u64| cpus * 1000;
    let milli = cpu.strip_suffix('m').map_or_else(|| cpu.parse().map(whole), str::parse)?;
    let names = ["full", "minor", "major"].map(|kind| format!("{kind}-{}", unique()));
    let [filler, minor, major] = names.each_ref().map(|name| look.beside(name));
    let sized = [milli / 2, 10, 10].into_iter().zip(&names);
    let objects = sized.map(|(size, name)| requesting(name, node.name(), size));
    let mut objects: Vec<_> = objects.collect();
    objects[2]["spec"]["priorityClassName"] = json!("system-cluster-critical");
    cluster.apply(&objects).await?;
    for pod in [&filler, &minor, &major] {
        pod.until("Ready", pods::is_ready).await?;
    }

    let most = json!({ "requests": { "cpu": format!("{}m", milli * 3 / 5) } });
    let patch = json!({ "spec": { "containers": [{ "name": "main", "resources": most }] } });
    let is_deferred =
        |pod: &Value| told(pod, "PodResizePending").is_some_and(|(reason, _)| reason == "Deferred");
    for pod in [&minor, &major] {
        pod.resize(&patch).await?;
        pod.until("deferred", is_deferred).await?;
    }
    let is_granted = |pod: &Value| {
        let granted = &pod["status"]["containerStatuses"][0]["allocatedResources"]["cpu"];
        *granted == most["requests"]["cpu"] && pods::condition(pod, "PodResizePending").is_none()
    };
    api::delete(client, &filler.path, None).await?;
    major.until("granted", is_granted).await?;
    let pod = minor.until("there", |_| true).await?;
    ensure!(is_deferred(&pod), "{pod}");
    api::delete(client, &major.path, None).await?;
    minor.until("granted", is_granted).await?;

    api::delete(client, &minor.path, None).await
}

#[tokio::test]
async fn running_containers_get_what_a_resize_asks_for() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("sized-{}", unique());
    let look = Look { cluster: &cluster, client: &client, node: &node, path: pods::path(&name) };
    cluster.apply(&[sized(&name, node.name())]).await?;
    let small = amounts("50m", "20Mi");
    let pod = look.until("as it asked", |pod| has(pod, &small, &small)).await?;
    let uid = pod["metadata"]["uid"].as_str().context("a pod has a UID")?.to_owned();

    // More CPU and less memory for the one, a restart for the other.
    let (main, other) = (amounts("100m", "16Mi"), amounts("50m", "30Mi"));
    look.resize(&ask(&main, &other)).await?;
    let pod = look.until("resized", |pod| settled(pod, &main, &other)).await?;
    ensure!(restarts(&pod) == [Some(0), Some(1)], "{pod}");
    let runtime = Runtime::new(node.site().fact("RUNTIME")?)?;
    let running = Held::by(node.site()).await?.running(&uid);
    let command = ["/bin/sh", "-c", LOOK].map(str::to_owned).to_vec();
    let said = runtime.exec_sync(&running["main"], command, LIMIT).await?;
    ensure!(String::from_utf8_lossy(&said.stdout) == "16777216\n10000\n", "{said:?}");
    look.cgroup_has(&uid, ["48234496", "15000"])?;

    // Only what starts again for it: the pod as a whole gets more too.
    let other = amounts("80m", "40Mi");
    look.resize(&ask(&main, &other)).await?;
    let pod = look.until("started again", |pod| settled(pod, &main, &other)).await?;
    ensure!(restarts(&pod) == [Some(0), Some(2)], "{pod}");
    look.cgroup_has(&uid, ["58720256", "18000"])?;

    lower(&look, &uid, &main, &other).await?;
    let main = amounts("100m", "12Mi");

    // What the node will never have.
    let huge = amounts("100m", "64Ti");
    look.resize(&ask(&huge, &other)).await?;
    let is_pending = |pod: &Value| {
        told(pod, "PodResizePending").is_some_and(|(reason, _)| reason == "Infeasible")
    };
    let pod = look.until("infeasible", is_pending).await?;
    ensure!(has(&pod, &main, &other) && restarts(&pod) == [Some(0), Some(2)], "{pod}");

    // What was granted outlives the agent; and less is asked for again.
    node.kill_agent().await?;
    node.start_agent().await?;
    node.until_ready(&client).await?;
    look.resize(&ask(&main, &other)).await?;
    let pod = look.until("nothing pending", |pod| settled(pod, &main, &other)).await?;
    ensure!(restarts(&pod) == [Some(0), Some(2)], "{pod}");

    contend(&look).await?;

    api::delete(&client, &look.path, None).await
}
