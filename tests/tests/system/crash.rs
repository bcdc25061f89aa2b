//! A container that crashes again and again is known as such by every life of the agent: its restarts
//! are counted on and its back-off goes on, after the agent was killed and after the power went.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods;
use system_tests::wait;

/// Longer than the longest back-off that is waited for, 20 s, on a slow machine.
const LIMIT: Duration = Duration::from_mins(2);

/// Least seconds before each restart. As the kubelet, the first is made at once. The third is made by
/// the return of the power, which waits for nobody; the fourth waits as long as it would have.
const BACK_OFF_S: [u64; 4] = [0, 10, 0, 20];

/// When the container started, in seconds since 1970.
fn starts(file: &Path) -> Result<Vec<u64>> {
    let told = std::fs::read_to_string(file).unwrap_or_default();

    told.lines().map(|line| line.parse().with_context(|| format!("start {line:?}"))).collect()
}

async fn until_started(file: &Path, count: usize) -> Result<Vec<u64>> {
    let what = format!("start {count}");

    wait::until(&what, LIMIT, async || starts(file), |seen| seen.len() >= count).await
}

#[tokio::test]
async fn restarts_and_back_off_go_on_in_the_next_life_of_the_agent() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("crash-{}", unique());
    let folder = node.site().path("KUBELET_ROOT")?.with_file_name("crash");
    let file = folder.join("starts");
    let mut pod = pods::script_pod(&name, node.name(), "date +%s >> /shared/starts; exit 3");
    pod["spec"]["volumes"] = json!([
        { "name": "shared", "hostPath": { "path": folder, "type": "DirectoryOrCreate" } }
    ]);
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "shared", "mountPath": "/shared" }]);
    cluster.apply(&[pod]).await?;
    let path = pods::path(&name);
    let waits = |restarts: usize, seconds: u64| {
        move |pod: &Value| {
            let container = &pod["status"]["containerStatuses"][0];
            let waiting = &container["state"]["waiting"];
            let told = waiting["message"].as_str().unwrap_or_default();
            container["restartCount"].as_u64() == Some(restarts as u64)
                && waiting["reason"] == "CrashLoopBackOff"
                && told.contains(&format!("back-off {seconds}s"))
        }
    };

    // Restart 2, after 10 s, is by an agent that did not see restart 1.
    until_started(&file, 2).await?;
    cluster.until(&client, &path, "restart 2 to wait", LIMIT, waits(1, 10)).await?;
    node.kill_agent().await?;
    node.start_agent().await?;
    until_started(&file, 3).await?;

    // Restart 4, after 20 s, is by one that did not see the power go, without the cloud.
    cluster.until(&client, &path, "restart 3 to wait", LIMIT, waits(2, 20)).await?;
    node.site().cut().await?;
    node.site().power_off().await?;
    node.site().power_on().await?;
    node.start_agent().await?;
    let starts = until_started(&file, 5).await?;
    let gaps: Vec<u64> = starts.windows(2).map(|two| two[1].saturating_sub(two[0])).collect();
    // A start is told in whole seconds, so a gap may look a second shorter than it was.
    let is_kept = gaps.iter().zip(BACK_OFF_S).all(|(gap, back_off)| gap + 1 >= back_off);
    ensure!(is_kept, "gaps between starts: {gaps:?}");

    node.site().restore().await?;
    node.until_ready(&client).await?;
    let counted = |pod: &Value| {
        pod["status"]["containerStatuses"][0]["restartCount"].as_u64().is_some_and(|n| n >= 4)
    };
    cluster.until(&client, &path, "four restarts", LIMIT, counted).await?;
    cluster.kubectl(&["delete", "pod", &name, "--wait=false"]).await?;

    cluster.until_gone(&client, &path, LIMIT).await
}
