//! A machine with systemd, for the tests that need one: a real systemd in namespaces of its own on a site.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use system_tests::cluster::unique;
use system_tests::process::program;
use system_tests::site::Site;
use system_tests::wait;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(90);

/// Moves itself below a cgroup `$1` of every hierarchy, and starts the rest there.
const OUTSIDE: &str = r#"set -e
for h in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
  d=/sys/fs/cgroup/$h/$1; mkdir -p "$d"
  if [ $h = cpuset ]; then cat "$d/../cpuset.cpus" >"$d/cpuset.cpus"; cat "$d/../cpuset.mems" >"$d/cpuset.mems"; fi
  echo $$ >"$d/cgroup.procs"
done
exec unshare --cgroup --mount --pid --fork --kill-child --uts --ipc --propagation private bash -c "$2" inside "$3" "$4" "$5""#;

/// The message bus is all that is started; the runtime's folder `$1` stays, `$2` is an empty one, and `$3` has
/// the units, which outlive the machine's power.
const INSIDE: &str = r"set -e
mount --bind $1 $2
umount -R /sys/fs/cgroup; mount -t proc proc /proc; mount -t tmpfs tmpfs /sys/fs/cgroup; mount -t tmpfs tmpfs /run
for h in cpu cpuacct cpuset memory devices freezer blkio pids; do
  mkdir /sys/fs/cgroup/$h; mount -t cgroup -o $h cgroup /sys/fs/cgroup/$h
done
mkdir /sys/fs/cgroup/systemd; mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mkdir -p $1; mount --move $2 $1
mkdir -p /etc/systemd/system $3; mount --bind $3 /etc/systemd/system
mkdir -p /run/systemd/system /run/dbus /run/lock /run/units /etc/systemd/system/edgecore.service.d
printf '[Service]\nWatchdogSec=6\nTimeoutAbortSec=1\n' >/etc/systemd/system/edgecore.service.d/test.conf
cd /run/units
printf '[Unit]\nDefaultDependencies=no\nWants=dbus.socket\n' >default.target
for t in multi-user network-online sysinit basic shutdown; do printf '[Unit]\nDefaultDependencies=no\n' >$t.target; done
printf '[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n' >dbus.socket
printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n' >dbus.service
hostname $(basename $1)
export container=other SYSTEMD_UNIT_PATH=/run/systemd/system.control:/run/systemd/transient:/etc/systemd/system:/run/units
exec /lib/systemd/systemd --system --unit=default.target systemd.unified_cgroup_hierarchy=0 </dev/null";

/// A site whose first process is systemd. All of it goes when it is dropped.
pub(crate) struct Machine {
    outer: Child,
    cgroup: String,
    pub(crate) site: Site,
}

impl Machine {
    /// A machine with programs of its own.
    pub(crate) async fn boot(site: Site) -> Result<Self> {
        let bin = site.path("STATE")?.join("bin");
        std::fs::create_dir_all(&bin)?;
        for name in ["edgeadm", "edgecore"] {
            std::fs::copy(program(name), bin.join(name))?;
        }
        let cgroup = format!("holdfast-unit-{}", unique());
        let machine = Self { outer: start(&site, &cgroup)?, cgroup, site };
        machine.until_up().await?;

        Ok(machine)
    }

    /// Kills every process of it but the runtime and the containers, and starts systemd again.
    pub(crate) async fn cut_power(&mut self) -> Result<()> {
        self.end();
        self.outer = start(&self.site, &self.cgroup)?;

        self.until_up().await
    }

    async fn until_up(&self) -> Result<()> {
        let bus = || async {
            Ok(self.init().is_some_and(|pid| {
                let root = Path::new("/proc").join(pid.to_string()).join("root");
                root.join("run/dbus/system_bus_socket").exists()
            }))
        };

        wait::until("systemd is up", LIMIT, bus, |is_up| *is_up).await.map(drop)
    }

    /// One of its programs.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        Ok(self.site.path("STATE")?.join("bin").join(name))
    }

    /// The process that is systemd.
    fn init(&self) -> Option<u32> {
        let outer = self.outer.id();
        let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));

        children.ok()?.split_whitespace().next()?.parse().ok()
    }

    /// A command within it.
    pub(crate) fn command(&self, words: &[&str]) -> Result<Command> {
        let init = self.init().context("systemd has ended")?.to_string();
        let enter =
            ["nsenter", "--target", &init, "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--"];

        Ok(self.site.command(&[&enter[..], words].concat()))
    }

    pub(crate) async fn edgeadm(&self, words: &[&str]) -> Result<std::process::Output> {
        let edgeadm = self.program("edgeadm")?;
        let mut command =
            self.command(&[&[edgeadm.to_str().context("a path")?], words].concat())?;
        let ended = command.stdin(Stdio::null()).kill_on_drop(true).output();

        Ok(tokio::time::timeout(LIMIT, ended).await.context("edgeadm ends")??)
    }

    pub(crate) async fn status(&self, config: &str) -> Result<Value> {
        let output = self.edgeadm(&["status", "--config", config, "-o", "json"]).await?;

        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    fn end(&mut self) {
        // With the first process all others end; the outer one waits for that.
        match self.init() {
            Some(init) => {
                let init = init.to_string();
                drop(std::process::Command::new("kill").args(["-KILL", &init]).status());
            }
            None => drop(self.outer.kill()),
        }
        drop(self.outer.wait());
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove(&hierarchy.path().join(&self.cgroup));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

fn start(site: &Site, cgroup: &str) -> Result<Child> {
    let run = site.runtime_folder()?.display().to_string();
    let state = site.path("STATE")?;
    let spare = state.join("spare");
    std::fs::create_dir_all(&spare)?;
    let (spare, units) = (spare.display().to_string(), state.join("units").display().to_string());
    let words = ["bash", "-c", OUTSIDE, "outside", cgroup, INSIDE, &run, &spare, &units];
    let mut command = site.command(&words).into_std();

    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?)
}

/// Removes a cgroup without processes.
fn remove(cgroup: &Path) {
    for inner in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&inner.path());
        }
    }
    drop(std::fs::remove_dir(cgroup));
}
