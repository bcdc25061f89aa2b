//! `kubectl logs` and `exec` reach a node that only dials out, whatever addresses API servers prefer.

use std::time::Duration;

use anyhow::{Result, ensure};
use system_tests::api;
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::own::OwnCluster;
use system_tests::pods;
use system_tests::wait;

const LIMIT: Duration = Duration::from_mins(1);

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

    // The port is closed with the session: callers are told at once instead of waiting.
    node.kill_agent().await?;
    node.until_unknown(&client).await?;
    let refused = cluster.kubectl(&["logs", &name]).await;
    ensure!(refused.is_err(), "a log of a node that is away: {refused:?}");
    node.start_agent().await?;
    node.until_ready(&client).await?;
    let again = cluster.kubectl(&["logs", &name, "--tail=1"]).await?;
    ensure!(again == "oops\n" || again.starts_with("line"), "{again:?}");

    api::delete(&client, &pods::path(&name), None).await?;

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
    api::delete(&client, &pods::path(&name), None).await?;

    cluster.until_gone(&client, &pods::path(&name), LIMIT).await
}
