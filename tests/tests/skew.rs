//! cloudcore and agents of two versions with each other, and the way from one to the other: real programs of
//! both, on a real control plane and runtimes. Run by `scripts/skew`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::json;
use system_tests::api;
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::process::{checkout, output, program};
use system_tests::site::Site;
use system_tests::wait;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_mins(1);

/// The programs of a version, and the scripts that know their config files.
struct Version {
    scripts: PathBuf,
    bin: PathBuf,
}

impl Version {
    fn older() -> Result<Self> {
        let folder = std::env::var_os("HOLDFAST_SKEW").map(PathBuf::from);
        let folder = folder.context("HOLDFAST_SKEW is not set: run this test by scripts/skew")?;

        Ok(Self { scripts: folder.join("source/scripts"), bin: folder.join("bin") })
    }

    fn newer() -> Self {
        Self { scripts: checkout().join("scripts"), bin: program("") }
    }

    async fn script(&self, name: &str, args: &[&str]) -> Result<String> {
        // An older version's scripts may look for another control plane's kubectl.
        let folder = std::env::var("HOLDFAST_KUBERNETES").context("HOLDFAST_KUBERNETES")?;
        let path = format!("{}:{folder}", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(self.scripts.join(name));
        command.args(args).env("HOLDFAST_BIN", &self.bin).env("PATH", path);

        output(command).await
    }

    /// Replaces the cloudcore that runs, if any, by one of this version.
    async fn take_over(&self, cluster: &Cluster) -> Result<()> {
        let named = ["--name", cluster.name()];
        self.script("dev-cloudcore", &[&["down"], &named[..]].concat()).await?;

        self.script("dev-cloudcore", &[&["up"], &named[..]].concat()).await?;
        let pid = self.script("dev-cloudcore", &[&["pid"], &named[..]].concat()).await?;

        self.is_run_by(pid.trim(), "cloudcore")
    }

    async fn start_agent(&self, node: &str, site: &str) -> Result<()> {
        let args = ["up", "--site", site, "--node", node];

        self.script("edge-agent", &args).await?;
        let pid = self.script("edge-agent", &[&["pid"], &args[1..]].concat()).await?;
        // The script's last step is to become the agent.
        let is_agent = || async { self.is_run_by(pid.trim(), "edgecore") };

        wait::until("the agent of that version", LIMIT, is_agent, |()| true).await
    }

    /// That it is the program of this version and not another's.
    fn is_run_by(&self, pid: &str, name: &str) -> Result<()> {
        let (runs, expected) = (PathBuf::from("/proc").join(pid).join("exe"), self.bin.join(name));
        let (runs, expected) = (runs.read_link()?, expected.canonicalize()?);
        ensure!(runs == expected, "{} runs in the place of {}", runs.display(), expected.display());

        Ok(())
    }

    /// A node that has joined with the programs of this version, and has a pod that nothing may happen to.
    async fn join(&self, cluster: &Cluster, client: &Client) -> Result<Member> {
        let site = Site::up(&format!("e{}", unique()), cluster.name()).await?;
        self.start_agent(site.name(), site.name()).await?;
        // Its agent runs already.
        let node = EdgeNode::join_in(site, cluster, client, &[]).await?;
        let kept = format!("kept-{}", unique());
        cluster.apply(&[pods::sleeper(&kept, node.name())]).await?;
        let pod = cluster.until(client, &pods::path(&kept), "Ready", LIMIT, pods::is_ready).await?;
        let (kept_as, cluster) = (Incarnation::of(&pod), cluster.clone());

        Ok(Member { cluster, client: client.clone(), node, kept, kept_as })
    }
}

/// A node, and the pod that it keeps.
struct Member {
    cluster: Cluster,
    client: Client,
    node: EdgeNode,
    kept: String,
    kept_as: Incarnation,
}

impl Member {
    /// Which session of the node it is, as cloudcore records it.
    async fn generation(&self) -> Result<u64> {
        let path =
            format!("/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/{}", self.node.name());
        let lease = self.cluster.get(&self.client, &path).await?.context("no record")?;

        lease["spec"]["leaseTransitions"].as_u64().context("no generation")
    }

    async fn until_later_than(&self, generation: u64) -> Result<()> {
        let what = format!("a session of {} after {generation}", self.node.name());
        let is_later = |now: &u64| *now > generation;

        wait::until(&what, LIMIT, || self.generation(), is_later).await.map(drop)
    }

    /// A pod comes, is told of changes, answers and goes; the one that is kept notices nothing.
    async fn serves(&self, whom: &str) -> Result<()> {
        self.serves_a_pod().await.with_context(|| format!("{} and {whom}", self.node.name()))
    }

    async fn serves_a_pod(&self) -> Result<()> {
        self.node.until_ready(&self.client).await?;
        let name = format!("skew-{}", unique());
        let path = pods::path(&name);
        let pod = pods::sleeper_with_map(&name, self.node.name(), &name);
        self.cluster.apply(&[pods::config_map(&name, "first"), pod]).await?;
        let pod = self.cluster.until(&self.client, &path, "Ready", LIMIT, pods::is_ready).await?;
        let uid = pod["metadata"]["uid"].as_str().context("a pod has a UID")?;
        self.node.until_map_says(uid, "first", LIMIT).await?;
        let map = format!("/api/v1/namespaces/default/configmaps/{name}");
        api::merge(&self.client, &map, &json!({ "data": { "key": "second" } })).await?;
        self.node.until_map_says(uid, "second", LIMIT).await?;

        let log = self.cluster.kubectl(&["logs", &name]).await?;
        ensure!(log == "started\n", "its log is {log:?}");
        let said = self.cluster.kubectl(&["exec", &name, "--", "echo", "said"]).await?;
        ensure!(said == "said\n", "a command said {said:?}");

        api::delete(&self.client, &path, None).await?;
        self.cluster.until_gone(&self.client, &path, LIMIT).await?;
        self.cluster.kubectl(&["delete", "configmap", &name]).await?;
        let running = self.node.running_containers().await?;
        ensure!(running.len() == 1, "these run when only one was kept: {running:?}");
        self.keeps().await
    }

    /// Nothing has happened to the pod.
    async fn keeps(&self) -> Result<()> {
        let path = pods::path(&self.kept);
        let pod = self.cluster.until(&self.client, &path, "Ready", LIMIT, pods::is_ready).await?;
        let (before, now) = (&self.kept_as, Incarnation::of(&pod));
        ensure!(now == *before, "{before:?} became {now:?}");

        Ok(())
    }
}

/// Replaces cloudcore while the nodes are connected, and waits until all are again.
async fn replace_cloudcore(by: &Version, members: &[&Member]) -> Result<()> {
    let mut generations = Vec::new();
    for member in members {
        generations.push(member.generation().await?);
    }
    if let Some(first) = members.first() {
        by.take_over(&first.cluster).await?;
    }
    for (member, generation) in members.iter().zip(generations) {
        member.until_later_than(generation).await?;
    }

    Ok(())
}

/// Replaces the agent of a node by another version's, which finds config file, identity and state.
async fn replace_agent(by: &Version, member: &Member) -> Result<()> {
    let (generation, name) = (member.generation().await?, member.node.name());
    let args = ["down", "--site", member.node.site().name(), "--node", name];
    by.script("edge-agent", &args).await?;
    by.start_agent(name, member.node.site().name()).await?;

    member.until_later_than(generation).await
}

/// Neither end has found that the other speaks otherwise.
async fn nobody_complained(cluster: &Cluster, members: &[&Member]) -> Result<()> {
    let mut logs =
        vec![Version::newer().script("dev-cloudcore", &["log", "--name", cluster.name()]).await?];
    for member in members {
        logs.push(member.node.agent_log().await?);
    }
    for log in &logs {
        ensure!(log.contains("session") || log.contains("link"), "a log says nothing of links");
        let complaint = log.lines().find(|line| line.contains("broke the protocol"));
        ensure!(complaint.is_none(), "{complaint:?}");
    }

    Ok(())
}

#[tokio::test]
async fn two_versions_work_together_and_either_is_replaced_under_running_pods() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let (older, newer) = (Version::older()?, Version::newer());
    older.take_over(&cluster).await?;
    let old = older.join(&cluster, &client).await?;
    let new = newer.join(&cluster, &client).await?;
    old.serves("a cloudcore as old as it").await?;
    new.serves("an older cloudcore").await?;

    // The way up begins with cloudcore.
    replace_cloudcore(&newer, &[&old, &new]).await?;
    old.serves("a newer cloudcore").await?;
    new.serves("a cloudcore as new as it").await?;
    let late = older.join(&cluster, &client).await?;
    late.serves("the newer cloudcore that it joined").await?;

    // It is taken back, and brought again.
    let all = [&old, &new, &late];
    replace_cloudcore(&older, &all).await?;
    for member in all {
        member.serves("a cloudcore that was taken back").await?;
    }
    replace_cloudcore(&newer, &all).await?;

    for member in [&old, &late] {
        replace_agent(&newer, member).await?;
        member.serves("its newer agent").await?;
    }
    new.keeps().await?;

    nobody_complained(&cluster, &all).await
}
