//! T14: what strangers do at the ports of cloudcore costs them their connections, and nodes nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use system_tests::cluster::unique;
use system_tests::node::EdgeNode;
use system_tests::own::OwnCluster;
use system_tests::strangers::Strangers;
use system_tests::{pods, wait};

const LIMIT: Duration = Duration::from_mins(2);

/// Silent connections to all ports together.
const IDLE: usize = 10_000;

/// Descriptors that connections of strangers may take, to all ports together, and what comes and goes.
const DESCRIPTORS_MAX: usize = 2 * 512 + 200;

/// Memory, in KiB, that they may take: 40 KB for each connection that is held, of which TLS takes most.
const MEMORY_MAX: u64 = 48 * 1024;

/// Descriptors and resident memory, KiB, of a process.
fn usage(pid: u32) -> Result<(usize, u64)> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.context("no VmRSS")?.trim().trim_end_matches(" kB");

    Ok((descriptors, resident.parse()?))
}

/// Where a node's kubelet API is.
fn kubelet_port(node: &Value) -> Result<SocketAddr> {
    let addresses = node["status"]["addresses"].as_array().context("no addresses")?;
    let address = addresses.iter().find(|address| address["type"] == "InternalIP");
    let address: IpAddr =
        address.and_then(|at| at["address"].as_str()).context("no IP")?.parse()?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();

    Ok(SocketAddr::new(address, u16::try_from(port.context("no port")?)?))
}

#[tokio::test]
async fn strangers_at_every_port_keep_no_node_out() -> Result<()> {
    // The test holds the other ends.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let own = OwnCluster::up().await?;
    let (cluster, client) = (own.cluster(), own.cluster().client().await?);
    let node = EdgeNode::join(cluster, &client).await?;
    let link: SocketAddr = own.link_address().await?.parse()?;
    let kubelet = kubelet_port(&node.until_ready(&client).await?)?;
    let pid = own.cloudcore_pid().await?;
    let (descriptors, memory) = usage(pid)?;

    let strangers = Strangers::start(&[link, kubelet], IDLE);
    let look = async || Ok(strangers.opened());
    wait::until("all silent connections", LIMIT, look, |opened| *opened >= IDLE).await?;

    // One comes back, another joins, pods run, their logs are read.
    node.kill_agent().await?;
    node.start_agent().await?;
    let other = EdgeNode::join(cluster, &client).await?;
    for node in [&node, &other] {
        let name = format!("amid-{}", unique());
        cluster.apply(&[pods::sleeper(&name, node.name())]).await?;
        cluster.until(&client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;
        let logs = async || cluster.kubectl(&["logs", &name]).await;
        wait::until("logs", LIMIT, logs, |said| said == "started\n").await?;
    }
    let (descriptors_now, memory_now) = usage(pid)?;
    ensure!(
        descriptors_now <= descriptors + DESCRIPTORS_MAX,
        "{descriptors} descriptors became {descriptors_now}"
    );
    ensure!(memory_now <= memory + MEMORY_MAX, "{memory} KiB became {memory_now}");

    drop(strangers);
    let look = async || Ok(usage(pid)?.0);
    let is_as_before = |now: &usize| *now <= descriptors + 100;
    wait::until("the strangers to be forgotten", LIMIT, look, is_as_before).await.map(drop)
}
