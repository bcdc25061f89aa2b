//! Several replicas of cloudcore: any of them answers for any node.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use rustix::process::Signal;
use serde_json::{Value, json};
use system_tests::api;
use system_tests::balancer::Balancer;
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::own::OwnCluster;
use system_tests::pods::{self, Incarnation};
use system_tests::process::Daemon;
use system_tests::replica::{self, Replica};
use system_tests::wait;
use tokio::time::Instant;

const LIMIT: Duration = Duration::from_mins(1);

/// T9, its first half: whoever is asked for a node passes it on to the replica that has the node's session.
#[tokio::test]
async fn logs_and_exec_work_through_a_replica_without_the_session() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("asked-{}", unique());
    cluster.apply(&[pods::sleeper(&name, node.name())]).await?;
    cluster.until(&client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;
    let second = Replica::up(&cluster, 2).await?;
    replica::ask_at(&client, &node, second.address()).await?;

    let logs = || async { cluster.kubectl(&["logs", &name]).await };
    wait::until("its log", LIMIT, logs, |log| log == "started\n").await?;
    let said = cluster.kubectl(&["exec", &name, "--", "sh", "-c", "echo from $HOSTNAME"]).await?;
    ensure!(said == format!("from {name}\n"), "{said:?}");
    let failed = cluster.kubectl(&["exec", &name, "--", "sh", "-c", "exit 7"]).await;
    let error = failed.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(error.contains("exit code 7"), "the exit code is lost: {error:?}");
    let stranger = format!("/api/v1/nodes/{}/proxy/containerLogs/default/none/main", node.name());
    let failed = cluster.kubectl(&["get", "--raw", &stranger]).await;
    let error = failed.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(error.contains("NotFound"), "{error:?}");
    let is_there = |node: &Value| node["status"]["addresses"][0]["address"] == second.address();
    cluster.until(&client, &node.path(), "the other replica's address", LIMIT, is_there).await?;

    // The replica that had the session knows since when there is none.
    node.kill_agent().await?;
    let ask = || async {
        let told = cluster.kubectl(&["logs", &name]).await;
        Ok(told.err().map(|error| error.to_string()).unwrap_or_default())
    };
    let says_since = |error: &String| error.contains(" is away since 2");
    wait::until("an error that says since when", LIMIT, ask, says_since).await?;
    node.start_agent().await?;
    cluster.until(&client, &node.path(), "its own address", LIMIT, |node| !is_there(node)).await?;
    wait::until("its log", LIMIT, logs, |log| log == "started\n").await?;
    api::delete(&client, &pods::path(&name), Some(0)).await?;

    cluster.until_gone(&client, &pods::path(&name), LIMIT).await
}

/// A node behind a balancer of three replicas, with a pod that nothing may happen to.
struct World {
    cluster: Cluster,
    client: Client,
    node: EdgeNode,
    replicas: [Replica; 3],
    pod: Value,
    containers: Vec<String>,
    _balancer: Balancer,
}

impl World {
    async fn make(cluster: &Cluster) -> Result<Self> {
        let client = cluster.client().await?;
        let replicas = [
            Replica::first(cluster).await?,
            Replica::up(cluster, 2).await?,
            Replica::up(cluster, 3).await?,
        ];
        let ends = replicas.each_ref().map(|one| (one.link.clone(), one.probes.clone()));
        let balancer = Balancer::start(replicas[0].address(), &ends).await?;
        let node = EdgeNode::join_at(&balancer.address.to_string(), cluster, &client).await?;
        cluster.apply(&[pods::sleeper("kept", node.name())]).await?;
        let path = pods::path("kept");
        let pod = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
        let containers = node.running_containers().await?;
        let cluster = cluster.clone();

        Ok(Self { cluster, client, node, replicas, pod, containers, _balancer: balancer })
    }

    /// Which replica has the node's session, and which session that is.
    async fn holder(&self) -> Result<(&Replica, u64)> {
        let path =
            format!("/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/{}", self.node.name());
        let lease = self.cluster.get(&self.client, &path).await?.context("no record")?;
        let spec = &lease["spec"];
        let generation = spec["leaseTransitions"].as_u64().context("no generation")?;
        let holder = self.replicas.iter().find(|one| spec["holderIdentity"] == one.name());

        Ok((holder.context("no holder")?, generation))
    }

    /// Waits until the node has a later session than that one.
    async fn until_moved(&self, generation: u64) -> Result<&Replica> {
        let look = || self.holder();
        let moved = wait::until("another session", LIMIT, look, |(_, now)| *now > generation);

        Ok(moved.await?.0)
    }

    /// A command in the pod that has begun and lasts a moment.
    async fn start_command(&self, name: &str) -> Result<Daemon> {
        let script = "echo begun; sleep 3; echo done";
        let exec = self.cluster.kubectl_command(&["exec", "kept", "--", "sh", "-c", script])?;
        let log = std::env::temp_dir().join(format!("command-{name}-{}", unique()));
        let command = Daemon::start(exec, log)?;
        let look = async || Ok(command.log());
        wait::until("a command", LIMIT, look, |log| log.starts_with("begun")).await?;

        Ok(command)
    }

    /// Whoever is asked of these gives the pod's log and runs a command in it.
    async fn ask(&self, replicas: &[&Replica], name: &str) -> Result<()> {
        for replica in replicas {
            let ask = async || {
                replica::ask_at(&self.client, &self.node, replica.address()).await?;
                let log = self.cluster.kubectl(&["logs", name]).await?;
                let said = self.cluster.kubectl(&["exec", name, "--", "echo", "here"]).await?;
                let node = self.cluster.get(&self.client, &self.node.path()).await?;
                let asked = node.unwrap_or_default()["status"]["addresses"][0]["address"].take();
                Ok((log, said, asked))
            };
            let wanted = ("started\n".to_owned(), "here\n".to_owned(), json!(replica.address()));
            let what = format!("{name} through {}", replica.name());
            wait::until(&what, LIMIT, ask, |seen| *seen == wanted).await?;
        }

        Ok(())
    }

    /// What is new comes down, what becomes of it is told, and nothing has happened to what there was.
    async fn deliver(&self, name: &str) -> Result<Value> {
        self.cluster.apply(&[pods::sleeper(name, self.node.name())]).await?;
        let path = pods::path(name);
        let pod = self.cluster.until(&self.client, &path, "Ready", LIMIT, pods::is_ready).await?;
        self.check("kept", &self.pod).await?;

        Ok(pod)
    }

    async fn check(&self, name: &str, before: &Value) -> Result<()> {
        let now = self.cluster.get(&self.client, &pods::path(name)).await?.unwrap_or_default();
        ensure!(Incarnation::of(&now) == Incarnation::of(before), "{before} became {now}");

        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<()> {
        api::delete(&self.client, &pods::path(name), Some(0)).await?;
        self.cluster.until_gone(&self.client, &pods::path(name), LIMIT).await?;
        let containers = || self.node.running_containers();

        wait::until("what ran before", LIMIT, containers, |now| *now == self.containers)
            .await
            .map(drop)
    }
}

/// T9, its second half: the replica with the session dies, leaves in good order, hangs, and comes back with
/// a cache that lags.
#[tokio::test]
async fn any_replica_may_go_and_no_pod_notices() -> Result<()> {
    let own = OwnCluster::up().await?;
    let world = World::make(own.cluster()).await?;
    world.ask(&world.replicas.each_ref(), "kept").await?;

    for verb in ["kill", "down"] {
        let (gone, generation) = world.holder().await?;
        let command = world.start_command(verb).await?;
        let since = Instant::now();
        gone.call(verb).await?;
        if verb == "down" {
            // Who leaves in good order lets commands end.
            let look = async || Ok(command.log());
            let is_done = |log: &String| log == "begun\ndone\n";
            wait::until("the end of the command", LIMIT, look, is_done).await?;
        }
        let now = world.until_moved(generation).await?;
        ensure!(now.name() != gone.name(), "{verb}: it is there again");
        tell(&format!("another session after {verb} (at most 15 s)"), since);
        world.deliver(verb).await?;
        let left: Vec<_> = world.replicas.iter().filter(|one| one.name() != gone.name()).collect();
        world.ask(&left, verb).await?;
        world.remove(verb).await?;
        gone.call("up").await?;
    }
    let drained = world.node.agent_log().await?;
    ensure!(drained.contains("cloudcore stops"), "it was not told to go elsewhere:\n{drained}");

    // Nothing is heard of one that hangs, neither that it is gone.
    let (hung, generation) = world.holder().await?;
    let since = Instant::now();
    hung.signal(Signal::STOP).await?;
    let now = world.until_moved(generation).await?;
    ensure!(now.name() != hung.name(), "it does not hang");
    tell("another session after a silent loss (at most 45 s)", since);
    let late = world.deliver("late").await?;
    let left: Vec<_> = world.replicas.iter().filter(|one| one.name() != hung.name()).collect();
    world.ask(&left, "late").await?;

    // It goes on, knows nothing of that pod yet, and is the only one.
    let (_, generation) = world.holder().await?;
    for replica in left {
        replica.call("kill").await?;
    }
    hung.signal(Signal::CONT).await?;
    world.until_moved(generation).await?;
    world.ask(&[hung], "late").await?;
    world.deliver("last").await?;
    world.check("late", &late).await?;
    for name in ["late", "last"] {
        api::delete(&world.client, &pods::path(name), Some(0)).await?;
    }
    let containers = || world.node.running_containers();
    let is_as_before = |now: &Vec<String>| *now == world.containers;

    wait::until("what ran before", LIMIT, containers, is_as_before).await.map(drop)
}

/// Times are told, not judged: the machine is shared.
#[expect(clippy::print_stderr, reason = "what a test measures is shown beside its verdict")]
fn tell(what: &str, since: Instant) {
    eprintln!("{what}: {:.1} s", since.elapsed().as_secs_f64());
}
