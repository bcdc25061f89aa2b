//! Volumes of the cluster on an edge node: a pod reaches them through its claims, waits for claims that are
//! not bound, and leaves what is in them. And RuntimeClasses, which come to the node in the same way.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::process::output;
use system_tests::volumes::{claim, on_host, persistent};
use system_tests::wait;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_mins(2);
/// Enough for an empty file system.
const DISK_BYTES: u64 = 8 << 20;

/// Writes into all that it may write to, says what it finds, and stays.
const SCRIPT: &str = "
    trap 'exit 0' TERM
    id; stat -c '%g %a' /data/old; cat /data/old /part/inner
    for place in /data /scratch /host /ram; do echo $place >> $place/written && echo wrote $place; done
    touch /look/new 2>/dev/null || echo read-only
    while :; do sleep 1000 & wait $!; done";

/// Waits for a warning about the pod that says this.
async fn until_told(cluster: &Cluster, client: &Client, pod: &str, words: &str) -> Result<()> {
    let path = format!(
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{pod},type%3DWarning"
    );
    let says = |events: &Value| {
        let items = events["items"].as_array();
        items.into_iter().flatten().any(|event| {
            let text = |field: &str| event[field].as_str().unwrap_or_default();
            format!("{}: {}", text("reason"), text("message")).contains(words)
        })
    };

    cluster.until(client, &path, words, LIMIT, says).await.map(drop)
}

fn mount(name: &str, path: &str) -> Value {
    json!({ "name": name, "mountPath": path })
}

/// A pod that leans on a local volume, one of the host, an ephemeral one and a RuntimeClass.
fn leaning(name: &str, node: &str) -> Value {
    let mut pod = pods::script_pod(name, node, SCRIPT);
    let spec = &mut pod["spec"];
    spec["runtimeClassName"] = json!(name);
    spec["securityContext"] = json!({ "fsGroup": 3000, "fsGroupChangePolicy": "OnRootMismatch" });
    spec["volumes"] = json!([
        { "name": "data", "persistentVolumeClaim": { "claimName": format!("{name}-data") } },
        { "name": "look", "persistentVolumeClaim": {
            "claimName": format!("{name}-host"), "readOnly": true } },
        { "name": "host", "persistentVolumeClaim": { "claimName": format!("{name}-host") } },
        { "name": "scratch", "ephemeral": { "volumeClaimTemplate": { "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": { "requests": { "storage": "1Mi" } } } } } },
        { "name": "ram", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } },
    ]);
    let mut part = mount("data", "/part");
    part["subPath"] = json!("made/here");
    spec["containers"][0]["volumeMounts"] = json!([
        mount("data", "/data"),
        part,
        mount("look", "/look"),
        mount("host", "/host"),
        mount("scratch", "/scratch"),
        mount("ram", "/ram"),
    ]);

    pod
}

/// One container mounts something in a volume that all have; one of the others wants to see that.
fn spreading(name: &str, node: &str) -> Value {
    // A container has from its start what was mounted before.
    let give = "until test -e /v/takes -a -e /v/keeps; do sleep 0.1; done
        mkdir /v/in && mount -t tmpfs none /v/in && echo given > /v/in/file";
    let mut pod = pods::sleeper(name, node);
    let container = |name: &str, script: &str, propagation: &str| {
        let mut mount = mount("v", "/v");
        mount["mountPropagation"] = json!(propagation);
        json!({ "name": name, "image": pods::BUSYBOX, "imagePullPolicy": "IfNotPresent",
            "volumeMounts": [mount],
            "securityContext": { "privileged": propagation == "Bidirectional" },
            "command": ["sh", "-c", format!("trap 'exit 0' TERM; {script}\nsleep 100000 & wait")] })
    };
    pod["spec"]["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
    pod["spec"]["containers"] = json!([
        container("gives", give, "Bidirectional"),
        container("takes", "touch /v/takes", "HostToContainer"),
        container("keeps", "touch /v/keeps", "None"),
    ]);

    pod
}

/// The kubelet tells it of what is on a file system of its own or in the pod's directory; not of paths of
/// the host.
async fn how_full_they_are(cluster: &Cluster, node: &EdgeNode, name: &str) -> Result<()> {
    let raw = async |path: &str| {
        let path = format!("{}/proxy/{path}", node.path());
        cluster.kubectl(&["get", "--raw", &path]).await
    };
    let summary: Value = serde_json::from_str(&raw("stats/summary").await?)?;
    let pods = summary["pods"].as_array().context("no pods")?;
    let pod = pods.iter().find(|pod| pod["podRef"]["name"] == name).context("not the pod")?;
    let volumes = pod["volume"].as_array().context("no volumes")?;
    let volume = |name: &str| volumes.iter().find(|volume| volume["name"] == name);
    for of in ["data", "scratch"] {
        let volume = volume(of).with_context(|| format!("no {of}: {pod}"))?;
        let claim = json!({ "name": format!("{name}-{of}"), "namespace": "default" });
        ensure!(volume["pvcRef"] == claim, "{volume}");
        ensure!(volume["usedBytes"].as_u64() < volume["capacityBytes"].as_u64(), "{volume}");
    }
    let ram = volume("ram").context("no ram")?;
    ensure!(ram["capacityBytes"] == 1 << 20 && ram["inodesUsed"] == 2, "{ram}");
    ensure!(volume("host").is_none() && volume("look").is_none(), "{pod}");

    let metrics = raw("metrics").await?;
    for family in ["available_bytes", "capacity_bytes", "used_bytes", "inodes", "inodes_used"] {
        let sample = format!(
            "\nkubelet_volume_stats_{family}{{namespace=\"default\",\
             persistentvolumeclaim=\"{name}-data\"}} "
        );
        ensure!(metrics.contains(&sample), "no {sample} in {metrics}");
    }

    Ok(())
}

/// The directories that the volumes are of, with something in them.
fn prepare(disks: &Path) -> Result<()> {
    for folder in ["local/made/here", "host", "scratch", "late"] {
        fs::create_dir_all(disks.join(folder))?;
    }
    fs::write(disks.join("local/made/here/inner"), "inner\n")?;
    fs::write(disks.join("local/old"), "old\n")?;

    Ok(fs::set_permissions(disks.join("local/old"), fs::Permissions::from_mode(0o600))?)
}

/// Takes claims away from the pods that use them.
async fn lose(cluster: &Cluster, client: &Client, claims: &[String]) -> Result<()> {
    for claim in claims {
        cluster.kubectl(&["delete", "pvc", claim, "--wait=false"]).await?;
        let unprotected = r#"{"metadata":{"finalizers":null}}"#;
        cluster.kubectl(&["patch", "pvc", claim, "--type=merge", "-p", unprotected]).await?;
        let path = format!("/api/v1/namespaces/default/persistentvolumeclaims/{claim}");
        cluster.until_gone(client, &path, LIMIT).await?;
    }

    Ok(())
}

/// Ends the container of the pod, and waits for the next.
async fn restart(cluster: &Cluster, client: &Client, pod: &str, count: u64) -> Result<Value> {
    // The command may end with the container.
    let _ended = cluster.kubectl(&["exec", pod, "--", "sh", "-c", "kill 1"]).await;
    let is_next = |pod: &Value| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == count && pods::is_ready(pod)
    };

    cluster.until(client, &pods::path(pod), "the next container", LIMIT, is_next).await
}

/// Without its claims the pod goes on with what it has, also with another agent, that finds everything as it
/// is; a new pod waits.
async fn goes_on_without_claims(
    cluster: &Cluster,
    client: &Client,
    node: &EdgeNode,
    name: &str,
) -> Result<()> {
    let claims = ["data", "host"].map(|what| format!("{name}-{what}"));
    lose(cluster, client, &claims).await?;
    let late = format!("{name}-late");
    let mut pod = pods::sleeper(&late, node.name());
    // The scheduler would wait in its place.
    pod["spec"]["nodeName"] = json!(node.name());
    pod["spec"]["volumes"] =
        json!([{ "name": "v", "persistentVolumeClaim": { "claimName": claims[0] } }]);
    cluster.apply(&[pod]).await?;
    let words = format!("persistentvolumeclaims \"{}\" not found", claims[0]);
    until_told(cluster, client, &late, &words).await?;
    cluster.kubectl(&["delete", "pod", &late, "--wait=false"]).await?;

    let again = restart(cluster, client, name, 1).await?;
    node.kill_agent().await?;
    node.start_agent().await?;
    node.until_ready(client).await?;
    let path = pods::path(name);
    let after = cluster.until(client, &path, "Ready still", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == Incarnation::of(&again), "{after}");

    restart(cluster, client, name, 2).await.map(drop)
}

#[tokio::test]
async fn volumes_of_the_cluster_serve_pods_through_their_claims() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let root = node.site().path("KUBELET_ROOT")?;
    let disks = root.with_file_name("disks");
    prepare(&disks)?;
    let name = format!("leans-{}", unique());
    let named = |what: &str| format!("{name}-{what}");
    let class = json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": { "name": name }, "handler": "runc",
        "overhead": { "podFixed": { "cpu": "10m", "memory": "16Mi" } } });
    cluster
        .apply(&[
            class,
            persistent(&named("data"), node.name(), &disks.join("local")),
            claim(&named("data")),
            on_host(&named("host"), &disks.join("host")),
            claim(&named("host")),
            // Bound by hand to the claim that the control plane makes for the pod.
            persistent(&named("scratch"), node.name(), &disks.join("scratch")),
        ])
        .await?;
    cluster.apply(&[leaning(&name, node.name())]).await?;
    let path = pods::path(&name);
    let ready = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    ensure!(ready["spec"]["overhead"]["memory"] == "16Mi", "{ready}");

    let said = cluster.kubectl(&["logs", &name]).await?;
    let wanted =
        ["3000 660", "old", "inner", "wrote /data", "wrote /scratch", "wrote /host", "read-only"];
    for line in wanted {
        ensure!(said.lines().any(|said| said == line), "{line:?} is not said in:\n{said}");
    }
    ensure!(said.contains("groups=") && said.contains("3000"), "{said}");
    let uid = ready["metadata"]["uid"].as_str().context("a pod has a UID")?;
    let bound = format!("pods/{uid}/volumes/kubernetes.io~local-volume/{}", named("data"));
    let seen = fs::read_to_string(root.join(&bound).join("written"))?;
    ensure!(seen == "/data\n", "{seen}");

    how_full_they_are(&cluster, &node, &name).await?;

    goes_on_without_claims(&cluster, &client, &node, &name).await?;
    how_full_they_are(&cluster, &node, &name).await?;

    cluster.kubectl(&["delete", "pod", &name, "--wait=false"]).await?;
    cluster.until_gone(&client, &path, LIMIT).await?;
    let folder = root.join("pods").join(uid);
    let look = async || Ok(folder.exists());
    wait::until("the pod's directory to be gone", LIMIT, look, |exists| !exists).await?;
    for (disk, wrote) in [("local", "/data\n"), ("host", "/host\n"), ("scratch", "/scratch\n")] {
        let kept = fs::read_to_string(disks.join(disk).join("written"))?;
        // Once by each of its containers.
        ensure!(kept == wrote.repeat(3), "{disk}: {kept:?}");
    }
    let volumes = ["data", "host", "scratch"].map(|what| format!("pv/{}", named(what)));
    let mut all = vec!["delete", "--wait=false"];
    all.extend(volumes.iter().map(String::as_str));
    cluster.kubectl(&all).await?;

    cluster.kubectl(&["delete", "runtimeclass", &name]).await.map(drop)
}

/// A disk that is a file; the kernel lets go of it when it is dropped.
struct Disk(String);

impl Disk {
    async fn of(file: &Path) -> Result<Self> {
        fs::File::create(file)?.set_len(DISK_BYTES)?;
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]).arg(file);

        Ok(Self(output(command).await?.trim().to_owned()))
    }

    async fn format(&self) -> Result<()> {
        let mut command = Command::new("mkfs.ext4");
        command.args(["-q", &self.0]);

        output(command).await.map(drop)
    }

    fn is_mounted(&self) -> Result<bool> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;

        Ok(table.lines().any(|line| line.contains(&format!(" {} ", self.0))))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _detached = std::process::Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[tokio::test]
async fn a_disk_is_mounted_while_pods_have_it() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let disk = Disk::of(&node.site().path("KUBELET_ROOT")?.with_file_name("disk")).await?;
    let name = format!("disk-{}", unique());
    let volume = persistent(&name, node.name(), Path::new(&disk.0));
    let [writes, reads] = ["writes", "reads"].map(|what| format!("{name}-{what}"));
    let pod = |pod: &str, script: &str, read_only: bool| {
        let script = format!("trap 'exit 0' TERM; {script}; sleep 100000 & wait");
        let mut pod = pods::script_pod(pod, node.name(), &script);
        let source = json!({ "claimName": name, "readOnly": read_only });
        pod["spec"]["volumes"] = json!([{ "name": "v", "persistentVolumeClaim": source }]);
        pod["spec"]["securityContext"] = json!({ "fsGroup": 3000 });
        pod["spec"]["containers"][0]["volumeMounts"] = json!([mount("v", "/v")]);
        pod
    };
    let ready = async |pod: &str| {
        cluster.until(&client, &pods::path(pod), "Ready", LIMIT, pods::is_ready).await.map(drop)
    };
    let gone = async |pod: &str| {
        cluster.kubectl(&["delete", "pod", pod, "--wait=false"]).await?;
        cluster.until_gone(&client, &pods::path(pod), LIMIT).await
    };
    let script = "stat -c %g /v; echo kept >/v/file";
    cluster.apply(&[volume, claim(&name), pod(&writes, script, false)]).await?;
    let words = format!("{} cannot be mounted as ext4", disk.0);
    until_told(&cluster, &client, &writes, &words).await?;
    disk.format().await?;
    ready(&writes).await?;
    let said = cluster.kubectl(&["logs", &writes]).await?;
    ensure!(said == "3000\n", "{said}");

    let script = "touch /v/new 2>&1 || echo read-only";
    cluster.apply(&[pod(&reads, script, true)]).await?;
    ready(&reads).await?;
    gone(&writes).await?;
    let said = cluster.kubectl(&["exec", &reads, "--", "cat", "/v/file"]).await?;
    ensure!(said == "kept\n", "{said}");
    let said = cluster.kubectl(&["logs", &reads]).await?;
    ensure!(said.ends_with("read-only\n") && disk.is_mounted()?, "{said}");
    gone(&reads).await?;
    let look = async || disk.is_mounted();
    wait::until("the disk to be let go of", LIMIT, look, |is_mounted| !is_mounted).await?;

    cluster.kubectl(&["delete", "--wait=false", &format!("pv/{name}")]).await.map(drop)
}

#[tokio::test]
async fn what_is_mounted_in_a_volume_shows_where_that_is_wanted() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("spreads-{}", unique());
    let path = pods::path(&name);
    cluster.apply(&[spreading(&name, node.name())]).await?;
    let ready = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let found = async |container: &str| {
        let script = "cat /v/in/file 2>/dev/null || echo nothing";
        let command = ["exec", &name, "-c", container, "--", "sh", "-c", script];
        Ok(cluster.kubectl(&command).await?.trim().to_owned())
    };
    let look = async || found("takes").await;
    wait::until("the mount to show", LIMIT, look, |said| said == "given").await?;
    let kept = found("keeps").await?;
    ensure!(kept == "nothing", "{kept}");

    // It goes with the pod.
    cluster.kubectl(&["delete", "pod", &name, "--wait=false"]).await?;
    cluster.until_gone(&client, &path, LIMIT).await?;
    let uid = ready["metadata"]["uid"].as_str().context("a pod has a UID")?;
    let folder = node.site().path("KUBELET_ROOT")?.join("pods").join(uid);
    let look = async || Ok(folder.exists());

    wait::until("the pod's directory to be gone", LIMIT, look, |exists| !exists).await.map(drop)
}

#[tokio::test]
async fn a_pod_waits_for_what_its_claim_and_its_class_lack() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let disks = node.site().path("KUBELET_ROOT")?.with_file_name("disks");
    prepare(&disks)?;
    let (name, other) = (format!("late-{}", unique()), format!("class-{}", unique()));
    let far = format!("far-{}", unique());
    let claiming = |name: &str| {
        let mut pod = pods::sleeper(name, node.name());
        // The scheduler would wait in its place.
        pod["spec"]["nodeName"] = json!(node.name());
        pod["spec"]["volumes"] =
            json!([{ "name": "v", "persistentVolumeClaim": { "claimName": name } }]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([mount("v", "/v")]);
        pod
    };
    let mut strange = pods::sleeper(&other, node.name());
    strange["spec"]["runtimeClassName"] = json!(other);
    let class = json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
        "metadata": { "name": other }, "handler": "no-such-handler" });
    // Of a path that is here too, with other data.
    let of_another = persistent(&far, "another-node", &disks.join("late"));
    cluster.apply(&[class, claim(&name), claim(&far), of_another]).await?;
    cluster.apply(&[claiming(&name), claiming(&far), strange]).await?;

    let words = format!(
        "FailedMount: Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], \
         failed to process volumes=[v]: error processing PVC default/{name}: PVC is not bound"
    );
    until_told(&cluster, &client, &name, &words).await?;
    let words = format!(
        "FailedMount: MountVolume.NodeAffinity check failed for volume \"{far}\" : no matching NodeSelectorTerms"
    );
    until_told(&cluster, &client, &far, &words).await?;
    let words = "FailedCreatePodSandBox: Failed to create pod sandbox: ";
    until_told(&cluster, &client, &other, words).await?;
    until_told(&cluster, &client, &other, "no-such-handler").await?;
    for waits in [&name, &far] {
        let waiting = cluster.get(&client, &pods::path(waits)).await?.context("the pod")?;
        ensure!(waiting["status"]["phase"] == "Pending", "{waiting}");
    }

    // First a volume without its directory, which is made after the node has missed it.
    let gone = disks.join("later");
    cluster.apply(&[persistent(&name, node.name(), &gone)]).await?;
    let words = format!("path {gone:?} does not exist");
    until_told(&cluster, &client, &name, &words).await?;
    fs::create_dir(&gone)?;
    cluster.until(&client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;

    for pod in [&name, &far, &other] {
        cluster.kubectl(&["delete", "pod", pod, "--wait=false"]).await?;
        cluster.until_gone(&client, &pods::path(pod), LIMIT).await?;
    }
    let objects = [&name, &far].map(|name| [format!("pv/{name}"), format!("pvc/{name}")]);
    let class = format!("runtimeclass/{other}");
    let mut all = vec!["delete", "--wait=false", &class];
    all.extend(objects.iter().flatten().map(String::as_str));

    cluster.kubectl(&all).await.map(drop)
}
