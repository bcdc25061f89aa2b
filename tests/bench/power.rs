//! The power goes while the link is cut: how soon everything runs again, by the node alone.

use std::time::Duration;

use anyhow::{Context as _, Result};
use system_tests::node::EdgeNode;
use system_tests::wait;
use tokio::time::{Instant, sleep};

use crate::floor::Floor;

/// How often the runtime is asked what runs: rarely enough not to slow it.
const LOOK: Duration = Duration::from_millis(20);
/// What does not run by then is not counted.
const LIMIT: Duration = Duration::from_mins(2);
/// Unit of the start time in /proc/PID/stat.
const TICKS_PER_SECOND: f64 = 100.0;

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// Pods that ran before.
    pub(crate) pods: usize,
    /// Pods that run again.
    pub(crate) running: usize,
    /// From the start of the agent's process until the last ran.
    pub(crate) seconds: f64,
    /// The runtime driven directly after the same cut: as many pods at once.
    pub(crate) floor_s: f64,
}

/// Cuts the link, then twice the power: once for the floor, once for the agent. Restores the link.
pub(crate) async fn cut(node: &EdgeNode, floor: &Floor, pods: usize) -> Result<Recovery> {
    let site = node.site();
    site.cut().await?;
    site.power_off().await?;
    site.power_on().await?;
    // A runtime listens before it takes calls.
    wait::until("the runtime to take calls", LIMIT, || floor.running(), |_| true).await?;
    let (started, took) = floor.start(pods).await?;
    floor.remove(started).await?;
    site.power_off().await?;
    site.power_on().await?;
    node.start_agent().await?;
    let pid = node.agent_pid().await?;
    let deadline = Instant::now() + LIMIT;
    let (running, seconds) = loop {
        let running = floor.running().await?.len();
        let seconds = age_seconds(pid)?;
        if running >= pods || Instant::now() >= deadline {
            break (running, seconds);
        }
        sleep(LOOK).await;
    };
    site.restore().await?;

    Ok(Recovery { pods, running, seconds, floor_s: took.as_secs_f64() })
}

/// How long a process has run.
fn age_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("the agent, process {pid}, is gone"))?;
    // Counted behind the name, which may hold spaces; proc(5): the start time is field 22.
    let behind = stat.rsplit(')').next().unwrap_or_default();
    let started: f64 = behind.split_whitespace().nth(19).context("no start time")?.parse()?;
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let uptime: f64 = uptime.split_whitespace().next().context("no uptime")?.parse()?;

    Ok(uptime - started / TICKS_PER_SECOND)
}
