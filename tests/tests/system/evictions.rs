//! Who is taken in and who must go: refusals, preemption, limits of disk space and evictions, in the
//! kubelet's words.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::process::output;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_mins(2);

/// A sleeper that no scheduler sees, with more in its spec.
fn bound(name: &str, node: &str, more: &Value) -> Value {
    let mut pod = pods::sleeper(name, node);
    pod["spec"]["nodeName"] = json!(node);
    for (field, value) in more.as_object().into_iter().flatten() {
        pod["spec"][field] = value.clone();
    }

    pod
}

/// A sleeper that requests that much CPU.
fn asks(name: &str, node: &str, cpu: &str) -> Value {
    let mut pod = bound(name, node, &json!({}));
    pod["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": cpu } });

    pod
}

fn is_failed(pod: &Value) -> bool {
    pod["status"]["phase"] == "Failed"
}

/// Waits until the pod has failed for this reason, with an Event of the same, and answers why.
async fn until_failed(
    cluster: &Cluster,
    client: &Client,
    name: &str,
    reason: &str,
) -> Result<String> {
    let pod = cluster.until(client, &pods::path(name), "Failed", LIMIT, is_failed).await?;
    ensure!(pod["status"]["reason"] == reason, "{name} failed, but not for {reason}: {pod}");
    let uid = pod["metadata"]["uid"].as_str().context("a pod has a UID")?;
    let events = format!(
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid%3D{uid}%2Creason%3D{reason}"
    );
    let told = |events: &Value| events["items"].as_array().is_some_and(|all| !all.is_empty());
    cluster.until(client, &events, "an Event", LIMIT, told).await?;

    Ok(pod["status"]["message"].as_str().unwrap_or_default().to_owned())
}

/// Changes the agent's configuration, with this instead of the site's thresholds, and starts it again.
async fn configure(node: &EdgeNode, more: &str) -> Result<()> {
    let config = node.site().path("STATE")?.join("holdfast/edgecore.yaml");
    let text = fs::read_to_string(&config)?;
    let kept = text.lines().filter(|line| !line.starts_with("evictionHard:"));
    fs::write(&config, format!("{}\n{more}", kept.collect::<Vec<_>>().join("\n")))?;
    node.kill_agent().await?;

    node.start_agent().await
}

async fn remove(cluster: &Cluster, client: &Client, names: &[&str]) -> Result<()> {
    for name in names {
        cluster.kubectl(&["delete", "pod", name, "--wait=false"]).await?;
    }
    for name in names {
        cluster.until_gone(client, &pods::path(name), LIMIT).await?;
    }

    Ok(())
}

/// What an administrator puts on a node, and its huge pages, are given to who asks until there is no more;
/// what the node does not know is no matter of its. The name of the pod that has them all.
async fn count_other_resources(
    cluster: &Cluster,
    client: &Client,
    node: &EdgeNode,
) -> Result<String> {
    let id = unique();
    let patch = json!({ "status": { "capacity": { "example.com/dongle": "2" } } }).to_string();
    let patch =
        ["patch", "node", node.name(), "--subresource=status", "--type=merge", "-p", &patch];
    cluster.kubectl(&patch).await?;
    let has = |node: &Value| node["status"]["allocatable"]["example.com/dongle"] == "2";
    cluster.until(client, &node.path(), "dongles", LIMIT, has).await?;

    let limits = |name: &str, limits: Value| {
        let mut pod = bound(&format!("{name}-{id}"), node.name(), &json!({}));
        pod["spec"]["containers"][0]["resources"] = json!({ "limits": limits });
        pod
    };
    let lucky = json!({ "example.com/dongle": "2", "example.com/of-the-cluster": "7" });
    cluster.apply(&[limits("lucky", lucky)]).await?;
    let lucky = format!("lucky-{id}");
    cluster.until(client, &pods::path(&lucky), "Ready", LIMIT, pods::is_ready).await?;
    let pages = json!({ "hugepages-64Mi": "64Mi", "memory": "1Mi" });
    let late = json!({ "example.com/dongle": "1" });
    cluster.apply(&[limits("late", late), limits("pages", pages)]).await?;
    for (name, resource, amounts) in [
        ("late", "example.com/dongle", "requested: 1, used: 2, capacity: 2"),
        ("pages", "hugepages-64Mi", "requested: 67108864, used: 0, capacity: 0"),
    ] {
        let (name, reason) = (format!("{name}-{id}"), format!("OutOf{resource}"));
        let told = until_failed(cluster, client, &name, &reason).await?;
        let wanted =
            format!("Pod was rejected: Node didn't have enough resource: {resource}, {amounts}");
        ensure!(told == wanted, "{told}");
        remove(cluster, client, &[&name]).await?;
    }

    Ok(lucky)
}

/// Less may be requested than these CPUs; what the administrator has put on the node stays.
async fn have_less(cluster: &Cluster, client: &Client, node: &EdgeNode, cpus: &str) -> Result<()> {
    configure(node, "systemReserved: { cpu: 500m }\nevictionHard: { memory.available: 100Mi }\n")
        .await?;
    let less = |node: &Value| {
        let allocatable = &node["status"]["allocatable"];
        allocatable["cpu"] != cpus && allocatable["example.com/dongle"] == "2"
    };

    cluster.until(client, &node.path(), "less to give away", LIMIT, less).await.map(drop)
}

/// What does not fit is refused, what was taken in stays, and a critical pod gets its room.
#[tokio::test]
async fn a_node_takes_in_what_fits_and_makes_room_for_critical_pods() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let id = unique();
    let name = |what: &str| format!("{what}-{id}");
    let allocatable = cluster.until(&client, &node.path(), "there", LIMIT, |_| true).await?;
    let cpus = allocatable["status"]["allocatable"]["cpu"].as_str().context("CPUs")?.to_owned();
    let milli = cpus.parse::<u64>().context("whole CPUs")? * 1000;

    let port = json!([{ "containerPort": 8080, "hostPort": 31_999 }]);
    let [runs, large, taken, elsewhere, unsafe_one] =
        ["runs", "large", "taken", "elsewhere", "unsafe"].map(name);
    let mut first = asks(&runs, node.name(), &format!("{}m", milli - 100));
    first["spec"]["containers"][0]["ports"] = port.clone();
    cluster.apply(&[first]).await?;
    let path = pods::path(&runs);
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let before = Incarnation::of(&before);

    let mut second = bound(&taken, node.name(), &json!({}));
    second["spec"]["containers"][0]["ports"] = port;
    let selector = json!({ "nodeSelector": { "zone": "nowhere" } });
    let sysctl = json!({ "securityContext":
        { "sysctls": [{ "name": "kernel.msgmax", "value": "65536" }] } });
    cluster
        .apply(&[
            asks(&large, node.name(), "101m"),
            second,
            bound(&elsewhere, node.name(), &selector),
            bound(&unsafe_one, node.name(), &sysctl),
        ])
        .await?;
    let used = milli - 100;
    for (refused, reason, message) in [
        (
            &large,
            "OutOfcpu",
            format!(
                "Node didn't have enough resource: cpu, requested: 101, used: {used}, capacity: {milli}"
            ),
        ),
        (
            &taken,
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
                .to_owned(),
        ),
        (
            &elsewhere,
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                .to_owned(),
        ),
        (
            &unsafe_one,
            "SysctlForbidden",
            "forbidden sysctl: \"kernel.msgmax\" not allowlisted".to_owned(),
        ),
    ] {
        let told = until_failed(&cluster, &client, refused, reason).await?;
        ensure!(told == format!("Pod was rejected: {message}"), "{refused}: {told}");
    }

    let lucky = count_other_resources(&cluster, &client, &node).await?;

    // What was taken in is not refused when there is less than it asks for.
    have_less(&cluster, &client, &node, &cpus).await?;
    let after = cluster.until(&client, &path, "Ready still", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == before, "{before:?} became {after}");

    let critical = name("critical");
    preempt(&cluster, &client, &node, &runs, &critical).await?;
    let all = [&runs, &large, &taken, &elsewhere, &unsafe_one, &critical, &lucky];

    remove(&cluster, &client, &all.map(String::as_str)).await
}

/// A critical pod takes the place of one that runs.
async fn preempt(
    cluster: &Cluster,
    client: &Client,
    node: &EdgeNode,
    runs: &str,
    critical: &str,
) -> Result<()> {
    let mut pod = asks(critical, node.name(), "200m");
    pod["spec"]["priorityClassName"] = json!("system-node-critical");
    cluster.apply(&[pod]).await?;
    let told = until_failed(cluster, client, runs, "Preempting").await?;
    ensure!(told == "Preempted in order to admit critical pod", "{told}");
    let preempted = cluster.until(client, &pods::path(runs), "there", LIMIT, |_| true).await?;
    let disrupted = pods::condition(&preempted, "DisruptionTarget");
    ensure!(disrupted == Some("True"), "{preempted}");

    cluster.until(client, &pods::path(critical), "Ready", LIMIT, pods::is_ready).await.map(drop)
}

/// Puts the pods' volumes on a file system of their own, small enough to be filled at once. It goes with
/// the site.
async fn give_volumes_a_small_disk(node: &EdgeNode) -> Result<()> {
    let root = node.site().path("KUBELET_ROOT")?;
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=64m,mode=0755", "tmpfs"]).arg(&root);

    output(mount).await.map(drop)
}

/// A pod that writes so many MiB to a place and then sleeps.
fn writer(name: &str, node: &str, mib: u32, place: &str) -> Value {
    let script = format!(
        "dd if=/dev/zero of={place} bs=1M count={mib}; trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"
    );
    let mut pod = pods::script_pod(name, node, &script);
    pod["spec"]["nodeName"] = json!(node);
    pod["spec"]["volumes"] = json!([{ "name": "scratch", "emptyDir": {} }]);
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "scratch", "mountPath": "/scratch" }]);

    pod
}

/// Who fills a volume, its own limit or the whole disk must go, and nobody else.
#[tokio::test]
async fn pods_that_take_too_much_of_the_disk_are_evicted() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    give_volumes_a_small_disk(&node).await?;
    let small = "evictionHard: { nodefs.available: 24Mi }\nevictionPressureTransitionPeriod: 40s\n";
    configure(&node, small).await?;
    node.until_ready(&client).await?;
    let id = unique();
    let name = |what: &str| format!("{what}-{id}");
    let (modest, sized, limited) = (name("modest"), name("sized"), name("limited"));
    let at = |name: &str, mib, place| writer(name, node.name(), mib, place);
    let mut in_volume = at(&sized, 4, "/scratch/file");
    in_volume["spec"]["volumes"][0]["emptyDir"] = json!({ "sizeLimit": "2Mi" });
    let mut in_layer = at(&limited, 8, "/file");
    in_layer["spec"]["containers"][0]["resources"] =
        json!({ "limits": { "ephemeral-storage": "4Mi" } });
    cluster.apply(&[at(&modest, 1, "/scratch/file"), in_volume, in_layer]).await?;
    let path = pods::path(&modest);
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    for (evicted, message) in [
        (&sized, "Usage of EmptyDir volume \"scratch\" exceeds the limit \"2Mi\". "),
        (&limited, "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "),
    ] {
        let told = until_failed(&cluster, &client, evicted, "Evicted").await?;
        ensure!(told == message, "{evicted}: {told}");
    }

    let (greedy, late) = (name("greedy"), name("late"));
    cluster.apply(&[at(&greedy, 42, "/scratch/file")]).await?;
    let told = until_failed(&cluster, &client, &greedy, "Evicted").await?;
    let low =
        "The node was low on resource: ephemeral-storage. Threshold quantity: 24Mi, available: ";
    ensure!(told.starts_with(low), "{told}");
    let gone = cluster.until(&client, &pods::path(&greedy), "there", LIMIT, |_| true).await?;
    ensure!(pods::condition(&gone, "DisruptionTarget") == Some("True"), "{gone}");
    let pressed = |node: &Value| pods::condition(node, "DiskPressure") == Some("True");
    cluster.until(&client, &node.path(), "DiskPressure", LIMIT, pressed).await?;
    cluster.apply(&[at(&late, 1, "/scratch/file")]).await?;
    let told = until_failed(&cluster, &client, &late, "Evicted").await?;
    ensure!(told == "Pod was rejected: The node had condition: [DiskPressure]. ", "{late}: {told}");
    let relieved = |node: &Value| pods::condition(node, "DiskPressure") == Some("False");
    cluster.until(&client, &node.path(), "no DiskPressure", LIMIT, relieved).await?;

    // Who took little stayed, and the node takes pods again.
    let after = cluster.until(&client, &path, "Ready still", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == Incarnation::of(&before), "{after}");
    let again = name("again");
    cluster.apply(&[at(&again, 1, "/scratch/file")]).await?;
    cluster.until(&client, &pods::path(&again), "Ready", LIMIT, pods::is_ready).await?;

    remove(&cluster, &client, &[&modest, &sized, &limited, &greedy, &late, &again]).await
}
