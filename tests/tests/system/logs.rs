//! `kubectl logs` with every option prints what it prints of the same container on a stock kubelet.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use system_tests::api;
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::process::Daemon;
use system_tests::stock::StockNode;
use system_tests::{pods, wait};
use tokio::process::Command;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_mins(2);

/// Ends once, then stays. Its last line has no end.
const TALK: &str = "trap 'exit 0' TERM
    for i in 1 2 3 4 5; do echo line $i; done; echo; echo ünï; printf %s 'no end'
    if [ ! -e /shared/second ]; then touch /shared/second; exit 3; fi
    while :; do sleep 1000 & wait; done";

/// What a user may ask: container, then the options of `kubectl logs` as its requests carry them.
const ASKED: [(&str, &str); 20] = [
    ("main", ""),
    ("main", "tailLines=0"),
    ("main", "tailLines=1"),
    ("main", "tailLines=3"),
    ("main", "tailLines=1000"),
    ("main", "timestamps=true"),
    ("main", "timestamps=true&tailLines=2"),
    ("main", "limitBytes=1"),
    ("main", "limitBytes=20"),
    ("main", "limitBytes=20&tailLines=4"),
    ("main", "limitBytes=40&timestamps=true"),
    ("main", "sinceSeconds=3600"),
    ("main", "sinceTime=2020-01-01T00%3A00%3A00Z"),
    ("main", "sinceTime=2100-01-01T00%3A00%3A00Z"),
    ("main", "previous=true"),
    ("main", "previous=true&tailLines=2"),
    ("side", ""),
    ("side", "previous=true"),
    ("first", ""),
    ("done", "follow=true"),
];

fn talker(name: &str, node: &str) -> Value {
    let mut pod = pods::script_pod(name, node, TALK);
    let template = pod["spec"]["containers"][0].clone();
    let container = |name: &str, script: &str| {
        let mut container = template.clone();
        container["name"] = json!(name);
        container["command"] = json!(["/bin/sh", "-c", script]);
        container["volumeMounts"] = json!([{ "name": "shared", "mountPath": "/shared" }]);
        container
    };
    let wait = "trap 'exit 0' TERM; echo out; sleep 0.3; echo err >&2; while :; do sleep 1000 & wait; done";
    pod["spec"]["volumes"] = json!([{ "name": "shared", "emptyDir": {} }]);
    pod["spec"]["initContainers"] = json!([container("first", "echo from init")]);
    pod["spec"]["containers"] = json!([container("main", TALK), container("side", wait)]);

    pod
}

/// A pod that ends, so that following its log ends too.
fn ending(name: &str, node: &str) -> Value {
    let script = "for i in 1 2 3; do echo step $i; sleep 1; done; echo over >&2";
    let mut pod = pods::script_pod(name, node, script);
    pod["spec"]["restartPolicy"] = json!("Never");
    pod["spec"]["containers"][0]["name"] = json!("done");

    pod
}

/// Where logs are asked for: of the API server, which asks ours, or of a kubelet itself, for its name
/// means nothing to the API server.
enum Whom<'a> {
    Ours,
    Stock(&'a str),
}

/// What is answered, output and errors, without what differs from pod to pod.
async fn told(
    cluster: &Cluster,
    whom: &Whom<'_>,
    pod: &str,
    (container, query): (&str, &str),
) -> Result<String> {
    let pod = if container == "done" { format!("{pod}-done") } else { pod.to_owned() };
    let (path, server);
    let mut args = vec!["get", "--raw"];
    match whom {
        Whom::Ours => {
            let space = "/api/v1/namespaces/default/pods";
            path = format!("{space}/{pod}/log?container={container}&{query}");
            args.push(&path);
        }
        Whom::Stock(address) => {
            path = format!("/containerLogs/default/{pod}/{container}?{query}");
            server = format!("--server=https://{address}:10250");
            args.extend([&path, server.as_str(), "--insecure-skip-tls-verify"]);
        }
    }
    let mut command = cluster.kubectl_command(&args)?;
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output =
        timeout(LIMIT, output).await.with_context(|| format!("{args:?} does not end"))??;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let is_time = |word: &str| word.len() > 20 && word.starts_with("20") && word.contains('T');
    let lines = text.replace(&pod, "POD");
    let lines = lines.split('\n').map(|line| match line.split_once(' ') {
        Some((first, rest)) if is_time(first) => format!("TIME {rest}"),
        // Only the API server passes the kubelet's reason on.
        _ if line.starts_with("Error from server") => {
            line.chars().take_while(|c| *c != ':').collect()
        }
        // A time that the limit cuts.
        _ if query.starts_with("limitBytes=40") => line.chars().take(2).collect(),
        _ => line.to_owned(),
    });

    Ok(lines.collect::<Vec<_>>().join("\n"))
}

#[tokio::test]
async fn logs_are_those_of_a_stock_kubelet() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let (ours, stock) =
        tokio::try_join!(EdgeNode::join(&cluster, &client), StockNode::up(&cluster))?;
    let names = [format!("ours-{}", unique()), format!("stock-{}", unique())];
    let nodes = [ours.name(), stock.name()];
    for (name, node) in names.iter().zip(nodes) {
        cluster.apply(&[talker(name, node), ending(&format!("{name}-done"), node)]).await?;
    }
    for name in &names {
        let restarted = |pod: &Value| {
            pods::is_ready(pod)
                && pod["status"]["containerStatuses"][0]["restartCount"] == 1
                && pod["status"]["containerStatuses"][0]["name"] == "main"
        };
        let path = pods::path(name);
        cluster.until(&client, &path, "Ready after one end", LIMIT, restarted).await?;
    }

    let other = Whom::Stock(stock.site().fact("ADDRESS")?);
    let mut differ = Vec::new();
    for asked in ASKED {
        let (ours, stock) = tokio::try_join!(
            told(&cluster, &Whom::Ours, &names[0], asked),
            told(&cluster, &other, &names[1], asked)
        )?;
        if ours != stock {
            differ.push(format!("{asked:?}: {ours:?}, but a kubelet says {stock:?}"));
        }
    }
    let all = ["logs", &names[0], "--all-containers", "--prefix", "--tail=1"];
    let all = cluster.kubectl(&all).await?;
    for line in ["/first] from init", "/main] ünï", "/side] "] {
        ensure!(all.contains(line), "{line:?} is not in {all:?}");
    }
    for name in &names {
        for pod in [name.clone(), format!("{name}-done")] {
            api::delete(&client, &pods::path(&pod), Some(0)).await?;
        }
    }
    ensure!(differ.is_empty(), "{}", differ.join("\n"));

    Ok(())
}

/// Writes 1.2 MB whenever it is told to, and says so.
const WRITES: &str = "trap 'exit 0' TERM; n=0; echo ready; while :; do \
    if [ -e /shared/go ]; then rm /shared/go; n=$((n + 1)); \
    head -c 1200000 /dev/zero | tr '\\0' x | fold -w 1000; echo; echo wrote $n; fi; sleep 0.1; done";

const COMPRESSED: &str = ".gz";

/// Names and sizes of the log files of the container.
fn files(dir: &std::path::Path) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()));
    }
    found.sort();

    Ok(found)
}

#[tokio::test]
async fn a_log_that_grows_is_set_aside_compressed_and_followed_on() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let config = node.site().path("STATE")?.join("holdfast/edgecore.yaml");
    let small = "containerLogMaxSize: 1Mi\ncontainerLogMaxFiles: 3\n";
    std::fs::write(&config, std::fs::read_to_string(&config)? + small)?;
    node.kill_agent().await?;
    node.start_agent().await?;
    node.until_ready(&client).await?;
    let name = format!("writes-{}", unique());
    let mut pod = pods::script_pod(&name, node.name(), WRITES);
    pod["spec"]["volumes"] = json!([{ "name": "shared", "emptyDir": {} }]);
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "shared", "mountPath": "/shared" }]);
    cluster.apply(&[pod]).await?;
    let path = pods::path(&name);
    let pod = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let uid = pod["metadata"]["uid"].as_str().context("a pod has a UID")?;
    let go = format!("pods/{uid}/volumes/kubernetes.io~empty-dir/shared/go");
    let go = node.site().path("KUBELET_ROOT")?.join(go);
    let dir = node.site().path("POD_LOGS")?.join(format!("default_{name}_{uid}/main"));
    let follow = cluster.kubectl_command(&["logs", "-f", "--tail=1", &name])?;
    let mut follow = Daemon::start(follow, std::env::temp_dir().join(&name))?;
    wait::until("the first line", LIMIT, async || Ok(follow.log()), |log| !log.is_empty()).await?;

    // All but the newest of those set aside are compressed, and there are three with the one that grows.
    let mut newest = String::new();
    for (written, compressed, plain) in [(1, 0, 1), (2, 1, 1), (3, 1, 1)] {
        std::fs::write(&go, "")?;
        let is_aside = |found: &Vec<(String, u64)>| {
            let is_compressed = |(name, _): &&(String, u64)| name.ends_with(COMPRESSED);
            let count = found.iter().filter(is_compressed).count();
            found.len() == 1 + compressed + plain
                && count == compressed
                && (found[0].0 == "0.log" && found[0].1 < 1_000_000)
                && found.last().is_some_and(|(name, _)| *name > newest)
        };
        let what = format!("the log of {written} to be set aside");
        let found = wait::until(&what, LIMIT, async || files(&dir), is_aside).await?;
        newest = found.last().map(|(name, _)| name.clone()).unwrap_or_default();
        let said = format!("wrote {written}");
        let log = async || Ok(follow.log());
        let told = wait::until(&said, LIMIT, log, |log| log.lines().any(|line| line == said)).await;
        told.with_context(|| format!("kubectl runs: {}; {:?}", follow.is_running(), files(&dir)))?;
    }
    let found = files(&dir)?;
    let (compressed, size) =
        found.iter().find(|(name, _)| name.ends_with(COMPRESSED)).context("one")?;
    ensure!(*size < 100_000, "{compressed} has {size} bytes");
    let read = Command::new("gzip").arg("-dc").arg(dir.join(compressed)).output().await?;
    let text = String::from_utf8(read.stdout)?;
    let whole = text.lines().all(|line| line.contains(" stdout F "));
    ensure!(whole && text.contains("wrote 2") && text.len() > 1_200_000, "{compressed}");
    // Only the file that is written is shown.
    let shown = cluster.kubectl(&["logs", &name]).await?;
    ensure!(shown.len() < 1_000_000 && !shown.contains("wrote 2"), "{} bytes", shown.len());
    drop(follow);
    std::fs::remove_file(std::env::temp_dir().join(&name))?;

    api::delete(&client, &path, Some(0)).await
}
