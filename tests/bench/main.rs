//! `scripts/bench`: what Holdfast takes; [`streams`] with [`updates`], [`fleet`] and [`join`] are of their own, the rest is `pods`:
//! Holdfast against its container runtime driven directly, in one run.
//!
//! [`floor`] asks the runtime itself for what a pod needs; [`ours`] asks the API server for pods.
//! The two take turns, so that both see the same machine. [`power`] turns the power off, [`memory`]
//! and [`quiet`] look at a node that has nothing to do, [`report`] prints.

mod figures;
mod fleet;
mod floor;
mod join;
mod memory;
mod ours;
mod power;
mod quiet;
mod report;
mod seen;
mod streams;
mod updates;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use system_tests::cluster::Cluster;
use system_tests::node::EdgeNode;
use tokio::time::sleep;

use crate::figures::Samples;
use crate::floor::Floor;
use crate::ours::Pods;
use crate::report::Results;

/// Pods in a batch, and on the node where memory with pods is measured.
const BATCH: usize = 20;

/// Measures Holdfast; run it by `scripts/bench`, which sets up what it needs.
#[derive(Debug, Parser)]
enum Bench {
    /// Pods: starting and removing, memory, power loss, the link when nothing happens.
    Pods(Options),
    /// Streams: what many of them do to deliveries, how soon volumes show a change, how fast a file is copied.
    Streams(streams::Options),
    /// Many nodes behind several replicas, of which one is lost.
    Fleet(fleet::Options),
    /// How long it is from the command until a bare machine is a node.
    Join(join::Options),
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Print one line of JSON on stdout instead of the table.
    #[arg(long)]
    json: bool,
    /// Single pods, ours and the runtime's in turns.
    #[arg(long, default_value_t = 30)]
    singles: usize,
    /// Batches of 20 pods, ours and the runtime's in turns.
    #[arg(long, default_value_t = 5)]
    batches: usize,
    /// Pods made and removed before memory is measured.
    #[arg(long, default_value_t = 200)]
    churn: usize,
    /// How long the idle link is listened to, minutes, 4 at least. Less than 10 sees no renewal of a token.
    #[arg(long, default_value = "10", value_parser = quiet::spell)]
    idle_minutes: Duration,
    /// How long nothing happens before memory is measured, seconds.
    #[arg(long, default_value_t = 60)]
    quiet_seconds: u64,
    /// A library to preload that makes each fsync take 30 ms longer; the row is left out without.
    #[arg(long)]
    slow_fsync: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Bench::parse() {
        Bench::Pods(options) => report::print(&measure(&options).await?, options.json),
        Bench::Streams(options) => streams::run(&options).await?,
        Bench::Fleet(options) => fleet::run(&options).await?,
        Bench::Join(options) => join::run(&options).await?,
    }

    Ok(())
}

async fn measure(options: &Options) -> Result<Results> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    // The quiet node is another one: it is listened to while the first one works.
    let quiet = quiet::Quiet::start(&cluster, &client).await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let floor = Floor::of(node.site())?;
    let pods = Pods::on(&client, node.name()).await?;
    let mut results = Results::default();

    report::say("single pods, ours and the runtime's in turns");
    singles(options.singles, &floor, &pods, &mut results.one).await?;
    report::say("batches of 20");
    batches(options.batches, &floor, &pods, &mut results.twenty).await?;
    report::say("memory: churn, then a quiet spell, then 20 pods, then 20 with probes");
    weigh(options, &node, &pods, &mut results).await?;
    results.cloud_mb = memory::resident_mb(memory::cloudcore_pid(&cluster).await?)?;
    report::say("power cut while the link is cut");
    let names = pods.create(BATCH).await?.0;
    results.power = power::cut(&node, &floor, BATCH).await?;
    node.until_ready(&client).await?;
    pods.delete(&names).await?;
    if let Some(library) = &options.slow_fsync {
        report::say("single pods, each fsync 30 ms longer");
        node.kill_agent().await?;
        let library = library.to_str().context("the library's path is no text")?;
        node.start_agent_with(&[("HOLDFAST_AGENT_PRELOAD", library)]).await?;
        node.until_ready(&client).await?;
        let mut slow = Turns::default();
        singles(options.singles.div_ceil(3), &floor, &pods, &mut slow).await?;
        results.slow_disk = Some(slow);
    }
    report::say("waiting for the end of the quiet node's spell");
    results.link = quiet.finish(options.idle_minutes).await?;

    Ok(results)
}

/// Weighs the agent without pods, after many came and went, and with some.
async fn weigh(
    options: &Options,
    node: &EdgeNode,
    pods: &Pods,
    results: &mut Results,
) -> Result<()> {
    for _ in 0..options.churn.div_ceil(BATCH) {
        let names = pods.create(BATCH).await?.0;
        pods.delete(&names).await?;
    }
    let at_rest = async || {
        sleep(Duration::from_secs(options.quiet_seconds)).await;
        memory::resident_mb(node.agent_pid().await?)
    };
    results.idle_mb = at_rest().await?;
    let names = pods.create(BATCH).await?.0;
    results.twenty_pods_mb = at_rest().await?;
    pods.delete(&names).await?;
    let names = pods.create_as(BATCH, ours::probed).await?.0;
    results.twenty_probed_mb = at_rest().await?;
    pods.delete(&names).await?;
    results.binary_mb = memory::binary_mb("edgecore")?;

    Ok(())
}

/// What ours and the runtime took, seconds.
#[derive(Debug, Default)]
struct Turns {
    floor_ready: Samples,
    floor_gone: Samples,
    ready: Samples,
    gone: Samples,
}

async fn singles(count: usize, floor: &Floor, pods: &Pods, turns: &mut Turns) -> Result<()> {
    for _ in 0..count {
        turn(1, floor, pods, turns).await?;
    }

    Ok(())
}

async fn batches(count: usize, floor: &Floor, pods: &Pods, turns: &mut Turns) -> Result<()> {
    for _ in 0..count {
        turn(BATCH, floor, pods, turns).await?;
    }

    Ok(())
}

async fn turn(size: usize, floor: &Floor, pods: &Pods, turns: &mut Turns) -> Result<()> {
    let (started, took) = floor.start(size).await?;
    turns.floor_ready.push(took);
    turns.floor_gone.push(floor.remove(started).await?);
    let (names, took) = pods.create(size).await?;
    turns.ready.push(took);
    turns.gone.push(pods.delete(&names).await?);

    Ok(())
}
