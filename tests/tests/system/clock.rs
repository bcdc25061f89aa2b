//! T23: clocks that are wrong by years, and jump, as those of machines without a clock battery do.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::Value;
use system_tests::api;
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::process::{checkout, output, program};
use system_tests::replica::Replica;
use system_tests::site::Site;
use system_tests::wait;
use tokio::process::Command;

/// For conditions that hold within a second on an idle machine.
const LIMIT: Duration = Duration::from_mins(2);
const YEAR_S: i64 = 365 * 24 * 60 * 60;

/// The clock of one node's programs: it can be set while they run, and the machine's is left alone.
struct Clock {
    dir: PathBuf,
}

impl Clock {
    async fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("holdfast-clock-{}", unique()));
        std::fs::create_dir_all(&dir)?;
        let clock = Self { dir };
        let source = checkout().join("tests/tests/system/clock/shift.c");
        let file = format!("-DOFFSET_FILE=\"{}\"", clock.offset().display());
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC", &file, "-o"]);
        compiler.arg(clock.library()).arg(source);
        output(compiler).await?;

        Ok(clock)
    }

    fn library(&self) -> PathBuf {
        self.dir.join("shift.so")
    }

    fn offset(&self) -> PathBuf {
        self.dir.join("offset")
    }

    /// Sets it to the machine's and so many seconds.
    fn set(&self, ahead_s: i64) -> Result<()> {
        let new = self.dir.join("new");
        std::fs::write(&new, ahead_s.to_string())?;

        Ok(std::fs::rename(new, self.offset())?)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _left_over = std::fs::remove_dir_all(&self.dir);
    }
}

/// Seconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "the clock of the node is set to the beginning of it"
)]
fn now_s() -> Result<i64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().try_into()?)
}

/// A node with such a clock, and the cloudcore that it has joined.
struct World {
    clock: Clock,
    node: EdgeNode,
    replica: Replica,
    cluster: Cluster,
    client: Client,
}

impl World {
    /// Waits for a session after that one, or the first.
    async fn session_after(&self, before: u64) -> Result<u64> {
        let path =
            format!("/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/{}", self.node.name());
        let number = |lease: &Value| lease["spec"]["leaseTransitions"].as_u64().unwrap_or_default();
        let later = |lease: &Value| number(lease) > before;
        let lease = self.cluster.until(&self.client, &path, "a session", LIMIT, later).await?;

        Ok(number(&lease))
    }

    /// Cloudcore starts again, with another certificate: the node has to dial by its clock.
    async fn dial_again(&self, before: u64) -> Result<u64> {
        self.replica.call("down").await?;
        self.replica.call("up").await?;

        self.session_after(before).await
    }

    /// The agent starts by another clock while cloudcore is away, and has looked at the pod before it is back.
    async fn start_alone(&self, pod: &str, ahead_s: i64, preload: (&str, &str)) -> Result<()> {
        self.node.kill_agent().await?;
        self.replica.call("down").await?;
        self.clock.set(ahead_s)?;
        self.node.start_agent_with(&[preload]).await?;
        let exec = ["ctl", "exec", pod];
        let look = async || Ok(self.edgeadm(&exec, &["--", "true"]).await?.status.success());
        wait::until("the agent to know the pod", LIMIT, look, |ran| *ran).await?;

        self.replica.call("up").await.map(drop)
    }

    /// What `edgeadm` says on the node, well or not.
    async fn edgeadm(&self, words: &[&str], rest: &[&str]) -> Result<Output> {
        let config = self.node.site().path("STATE")?.join("holdfast/edgecore.yaml");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.node.site().fact("NETNS")?, "env"]);
        command.arg(format!("LD_PRELOAD={}", self.clock.library().display()));
        command.arg(program("edgeadm")).args(words).arg("--config").arg(config).args(rest);

        Ok(command.stdin(Stdio::null()).kill_on_drop(true).output().await?)
    }
}

/// The token of the only volume with one in that folder of a pod.
fn token(pod: &Path) -> Result<String> {
    let projected = pod.join("volumes/kubernetes.io~projected");
    let volume = std::fs::read_dir(&projected)?.next().context("no projected volume")??;

    Ok(std::fs::read_to_string(volume.path().join("token"))?)
}

/// A machine whose clock says 1970 joins; its clock is set, is years ahead, and says 1970 again, while the link breaks
/// and while the agent and cloudcore are away. The link comes up each time; the pod with a deadline and a token goes
/// on, and its token, which ends by the cloud's clock, is neither lost nor asked for again.
#[tokio::test]
async fn a_clock_that_is_wrong_by_years_keeps_no_node_away_and_ends_no_pod() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let clock = Clock::new().await?;
    let (in_1970, ahead) = (-now_s()? + 3600, 20 * YEAR_S);
    clock.set(in_1970)?;
    let replica = Replica::up(&cluster, 7).await?;
    let site = Site::up(&format!("e{}", unique()), cluster.name()).await?;
    let library = clock.library().display().to_string();
    let preload = ("HOLDFAST_AGENT_PRELOAD", library.as_str());
    let join = [preload, ("HOLDFAST_CLOUDCORE", replica.link.as_str())];
    let node = EdgeNode::join_in(site, &cluster, &client, &join).await?;
    let world = World { clock, node, replica, cluster, client };
    let World { clock, node, replica: _, cluster, client } = &world;
    let log = node.agent_log().await?;
    ensure!(log.contains("1970-01-01T"), "the clock of the agent is not shifted:\n{log}");

    let name = format!("clock-{}", unique());
    let path = pods::path(&name);
    let mut pod = pods::sleeper(&name, node.name());
    pod["spec"]["activeDeadlineSeconds"] = 3600.into();
    cluster.apply(&[pod]).await?;
    let before = cluster.until(client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let uid = before["metadata"]["uid"].as_str().context("no UID")?;
    let dir = node.site().path("KUBELET_ROOT")?.join("pods").join(uid);
    let held = token(&dir)?;
    let mut session = world.session_after(0).await?;
    let found = world.edgeadm(&["check"], &[]).await?;
    let found = String::from_utf8_lossy(&found.stdout);
    ensure!(found.contains("behind cloudcore's"), "the clock is not named:\n{found}");

    for ahead_s in [0, ahead, in_1970] {
        clock.set(ahead_s)?;
        session = world.dial_again(session).await?;
    }
    for ahead_s in [in_1970, ahead] {
        world.start_alone(&name, ahead_s, preload).await?;
        session = world.session_after(session).await?;
    }
    // Another pod starts by such a clock, and what was to become of the first has.
    let (later, later_path) = (format!("{name}-later"), pods::path(&format!("{name}-later")));
    cluster.apply(&[pods::sleeper(&later, node.name())]).await?;
    cluster.until(client, &later_path, "Ready", LIMIT, pods::is_ready).await?;
    let after = cluster.until(client, &path, "Ready", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == Incarnation::of(&before), "{before} became {after}");
    ensure!(after["status"]["phase"] == "Running", "{after}");
    ensure!(token(&dir)? == held, "the token was asked for again");
    for path in [&path, &later_path] {
        api::delete(client, path, None).await?;
    }
    cluster.until_gone(client, &later_path, LIMIT).await?;

    cluster.until_gone(client, &path, LIMIT).await
}
