//! In-place resize: running containers get what `pods/resize` asks for, as on a stock kubelet.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri::Runtime;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::held::Held;
use system_tests::node::EdgeNode;
use system_tests::{api, pods};

const LIMIT: Duration = Duration::from_mins(1);

/// What a container has, on either version of cgroups.
const LOOK: &str = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory.max 2>/dev/null; \
    cat cpu/cpu.cfs_quota_us 2>/dev/null || cut -d ' ' -f 1 cpu.max";

fn amounts(cpu: &str, memory: &str) -> Value {
    let all = json!({ "cpu": cpu, "memory": memory });

    json!({ "limits": all, "requests": all })
}

/// `main` gets more while it runs, `other` starts again for more memory.
fn sized(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    let mut other = pod["spec"]["containers"][0].clone();
    other["name"] = json!("other");
    other["resources"] = amounts("50m", "20Mi");
    other["resizePolicy"] =
        json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]);
    pod["spec"]["containers"][0]["resources"] = amounts("50m", "20Mi");
    if let Some(containers) = pod["spec"]["containers"].as_array_mut() {
        containers.push(other);
    }

    pod
}

fn ask(main: &Value, other: &Value) -> Value {
    json!({ "spec": { "containers": [
        { "name": "main", "resources": main }, { "name": "other", "resources": other } ] } })
}

/// Whether both containers are told to be granted, and to have, these.
fn has(pod: &Value, main: &Value, other: &Value) -> bool {
    let statuses = &pod["status"]["containerStatuses"];
    let fits = |status: &Value, wanted: &Value| {
        status["resources"] == *wanted && status["allocatedResources"] == wanted["requests"]
    };

    fits(&statuses[0], main) && fits(&statuses[1], other) && pods::is_ready(pod)
}

fn restarts(pod: &Value) -> [Option<u64>; 2] {
    [0, 1].map(|at| pod["status"]["containerStatuses"][at]["restartCount"].as_u64())
}

#[tokio::test]
async fn running_containers_get_what_a_resize_asks_for() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("sized-{}", unique());
    let path = pods::path(&name);
    let until = async |what: &str, holds: &dyn Fn(&Value) -> bool| {
        cluster.until(&client, &path, what, LIMIT, holds).await
    };
    cluster.apply(&[sized(&name, node.name())]).await?;
    let small = amounts("50m", "20Mi");
    let pod = until("as it asked", &|pod| has(pod, &small, &small)).await?;
    let uid = pod["metadata"]["uid"].as_str().context("a pod has a UID")?.to_owned();

    // More CPU and less memory for the one, a restart for the other.
    let (main, other) = (amounts("100m", "16Mi"), amounts("50m", "30Mi"));
    api::strategic_merge(&client, &format!("{path}/resize"), &ask(&main, &other)).await?;
    let pod = until("resized", &|pod| has(pod, &main, &other)).await?;
    until("no resize to come", &|pod| pods::condition(pod, "PodResizeInProgress").is_none())
        .await?;
    ensure!(restarts(&pod) == [Some(0), Some(1)], "{pod}");
    let runtime = Runtime::new(node.site().fact("RUNTIME")?)?;
    let running = Held::by(node.site()).await?.running(&uid);
    let command = ["/bin/sh", "-c", LOOK].map(str::to_owned).to_vec();
    let said = runtime.exec_sync(&running["main"], command, LIMIT).await?;
    ensure!(String::from_utf8_lossy(&said.stdout) == "16777216\n10000\n", "{said:?}");

    // What the node will never have.
    let huge = amounts("100m", "64Ti");
    api::strategic_merge(&client, &format!("{path}/resize"), &ask(&huge, &other)).await?;
    let pending = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|c| c["type"] == "PodResizePending" && c["reason"] == "Infeasible")
    };
    let pod = until("infeasible", &pending).await?;
    ensure!(has(&pod, &main, &other) && restarts(&pod) == [Some(0), Some(1)], "{pod}");

    // What was granted outlives the agent; and less is asked for again.
    node.kill_agent().await?;
    node.start_agent().await?;
    node.until_ready(&client).await?;
    api::strategic_merge(&client, &format!("{path}/resize"), &ask(&main, &other)).await?;
    let over =
        |pod: &Value| pods::condition(pod, "PodResizePending").is_none() && has(pod, &main, &other);
    let pod = until("nothing pending", &over).await?;
    ensure!(restarts(&pod) == [Some(0), Some(1)], "{pod}");

    api::delete(&client, &path, None).await
}
