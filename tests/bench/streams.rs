//! `scripts/bench streams`: what many streams of one node do to the delivery of what it is to run, how soon
//! volumes show a change, and how fast a file gets there beside what the link itself carries.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::AsyncBufReadExt as _;
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::process::output;
use system_tests::{api, pods};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::figures::Samples;
use crate::report;
use crate::updates::Updates;

const FOLLOWERS: usize = 50;
const EXECS: usize = 20;
/// With streams, the 99th of 100 deliveries may take this many times what it takes without.
const RATIO_MAX: f64 = 1.5;
const FILE_BYTES: usize = 100_000_000;
/// A link as many sites have one, megabits a second.
const LINK_MBIT: u32 = 100;
const LIMIT: Duration = Duration::from_mins(2);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Print one line of JSON on stdout instead of the table.
    #[arg(long)]
    json: bool,
    /// Turns without and with streams.
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Deliveries in each half of a turn.
    #[arg(long, default_value_t = 40)]
    deliveries: usize,
    /// Changes of each thing that volumes show.
    #[arg(long, default_value_t = 20)]
    updates: usize,
    /// What `scripts/bench` gives to every command; not used here.
    #[arg(long, hide = true)]
    slow_fsync: Option<PathBuf>,
}

/// A node with a pod that talks and shows a ConfigMap.
struct Bed {
    cluster: Cluster,
    client: Client,
    node: EdgeNode,
    pod: String,
    map: String,
    /// Where the node shows the ConfigMap to the pod.
    file: PathBuf,
}

/// Prints what is measured.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let bed = Bed::new().await?;
    let (mut alone, mut beside) = (Samples::default(), Samples::default());
    for turn in 1..=options.turns {
        report::say(&format!("deliveries without and with streams, turn {turn}"));
        bed.deliver(options.deliveries, &mut alone).await?;
        let streams = bed.streams().await?;
        bed.deliver(options.deliveries, &mut beside).await?;
        drop(streams);
    }
    report::say("changes of what volumes show");
    let updates = Updates::measure(&bed.cluster, &bed.client, &bed.node, options.updates).await?;
    report::say("100 MB through the link, and as a file into the pod");
    let free = (bed.raw().await?, bed.copy().await?);
    bed.shape(true).await?;
    let shaped = (bed.raw().await?, bed.copy().await?);
    bed.shape(false).await?;

    print(options, &alone, &beside, &updates, &[("free", free), ("shaped", shaped)]);

    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result of a program")]
fn print(
    options: &Options,
    alone: &Samples,
    beside: &Samples,
    updates: &Updates,
    links: &[(&str, (f64, f64))],
) {
    let ratio = beside.p99() / alone.p99();
    if options.json {
        let delivery =
            |samples: &Samples| json!({ "median_s": samples.median(), "p99_s": samples.p99() });
        let links = links.iter().map(|(name, (link, copy))| {
            ((*name).to_owned(), json!({ "link_mb_s": link, "cp_mb_s": copy }))
        });
        let told: Value = json!({
            "delivery": { "alone": delivery(alone), "beside_streams": delivery(beside), "p99_ratio": ratio },
            "updates": updates.json(),
            "copy": links.collect::<serde_json::Map<_, _>>(),
        });
        println!("{told}");
        return;
    }
    for (what, samples) in [("without streams", alone), ("50 logs -f, 20 exec", beside)] {
        println!(
            "delivery, {what:<22} median {:>7.1} ms, p99 {:>7.1} ms, {} times",
            samples.median() * 1e3,
            samples.p99() * 1e3,
            samples.count(),
        );
    }
    let verdict = if ratio <= RATIO_MAX { "reached" } else { "MISSED" };
    println!("delivery, ratio of the p99           {ratio:>7.2}    <= {RATIO_MAX}, {verdict}");
    print!("{}", updates.rows());
    for (name, (link, copy)) in links {
        println!("100 MB, {name:<8} link {link:>7.1} MB/s, kubectl cp {copy:>7.1} MB/s");
    }
}

impl Bed {
    async fn new() -> Result<Self> {
        let cluster = Cluster::shared().await?;
        let client = cluster.client().await?;
        let node = EdgeNode::join(&cluster, &client).await?;
        let (name, map) = (format!("talker-{}", unique()), format!("map-{}", unique()));
        let mut pod = pods::sleeper_with_map(&name, node.name(), &map);
        let line = "0123456789".repeat(8);
        let script = format!(
            "i=0; while :; do i=$((i+1)); echo \"$i {line}\"; echo \"$i {line}\" >> /tmp/said; \
             usleep 20000; done"
        );
        pod["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c", script]);
        cluster.apply(&[pods::config_map(&map, "first"), pod]).await?;
        let path = pods::path(&name);
        let ready = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
        let uid = ready["metadata"]["uid"].as_str().context("no uid")?;
        let file = format!("pods/{uid}/volumes/kubernetes.io~configmap/map/key");
        let file = node.site().path("KUBELET_ROOT")?.join(file);

        Ok(Self { cluster, client, node, pod: name, map, file })
    }

    /// From the answer of the API server to a change until the node shows it to the pod.
    async fn deliver(&self, count: usize, samples: &mut Samples) -> Result<()> {
        let path = format!("/api/v1/namespaces/default/configmaps/{}", self.map);
        for _ in 0..count {
            let said = unique();
            api::merge(&self.client, &path, &json!({ "data": { "key": said } })).await?;
            let began = Instant::now();
            let shown = async {
                while tokio::fs::read_to_string(&self.file).await.unwrap_or_default() != said {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(LIMIT, shown).await.context("the node does not show what was changed")?;
            samples.push(began.elapsed());
            sleep(Duration::from_millis(50)).await;
        }

        Ok(())
    }

    /// Streams that all carry something by now; they end when they are dropped.
    async fn streams(&self) -> Result<(JoinSet<()>, Vec<Child>)> {
        let logs: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let params = LogParams { follow: true, tail_lines: Some(1), ..LogParams::default() };
        let mut followers = JoinSet::new();
        let opened = (0..FOLLOWERS).map(|_| logs.log_stream(&self.pod, &params));
        for stream in try_join_all(opened).await? {
            let mut lines = Box::pin(stream).lines();
            followers.spawn(async move {
                use futures_util::StreamExt as _;
                while let Some(Ok(_line)) = lines.next().await {}
            });
        }
        let mut execs = Vec::new();
        for _ in 0..EXECS {
            let args = ["exec", &self.pod, "--", "tail", "-f", "/tmp/said"];
            let mut command = self.cluster.kubectl_command(&args)?;
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = command.kill_on_drop(true).spawn()?;
            let mut stdout = child.stdout.take().context("no output")?;
            let mut piece = vec![0; 4096];
            ensure!(timeout(LIMIT, stdout.read(&mut piece)).await?? > 0, "an exec says nothing");
            followers.spawn(async move {
                while stdout.read(&mut piece).await.is_ok_and(|length| length > 0) {}
            });
            execs.push(child);
        }

        Ok((followers, execs))
    }

    /// What the link carries towards the site, 10^6 bytes a second: one plain connection.
    async fn raw(&self) -> Result<f64> {
        let gateway = self.node.site().fact("GATEWAY")?;
        let listener = TcpListener::bind((gateway, 0)).await?;
        let port = listener.local_addr()?.port().to_string();
        let receive = ["sh", "-c", "busybox nc \"$0\" \"$1\" > /dev/null", gateway, &port];
        let receiving = output(self.node.site().command(&receive));
        let sending = async {
            let (mut stream, _) = listener.accept().await?;
            let began = Instant::now();
            let piece = vec![7; 1_000_000];
            for _ in 0..FILE_BYTES / piece.len() {
                stream.write_all(&piece).await?;
            }
            stream.shutdown().await?;
            Ok::<_, anyhow::Error>(began)
        };
        let (received, began) = tokio::join!(receiving, sending);
        received?;

        Ok(rate(began?))
    }

    /// `kubectl cp` of a file into the pod, 10^6 bytes a second.
    async fn copy(&self) -> Result<f64> {
        let file = std::env::temp_dir().join(format!("holdfast-bench-{}", unique()));
        let bytes = (0..FILE_BYTES).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[4]);
        std::fs::write(&file, bytes.collect::<Vec<u8>>())?;
        let began = Instant::now();
        let copied = self.cp(&file).await;
        std::fs::remove_file(&file)?;
        copied?;
        let took = rate(began);
        self.cluster.kubectl(&["exec", &self.pod, "--", "rm", "/tmp/file"]).await?;

        Ok(took)
    }

    async fn cp(&self, file: &Path) -> Result<String> {
        let file = file.display().to_string();

        self.cluster.kubectl(&["cp", &file, &format!("{}:/tmp/file", self.pod)]).await
    }

    /// Gives the link towards the site a rate, or takes it away.
    async fn shape(&self, on: bool) -> Result<()> {
        let mut command = Command::new("tc");
        let device = self.node.site().fact("VETH")?;
        if on {
            let rate = format!("{LINK_MBIT}mbit");
            command.args(["qdisc", "replace", "dev", device, "root", "tbf", "rate", &rate]);
            command.args(["burst", "64kb", "latency", "50ms"]);
        } else {
            command.args(["qdisc", "del", "dev", device, "root"]);
        }

        output(command).await.map(drop)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a number of bytes that is told in millions")]
fn rate(began: Instant) -> f64 {
    FILE_BYTES as f64 / 1e6 / began.elapsed().as_secs_f64()
}
