//! What the programs weigh: resident memory with that of their helpers, and the file.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use system_tests::cluster::Cluster;
use system_tests::process::{program, script};

/// Resident memory of a process and all it has started, 10^6 bytes. Fails if any of it is in swap.
pub(crate) fn resident_mb(pid: u32) -> Result<f64> {
    let mut bytes = 0.0;
    let mut left = vec![pid];
    while let Some(pid) = left.pop() {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("process {pid} is gone"))?;
        ensure!(kilobytes(&status, "VmSwap:") == 0.0, "a part of process {pid} is in swap");
        bytes += kilobytes(&status, "VmRSS:") * 1024.0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            left.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }

    Ok(bytes / 1e6)
}

fn kilobytes(status: &str, field: &str) -> f64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();

    line.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The cloudcore of a cluster.
pub(crate) async fn cloudcore_pid(cluster: &Cluster) -> Result<u32> {
    let pid = script("dev-cloudcore", &["pid", "--name", cluster.name()], &[]).await?;

    pid.trim().parse().with_context(|| format!("dev-cloudcore pid printed {pid:?}"))
}

/// The size of a program, 10^6 bytes.
pub(crate) fn binary_mb(name: &str) -> Result<f64> {
    let path = program(name);
    let file = fs::metadata(&path).with_context(|| format!("no {}", path.display()))?;
    #[expect(clippy::cast_precision_loss, reason = "programs are smaller than 2^52 bytes")]
    let bytes = file.len() as f64;

    Ok(bytes / 1e6)
}
