//! T11 and T12: certificates are renewed in time and after it, and who has copied a node's identity gets nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::process::{Daemon, script};
use system_tests::replica::Replica;
use system_tests::site::Site;
use system_tests::{api, wait};
use tokio::time::Instant;

/// For conditions that hold within a second on an idle machine.
const LIMIT: Duration = Duration::from_mins(2);

/// What the agent says of each session that it was refused.
const REFUSED: &str = "stale ticket";

/// The API path of the record of a node's sessions.
fn record(node: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/{node}")
}

/// The number of the node's current session.
async fn generation(cluster: &Cluster, client: &Client, node: &str) -> Result<u64> {
    let lease = cluster.get(client, &record(node)).await?.context("no session record")?;

    lease["spec"]["leaseTransitions"].as_u64().context("the record has no generation")
}

/// Another machine with a copy of a node's identity, and not of its store.
struct Thief {
    site: Site,
    node: String,
}

impl Thief {
    async fn of(node: &EdgeNode, cluster: &Cluster) -> Result<Self> {
        let site = Site::up(&format!("t{}", unique()), cluster.name()).await?;
        let thief = Self { site, node: node.name().to_owned() };
        let identity = node.site().path("STATE")?.join("holdfast").display().to_string();
        thief.agent("up", &[("HOLDFAST_AGENT_IDENTITY", identity.as_str())]).await?;

        Ok(thief)
    }

    async fn agent(&self, verb: &str, env: &[(&str, &str)]) -> Result<String> {
        script("edge-agent", &[verb, "--site", self.site.name(), "--node", &self.node], env).await
    }

    /// Waits until it was refused for the `count`th time for this `reason`.
    async fn until_refused(&self, reason: &str, count: usize) -> Result<()> {
        let refusals = async || {
            let log = self.agent("log", &[]).await?;
            ensure!(!log.contains("the link is up"), "the thief has a session:\n{log}");
            Ok(log.lines().filter(|line| line.contains(reason)).count())
        };

        wait::until(&format!("refusal {count}: {reason}"), LIMIT, refusals, |found| *found >= count)
            .await
            .map(drop)
    }

    /// It tries again at once.
    async fn try_again(&self) -> Result<()> {
        self.agent("kill", &[]).await?;

        self.agent("up", &[]).await.map(drop)
    }
}

/// The key of a connected node opens nothing elsewhere, from its first session on; nor after the node has
/// left, nor once it is revoked. People are told, and the node notices nothing.
#[tokio::test]
async fn a_stolen_key_gets_no_session() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    // The first session after joining: the node has never shown a ticket.
    let held = |lease: &Value| lease["metadata"]["annotations"]["holdfast.dev/ticket-shown"] == "1";
    let first = record(node.name());
    cluster.until(&client, &first, "the node holds its ticket", LIMIT, held).await?;
    let before = generation(&cluster, &client, node.name()).await?;

    let thief = Thief::of(&node, &cluster).await?;
    thief.until_refused(REFUSED, 1).await?;
    let events = format!(
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{},reason%3DStolenIdentity",
        node.name()
    );
    let told = |events: &Value| {
        let message = events["items"][0]["message"].as_str().unwrap_or_default();
        let address = thief.site.fact("ADDRESS").unwrap_or("no address");
        message.contains(&format!("a machine at {address} with the certificate of this node"))
    };
    cluster.until(&client, &events, "an alarm", LIMIT, told).await?;
    ensure!(generation(&cluster, &client, node.name()).await? == before, "another session");
    let seen = cluster.get(&client, &node.path()).await?.unwrap_or_default();
    ensure!(pods::condition(&seen, "Ready") == Some("True"), "the node suffers: {seen}");

    // Nobody is there whom it could be in the way of.
    script("edge-agent", &["down", "--site", node.site().name(), "--node", node.name()], &[])
        .await?;
    thief.try_again().await?;
    thief.until_refused(REFUSED, 2).await?;
    node.start_agent().await?;
    let later = |lease: &Value| lease["spec"]["leaseTransitions"].as_u64() > Some(before);
    cluster.until(&client, &first, "the node's next session", LIMIT, later).await?;
    node.until_ready(&client).await?;
    let current = generation(&cluster, &client, node.name()).await?;
    ensure!(current == before + 1, "somebody else had a session: {before}, then {current}");

    let revoked = json!({ "metadata": { "annotations": { "holdfast.dev/revoked": "true" } } });
    api::merge(&client, &record(node.name()), &revoked).await?;
    let since = Instant::now();
    let ended =
        async || Ok(node.agent_log().await?.contains("the cloud refused the session: revoked"));
    wait::until("the end of the node's own session", LIMIT, ended, |ended| *ended).await?;
    tell("a live session over after its revocation (at most 5 s)", since);
    thief.try_again().await?;
    thief.until_refused("revoked", 1).await?;
    ensure!(
        generation(&cluster, &client, node.name()).await? == current,
        "a revoked node has a session"
    );

    Ok(())
}

/// Times are told, not judged: the machine is shared.
#[expect(clippy::print_stderr, reason = "what a test measures is shown beside its verdict")]
fn tell(what: &str, since: Instant) {
    eprintln!("{what}: {:.1} s", since.elapsed().as_secs_f64());
}

/// What the agent says of a certificate that it has got over its link, and until when the last one is valid, in
/// seconds since 1970.
async fn renewed(node: &EdgeNode) -> Result<(usize, u64)> {
    let log = node.agent_log().await?;
    let mut renewed =
        log.lines().filter(|line| line.contains("the certificate of this node was renewed"));
    let until = |line: &str| {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix("until="));
        word.and_then(|until| until.parse().ok())
    };

    Ok((renewed.clone().count(), renewed.next_back().and_then(until).unwrap_or_default()))
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a certificate ends by the wall clock")]
fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// T11, and what makes it rare: certificates of half a minute are renewed over the link, which stays up, session
/// and streams and all. One that expires while the node is cut off, and its agent is started again meanwhile, is
/// renewed when the cloud is back.
#[tokio::test]
async fn certificates_rotate_under_a_link_and_one_that_expired_offline_is_renewed() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let life = [("HOLDFAST_NODE_CERTIFICATE_SECONDS", "30")];
    let replica = Replica::up_with(&cluster, 8, &life).await?;
    let node = EdgeNode::join_at(&replica.link, &cluster, &client).await?;
    let name = format!("rotate-{}", unique());
    let path = pods::path(&name);
    let ticks = "trap 'exit 0' TERM; while :; do echo tick; sleep 1 & wait $!; done";
    cluster.apply(&[pods::script_pod(&name, node.name(), ticks)]).await?;
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let session = generation(&cluster, &client, node.name()).await?;
    let log = std::env::temp_dir().join(format!("holdfast-{name}.log"));
    let mut follow =
        Daemon::start(cluster.kubectl_command(&["logs", "-f", "--tail=1", &name])?, log.clone())?;

    let since = Instant::now();
    let (count, _) =
        wait::until("three renewals", LIMIT, || renewed(&node), |(count, _)| *count >= 3).await?;
    tell(&format!("{count} renewals"), since);
    let same = generation(&cluster, &client, node.name()).await? == session;
    ensure!(same, "another session: {}\n{}", replica.call("log").await?, node.agent_log().await?);
    let told = follow.log().lines().count();
    let more = async || Ok(follow.log().lines().count());
    wait::until("more of the log", LIMIT, more, |lines| *lines > told).await?;
    ensure!(follow.is_running(), "kubectl logs -f has ended: {}", follow.log());
    follow.kill().await?;
    std::fs::remove_file(&log)?;
    let of_now = |lease: &Value| {
        let keys = lease["metadata"]["annotations"]["holdfast.dev/joined-key"].as_str();
        keys.is_some_and(|keys| keys.split(',').count() == 2)
    };
    cluster.until(&client, &record(node.name()), "two keys", LIMIT, of_now).await?;

    node.site().cut().await?;
    node.kill_agent().await?;
    node.start_agent().await?;
    let (_, until) = renewed(&node).await?;
    ensure!(until > 0, "the log does not say until when");
    wait::until("the certificate's end", LIMIT, async || now(), |now| *now > until + 1).await?;
    let since = Instant::now();
    node.site().restore().await?;
    let back = "the certificate of this node had expired, and it has another now";
    let said = async || Ok(node.agent_log().await?.contains(back));
    wait::until("a renewal by the old key", LIMIT, said, |said| *said).await?;
    let later = |lease: &Value| lease["spec"]["leaseTransitions"].as_u64() > Some(session);
    cluster.until(&client, &record(node.name()), "another session", LIMIT, later).await?;
    node.until_ready(&client).await?;
    tell("Ready after the path is back, with an expired certificate (at most 35 s)", since);
    let after = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == Incarnation::of(&before), "{before} became {after}");
    api::delete(&client, &path, None).await?;

    cluster.until_gone(&client, &path, LIMIT).await
}
