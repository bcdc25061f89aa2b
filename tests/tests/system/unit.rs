//! A machine with systemd: `edgeadm join` from nothing to a connected agent, what its unit promises,
//! upgrades by packages and by hand, and `edgeadm reset`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::pods::{self, Incarnation};
use system_tests::process::{output, program, script, script_now};
use system_tests::site::Site;
use system_tests::wait;
use tokio::process::Command;

use super::machine::Machine;
use super::{package, upgrade};

const LIMIT: Duration = Duration::from_secs(90);

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
    let mut machine = Machine::boot(site).await?;
    let tested = test(&mut machine, &cluster, &client, &name, &words, &dir).await;
    let site = machine.site.name().to_owned();
    script_now("edge-agent", &["forget", "--site", &site, "--node", &name]);

    tested
}

async fn test(
    machine: &mut Machine,
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

    package::brings_versions(machine, cluster, client, &path, &config).await?;
    upgrade::changes_no_container(machine, cluster, client, &path, &config).await?;

    let reset = machine.edgeadm(&["reset", "--force", "--config", &config]).await?;
    let said = String::from_utf8_lossy(&reset.stdout).into_owned();
    ensure!(reset.status.success() && said.contains("stopped edgecore.service"), "{reset:?}");
    let names = ["node.pem", "state/state.db", "upgrade.json"].map(|name| dir.join(name));
    let gone: Vec<_> = names.into_iter().chain([PathBuf::from(&config)]).collect();
    ensure!(gone.iter().all(|path| !path.exists()), "{said}");
    let there = machine.command(&["test", "-e", unit])?.status().await?;
    ensure!(!there.success(), "the unit is there");

    Ok(())
}
