//! What the Debian package does beside an agent that runs: its `postinst` brings another version by `edgeadm
//! upgrade`, which takes back what is no good. That the package itself installs, `scripts/package --check` tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::Value;
use system_tests::cluster::Cluster;
use system_tests::pods::{self, Incarnation};
use system_tests::process::{checkout, output};
use system_tests::wait;

use super::machine::Machine;

const LIMIT: Duration = Duration::from_mins(2);

/// Puts the machine's programs where a package has them, in a `/usr` of its own that keeps its changes in `$1`,
/// and has the unit run those. `$2` has the programs.
const AS_PACKAGED: &str = r"set -e
mkdir -p $1/upper $1/work
mount -t overlay overlay -o lowerdir=/usr,upperdir=$1/upper,workdir=$1/work /usr
cp $2/edgecore $2/edgeadm /usr/bin; mkdir -p /usr/lib/holdfast
sed -i s#$2/#/usr/bin/#g /etc/systemd/system/edgecore.service
systemctl daemon-reload; systemctl restart edgecore.service";

/// Undoes it. `/usr` is in use; its changes end with the machine.
const AS_BEFORE: &str = r"set -e
sed -i s#/usr/bin/edge#$2/edge#g /etc/systemd/system/edgecore.service
systemctl daemon-reload; systemctl restart edgecore.service";

/// The agent of a machine as a package has it.
struct Packaged<'a> {
    machine: &'a Machine,
    config: &'a str,
    /// What `/usr` has in the place of the host's.
    upper: PathBuf,
}

/// Installs versions beside the agent of `machine`, that has the pod at `pod`.
pub(crate) async fn brings_versions(
    machine: &Machine,
    cluster: &Cluster,
    client: &Client,
    pod: &str,
    config: &str,
) -> Result<()> {
    let running = cluster.until(client, pod, "Ready", LIMIT, pods::is_ready).await?;
    let before = Incarnation::of(&running);
    let folder = machine.program("")?.with_file_name("usr");
    let packaged = Packaged { machine, config, upper: folder.join("upper") };
    packaged.shell(AS_PACKAGED, &folder).await?;
    packaged.is_connected("an agent of a package").await?;

    // Nobody reads what comes after the sections.
    let good = [fs::read(packaged.program())?, b"\n".to_vec()].concat();
    let said = packaged.install(&good).await?;
    ensure!(said.contains("restarting edgecore.service"), "{said}");
    ensure!(fs::read(packaged.program())? == good, "the agent is not the package's: {said}");
    packaged.is_connected("a package with a good agent").await?;
    let said = packaged.install(&good).await?;
    ensure!(said.is_empty(), "the same agent again is no upgrade: {said}");

    let mut bad = fs::read("/bin/false")?;
    bad.extend(b"[holdfast edgecore 9.9.9 state-schema 1]");
    let said = packaged.install(&bad).await?;
    ensure!(said.contains("the agent of this package does not run"), "{said}");
    ensure!(fs::read(packaged.program())? == good, "the bad agent stays: {said}");
    packaged.is_connected("a package with a bad agent").await?;

    packaged.shell(AS_BEFORE, &folder).await?;
    packaged.is_connected("the machine's own agent").await?;
    let after = cluster.until(client, pod, "Ready", LIMIT, pods::is_ready).await?;
    let after = Incarnation::of(&after);
    ensure!(after == before, "packages changed {before:?} into {after:?}");

    Ok(())
}

impl Packaged<'_> {
    /// The program that the node runs.
    fn program(&self) -> PathBuf {
        self.upper.join("bin/edgecore")
    }

    async fn shell(&self, script: &str, folder: &Path) -> Result<()> {
        let (folder, bin) = (folder.display().to_string(), self.machine.program("")?);
        let bin = bin.display().to_string();
        let words = ["bash", "-c", script, "shell", &folder, bin.trim_end_matches('/')];

        output(self.machine.command(&words)?).await.map(drop)
    }

    /// Does with this agent what dpkg does, and returns what the package said.
    async fn install(&self, agent: &[u8]) -> Result<String> {
        let file = self.upper.with_file_name("edgecore");
        fs::write(&file, agent)?;
        let file = file.display().to_string();
        output(self.machine.command(&["cp", &file, "/usr/lib/holdfast/edgecore"])?).await?;
        let postinst = checkout().join("packaging/debian/postinst").display().to_string();
        let mut command = self.machine.command(&["sh", &postinst, "configure", "0.0.1"])?;
        let ended = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let ended = tokio::time::timeout(LIMIT, ended).await.context("postinst ends")??;
        ensure!(ended.status.success(), "{ended:?}");

        Ok(String::from_utf8_lossy(&ended.stderr).into_owned())
    }

    async fn is_connected(&self, what: &str) -> Result<()> {
        let is_up = |status: &Value| status["agent"]["link"]["state"] == "Up";
        let status = || self.machine.status(self.config);

        wait::until(what, LIMIT, status, is_up).await.map(drop)
    }
}
