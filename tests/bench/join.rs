//! `scripts/bench join`: from the command to join until the cluster has a Ready node, and until that has run its
//! first pod. The images are on the node; the agent is started by hand, as without systemd.

use std::time::Duration;

use anyhow::Result;
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::process::script;
use system_tests::site::Site;
use system_tests::{api, pods};
use tokio::time::Instant;

use crate::figures::Samples;
use crate::report::say;

/// Longer is no number but a fault.
const LIMIT: Duration = Duration::from_mins(2);

/// What a user waits for, at most, seconds.
const NODE_MAX: f64 = 10.0;

/// What is to be set.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Print one line of JSON on stdout instead of a table.
    #[arg(long)]
    json: bool,
    /// How often a bare site joins.
    #[arg(long, default_value_t = 10)]
    joins: usize,
}

/// Seconds from the command.
#[derive(Default)]
struct Joins {
    node: Samples,
    pod: Samples,
}

/// Runs it.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let mut joins = Joins::default();
    for number in 1..=options.joins {
        say(&format!("join {number} of {}", options.joins));
        let name = format!("join-{}", unique());
        let site = Site::up(&name, cluster.name()).await?;
        let joined = join(&cluster, &client, &name, &mut joins).await;
        script("edge-agent", &["forget", "--site", site.name(), "--node", &name], &[]).await?;
        joined?;
    }
    print(options, &joins);

    Ok(())
}

async fn join(cluster: &Cluster, client: &Client, name: &str, joins: &mut Joins) -> Result<()> {
    let since = Instant::now();
    script("edge-agent", &["up", "--site", name, "--node", name], &[]).await?;
    let path = format!("/api/v1/nodes/{name}");
    let is_ready = |node: &Value| pods::condition(node, "Ready") == Some("True");
    cluster.until(client, &path, "the node Ready", LIMIT, is_ready).await?;
    joins.node.push(since.elapsed());
    let pod = format!("first-{name}");
    let path = pods::path(&pod);
    cluster.apply(&[pods::sleeper(&pod, name)]).await?;
    cluster.until(client, &path, "the first pod Ready", LIMIT, pods::is_ready).await?;
    joins.pod.push(since.elapsed());
    api::delete(client, &path, Some(0)).await?;

    cluster.until_gone(client, &path, LIMIT).await
}

#[expect(clippy::print_stdout, reason = "the result of a program")]
fn print(options: &Options, joins: &Joins) {
    let Joins { node, pod } = joins;
    if options.json {
        let told = json!({
            "joins": node.count(),
            "node_median_s": node.median(), "node_max_s": node.max(),
            "pod_median_s": pod.median(), "pod_max_s": pod.max(),
        });
        return println!("{told}");
    }
    println!("{} joins, from the command; seconds", node.count());
    println!("{:<16}{:>8}{:>8}{:>8}", "until", "median", "max", "limit");
    println!("{:<16}{:>8.1}{:>8.1}{NODE_MAX:>8.1}", "node Ready", node.median(), node.max());
    println!("{:<16}{:>8.1}{:>8.1}{:>8}", "pod Ready", pod.median(), pod.max(), "");
}
