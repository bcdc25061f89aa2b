//! A machine with systemd: `edgeadm join` from nothing to a connected agent, what its unit promises, and
//! `edgeadm reset`. The systemd is a real one, first in namespaces of its own on a site.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::pods::{self, Incarnation};
use system_tests::process::{output, program, script, script_now};
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
exec unshare --cgroup --mount --pid --fork --kill-child --uts --ipc --propagation private bash -c "$2" inside "$3" "$4""#;

/// The message bus is all that is started; the runtime's folder `$1` stays, `$2` is an empty one.
const INSIDE: &str = r"set -e
mount --bind $1 $2
umount -R /sys/fs/cgroup; mount -t proc proc /proc; mount -t tmpfs tmpfs /sys/fs/cgroup; mount -t tmpfs tmpfs /run
for h in cpu cpuacct cpuset memory devices freezer blkio pids; do
  mkdir /sys/fs/cgroup/$h; mount -t cgroup -o $h cgroup /sys/fs/cgroup/$h
done
mkdir /sys/fs/cgroup/systemd; mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mkdir -p $1; mount --move $2 $1
mkdir -p /etc/systemd/system; mount -t tmpfs tmpfs /etc/systemd/system
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
struct Machine {
    outer: Child,
    cgroup: String,
    site: Site,
}

impl Machine {
    async fn boot(site: Site) -> Result<Self> {
        let cgroup = format!("holdfast-unit-{}", unique());
        let run = site.runtime_folder()?.display().to_string();
        let spare = site.path("STATE")?.join("spare");
        std::fs::create_dir_all(&spare)?;
        let spare = spare.display().to_string();
        let words = ["bash", "-c", OUTSIDE, "outside", &cgroup, INSIDE, &run, &spare];
        let mut command = site.command(&words).into_std();
        let outer = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let machine = Self { outer, cgroup, site };
        let bus = || async {
            let init = machine.init();
            Ok(init.is_some_and(|pid| {
                let root = Path::new("/proc").join(pid.to_string()).join("root");
                root.join("run/dbus/system_bus_socket").exists()
            }))
        };
        wait::until("systemd is up", LIMIT, bus, |is_up| *is_up).await?;

        Ok(machine)
    }

    /// The process that is systemd.
    fn init(&self) -> Option<u32> {
        let outer = self.outer.id();
        let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));

        children.ok()?.split_whitespace().next()?.parse().ok()
    }

    /// A command within it.
    fn command(&self, words: &[&str]) -> Result<Command> {
        let init = self.init().context("systemd has ended")?.to_string();
        let enter =
            ["nsenter", "--target", &init, "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--"];

        Ok(self.site.command(&[&enter[..], words].concat()))
    }

    async fn edgeadm(&self, words: &[&str]) -> Result<std::process::Output> {
        let edgeadm = program("edgeadm");
        let mut command =
            self.command(&[&[edgeadm.to_str().context("a path")?], words].concat())?;
        let ended = command.stdin(Stdio::null()).kill_on_drop(true).output();

        Ok(tokio::time::timeout(LIMIT, ended).await.context("edgeadm ends")??)
    }

    async fn status(&self, config: &str) -> Result<Value> {
        let output = self.edgeadm(&["status", "--config", config, "-o", "json"]).await?;

        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
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

/// Removes a cgroup without processes.
fn remove(cgroup: &Path) {
    for inner in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&inner.path());
        }
    }
    drop(std::fs::remove_dir(cgroup));
}

/// The arguments of a join on this site, with the token.
async fn join(site: &Site, cluster: &Cluster, name: &str, dir: &Path) -> Result<Vec<String>> {
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let create =
        ["token", "create", "--single-use", "--node-name", name, "--kubeconfig", &kubeconfig];
    let mut command = Command::new(program("edgeadm"));
    command.args(create);
    let token = output(command).await?;
    let cloudcore = script("dev-cloudcore", &["address", "--name", cluster.name()], &[]).await?;
    let mut words = vec!["join", "-e", cloudcore.trim(), "-t", token.trim(), "-i", name, "-p"];
    let dir = dir.display().to_string();
    words.extend([site.fact("RUNTIME")?, "--config-dir", &dir, "--labels", "site=north"]);
    let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    for (key, fact) in [
        ("rootDir", "KUBELET_ROOT"),
        ("podLogsDir", "POD_LOGS"),
        ("containerLogsDir", "CONTAINER_LOGS"),
        ("cgroupRoot", "CGROUP_ROOT"),
        ("bootIdFile", "BOOT_ID_FILE"),
        ("nodeIP", "ADDRESS"),
    ] {
        words.extend(["--set".to_owned(), format!("{key}={}", site.fact(fact)?)]);
    }
    let state = format!("stateDir={dir}/state");
    let hard = "evictionHard={ memory.available: 100Mi }";
    words.extend(
        ["--set", &state, "--set", hard, "--set", "cgroupDriver=cgroupfs"].map(str::to_owned),
    );

    Ok(words)
}

#[tokio::test]
async fn one_command_makes_a_machine_with_systemd_a_node_and_another_undoes_it() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let name = format!("u{}", unique());
    let site = Site::up(&name, cluster.name()).await?;
    let dir = site.path("STATE")?.join("holdfast");
    let words = join(&site, &cluster, &name, &dir).await?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let machine = Machine::boot(site).await?;
    let tested = test(&machine, &cluster, &client, &name, &words, &dir).await;
    let site = machine.site.name().to_owned();
    script_now("edge-agent", &["forget", "--site", &site, "--node", &name]);

    tested
}

async fn test(
    machine: &Machine,
    cluster: &Cluster,
    client: &Client,
    name: &str,
    words: &[&str],
    dir: &Path,
) -> Result<()> {
    // It fails half-way, when the token is used up, and goes on from there.
    let unit = "/etc/systemd/system/edgecore.service";
    output(machine.command(&["mkdir", unit])?).await?;
    let failed = machine.edgeadm(words).await?;
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    ensure!(failed.status.code() == Some(74) && said.contains("goes on from here"), "{said}");
    output(machine.command(&["rmdir", unit])?).await?;
    let joined = machine.edgeadm(words).await?;
    let said = String::from_utf8_lossy(&joined.stdout).into_owned();
    ensure!(joined.status.success() && said.contains("is connected"), "{joined:?}");
    ensure!(!dir.join("join.json").exists(), "the join is not done");
    let node = format!("/api/v1/nodes/{name}");
    let is_ready = |node: &Value| {
        pods::condition(node, "Ready") == Some("True")
            && node["metadata"]["labels"]["site"] == "north"
    };
    cluster.until(client, &node, "Ready", LIMIT, is_ready).await?;

    let pod_name = format!("of-{name}");
    let mut pod = pods::sleeper(&pod_name, name);
    // Volumes that are mounted here are not seen by the runtime, which is outside.
    pod["spec"]["automountServiceAccountToken"] = json!(false);
    cluster.apply(&[pod]).await?;
    let path = pods::path(&pod_name);
    let before = cluster.until(client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let before = Incarnation::of(&before);

    // An agent that is killed, or hangs, is started anew; containers go on.
    let config = dir.join("edgecore.yaml").display().to_string();
    for signal in ["-KILL", "-STOP"] {
        let pid = machine.status(&config).await?["agent"]["pid"].clone();
        output(machine.command(&["kill", signal, &pid.to_string()])?).await?;
        let is_another = |status: &Value| {
            let agent = &status["agent"];
            agent["pid"].is_u64() && agent["pid"] != pid && agent["link"]["state"] == "Up"
        };
        let status = || machine.status(&config);
        wait::until(&format!("another agent after {signal}"), LIMIT, status, is_another).await?;
    }
    let after = cluster.until(client, &path, "Ready", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == before, "the agent's end changed {before:?} into {after}");

    let reset = machine.edgeadm(&["reset", "--force", "--config", &config]).await?;
    let said = String::from_utf8_lossy(&reset.stdout).into_owned();
    ensure!(reset.status.success() && said.contains("stopped edgecore.service"), "{reset:?}");
    let gone = [PathBuf::from(&config), dir.join("node.pem"), dir.join("state/state.db")];
    ensure!(gone.iter().all(|path| !path.exists()), "{said}");
    let there = machine.command(&["test", "-e", unit])?.status().await?;
    ensure!(!there.success(), "the unit is there");

    Ok(())
}
