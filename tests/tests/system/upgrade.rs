//! `edgeadm upgrade` on a machine with systemd (T17): whatever becomes of a new version, of the one who asked
//! for it and of the power, the old or the new one runs, and no container is touched. `HOLDFAST_KILLS=all`
//! tries every end of an upgrade.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::Value;
use system_tests::cluster::Cluster;
use system_tests::pods::{self, Incarnation};
use system_tests::process::output;
use system_tests::wait;
use tokio::process::Child;

use super::machine::Machine;

/// A trial takes a minute at most, and the old one has to come back.
const LIMIT: Duration = Duration::from_mins(2);

/// The agent of a machine, while it is upgraded.
struct Upgrades<'a> {
    cluster: &'a Cluster,
    client: &'a Client,
    /// Of the pod that has to go on.
    pod: &'a str,
    before: Incarnation,
    /// The agent's configuration, and the folder of it.
    config: &'a str,
    dir: PathBuf,
    /// Versions that were made.
    made: usize,
}

/// Upgrades the agent of `machine`, that has the pod at `pod`, in every way.
pub(crate) async fn changes_no_container(
    machine: &mut Machine,
    cluster: &Cluster,
    client: &Client,
    pod: &str,
    config: &str,
) -> Result<()> {
    let running = cluster.until(client, pod, "Ready", LIMIT, pods::is_ready).await?;
    let before = Incarnation::of(&running);
    let dir = Path::new(config).parent().context("a folder")?.to_owned();
    let mut upgrades = Upgrades { cluster, client, pod, before, config, dir, made: 0 };
    upgrades.good(machine).await?;
    upgrades.refused(machine).await?;
    upgrades.one_that_ends(machine).await?;
    // When the new one is about to run.
    upgrades.power(machine, &["trial"]).await?;
    if std::env::var("HOLDFAST_KILLS").is_ok_and(|told| told == "all") {
        // As early as can be.
        upgrades.power(machine, &["wanted", "trial"]).await?;
        upgrades.one_that_hangs(machine).await?;
        upgrades.nobody_waits(machine).await?;
    }

    Ok(())
}

impl Upgrades<'_> {
    /// A file that is another one than the agent's program, and does the same.
    fn version(&mut self, machine: &Machine) -> Result<PathBuf> {
        self.made += 1;
        let mut bytes = fs::read(machine.program("edgecore")?)?;
        // Nobody reads what comes after the sections.
        bytes.extend(vec![b'\n'; self.made]);

        self.write(&bytes)
    }

    fn write(&self, bytes: &[u8]) -> Result<PathBuf> {
        let file = self.dir.join("edgecore.other");
        fs::write(&file, bytes)?;

        Ok(file)
    }

    async fn upgrade(&self, machine: &Machine, file: &Path) -> Result<std::process::Output> {
        let file = file.display().to_string();

        machine.edgeadm(&["upgrade", &file, "--config", self.config, "-o", "json"]).await
    }

    /// Begins one, and waits until it has come so far.
    async fn begin(&self, machine: &Machine, file: &Path, phases: &[&str]) -> Result<Child> {
        let edgeadm = machine.program("edgeadm")?.display().to_string();
        let (pid, file) = (self.pid_file().display().to_string(), file.display().to_string());
        let upgrade = [edgeadm.as_str(), "upgrade", &file, "--config", self.config];
        let noted = ["sh", "-c", r#"echo $$ >"$0"; exec "$@""#, &pid];
        let mut command = machine.command(&[&noted[..], &upgrade].concat())?;
        let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn()?;
        let journal = || async { self.journal() };
        let is_there = |journal: &Value| {
            journal["phase"].as_str().is_some_and(|phase| phases.contains(&phase))
        };
        wait::until(&format!("an upgrade that is {phases:?}"), LIMIT, journal, is_there).await?;

        Ok(child)
    }

    /// Has the process id, in the machine, of who asks.
    fn pid_file(&self) -> PathBuf {
        self.dir.join("asking.pid")
    }

    fn journal(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.dir.join("upgrade.json"))?)?)
    }

    /// Waits until an agent is connected whose program is this, and that nothing has happened to the pod.
    async fn runs(&self, machine: &Machine, program: &[u8], what: &str) -> Result<()> {
        let is_up = |status: &Value| status["agent"]["link"]["state"] == "Up";
        let status = || machine.status(self.config);
        wait::until(&format!("an agent after {what}"), LIMIT, status, is_up).await?;
        let found = fs::read(machine.program("edgecore")?)?;
        ensure!(found == program, "another program than expected is there after {what}");
        let pod = self.cluster.until(self.client, self.pod, "Ready", LIMIT, pods::is_ready).await?;
        let (after, before) = (Incarnation::of(&pod), &self.before);
        ensure!(after == *before, "{what} changed {before:?} into {after:?}");

        Ok(())
    }

    /// Waits until no upgrade is under way, and nothing of it is left; how it ended.
    async fn is_over(&self, machine: &Machine, what: &str) -> Result<Value> {
        let bin = machine.program("")?;
        let left = || async {
            let journal = self.journal()?;
            let names = [".edgecore.next", ".edgecore.last"].map(|name| bin.join(name));
            let copy = self.dir.join("state/before-upgrade");
            let left = names.into_iter().chain([copy]).filter(|path| path.exists()).count();

            Ok((journal, left))
        };
        let is_over = |(journal, left): &(Value, usize)| {
            (journal["phase"] == "good" || journal["phase"] == "returned") && *left == 0
        };
        let (journal, _) = wait::until(&format!("the end of {what}"), LIMIT, left, is_over).await?;

        Ok(journal["phase"].clone())
    }

    async fn good(&mut self, machine: &Machine) -> Result<()> {
        let file = self.version(machine)?;
        let upgraded = self.upgrade(machine, &file).await?;
        ensure!(upgraded.status.success(), "{upgraded:?}");
        let told: Value = serde_json::from_slice(&upgraded.stdout)?;
        ensure!(told["result"] == "upgraded", "{told}");
        self.runs(machine, &fs::read(&file)?, "an upgrade").await?;
        ensure!(self.is_over(machine, "an upgrade").await? == "good");
        let again = self.upgrade(machine, &file).await?;
        let told: Value = serde_json::from_slice(&again.stdout)?;
        ensure!(told["result"] == "unchanged", "{told}");

        Ok(())
    }

    /// What is no agent, and what is damaged, is not even tried.
    async fn refused(&self, machine: &Machine) -> Result<()> {
        let other = self.upgrade(machine, Path::new("/bin/true")).await?;
        let said = String::from_utf8_lossy(&other.stderr).into_owned();
        ensure!(other.status.code() == Some(78) && said.contains("no agent of Holdfast"), "{said}");

        Ok(())
    }

    async fn one_that_ends(&self, machine: &Machine) -> Result<()> {
        let old = fs::read(machine.program("edgecore")?)?;
        let mut bytes = fs::read("/bin/false")?;
        bytes.extend(b"[holdfast edgecore 9.9.9 state-schema 1]");
        let file = self.write(&bytes)?;
        let failed = self.upgrade(machine, &file).await?;
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        ensure!(failed.status.code() == Some(1), "{failed:?}");
        ensure!(said.contains("version 9.9.9 does not run"), "{said}");
        self.runs(machine, &old, "a version that ends").await?;
        ensure!(self.is_over(machine, "a version that ends").await? == "returned");

        Ok(())
    }

    async fn one_that_hangs(&mut self, machine: &Machine) -> Result<()> {
        let old = fs::read(machine.program("edgecore")?)?;
        let file = self.version(machine)?;
        let asking = self.begin(machine, &file, &["trial"]).await?;
        let has_started = |status: &Value| status["agent"]["pid"].is_u64();
        let status = || machine.status(self.config);
        let status = wait::until("a new agent", LIMIT, status, has_started).await?;
        let pid = status["agent"]["pid"].clone();
        output(machine.command(&["kill", "-STOP", &pid.to_string()])?).await?;
        let ended = tokio::time::timeout(LIMIT, asking.wait_with_output()).await??;
        ensure!(ended.status.code() == Some(1), "{ended:?}");
        self.runs(machine, &old, "a version that hangs").await?;
        ensure!(self.is_over(machine, "a version that hangs").await? == "returned");

        Ok(())
    }

    /// Who asked is killed: systemd needs nobody to go on.
    async fn nobody_waits(&mut self, machine: &Machine) -> Result<()> {
        let file = self.version(machine)?;
        let asking = self.begin(machine, &file, &["trial"]).await?;
        let pid = fs::read_to_string(self.pid_file())?;
        output(machine.command(&["kill", "-KILL", pid.trim()])?).await?;
        drop(asking.wait_with_output().await?);
        ensure!(self.is_over(machine, "an upgrade that nobody waits for").await? == "good");
        self.runs(machine, &fs::read(&file)?, "an upgrade that nobody waits for").await?;

        Ok(())
    }

    /// The power goes: what was not found good does not stay.
    async fn power(&mut self, machine: &mut Machine, phases: &[&str]) -> Result<()> {
        let old = fs::read(machine.program("edgecore")?)?;
        let file = self.version(machine)?;
        let asking = self.begin(machine, &file, phases).await?;
        machine.cut_power().await?;
        drop(asking.wait_with_output().await?);
        let start = machine.command(&["systemctl", "start", "--no-block", "edgecore.service"])?;
        output(start).await?;
        let what = format!("a power cut when the upgrade was {phases:?}");
        self.runs(machine, &old, &what).await?;
        ensure!(self.is_over(machine, &what).await? == "returned");

        Ok(())
    }
}
