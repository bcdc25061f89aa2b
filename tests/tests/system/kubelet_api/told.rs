//! What a node tells of itself, and to whom.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use system_tests::cluster::{kubernetes_program, unique};
use system_tests::process::output;
use system_tests::wait;
use tokio::process::Command;

use super::{At, LIMIT};

/// Every path that a kubelet has for those who look at nodes.
pub(super) async fn everything(at: &At<'_>, pod: &str) -> Result<()> {
    for path in ["healthz", "healthz/ping", "healthz/syncloop"] {
        ensure!(at.raw(path).await? == "ok", "{path}");
    }
    let slis = at.raw("metrics/slis").await?;
    ensure!(
        slis.contains("kubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 1\n"),
        "{slis}"
    );
    let pods: Value = serde_json::from_str(&at.raw("pods").await?)?;
    let found = pods["items"].as_array().context("no items")?;
    let found = found.iter().find(|found| found["metadata"]["name"] == pod).context("no pod")?;
    ensure!(found["status"]["phase"] == "Running" && found["spec"]["nodeName"] == at.node.name());
    let config: Value = serde_json::from_str(&at.raw("configz").await?)?;
    let config = &config["kubeletconfig"];
    ensure!(config["maxPods"] == 110 && config["evictionHard"].is_object(), "{config}");

    summary(at, pod).await?;
    let resource = at.raw("metrics/resource").await?;
    let labels = format!("{{container=\"main\",namespace=\"default\",pod=\"{pod}\"}} ");
    for name in ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes"] {
        ensure!(number(&resource, &format!("{name}{labels}")) > 0.0, "{name}: {resource}");
    }
    ensure!(number(&resource, "node_memory_working_set_bytes ") > 0.0, "{resource}");
    ensure!(resource.contains("\nresource_scrape_error 0\n"), "{resource}");

    let cadvisor = at.raw("metrics/cadvisor").await?;
    let of_pod = format!("namespace=\"default\",pod=\"{pod}\"");
    for (name, container) in [
        ("container_cpu_usage_seconds_total", "main"),
        ("container_memory_working_set_bytes", "main"),
        ("container_memory_rss", "main"),
        ("container_fs_usage_bytes", "main"),
        ("container_spec_cpu_shares", "main"),
        ("container_network_receive_bytes_total", ""),
    ] {
        let begin = format!("{name}{{container=\"{container}\",");
        let found = cadvisor.lines().any(|line| line.starts_with(&begin) && line.contains(&of_pod));
        ensure!(found, "no {name} of {pod}: {cadvisor}");
    }
    ensure!(cadvisor.contains("\nmachine_cpu_cores{"), "{cadvisor}");

    let probed = format!("{of_pod},pod_uid=\"");
    let probes = || at.raw("metrics/probes");
    let is_counted = |text: &String| {
        text.lines().any(|line| line.contains(&probed) && line.contains("result=\"successful\""))
    };
    wait::until("answers of a probe", LIMIT, probes, is_counted).await?;
    let own = at.raw("metrics").await?;
    ensure!(own.contains("\nholdfast_link_up 1\n") && own.contains("\nprocess_open_fds "), "{own}");

    logs(at).await
}

async fn summary(at: &At<'_>, pod: &str) -> Result<()> {
    let summary: Value = serde_json::from_str(&at.raw("stats/summary").await?)?;
    let node = &summary["node"];
    ensure!(node["nodeName"] == at.node.name(), "{summary}");
    for path in ["/cpu/usageNanoCores", "/memory/availableBytes", "/fs/capacityBytes"] {
        ensure!(node.pointer(path).is_some_and(Value::is_u64), "no {path}: {summary}");
    }
    let pods = summary["pods"].as_array().context("no pods")?;
    let pod = pods.iter().find(|found| found["podRef"]["name"] == pod).context("not the pod")?;
    let paths = [
        "/memory/workingSetBytes",
        "/network/rxBytes",
        "/containers/0/cpu/usageCoreNanoSeconds",
        "/containers/0/memory/workingSetBytes",
        "/containers/0/rootfs/usedBytes",
        "/containers/0/logs/usedBytes",
    ];
    for path in paths {
        ensure!(pod.pointer(path).is_some_and(Value::is_u64), "no {path}: {pod}");
    }
    ensure!(pod["containers"][0]["name"] == "main", "{pod}");

    Ok(())
}

/// Folders and files under /var/log, and nothing else.
async fn logs(at: &At<'_>) -> Result<()> {
    let name = format!("holdfast-{}.log", unique());
    let file = std::path::Path::new("/var/log").join(&name);
    std::fs::write(&file, "one\ntwo\n")?;
    let seen = async {
        let listing = at.raw("logs/").await?;
        ensure!(listing.contains(&name), "{listing}");
        ensure!(at.raw(&format!("logs/{name}")).await? == "one\ntwo\n");
        let query = at.raw(&format!("logs/?query=/{name}")).await?;
        ensure!(query == "one\ntwo\n", "{query:?}");
        Ok(())
    };
    let seen = seen.await;
    std::fs::remove_file(&file)?;
    seen?;
    // What the edge answers is what is seen, its status code and its words.
    for (path, expected) in [
        ("logs/no-such-folder/", "(NotFound)"),
        ("logs/?query=/../../etc/passwd", "is not a log under /var/log"),
        ("logs/?query=no-such-service", "journalctl -u no-such-service"),
        ("nothing", "(NotFound)"),
    ] {
        let error = at.raw(path).await.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(error.contains(expected), "{path}: {error}");
    }

    Ok(())
}

/// Anonymous callers are refused, others get what they have the right to, by the fine-grained rights
/// first.
pub(super) async fn rights(at: &At<'_>) -> Result<()> {
    let node = at.cluster.get(at.client, &at.node.path()).await?.context("no node")?;
    let address = node["status"]["addresses"][0]["address"].as_str().context("no address")?;
    let port = &node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"];
    let server = format!("--server=https://{address}:{port}");
    let ask = async |token: &str, path: &str| {
        let mut command = Command::new(kubernetes_program("kubectl")?);
        command.args(["--kubeconfig=/dev/null", "--insecure-skip-tls-verify", &server]);
        // Without anything kubectl would ask for a name; a kubelet takes no name and password.
        match token {
            "" => command.args(["--username=nobody", "--password=none"]),
            token => command.arg(format!("--token={token}")),
        };
        command.args(["get", "--raw", path]);
        let told = output(command).await;
        Ok::<_, anyhow::Error>(told.unwrap_or_else(|error| error.to_string()))
    };
    let name = format!("looker-{}", unique());
    let kubectl = async |args: &[&str]| at.cluster.kubectl(args).await;
    kubectl(&["create", "serviceaccount", &name]).await?;
    let token = kubectl(&["create", "token", &name]).await?;

    for token in ["", "no-such-token"] {
        let unknown = ask(token, "/pods").await?;
        ensure!(unknown.contains("You must be logged in"), "{token:?}: {unknown}");
    }
    let stranger = ask(token.trim(), "/pods").await?;
    ensure!(stranger.to_lowercase().contains("forbidden"), "{stranger}");

    let account = format!("--serviceaccount=default:{name}");
    let role = format!("--clusterrole={name}");
    let rule = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": { "name": name },
        "rules": [{ "apiGroups": [""], "resources": ["nodes/pods", "nodes/stats"], "verbs": ["get"] }],
    });
    at.cluster.apply(&[rule]).await?;
    kubectl(&["create", "clusterrolebinding", &name, &role, &account]).await?;
    let pods = || ask(token.trim(), "/pods");
    wait::until("the right to see pods", LIMIT, pods, |text| text.contains("PodList")).await?;
    let summary = ask(token.trim(), "/stats/summary").await?;
    ensure!(summary.contains("nodeName"), "{summary}");
    for path in ["/metrics", "/configz", "/logs/", "/containerLogs/default/x/main"] {
        let refused = ask(token.trim(), path).await?;
        ensure!(refused.to_lowercase().contains("forbidden"), "{path}: {refused}");
    }
    kubectl(&["delete", "clusterrole,clusterrolebinding,serviceaccount", &name]).await?;

    Ok(())
}

/// The number of the sample that begins so.
fn number(text: &str, begin: &str) -> f64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(begin));
    let number = rest.and_then(|rest| rest.split(' ').next()?.parse().ok());

    number.unwrap_or(-1.0)
}
