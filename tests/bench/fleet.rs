//! Many nodes behind a balancer of three replicas, of which one is killed, or asked to stop: how long it is
//! until all nodes are in sync again.

mod edge;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use proto::ids::NodeName;
use serde_json::json;
use system_tests::balancer::Balancer;
use system_tests::cluster::Cluster;
use system_tests::joining;
use system_tests::process::{output, program};
use system_tests::replica::Replica;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use self::edge::{Edge, Told};
use crate::figures::Samples;
use crate::memory;
use crate::report::say;

/// What all nodes tell and is not counted yet.
const TOLD_MAX: usize = 1_024;

/// Nodes that join at the same time.
const JOINS_AT_ONCE: usize = 20;

/// How long the fleet may take to be in sync: more than that is not a number but a fault.
const LIMIT: Duration = Duration::from_mins(3);

/// What is to be set.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Print one line of JSON on stdout instead of a table.
    #[arg(long)]
    json: bool,
    /// How many.
    #[arg(long, default_value_t = 200)]
    nodes: usize,
    /// How often a replica is killed, and how often one is asked to stop.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Have every node say why its link is down.
    #[arg(long)]
    loud: bool,
}

/// Nothing has happened for so long: it is over, and all links have held long enough to be good ones, whose
/// loss is the first.
const QUIET: Duration = Duration::from_secs(31);

/// Nodes, and what becomes of them.
struct Fleet {
    is_in_sync: Vec<bool>,
    told: mpsc::Receiver<(usize, Told)>,
    _nodes: JoinSet<()>,
}

/// What it is like to lose a replica.
#[derive(Default)]
struct Losses {
    /// From the loss until all nodes are in sync.
    all: Samples,
    /// From a node's own loss until it is in sync.
    each: Samples,
}

/// Runs it.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let cluster = Cluster::shared().await?;
    let mut replicas = vec![Replica::first(&cluster).await?];
    for number in 2..=3 {
        replicas.push(Replica::up(&cluster, number).await?);
    }
    let ends: Vec<_> = replicas.iter().map(|one| (one.link.clone(), one.probes.clone())).collect();
    let balancer = Balancer::start(replicas[0].address(), &ends).await?;
    let mut fleet = Fleet::join(&cluster, balancer.address, options).await?;
    fleet.settle(Instant::now()).await?;
    say("all nodes are in sync");
    let (mut killed, mut drained) = (Losses::default(), Losses::default());
    let mut resident_mb = 0.0_f64;
    for _ in 0..options.rounds {
        for (verb, losses) in [("kill", &mut killed), ("down", &mut drained)] {
            let connections = balancer.connections();
            let most = (0..replicas.len()).max_by_key(|number| connections[*number]);
            let replica = &replicas[most.context("no replica")?];
            resident_mb = resident_mb.max(memory::resident_mb(replica.pid().await?)?);
            let since = Instant::now();
            let (called, outages) = tokio::join!(replica.call(verb), fleet.settle(since));
            called?;
            let (all, each) = outages?;
            say(&format!("{verb}: {} nodes in sync after {:.1} s", each.len(), all.as_secs_f64()));
            losses.all.push(all);
            for outage in each {
                losses.each.push(outage);
            }
            replica.call("up").await?;
        }
    }
    print(options, &killed, &drained, resident_mb);

    Ok(())
}

/// Where a node asks from.
fn address_of(number: usize) -> Result<Ipv4Addr> {
    let low = u8::try_from(number % 250)? + 1;

    Ok(Ipv4Addr::new(127, 1, u8::try_from(number / 250)?, low))
}

impl Fleet {
    /// Nodes that have joined by token and dial.
    async fn join(cluster: &Cluster, cloudcore: SocketAddr, options: &Options) -> Result<Self> {
        let client = cluster.client().await?;
        let roots = joining::roots(&client).await?;
        let mut create = Command::new(program("edgeadm"));
        create.args(["token", "create", "--ttl", "1h", "--kubeconfig"]).arg(cluster.kubeconfig());
        let token = output(create).await?.trim().to_owned();
        let (tell, told) = mpsc::channel(TOLD_MAX);
        let (mut joining, mut nodes) = (JoinSet::new(), JoinSet::new());
        let (count, is_loud) = (options.nodes, options.loud);
        for number in 0..count {
            let name = NodeName::new(format!("fleet-{number}"))?;
            let (roots, token, tell) = (roots.clone(), token.clone(), tell.clone());
            joining.spawn(async move {
                let tls =
                    joining::join(address_of(number)?, &name, (cloudcore, &token), &roots).await?;
                Ok::<_, anyhow::Error>(Edge {
                    number,
                    name,
                    address: cloudcore,
                    tls,
                    tell,
                    is_loud,
                })
            });
            while joining.len() >= JOINS_AT_ONCE {
                nodes.spawn(edge::run(joining.join_next().await.context("none joins")???));
            }
        }
        while let Some(joined) = joining.join_next().await {
            nodes.spawn(edge::run(joined??));
        }

        Ok(Self { is_in_sync: vec![false; count], told, _nodes: nodes })
    }

    /// Waits until all are in sync and stay so. From then until when that was, and how long each was not that
    /// had been.
    async fn settle(&mut self, since: Instant) -> Result<(Duration, Vec<Duration>)> {
        let deadline = since + LIMIT;
        let mut lost = BTreeMap::new();
        let (mut all, mut each) = (Duration::ZERO, Vec::new());
        loop {
            let is_over = self.is_in_sync.iter().all(|is_in_sync| *is_in_sync);
            let until = if is_over { Instant::now() + QUIET } else { deadline };
            let (number, told) = match timeout_at(until, self.told.recv()).await {
                Ok(told) => told.context("all nodes have ended")?,
                Err(_elapsed) if is_over => return Ok((all, each)),
                Err(_elapsed) => {
                    let left = self.is_in_sync.iter().filter(|is_in_sync| !**is_in_sync).count();
                    bail!("{left} nodes are not in sync after {LIMIT:?}");
                }
            };
            self.is_in_sync[number] = told == Told::InSync;
            match told {
                Told::Down => {
                    lost.entry(number).or_insert_with(Instant::now);
                }
                Told::InSync => {
                    all = since.elapsed();
                    each.extend(lost.remove(&number).map(|at: Instant| at.elapsed()));
                }
            }
        }
    }
}

#[expect(clippy::print_stdout, reason = "the result of a program")]
fn print(options: &Options, killed: &Losses, drained: &Losses, resident_mb: f64) {
    let rows = [("killed", killed, "15"), ("asked to stop", drained, "15")];
    if options.json {
        let row = |losses: &Losses| {
            json!({
                "all_median_s": losses.all.median(), "all_max_s": losses.all.max(),
                "node_median_s": losses.each.median(), "node_p99_s": losses.each.p99(),
                "hit": losses.each.count(),
            })
        };
        let told = json!({
            "nodes": options.nodes, "killed": row(killed), "drained": row(drained),
            "replica_mb": resident_mb,
        });
        println!("{told}");
        return;
    }
    println!(
        "{} nodes at three replicas, of which the one with most is lost; seconds",
        options.nodes
    );
    println!(
        "{:<16}{:>12}{:>10}{:>8}{:>14}{:>10}",
        "replica", "all: median", "max", "limit", "node: median", "p99"
    );
    for (what, losses, limit) in rows {
        let (all, each) = (&losses.all, &losses.each);
        println!(
            "{what:<16}{:>12.1}{:>10.1}{limit:>8}{:>14.1}{:>10.1}",
            all.median(),
            all.max(),
            each.median(),
            each.p99()
        );
    }
    println!("a replica takes at most {resident_mb:.1} MB");
}
