//! docs/operations.md, exit codes: what is wrong is named, with its value and a remedy, by a documented
//! exit code, and nothing is changed. Bad input goes to the programs as they are built.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::process::{Daemon, output, program, script};
use system_tests::wait;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

/// No program may take longer to refuse.
const LIMIT: Duration = Duration::from_mins(1);

/// A folder of the test's own, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("holdfast-bad-input-{}", unique()));
        std::fs::create_dir(&path)?;

        Ok(Self(path))
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn file(&self, name: &str, text: &str) -> Result<String> {
        std::fs::write(self.0.join(name), text)?;

        Ok(self.path(name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // In the folder for temporary files: what stays is no harm.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Runs a program to its end, which must be `code`, with every one of `words` in what it says.
async fn check(mut command: Command, code: i32, words: &[&str]) -> Result<()> {
    let shown = format!("{:?}", command.as_std());
    let ended = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(LIMIT, ended).await.with_context(|| format!("{shown} does not end"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{shown}: {}, not {code}: {said}", output.status);
    for word in words {
        ensure!(said.contains(word), "{shown} does not say {word:?}: {said}");
    }

    Ok(())
}

fn run(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program(name));
    command.args(args).env_remove("KUBECONFIG");

    command
}

#[tokio::test]
async fn a_config_file_that_is_wrong_is_refused_before_anything_is_touched() -> Result<()> {
    let folder = Folder::new()?;
    let missing = folder.path("none.yaml");
    let edge = "nodeName: a\ncloudcore: 127.0.0.1:1\n";
    for (name, text, words) in [
        ("edgecore", format!("{edge}nodeNam: b\n"), vec!["nodeNam", "config example"]),
        ("edgecore", format!("{edge}shutdownGraceSeconds: soon\n"), vec!["shutdownGraceSeconds"]),
        ("edgecore", format!("{edge}stateDir: relative\n"), vec!["stateDir", "relative"]),
        ("edgecore", "nodeName: [".to_owned(), vec!["config example"]),
        ("edgecore", String::new(), vec!["config example"]),
        ("cloudcore", "advertiseAddres: 192.0.2.1".to_owned(), vec!["advertiseAddres"]),
        ("cloudcore", "advertiseAddress: 127.0.0.1".to_owned(), vec!["127.0.0.1"]),
        ("cloudcore", "advertiseAddress: {}".to_owned(), vec!["advertiseAddress"]),
    ] {
        let file = folder.file("config.yaml", &text)?;
        for command in [vec!["run"], vec!["config", "check"]] {
            let args = [&command[..], &["--config", &file]].concat();
            check(run(name, &args), 78, &[&words[..], &[&file]].concat()).await?;
        }
        check(run(name, &["run", "--config", &missing]), 78, &[&missing, "--config"]).await?;
    }
    ensure!(std::fs::read_dir(&folder.0)?.count() == 1, "something else was written");

    Ok(())
}

#[tokio::test]
async fn programs_that_need_root_say_so() -> Result<()> {
    let folder = Folder::new()?;
    let config = "nodeName: a\ncloudcore: 127.0.0.1:1\n";
    let file = folder.file("config.yaml", config)?;
    let token = format!("hf1.{}.0123abcd.{}", "a".repeat(64), "A".repeat(43));
    let join = ["join", "--cloudcore", "127.0.0.1:1", "--token", &token, "--node-name", "a"];
    for (name, args) in [("edgecore", vec!["run", "--config", &file]), ("edgeadm", join.to_vec())] {
        // Where it was built, another user may not reach it.
        let copy = folder.path(name);
        std::fs::copy(program(name), &copy)?;
        let mut command = Command::new(copy);
        command.args(args).uid(65534).gid(65534);
        check(command, 77, &["root", "sudo"]).await?;
    }

    Ok(())
}

#[tokio::test]
async fn cloudcore_names_what_it_cannot_have() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let folder = Folder::new()?;
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let taken = TcpListener::bind("127.0.0.1:0").await?;
    let port = taken.local_addr()?.to_string();
    let config = |kubeconfig: &str, listen: &str| {
        let text = format!(
            "kubeconfig: {kubeconfig}\nadvertiseAddress: 192.0.2.1\nlisten: {listen}\nreplica: bad\n\
             statusListen: 127.0.0.1:0\n"
        );
        folder.file("cloudcore.yaml", &text)
    };
    let missing = folder.path("none.kubeconfig");
    let file = config(&missing, &port)?;
    check(run("cloudcore", &["run", "--config", &file]), 78, &[&missing]).await?;
    let file = config(&kubeconfig, &port)?;
    check(run("cloudcore", &["run", "--config", &file]), 71, &[&port]).await?;

    let file = config(&kubeconfig, "127.0.0.1:0")?;
    let words = ["advertiseAddress 192.0.2.1", "not an address of this machine"];
    check(run("cloudcore", &["run", "--config", &file]), 78, &words).await?;

    // What may pass is waited for, and said.
    let admin = std::fs::read_to_string(cluster.kubeconfig())?;
    let nobody = anonymous(&admin)?;
    for (kubeconfig, words) in [
        (elsewhere(&admin)?, ["cannot get namespace", "trying again"]),
        (nobody, ["namespace", "system:anonymous"]),
    ] {
        let kubeconfig = folder.file("kubeconfig", &kubeconfig)?;
        let mut command = run("cloudcore", &["run"]);
        command.args(["--config", &config(&kubeconfig, "127.0.0.1:0")?]);
        let mut waiting = Daemon::start(command, folder.0.join(format!("{}.log", unique())))?;
        let said = |log: &String| words.iter().all(|word| log.contains(word));
        wait::until(
            "cloudcore to say what it waits for",
            LIMIT,
            || async { Ok(waiting.log()) },
            said,
        )
        .await?;
        ensure!(waiting.is_running(), "it gave up: {}", waiting.log());
        waiting.kill().await?;
    }

    Ok(())
}

/// The kubeconfig without its user.
fn anonymous(admin: &str) -> Result<String> {
    let (top, rest) = admin.split_once("users:").context("a kubeconfig has users")?;
    let (_, bottom) = rest.split_once('\n').context("then contexts")?;

    Ok(format!("{top}users: [{{name: user, user: {{}}}}]\n{bottom}"))
}

/// The kubeconfig of an API server that is not there.
fn elsewhere(admin: &str) -> Result<String> {
    let (_, rest) = admin.split_once("server: \"").context("a kubeconfig has a server")?;
    let (server, _) = rest.split_once('"').context("in quotes")?;

    Ok(admin.replace(server, "https://127.0.0.1:1"))
}

#[tokio::test]
async fn edgeadm_names_what_keeps_a_machine_out() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let folder = Folder::new()?;
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let address = script("dev-cloudcore", &["address", "--name", cluster.name()], &[]).await?;
    let create = ["token", "create", "--kubeconfig", &kubeconfig];
    let token = |more: &[&str]| output(run("edgeadm", &[&create[..], more].concat()));
    let good = token(&[]).await?;
    let soon_over = token(&["--ttl", "1m"]).await?;
    let named = token(&["--node-name", "other"]).await?;
    let (_, tail) =
        good.trim().split_once('.').and_then(|(_, t)| t.split_once('.')).context("token")?;
    let of_another = format!("hf1.{}.{tail}", "b".repeat(64));
    let unknown = good.trim().replacen(&tail[..8], "00000000", 1);
    let runtime = node.site().fact("RUNTIME")?;
    let gone = format!("unix://{}", folder.path("none.sock"));
    let (address, config_dir) = (address.trim(), folder.path("identity"));
    let join = |token: &str, address: &str, runtime: &str| {
        let mut command = run("edgeadm", &["join", "--cloudcore", address, "--node-name", "late"]);
        command.args(["--runtime-endpoint", runtime, "--config-dir", &config_dir]);
        command.env("HOLDFAST_JOIN_TOKEN", token.trim());

        command
    };
    expire(&cluster, &soon_over).await?;
    for (token, address, runtime, code, words) in [
        ("hf1.x", address, runtime, 78, ["malformed", "edgeadm token create"]),
        (of_another.as_str(), address, runtime, 78, ["another", address]),
        (unknown.as_str(), address, runtime, 77, ["unknown", "edgeadm token create"]),
        (soon_over.as_str(), address, runtime, 77, ["expired at 2020", "edgeadm token create"]),
        (named.as_str(), address, runtime, 77, ["other", "TokenForOtherNode"]),
        (good.as_str(), "127.0.0.1:1", runtime, 69, ["127.0.0.1:1", "refused"]),
        (good.as_str(), "nonsense", runtime, 78, ["nonsense", "HOST:PORT"]),
        (good.as_str(), address, gone.as_str(), 69, ["none.sock", "runtime"]),
        (good.as_str(), address, "tcp://x", 78, ["tcp://x", "unix://"]),
    ] {
        check(join(token, address, runtime), code, &words).await?;
    }
    ensure!(!Path::new(&config_dir).exists(), "something was written");
    tokens(&folder, &cluster).await
}

/// Makes a token one that has expired.
async fn expire(cluster: &Cluster, token: &str) -> Result<()> {
    let id = token.split('.').nth(2).context("a token has an id")?;
    let secret = format!("holdfast-join-{id}");
    let patch = r#"{"stringData":{"expires":"2020-01-01T00:00:00Z"}}"#;
    let args = ["patch", "secret", "-n", "holdfast", &secret, "-p", patch];

    cluster.kubectl(&args).await.map(drop)
}

async fn tokens(folder: &Folder, cluster: &Cluster) -> Result<()> {
    let admin = std::fs::read_to_string(cluster.kubeconfig())?;
    let away = elsewhere(&admin)?;
    let nobody = folder.file("nobody", &anonymous(&admin)?)?;
    let away = folder.file("away", &away)?;
    let missing = folder.path("none.kubeconfig");
    let admin = cluster.kubeconfig().display().to_string();
    for (args, kubeconfig, code, words) in [
        (vec!["list"], &missing, 78, vec![missing.as_str(), "--kubeconfig"]),
        (vec!["list"], &away, 69, vec!["cannot list", "127.0.0.1:1"]),
        (vec!["create"], &nobody, 77, vec!["cannot get", "secret", "forbidden"]),
        (vec!["create", "--namespace", "none"], &admin, 69, vec!["none", "cloudcore"]),
        (vec!["create", "--node-name", "A_B"], &admin, 78, vec!["--node-name", "A_B"]),
        (vec!["delete", "00000000"], &admin, 77, vec!["00000000", "token list"]),
        (vec!["create", "--ttl", "9y"], &admin, 2, vec!["9y"]),
    ] {
        let args = [&["token"], &args[..], &["--kubeconfig", kubeconfig]].concat();
        check(run("edgeadm", &args), code, &words).await?;
    }

    Ok(())
}

#[tokio::test]
async fn a_store_that_cannot_be_used_is_named_and_left_alone() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let folder = Folder::new()?;
    let own = node.site().path("STATE")?.join("holdfast/edgecore.yaml");
    let text = std::fs::read_to_string(&own)?;
    let own = own.display().to_string();
    // The agent that runs has it.
    check(run("edgecore", &["run", "--config", &own]), 74, &["state.db", "another process"])
        .await?;

    // A filesystem that takes no writes, such as a card that has failed.
    let card = folder.path("card");
    std::fs::create_dir(&card)?;
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "none", &card]).status();
    ensure!(mounted.await?.success(), "cannot mount");
    let state = node.site().path("STATE")?.join("holdfast/state").display().to_string();
    let config = folder.file("edgecore.yaml", &text.replace(&state, &card))?;
    let refused = check(run("edgecore", &["run", "--config", &config]), 74, &[&card]).await;
    ensure!(Command::new("umount").arg(&card).status().await?.success(), "cannot unmount");
    refused?;

    // The node has noticed nothing of all that.
    node.until_ready(&client).await.map(drop)
}
