//! What users do with streams: attach, cp, port-forward, debug, and leaving in the middle of it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use system_tests::cluster::{Cluster, unique};
use system_tests::{api, pods, wait};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::timeout;

use super::{At, LIMIT};

/// How many commands run one after the other; T19 wants 1000.
const EXECS: usize = 20;
/// Streams that are left at once.
const LEAVERS: usize = 6;

/// A `kubectl` that is typed into and read from.
struct Talk {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    fn start(cluster: &Cluster, args: &[&str]) -> Result<Self> {
        let mut command = cluster.kubectl_command(args)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.kill_on_drop(true).spawn()?;
        let stdin = child.stdin.take().context("no input")?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();

        Ok(Self { _child: child, stdin, lines })
    }

    /// Types a line until one comes back that has `expected` in it. Again and again, because the runtime
    /// takes input before it gives output: what is answered at once may be lost.
    async fn until(&mut self, typed: &str, expected: &str) -> Result<()> {
        let answered = async {
            loop {
                self.stdin.write_all(format!("{typed}\n").as_bytes()).await?;
                let next = timeout(Duration::from_millis(500), self.lines.next_line()).await;
                if let Ok(line) = next
                    && line?.context("it ended")?.contains(expected)
                {
                    return Ok::<_, anyhow::Error>(());
                }
            }
        };

        timeout(LIMIT, answered).await.with_context(|| format!("no {expected:?}"))?
    }
}

/// What is typed reaches the container's own process, and its answers come back.
pub(super) async fn attach(at: &At<'_>) -> Result<()> {
    let name = format!("listener-{}", unique());
    let script = "while read line; do echo \"got $line\"; [ \"$line\" = end ] && exit 0; done";
    let mut pod = pods::script_pod(&name, at.node.name(), script);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["stdin"] = json!(true);
    at.cluster.apply(&[pod]).await?;
    at.cluster.until(at.client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;

    let mut talk = Talk::start(at.cluster, &["attach", "-i", &name])?;
    talk.until("hello", "got hello").await?;
    talk.until("end", "got end").await?;
    let ended = |pod: &serde_json::Value| pod["status"]["phase"] == "Succeeded";
    at.cluster.until(at.client, &pods::path(&name), "its end", LIMIT, ended).await?;

    api::delete(at.client, &pods::path(&name), None).await
}

/// A file there and back is the file.
pub(super) async fn copy(at: &At<'_>, pod: &str) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("holdfast-cp-{}", unique()));
    std::fs::create_dir(&folder)?;
    let (sent, back) = (folder.join("sent"), folder.join("back"));
    let bytes: Vec<u8> =
        (0..3_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    std::fs::write(&sent, &bytes)?;
    let path = |path: &std::path::Path| path.display().to_string();
    let there = format!("{pod}:/tmp/file");
    at.cluster.kubectl(&["cp", &path(&sent), &there]).await?;
    at.cluster.kubectl(&["cp", &there, &path(&back)]).await?;
    let same = std::fs::read(&back)? == bytes;
    std::fs::remove_dir_all(&folder)?;
    ensure!(same, "what came back is another file");

    Ok(())
}

/// A `kubectl port-forward`, and where it listens.
async fn forward(at: &At<'_>, pod: &str, port: u16) -> Result<(Child, String)> {
    let ports = format!(":{port}");
    let mut command = at.cluster.kubectl_command(&["port-forward", pod, &ports])?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn()?;
    let stdout = child.stdout.take().context("no output")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = timeout(LIMIT, lines.next_line()).await??.unwrap_or_default();
    let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next());
    let address = address.with_context(|| format!("no address in {line:?}"))?.to_owned();
    // It ends when it has nobody to talk to.
    child.stdout = Some(lines.into_inner().into_inner());

    Ok((child, address))
}

async fn get(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    // A connection that is reset has no answer.
    drop(timeout(LIMIT, stream.read_to_end(&mut answer)).await?);

    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Several connections reach the pod's port; one that stays open when its client goes away, and a port
/// at which nobody listens, harm nobody.
pub(super) async fn port_forward(at: &At<'_>, pod: &str) -> Result<()> {
    let (mut child, address) = forward(at, pod, 8080).await?;
    for _ in 0..3 {
        let answer = get(&address).await?;
        ensure!(answer.contains("200 OK") && answer.ends_with("from the pod\n"), "{answer:?}");
    }
    let open = TcpStream::connect(&address).await?;
    child.kill().await?;
    drop(open);

    let (mut child, address) = forward(at, pod, 81).await?;
    let answer = get(&address).await?;
    ensure!(answer.is_empty(), "{answer:?}");
    let mut stderr = BufReader::new(child.stderr.take().context("no errors")?).lines();
    let line = timeout(LIMIT, stderr.next_line()).await??.unwrap_or_default();
    ensure!(line.contains("refused"), "{line:?}");
    child.kill().await?;

    let (mut child, address) = forward(at, pod, 8080).await?;
    let answer = get(&address).await?;
    ensure!(answer.contains("200 OK"), "{answer:?}");

    Ok(child.kill().await?)
}

/// An ephemeral container is attached to, and sees the processes of its target.
pub(super) async fn debug(at: &At<'_>, pod: &str) -> Result<()> {
    let image = format!("--image={}", pods::BUSYBOX);
    let script = "while read word; do echo \"got $word\"; ps | grep '[h]ttpd -f'; done";
    let args =
        ["debug", "-i", pod, &image, "--target=main", "-c", "debugger", "--", "sh", "-c", script];
    let mut talk = Talk::start(at.cluster, &args)?;
    talk.until("hello", "got hello").await?;

    talk.until("hello", "httpd -f -p 8080").await
}

/// T19: streams whose clients are killed leave nothing behind in cloudcore or in the agent, and many
/// commands in a row are nothing to the agent.
pub(super) async fn leave_nothing(at: &At<'_>, cloudcore: u32, pod: &str) -> Result<()> {
    let agent = at.node.agent_pid().await?;
    let exec = || async { at.cluster.kubectl(&["exec", pod, "--", "echo", "x"]).await };
    exec().await?;
    let before = (open_files(cloudcore)?, open_files(agent)?);
    let mut clients = Vec::new();
    for number in 0..LEAVERS {
        let args: &[&str] = if number % 2 == 0 {
            &["exec", "-i", pod, "--", "sh", "-c", "echo up; cat"]
        } else {
            &["logs", "-f", pod]
        };
        let mut command = at.cluster.kubectl_command(args)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut client = command.kill_on_drop(true).spawn()?;
        let said = client.stdout.as_mut().context("no output")?.read_u8();
        timeout(LIMIT, said).await??;
        clients.push(client);
    }
    let files = || async { Ok((open_files(cloudcore)?, open_files(agent)?)) };
    let during = files().await?;
    ensure!(during.0 > before.0 && during.1 > before.1, "{before:?}, with streams {during:?}");
    for client in &mut clients {
        client.kill().await?;
    }
    // An API server keeps a connection or two for later.
    let are_closed = |now: &(usize, usize)| now.0 <= before.0 + 2 && now.1 <= before.1 + 2;
    wait::until("the end of all streams", LIMIT, files, are_closed).await?;

    let execs = std::env::var("HOLDFAST_EXECS").ok().and_then(|count| count.parse().ok());
    for _ in 0..execs.unwrap_or(EXECS) {
        ensure!(exec().await? == "x\n");
    }
    ensure!(at.node.agent_pid().await? == agent, "the agent was restarted");
    wait::until("the end of all streams", LIMIT, files, are_closed).await?;
    let busy = || async {
        let before = cpu_ticks(cloudcore)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(cpu_ticks(cloudcore)? - before)
    };

    wait::until("a quiet cloudcore", LIMIT, busy, |ticks| *ticks <= 5).await.map(drop)
}

fn open_files(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Hundredths of a second.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let field = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());

    Ok(field(12).context("a short stat")? + field(13).context("a short stat")?)
}
