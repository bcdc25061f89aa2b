//! From an existing cluster and a bare machine to a Ready node, as a user does it: the chart's cloudcore as
//! pods of a cloud node, an edge node behind NAT that joins through its Service.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::Cluster;
use system_tests::node::EdgeNode;
use system_tests::own::OwnCluster;
use system_tests::pods::{self, Incarnation};
use system_tests::process::{checkout, output, program, script};
use system_tests::stock::StockNode;
use system_tests::wait;
use tokio::process::Command;
use tokio::time::sleep;

/// Pods are pulled up, drained and scheduled in between.
const LIMIT: Duration = Duration::from_mins(2);

const NODE_PORT: &str = "30100";

/// The rest is as the cluster's own settings, see scripts/test.
const VALUES: [&str; 6] = [
    "--set",
    "service.type=NodePort",
    "--set",
    "service.nodePort=30100",
    "--set",
    "config.nodeLeaseRenewSeconds=4,config.defaultTolerationSeconds=10",
];

/// A node that was lost would be so for seconds.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A cluster with a cloud node and the image of cloudcore on it.
struct Cloud {
    helm: String,
    // Dropped in this order: the node leaves its cluster.
    node: StockNode,
    own: OwnCluster,
    client: Client,
}

/// A pod of cloudcore.
#[derive(Debug)]
struct Replica {
    name: String,
    node: String,
    address: String,
}

impl Cloud {
    async fn up() -> Result<Self> {
        let own = OwnCluster::without_cloudcore().await?;
        let client = own.cluster().client().await?;
        let node = StockNode::up(own.cluster()).await?;
        node.start_proxy().await?;
        let image = script("image", &[], &[]).await?;
        node.site().load(image.trim()).await?;
        let helm = script("chart", &["program"], &[]).await?.trim().to_owned();

        Ok(Self { helm, node, own, client })
    }

    fn cluster(&self) -> &Cluster {
        self.own.cluster()
    }

    /// `edgeadm init ARGS`, as a user types it.
    async fn init(&self, more: &[&str]) -> Result<Value> {
        let mut command = Command::new(program("edgeadm"));
        command.args(["init", "--output", "json"]).args(more);
        command.arg("--kubeconfig").arg(self.cluster().kubeconfig());
        // Nothing else is started.
        command.env("PATH", Path::new(&self.helm).parent().context("a folder")?);
        self.at_home(&mut command);

        Ok(serde_json::from_str(&output(command).await?)?)
    }

    /// helm keeps nothing among the user's files.
    fn at_home(&self, command: &mut Command) {
        for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(home, self.own.file("helm"));
        }
    }

    /// `helm VERB holdfast ARGS`, until everything is as asked.
    async fn helm(&self, verb: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.helm);
        command.args([verb, "holdfast"]).args(args).args(["--namespace", "holdfast"]);
        command.args(["--wait", "--timeout", "2m"]);
        command.arg("--kubeconfig").arg(self.cluster().kubeconfig());
        self.at_home(&mut command);

        output(command).await
    }

    /// Installs the chart, or upgrades to other values.
    async fn install(&self, verb: &str, more: &[&str]) -> Result<String> {
        let chart = checkout().join("helm/holdfast").display().to_string();
        let args = [&[chart.as_str(), "--create-namespace"], &VALUES[..], more].concat();
        // An upgrade makes no namespace.
        let args: Vec<_> = args
            .into_iter()
            .filter(|word| verb == "install" || *word != "--create-namespace")
            .collect();

        self.helm(verb, &args).await
    }

    async fn authority(&self) -> Result<Value> {
        let path = "/api/v1/namespaces/holdfast/secrets/holdfast-ca";
        let secret = self.cluster().get(&self.client, path).await?.context("an authority")?;

        Ok(secret["data"]["ca.crt"].clone())
    }

    /// The replicas of cloudcore that are to stay.
    async fn replicas(&self) -> Result<Vec<Replica>> {
        let path =
            "/api/v1/namespaces/holdfast/pods?labelSelector=app.kubernetes.io%2Fname%3Dcloudcore";
        let pods = self.cluster().get(&self.client, path).await?.context("a list")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = pods["items"].as_array().into_iter().flatten();

        Ok(all
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| Replica {
                name: text(&pod["metadata"]["name"]),
                node: text(&pod["spec"]["nodeName"]),
                address: text(&pod["status"]["podIP"]),
            })
            .collect())
    }

    /// Waits until one of them has the node's link: before, API servers ask one that is gone.
    async fn until_served(&self, edge: &EdgeNode) -> Result<()> {
        let look = || async {
            let node = self.cluster().get(&self.client, &edge.path()).await?;
            let node = node.context("the Node is gone")?;
            let address = node["status"]["addresses"][0]["address"].as_str();
            let replicas = self.replicas().await?;
            Ok((address.unwrap_or_default().to_owned(), replicas))
        };
        let is_served =
            |seen: &(String, Vec<Replica>)| seen.1.iter().any(|replica| replica.address == seen.0);

        wait::until("a replica at the node's address", LIMIT, look, is_served).await.map(drop)
    }

    /// Waits until there are `count` replicas, and none of those `before`.
    async fn until_replaced(&self, count: usize, before: &[Replica]) -> Result<Vec<Replica>> {
        let what = format!("{count} replicas in the place of {before:?}");
        let are_new = |now: &Vec<Replica>| {
            let is_old = |replica: &Replica| before.iter().any(|old| old.name == replica.name);
            now.len() == count && !now.iter().any(is_old)
        };

        wait::until(&what, LIMIT, || self.replicas(), are_new).await
    }

    /// Does `work`, during which the node must stay Ready.
    async fn while_ready<T>(
        &self,
        node: &EdgeNode,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let lost = async {
            loop {
                let seen = self.cluster().get(&self.client, &node.path()).await?;
                let seen = seen.context("the Node is gone")?;
                if pods::condition(&seen, "Ready") != Some("True") {
                    bail!("the node was lost: {}", seen["status"]["conditions"]);
                }
                sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::select! {
            done = work => done,
            lost = lost => lost,
        }
    }

    /// A DaemonSet that tolerates everything has a pod on the edge node, none when it is kept off, and is then
    /// made what it was. Of cloudcore, which is installed again meanwhile, nothing changes.
    async fn keeps_daemon_sets_off(&self, edge: &EdgeNode) -> Result<()> {
        let set = "/apis/apps/v1/namespaces/default/daemonsets/everywhere";
        let before = self.cluster().get(&self.client, set).await?.context("a DaemonSet")?;
        self.until_everywhere(edge, true).await?;
        let replicas = format!("{:?}", self.replicas().await?);

        let listed = self.init(&["--dry-run"]).await?;
        ensure!(listed["daemonSets"][0]["name"] == "everywhere", "{listed}");
        ensure!(listed["daemonSets"][0]["tolerates"] == "all", "{listed}");
        let patched = self.init(&["--patch-daemonsets"]).await?;
        ensure!(patched["daemonSets"][0]["result"] == "patched", "{patched}");
        self.until_everywhere(edge, false).await?;
        let listed = self.init(&["--dry-run"]).await?;
        ensure!(listed["daemonSets"] == json!([]), "{listed}");
        ensure!(format!("{:?}", self.replicas().await?) == replicas, "other replicas");

        let undone = self.init(&["--unpatch-daemonsets"]).await?;
        ensure!(undone["daemonSets"][0]["result"] == "unpatched", "{undone}");
        let after = self.cluster().get(&self.client, set).await?.context("a DaemonSet")?;
        ensure!(after["spec"]["template"] == before["spec"]["template"], "{after}");

        Ok(())
    }

    /// Waits until the DaemonSet has a pod on the edge node, or none.
    async fn until_everywhere(&self, edge: &EdgeNode, is_there: bool) -> Result<()> {
        let path = format!(
            "/api/v1/namespaces/default/pods?labelSelector=app%3Deverywhere&fieldSelector=spec.nodeName%3D{}",
            edge.name()
        );
        let count = || async {
            let pods = self.cluster().get(&self.client, &path).await?.context("a list")?;
            Ok(pods["items"].as_array().map_or(0, Vec::len))
        };
        let what = format!("the DaemonSet on the edge: {is_there}");

        wait::until(&what, LIMIT, count, |count| (*count > 0) == is_there).await.map(drop)
    }

    async fn run(&self, pod: Value) -> Result<Incarnation> {
        let path = pods::path(pod["metadata"]["name"].as_str().context("a name")?);
        self.cluster().apply(&[pod]).await?;
        let ready = self.cluster().until(&self.client, &path, "Ready", LIMIT, pods::is_ready);

        Ok(Incarnation::of(&ready.await?))
    }

    /// The pod is as it was, and can be talked to through a replica of cloudcore.
    async fn answers(&self, edge: &EdgeNode, name: &str, before: &Incarnation) -> Result<()> {
        self.until_served(edge).await?;
        let path = pods::path(name);
        let after =
            self.cluster().until(&self.client, &path, "Ready", LIMIT, pods::is_ready).await?;
        ensure!(Incarnation::of(&after) == *before, "{before:?} became {after}");
        ensure!(self.cluster().kubectl(&["logs", name]).await? == "started\n", "another log");
        let said = self.cluster().kubectl(&["exec", name, "--", "echo", "here"]).await?;
        ensure!(said == "here\n", "{said:?}");

        Ok(())
    }
}

/// On every node, whatever it is tainted with: a cluster's own agents are often like that.
fn everywhere() -> Value {
    let mut template = pods::sleeper("everywhere", "");
    template["metadata"] = json!({ "labels": { "app": "everywhere" } });
    template["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
    if let Some(spec) = template["spec"].as_object_mut() {
        spec.remove("nodeSelector");
    }

    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "everywhere", "namespace": "default" },
        "spec": {
            "selector": { "matchLabels": { "app": "everywhere" } },
            "template": { "metadata": template["metadata"], "spec": template["spec"] },
        },
    })
}

/// T-Helm: install, join through the Service, upgrade, roll back, uninstall and install again.
#[tokio::test]
async fn from_an_existing_cluster_and_a_bare_box_to_a_ready_node() -> Result<()> {
    let cloud = Cloud::up().await?;
    cloud.cluster().apply(&[everywhere()]).await?;
    let address = format!("{}:{NODE_PORT}", cloud.node.site().fact("ADDRESS")?);
    let told = cloud.init(&VALUES).await?;
    ensure!(told["cloudcore"] == address.as_str(), "{told}");
    let join = format!("edgeadm join --cloudcore {address} --token hf1");
    ensure!(told["joinCommand"].as_str().is_some_and(|told| told.starts_with(&join)), "{told}");
    let authority = cloud.authority().await?;
    let first = cloud.replicas().await?;
    ensure!(first.len() == 2, "{first:?}");

    let edge = EdgeNode::join_behind_nat(cloud.cluster(), &cloud.client, &address).await?;
    let before = cloud.run(pods::sleeper("steady", edge.name())).await?;
    cloud.answers(&edge, "steady", &before).await?;
    cloud.keeps_daemon_sets_off(&edge).await?;

    // Each replica goes and another comes, twice.
    let upgrade = async {
        let values = ["--set", "config.logLevel=debug", "--set", "replicas=3"];
        cloud.install("upgrade", &values).await?;
        cloud.until_replaced(3, &first).await
    };
    let second = cloud.while_ready(&edge, upgrade).await?;
    ensure!(second.iter().all(|one| one.node == cloud.node.name()), "on an edge: {second:?}");
    cloud.answers(&edge, "steady", &before).await?;
    let rollback = async {
        cloud.helm("rollback", &[]).await?;
        cloud.until_replaced(2, &second).await
    };
    let third = cloud.while_ready(&edge, rollback).await?;
    cloud.answers(&edge, "steady", &before).await?;

    // What nodes trust is not the chart's to remove.
    cloud.helm("uninstall", &[]).await?;
    cloud.until_replaced(0, &third).await?;
    let notes = cloud.install("install", &[]).await?;
    ensure!(notes.contains("edgeadm join --cloudcore $ADDRESS --token $TOKEN"), "{notes}");
    ensure!(cloud.authority().await? == authority, "another authority");
    cloud.run(pods::sleeper("fresh", edge.name())).await?;

    cloud.answers(&edge, "steady", &before).await
}
