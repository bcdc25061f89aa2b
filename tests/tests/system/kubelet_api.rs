//! All that a kubelet serves reaches its callers from a node that only dials out, whatever addresses API
//! servers prefer.

mod streams;
mod told;

use std::time::Duration;

use anyhow::{Result, ensure};
use kube::Client;
use serde_json::json;
use system_tests::api;
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::own::OwnCluster;
use system_tests::pods;
use system_tests::wait;

const LIMIT: Duration = Duration::from_mins(1);

/// Where something is asked.
struct At<'a> {
    cluster: &'a Cluster,
    client: &'a Client,
    node: &'a EdgeNode,
}

impl At<'_> {
    /// What a path of the node's API answers through the API server.
    async fn raw(&self, path: &str) -> Result<String> {
        let path = format!("{}/proxy/{path}", self.node.path());

        self.cluster.kubectl(&["get", "--raw", &path]).await
    }
}

#[tokio::test]
async fn logs_and_exec_reach_a_container_through_the_link() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("talker-{}", unique());
    let script = "trap 'exit 0' TERM; for i in 1 2 3; do echo line $i; done; echo oops >&2; \
                  while :; do sleep 1000 & wait; done";
    cluster.apply(&[pods::script_pod(&name, node.name(), script)]).await?;
    cluster.until(&client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;

    let all = wait::until(
        "all lines in the log",
        LIMIT,
        async || cluster.kubectl(&["logs", &name]).await,
        |log| log.lines().count() == 4,
    )
    .await?;
    // The two outputs come by two pipes: either is in order, both together need not be.
    let said: Vec<&str> = all.lines().filter(|line| *line != "oops").collect();
    ensure!(said == ["line 1", "line 2", "line 3"], "{all:?}");
    let tail = cluster.kubectl(&["logs", &name, "--tail=1", "--timestamps"]).await?;
    ensure!(tail.lines().count() == 1 && tail.contains('T'), "{tail:?}");

    let said = cluster.kubectl(&["exec", &name, "--", "sh", "-c", "echo from $HOSTNAME"]).await?;
    ensure!(said == format!("from {name}\n"), "{said:?}");
    let failed = cluster.kubectl(&["exec", &name, "--", "sh", "-c", "exit 7"]).await;
    let error = failed.err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(error.contains("exit code 7"), "the exit code is lost: {error:?}");

    // Callers of a node that is away are told at once, and since when.
    node.kill_agent().await?;
    for args in [&["logs", &name][..], &["exec", &name, "--", "true"]] {
        let ask = || async {
            let told = cluster.kubectl(args).await;
            Ok(told.err().map(|error| error.to_string()).unwrap_or_default())
        };
        let says_since = |error: &String| error.contains(" is away since 2");
        wait::until("an error that says since when", LIMIT, ask, says_since).await?;
    }
    node.until_unknown(&client).await?;
    node.start_agent().await?;
    node.until_ready(&client).await?;
    let again = cluster.kubectl(&["logs", &name, "--tail=1"]).await?;
    ensure!(again == "oops\n" || again.starts_with("line"), "{again:?}");

    api::delete(&client, &pods::path(&name), None).await?;

    cluster.until_gone(&client, &pods::path(&name), LIMIT).await
}

#[tokio::test]
async fn everything_that_a_kubelet_serves_reaches_its_callers() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let at = At { cluster: &cluster, client: &client, node: &node };
    let name = format!("server-{}", unique());
    let script = "mkdir /www; echo from the pod > /www/hello; exec httpd -f -p 8080 -h /www";
    let mut pod = pods::script_pod(&name, node.name(), script);
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({ "tcpSocket": { "port": 8080 }, "periodSeconds": 1 });
    cluster.apply(&[pod]).await?;
    cluster.until(&client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;

    told::everything(&at, &name).await?;
    told::rights(&at).await?;
    streams::attach(&at).await?;
    streams::copy(&at, &name).await?;
    streams::port_forward(&at, &name).await?;
    streams::debug(&at, &name).await?;
    api::delete(&client, &pods::path(&name), Some(0)).await?;

    cluster.until_gone(&client, &pods::path(&name), LIMIT).await
}

/// kubeadm's API servers prefer other types of addresses than those without a flag, which the test above has.
#[tokio::test]
async fn logs_and_exec_work_in_kubeadms_order_of_address_types() -> Result<()> {
    let order = "--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname";
    let own = OwnCluster::up_with_apiserver_args(order).await?;
    let cluster = own.cluster();
    let client = cluster.client().await?;
    let node = EdgeNode::join(cluster, &client).await?;
    let name = format!("talker-{}", unique());
    cluster.apply(&[pods::sleeper(&name, node.name())]).await?;
    cluster.until(&client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;

    let logs = async || cluster.kubectl(&["logs", &name]).await;
    wait::until("its log", LIMIT, logs, |log| log == "started\n").await?;
    let said = cluster.kubectl(&["exec", &name, "--", "sh", "-c", "echo from $HOSTNAME"]).await?;
    ensure!(said == format!("from {name}\n"), "{said:?}");
    let at = At { cluster, client: &client, node: &node };
    streams::leave_nothing(&at, own.cloudcore_pid().await?, &name).await?;
    api::delete(&client, &pods::path(&name), None).await?;

    cluster.until_gone(&client, &pods::path(&name), LIMIT).await
}
