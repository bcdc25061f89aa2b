//! `edgeadm` on a node whose link is cut: it says how the node is, works in its pods, collects what helps,
//! and at last makes the machine what it was (T16), all without the cloud.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri::Runtime;
use cri_api::v1;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::held::Held;
use system_tests::node::EdgeNode;
use system_tests::pods;
use system_tests::process::{output, program};
use system_tests::wait;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_mins(1);
/// Of the Secret that the pod has.
const SECRET: &str = "precious-1f9a";

/// What a command said and how it ended.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

/// The node's own edgeadm.
struct Tool<'a> {
    node: &'a EdgeNode,
    config: String,
}

impl<'a> Tool<'a> {
    fn of(node: &'a EdgeNode) -> Result<Self> {
        let config = node.site().path("STATE")?.join("holdfast/edgecore.yaml");

        Ok(Self { node, config: config.display().to_string() })
    }

    fn command(&self, words: &[&str]) -> Result<Command> {
        let edgeadm = program("edgeadm");
        let edgeadm = edgeadm.to_str().context("a path")?;
        // The configuration is an option of the verb: before what is run in a container.
        let (verb, rest) =
            words.split_at(words.iter().position(|word| *word == "--").unwrap_or(words.len()));
        let words = [&[edgeadm], verb, &["--config", &self.config], rest].concat();

        Ok(self.node.site().command(&words))
    }

    async fn run(&self, words: &[&str]) -> Result<Said> {
        let mut command = self.command(words)?;
        let ended = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let ended = tokio::time::timeout(LIMIT, ended).await;
        let ended = ended.with_context(|| format!("edgeadm {words:?} does not end"))??;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();

        Ok(Said {
            code: ended.status.code().unwrap_or(-1),
            out: text(ended.stdout),
            err: text(ended.stderr),
        })
    }

    /// What it prints, if it ends well.
    async fn good(&self, words: &[&str]) -> Result<String> {
        let said = self.run(words).await?;
        ensure!(said.code == 0, "edgeadm {words:?}: {said:?}");

        Ok(said.out)
    }

    async fn json(&self, words: &[&str]) -> Result<Value> {
        let text = self.good(&[words, &["-o", "json"]].concat()).await?;

        serde_json::from_str(&text).with_context(|| format!("edgeadm {words:?} printed {text}"))
    }
}

fn says(text: &str, words: &[&str]) -> Result<()> {
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    ensure!(missing.is_empty(), "{missing:?} is not said in:\n{text}");

    Ok(())
}

/// A pod with a Secret in a volume and in its environment.
fn web(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    pod["spec"]["volumes"] = json!([{ "name": "s", "secret": { "secretName": name } }]);
    let main = &mut pod["spec"]["containers"][0];
    main["volumeMounts"] = json!([{ "name": "s", "mountPath": "/s" }]);
    main["env"] = json!([
        { "name": "FROM", "valueFrom": { "secretKeyRef": { "name": name, "key": "key" } } },
        { "name": "PLAIN", "value": format!("{SECRET}-plain") },
    ]);

    pod
}

#[tokio::test]
async fn a_node_is_looked_after_and_reset_without_the_cloud() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let joins = [(); 2].map(|()| EdgeNode::join(&cluster, &client));
    let [node, beside] = joins;
    let (node, beside) = tokio::try_join!(node, beside)?;
    let (name, other) = (format!("web-{}", unique()), format!("beside-{}", unique()));
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": "default" },
        "stringData": { "key": SECRET },
    });
    cluster.apply(&[secret, web(&name, node.name()), pods::sleeper(&other, beside.name())]).await?;
    for pod in [&name, &other] {
        cluster.until(&client, &pods::path(pod), "Ready", LIMIT, pods::is_ready).await?;
    }
    let tool = Tool::of(&node)?;
    let text = tool.good(&["status"]).await?;
    says(&text, &["in sync", node.name(), &name, "1/1", "containerd", "until "])?;
    let text = tool.good(&["check"]).await?;
    says(&text, &["the right one answers", "large packets", "clock", "cgroups"])?;

    node.site().cut().await?;
    let down = || async { Ok(tool.json(&["status"]).await?["agent"]["link"].clone()) };
    wait::until("the link is down", LIMIT, down, |link| link["state"] == "Down").await?;
    works_in_pods(&tool, &name).await?;
    let said = tool.run(&["check"]).await?;
    ensure!(said.code == 1 && said.out.contains("packets get lost"), "{said:?}");
    collects(&tool, &cluster).await?;

    // The agent is dead: what is known without it is told, and pods go on.
    node.kill_agent().await?;
    let said = tool.run(&["status"]).await?;
    ensure!(said.code == 69, "{said:?}");
    says(&said.out, &["does not answer", &name, "1/1", "until "])?;
    says(&said.err, &["the agent of this node does not run", "journalctl"])?;
    node.start_agent().await?;
    let is_up = || tool.run(&["status"]);
    wait::until("the agent answers", LIMIT, is_up, |said| said.code == 0).await?;

    resets(&tool, &node).await?;
    let held = Held::by(beside.site()).await?;
    ensure!(held.sandboxes.len() == 1 && held.containers.len() == 1, "{held:?}");
    let pod = cluster.get(&client, &pods::path(&other)).await?.context("the pod beside")?;
    ensure!(pods::is_ready(&pod), "{pod}");

    Ok(())
}

async fn works_in_pods(tool: &Tool<'_>, name: &str) -> Result<()> {
    says(&tool.good(&["ctl", "get", "pods"]).await?, &[name, "Running"])?;
    let selector = format!("app={name}");
    let listed = tool.json(&["ctl", "get", "pods", "-A", "-l", &selector]).await?;
    ensure!(listed["items"][0]["metadata"]["name"] == name, "{listed}");
    let none = tool.json(&["ctl", "get", "pods", "-l", "app=none"]).await?;
    ensure!(none["items"] == json!([]), "{none}");
    let text = tool.good(&["ctl", "describe", "pod", name]).await?;
    says(&text, &["Containers:", "running since", "Started", "Ready", "True"])?;
    let text = tool.good(&["ctl", "logs", name, "--tail", "1"]).await?;
    ensure!(text == "started\n", "{text:?}");

    let script = "read line; echo got $line; echo to-stderr >&2; exit 3";
    let mut command = tool.command(&["ctl", "exec", name, "-i", "--", "sh", "-c", script])?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    stdin.write_all(b"hello\n").await?;
    let ended =
        tokio::time::timeout(LIMIT, child.wait_with_output()).await.context("exec ends")??;
    ensure!(ended.status.code() == Some(3) && ended.stdout == b"got hello\n", "{ended:?}");
    says(&String::from_utf8_lossy(&ended.stderr), &["to-stderr", "terminated with exit code 3"])?;
    let text = tool.good(&["ctl", "exec", name, "--", "cat", "/s/key"]).await?;
    ensure!(text == SECRET, "{text:?}");
    let said = tool.run(&["ctl", "logs", "nobody"]).await?;
    ensure!(said.code == 1 && said.err.contains("runs no pod nobody"), "{said:?}");

    let text = tool.good(&["ctl", "restart", "pod", name]).await?;
    ensure!(text == "restarting main\n", "{text:?}");
    let restarts = || async {
        let pod = tool.json(&["ctl", "get", "pod", name]).await?;
        Ok(pod["status"]["containerStatuses"][0].clone())
    };
    let again = |status: &Value| status["restartCount"] == 1 && status["ready"] == true;
    wait::until("the restart", LIMIT, restarts, again).await?;
    says(&tool.good(&["ctl", "get", "events"]).await?, &["Killing", "restart requested"])
}

/// The archive has what helps, and not a byte of the key, the tokens and the Secret.
async fn collects(tool: &Tool<'_>, cluster: &Cluster) -> Result<()> {
    let state = tool.node.site().path("STATE")?;
    let archive = state.join("collected.tar.gz");
    let log = state.join("edgecore.log");
    let (archive, log) = (archive.display().to_string(), log.display().to_string());
    tool.good(&["debug", "collect", "-o", &archive, "-l", &log]).await?;
    let mut tar = Command::new("tar");
    tar.args(["-xzOf", &archive]);
    let text = output(tar).await?;
    says(
        &text,
        &["nodeName", "residentBytes", "MemTotal", "found the container runtime", "<cut>"],
    )?;
    says(&text, &["Secret default/", "kubernetes.io~secret"])?;

    let mut secrets = vec![SECRET.to_owned()];
    for file in ["node.key", "node.pem"] {
        let text = std::fs::read_to_string(state.join("holdfast").join(file)).unwrap_or_default();
        let key = text.split("-----BEGIN CERTIFICATE").next().unwrap_or_default();
        secrets.extend(key.lines().filter(|line| line.len() > 20).map(str::to_owned));
    }
    ensure!(secrets.len() > 1, "the node has no key");
    let mounted = token_of(tool.node)?;
    secrets.push(std::fs::read_to_string(&mounted)?.trim().to_owned());
    let kubeconfig = std::fs::read_to_string(cluster.kubeconfig())?;
    let keys = kubeconfig.lines().filter_map(|line| line.trim().strip_prefix("client-key-data: "));
    secrets.extend(keys.map(str::to_owned));
    for secret in secrets {
        ensure!(!text.contains(&secret), "the archive has a secret of {} bytes", secret.len());
    }

    Ok(())
}

/// The file of a service account's token on the node.
fn token_of(node: &EdgeNode) -> Result<PathBuf> {
    let pods = node.site().path("KUBELET_ROOT")?.join("pods");
    for pod in std::fs::read_dir(pods)?.flatten() {
        let volumes = pod.path().join("volumes/kubernetes.io~projected");
        for volume in std::fs::read_dir(volumes).into_iter().flatten().flatten() {
            let token = volume.path().join("token");
            if token.exists() {
                return Ok(token);
            }
        }
    }

    anyhow::bail!("no pod has a token")
}

/// A sandbox that is nobody's of ours, as another agent's would be.
async fn foreign(runtime: &Runtime, site_root: &str) -> Result<String> {
    let labels = BTreeMap::from([("holdfast.dev/node".to_owned(), "somebody-else".to_owned())]);
    let config = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "foreign".to_owned(),
            uid: "foreign-uid".to_owned(),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        labels,
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: format!("{site_root}/foreign"),
            ..v1::LinuxPodSandboxConfig::default()
        }),
        ..v1::PodSandboxConfig::default()
    };

    Ok(runtime.run_pod_sandbox(config, "").await?)
}

async fn resets(tool: &Tool<'_>, node: &EdgeNode) -> Result<()> {
    let site = node.site();
    let runtime = Runtime::new(site.fact("RUNTIME")?)?;
    let foreign = foreign(&runtime, site.fact("CGROUP_ROOT")?).await?;
    let identity = site.path("STATE")?.join("holdfast");
    let pid = node.agent_pid().await?;
    let plan = tool.good(&["reset", "--dry-run"]).await?;
    says(&plan, &["planned", "Nothing was done", node.name()])?;
    let said = tool.run(&["reset"]).await?;
    ensure!(said.code == 78 && said.err.contains("--force"), "{said:?}");

    // A file that cannot be removed: something is mounted on it.
    let held_file = identity.join("ca.crt");
    let mount = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        output(command)
    };
    let file = held_file.to_str().context("a path")?;
    mount(&["mount", "--bind", file, file]).await?;
    let said = tool.run(&["reset", "--force"]).await;
    mount(&["umount", file]).await?;
    let said = said?;
    ensure!(said.code == 1, "{said:?}");
    says(&said.out, &["identity", "failed", "ca.crt", "configuration", "skipped"])?;
    says(&said.err, &["1 of the steps failed", &format!("process {pid} ended")])?;
    let held = Held::by(site).await?;
    let sandboxes: BTreeSet<_> = held.sandboxes.keys().cloned().collect();
    ensure!(sandboxes == [foreign.clone()].into(), "{held:?}");
    ensure!(held.containers.is_empty() && held.directories.is_empty(), "{held:?}");
    ensure!(held.mounted.is_empty() && held.pod_cgroups.is_empty(), "{held:?}");
    ensure!(!identity.join("state").exists(), "the state is there");

    let text = tool.good(&["reset", "--force"]).await?;
    says(&text, &["is no edge node any more", "kubectl delete node"])?;
    ensure!(!text.contains("failed"), "{text}");
    ensure!(!Path::new(&tool.config).exists() && !held_file.exists(), "files are there");
    let text = tool.good(&["reset", "--force"]).await?;
    says(&text, &["is no edge node"])?;
    runtime.stop_pod_sandbox(&foreign).await?;
    runtime.remove_pod_sandbox(&foreign).await?;

    Ok(())
}
