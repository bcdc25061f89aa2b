//! T4: the power goes and comes back, again and again, while the cloud and the registry are out of
//! reach. Everything that a pod may lean on is in the pods of this test.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods;
use system_tests::process::output;
use system_tests::{volumes, wait};

const LIMIT: Duration = Duration::from_mins(2);
const CUTS: usize = 20;
/// A /28 has 13 addresses for pods: those of two cuts, if any leaked, would exhaust it.
const SUBNET: (&str, &str) = ("HOLDFAST_POD_SUBNET", "28");
const PLAIN_PODS: usize = 4;
const IMAGE: &str = "registry.holdfast.test/private/busybox:1";
const HOST_PORT: u16 = 18_080;

/// Says on every start, in a file of the host, whether all it asked for is there. What is on disk in an
/// emptyDir outlives the power, what is in memory does not.
const MAIN: &str = "
    trap 'exit 0' TERM
    fail() { echo \"bad $*\" >> /witness/$POD; exit 1; }
    [ \"$(cat /map/color)$COLOR\" = redred ] || fail ConfigMap
    [ \"$(cat /secret/password)$PASSWORD\" = s3crets3cret ] || fail Secret
    [ \"$(cat /pod/name)\" = $POD ] || fail downwardAPI
    [ \"$(cat /all/color)$(cat /all/password)$(cat /all/labels/app)\" = reds3cret$POD ] || fail projected
    [ -s /all/token ] || fail token
    [ -s /var/run/secrets/kubernetes.io/serviceaccount/token ] || fail service account
    [ ! -e /ram/mark ] && touch /ram/mark || fail emptyDir in memory
    echo run >> /disk/runs
    [ $(wc -l < /disk/runs) = $(( $(cat /witness/$POD 2>/dev/null | wc -l) + 1 )) ] || fail emptyDir on disk
    [ $(wc -l < /disk/init) = $(wc -l < /disk/runs) ] || fail init container
    echo run >> /kept/$POD
    [ $(wc -l < /kept/$POD) = $(wc -l < /disk/runs) ] || fail local volume
    echo ok >> /witness/$POD
    while :; do echo $POD | nc -l -p 8080; done &
    while :; do sleep 1000 & wait $!; done";

/// What the power may not multiply: counted by what the kernel and the CNI plugins hold.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    addresses: usize,
    networks: usize,
    cgroups: usize,
    mounts: BTreeSet<PathBuf>,
}

struct World {
    cluster: Cluster,
    client: Client,
    node: EdgeNode,
    witness: PathBuf,
    pods: Vec<String>,
}

impl World {
    async fn up() -> Result<Self> {
        let cluster = Cluster::shared().await?;
        let client = cluster.client().await?;
        let node = EdgeNode::join_with(&cluster, &client, &[SUBNET]).await?;
        node.site().registry("up").await?;
        let witness = node.site().path("KUBELET_ROOT")?.with_file_name("witness");
        let name = format!("power-{}", unique());
        let mut pods = vec![name.clone()];
        pods.extend((0..PLAIN_PODS).map(|n| format!("{name}-{n}")));
        let world = Self { cluster, client, node, witness, pods };
        world.apply().await?;

        Ok(world)
    }

    async fn apply(&self) -> Result<()> {
        let name = &self.pods[0];
        let metadata = json!({ "name": name, "namespace": "default" });
        let pull = json!({ "auths": { "registry.holdfast.test": {
            "username": "holdfast", "password": "secret" } } });
        let kept = self.witness.with_file_name("kept");
        fs::create_dir_all(&kept)?;
        let mut objects = vec![
            volumes::persistent(name, self.node.name(), &kept),
            volumes::claim(name),
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
                "data": { "color": "red" } }),
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata,
                "stringData": { "password": "s3cret" } }),
            json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
                "metadata": { "name": format!("{name}-pull"), "namespace": "default" },
                "stringData": { ".dockerconfigjson": pull.to_string() } }),
        ];
        objects.extend(self.pods.iter().map(|pod| self.manifest(pod)));

        self.cluster.apply(&objects).await
    }

    /// A pod that leans on everything; the first of them also listens on a port of the host.
    fn manifest(&self, pod: &str) -> Value {
        let shared = &self.pods[0];
        let mut manifest = pods::script_pod(pod, self.node.name(), MAIN);
        let items = json!([{ "path": "labels/app",
            "fieldRef": { "fieldPath": "metadata.labels['app']" } }]);
        let spec = &mut manifest["spec"];
        spec["imagePullSecrets"] = json!([{ "name": format!("{shared}-pull") }]);
        spec["volumes"] = json!([
            { "name": "witness", "hostPath": { "path": self.witness, "type": "DirectoryOrCreate" } },
            { "name": "disk", "emptyDir": {} },
            { "name": "ram", "emptyDir": { "medium": "Memory" } },
            { "name": "kept", "persistentVolumeClaim": { "claimName": shared } },
            { "name": "map", "configMap": { "name": shared } },
            { "name": "secret", "secret": { "secretName": shared } },
            { "name": "pod", "downwardAPI": { "items": [
                { "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }] } },
            { "name": "all", "projected": { "sources": [
                { "configMap": { "name": shared } },
                { "secret": { "name": shared } },
                { "downwardAPI": { "items": items } },
                { "serviceAccountToken": { "path": "token", "expirationSeconds": 600 } }] } },
        ]);
        let disk = json!({ "name": "disk", "mountPath": "/disk" });
        spec["initContainers"] = json!([{
            "name": "init", "image": IMAGE, "imagePullPolicy": "Always",
            "command": ["/bin/sh", "-c", "echo init >> /disk/init"], "volumeMounts": [disk],
        }]);
        let mut mounts = vec![disk];
        mounts.extend(
            ["witness", "ram", "kept", "map", "secret", "pod", "all"]
                .map(|name| json!({ "name": name, "mountPath": format!("/{name}") })),
        );
        let main = &mut spec["containers"][0];
        main["image"] = json!(IMAGE);
        main["imagePullPolicy"] = json!("Always");
        main["volumeMounts"] = Value::Array(mounts);
        main["env"] = json!([
            { "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "COLOR", "valueFrom": { "configMapKeyRef": { "name": shared, "key": "color" } } },
            { "name": "PASSWORD", "valueFrom": { "secretKeyRef": {
                "name": shared, "key": "password" } } },
        ]);
        if pod == shared {
            main["ports"] = json!([{ "containerPort": 8080, "hostPort": HOST_PORT }]);
        }

        manifest
    }

    /// Waits until every pod has started `count` times, each time with all it needs.
    async fn until_started(&self, count: usize) -> Result<()> {
        let wanted = "ok\n".repeat(count);
        for pod in &self.pods {
            let file = self.witness.join(pod);
            let look = async || Ok(fs::read_to_string(&file).unwrap_or_default());
            let what = format!("start {count} of {pod}");
            let enough = |told: &String| *told == wanted || told.contains("bad");
            let told = wait::until(&what, LIMIT, look, enough).await?;
            ensure!(told == wanted, "{pod} lacked something at start {count}:\n{told}");
        }

        Ok(())
    }

    async fn until_answers_at_the_host_port(&self) -> Result<()> {
        let site = self.node.site();
        let ask = format!("exec 3<>/dev/tcp/{}/{HOST_PORT} && cat <&3", site.fact("ADDRESS")?);
        let look = async || output(site.command(&["timeout", "5", "bash", "-c", &ask])).await;
        let enough = |answer: &String| answer.trim() == self.pods[0];

        wait::until("an answer at the host port", LIMIT, look, enough).await.map(drop)
    }

    fn held(&self) -> Result<Held> {
        let site = self.node.site();
        let leases = site.path("STATE")?.join("ipam").join(site.fact("NETNS")?);
        let is_lease = |name: &str| name.parse::<IpAddr>().is_ok();
        let run = site.runtime_folder()?;
        let mounts = mounts()?;
        let below = |root: &Path| {
            let inside = mounts.iter().filter(|mount| mount.starts_with(root));
            inside.cloned().collect::<BTreeSet<_>>()
        };
        let is_network = |mount: &&PathBuf| {
            mount.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cni-"))
        };

        Ok(Held {
            addresses: names(&leases).iter().filter(|name| is_lease(name)).count(),
            networks: below(&run).iter().filter(is_network).count(),
            cgroups: count_folders(&cgroup(site.fact("CGROUP_ROOT")?).join("kubepods")),
            mounts: below(&site.path("KUBELET_ROOT")?),
        })
    }

    /// Waits until nothing more is held than `wanted`.
    async fn until_held(&self, wanted: &Held, when: &str) -> Result<()> {
        let look = async || self.held();

        wait::until(&format!("what is held {when}, {wanted:?}"), LIMIT, look, |held| held == wanted)
            .await
            .map(drop)
    }
}

fn mounts() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;

    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();

    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The folder of a control group, in the hierarchy of version 1 or the only one of version 2.
fn cgroup(name: &str) -> PathBuf {
    let version1 = Path::new("/sys/fs/cgroup/memory");
    let top = if version1.exists() { version1 } else { Path::new("/sys/fs/cgroup") };

    top.join(name.trim_start_matches('/'))
}

fn count_folders(folder: &Path) -> usize {
    let below = |name: &String| {
        let path = folder.join(name);
        if path.is_dir() { 1 + count_folders(&path) } else { 0 }
    };

    names(folder).iter().map(below).sum()
}

#[tokio::test]
async fn all_that_pods_lean_on_is_there_after_twenty_power_cuts_without_the_cloud() -> Result<()> {
    let world = World::up().await?;
    let mut uids = Vec::new();
    for pod in &world.pods {
        let ready = world
            .cluster
            .until(&world.client, &pods::path(pod), "Ready", LIMIT, pods::is_ready)
            .await?;
        uids.push(ready["metadata"]["uid"].clone());
    }
    world.until_started(1).await?;
    world.until_answers_at_the_host_port().await?;
    let before = world.held()?;
    ensure!(before.addresses == world.pods.len(), "{before:?}");

    let site = world.node.site();
    site.cut().await?;
    for cut in 1..=CUTS {
        site.power_off().await?;
        site.power_on().await?;
        world.node.start_agent().await?;
        world.until_started(cut + 1).await?;
        world.until_held(&before, &format!("after power cut {cut}")).await?;
    }
    world.until_answers_at_the_host_port().await?;

    // Back in touch: the same pods, restarted by the power and by nothing else.
    site.restore().await?;
    world.node.until_ready(&world.client).await?;
    for (pod, uid) in world.pods.iter().zip(&uids) {
        let is_back = |pod: &Value| {
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            pods::is_ready(pod) && restarts.as_u64() == Some(CUTS as u64)
        };
        let path = pods::path(pod);
        let back = world.cluster.until(&world.client, &path, "Ready again", LIMIT, is_back).await?;
        ensure!(back["metadata"]["uid"] == *uid, "another pod took the place of {pod}: {back}");
    }
    world.until_started(CUTS + 1).await?;

    for pod in &world.pods {
        world.cluster.kubectl(&["delete", "pod", pod, "--wait=false"]).await?;
    }
    for pod in &world.pods {
        world.cluster.until_gone(&world.client, &pods::path(pod), LIMIT).await?;
    }
    let nothing = async || world.held();
    let is_nothing =
        |held: &Held| held.addresses == 0 && held.networks == 0 && held.mounts.is_empty();
    wait::until("nothing to be held in the end", LIMIT, nothing, is_nothing).await?;
    let shared = &world.pods[0];
    let named = ["configmap", "secret", "pvc", "pv"].map(|kind| format!("{kind}/{shared}"));
    let pull = format!("secret/{shared}-pull");
    let mut all = vec!["delete", "--wait=false", &pull];
    all.extend(named.iter().map(String::as_str));

    world.cluster.kubectl(&all).await.map(drop)
}
