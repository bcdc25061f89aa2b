//! Another authority takes the place of the one that nodes and cloudcore are believed by.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rcgen::KeyPair;
use serde_json::{Value, json};
use system_tests::cluster::Cluster;
use system_tests::node::EdgeNode;
use system_tests::own::OwnCluster;
use system_tests::process::{output, program};
use system_tests::replica::{self, Replica};
use system_tests::{api, joining, pods, wait};
use tokio::process::Command;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

/// For conditions that hold within a second on an idle machine.
const LIMIT: Duration = Duration::from_mins(1);

/// A machine that has joined and is away.
const AWAY: &str = "away";

async fn edgeadm(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program("edgeadm"));
    command.args(args).arg("--kubeconfig").arg(cluster.kubeconfig());

    output(command).await
}

async fn status(cluster: &Cluster) -> Result<Value> {
    Ok(serde_json::from_str(&edgeadm(cluster, &["ca", "status", "-o", "json"]).await?)?)
}

/// The session record of a node.
fn record(node: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/{node}")
}

/// How many authorities the node believes after a restart.
async fn believed(node: &EdgeNode) -> Result<usize> {
    let file = node.site().path("STATE")?.join("holdfast/ca.crt");

    Ok(tokio::fs::read_to_string(file).await?.matches("BEGIN").count())
}

/// Key and certificate of a machine that joins and never connects.
async fn join_away(cluster: &Cluster, cloudcore: SocketAddr) -> Result<(KeyPair, String)> {
    let token = edgeadm(cluster, &["token", "create"]).await?;
    let key = KeyPair::generate()?;
    let csr = joining::request("system:nodes", &format!("system:node:{AWAY}"), &key)?.pem()?;
    let body = json!({ "token": token.trim(), "nodeName": AWAY, "csr": csr }).to_string();
    let roots = joining::roots(&cluster.client().await?).await?;
    let request = ("/v1/join", body.as_bytes());
    let (status, answer) = joining::post(Ipv4Addr::UNSPECIFIED, cloudcore, &roots, request).await?;
    ensure!(status == 200, "it may not join: {answer}");
    let certificate = answer["certificate"].as_str().context("no certificate")?.to_owned();

    Ok((key, certificate))
}

/// A connected node gets its certificate by the next authority over its link, which stays up from the first step
/// to the last; no program starts again. What the old authority signed is taken until the last step, which waits
/// for every node that has nothing else.
#[tokio::test]
async fn an_authority_is_replaced_under_a_link_that_stays() -> Result<()> {
    let own = OwnCluster::up().await?;
    let (cluster, client) = (own.cluster(), own.cluster().client().await?);
    let (first, second) = (own.cloudcore_pid().await?, Replica::up(cluster, 2).await?);
    let cloudcore: SocketAddr = own.link_address().await?.parse()?;
    let node = EdgeNode::join(cluster, &client).await?;
    cluster.apply(&[pods::sleeper("kept", node.name())]).await?;
    cluster.until(&client, &pods::path("kept"), "Ready", LIMIT, pods::is_ready).await?;
    let (key, certificate) = join_away(cluster, cloudcore).await?;
    let session = cluster.get(&client, &record(node.name())).await?.context("no record")?;
    let before = status(cluster).await?;
    ensure!(before["authorities"][0]["nodes"] == 2, "{before}");

    edgeadm(cluster, &["ca", "start"]).await?;
    let again = edgeadm(cluster, &["ca", "start"]).await.err().context("a second rollover")?;
    ensure!(again.to_string().contains("a rollover is under way"), "{again}");
    let only_away = |told: &Value| told["nodesWithOthers"] == json!([AWAY]);
    let told = wait::until("the node's certificate", LIMIT, || status(cluster), only_away).await?;
    ensure!(told["stage"] == "Rolling" && told["authorities"][1]["nodes"] == 1, "{told}");
    ensure!(believed(&node).await? == 2, "the node does not believe both");
    // By a token that names what cloudcore shows, with a certificate by the other one.
    let late = EdgeNode::join(cluster, &client).await?;
    ensure!(believed(&late).await? == 2, "who joins meanwhile does not believe both");
    let roots = joining::roots(&client).await?;
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())?;
    let old = joining::with_certificate(certificate, &key, &roots)?;
    joining::open(cloudcore, old.clone()).await.context("the old authority counts")?;

    let early = edgeadm(cluster, &["ca", "finish"]).await.err().context("it finished")?;
    ensure!(early.to_string().contains(&format!("would go: {AWAY};")), "{early}");
    let revoked = json!({ "metadata": { "annotations": { "holdfast.dev/revoked": "true" } } });
    api::merge(&client, &record(AWAY), &revoked).await?;
    edgeadm(cluster, &["ca", "finish"]).await?;
    let told = status(cluster).await?;
    let only = &told["authorities"];
    ensure!(only[0]["nodes"] == 2 && only[1].is_null(), "{told}");
    ensure!(only[0]["sha256"] != before["authorities"][0]["sha256"], "{told}");
    for node in [&node, &late] {
        let alone = || believed(node);
        wait::until("that the old one is not believed", LIMIT, alone, |count| *count == 1).await?;
    }
    let refused = async || Ok(joining::open(cloudcore, old.clone()).await.is_err());
    wait::until("that the old certificate opens nothing", LIMIT, refused, |is| *is).await?;

    let after = cluster.get(&client, &record(node.name())).await?.context("no record")?;
    let generation = |lease: &Value| lease["spec"]["leaseTransitions"].clone();
    ensure!(generation(&after) == generation(&session), "another session: {session}, {after}");
    ensure!(own.cloudcore_pid().await? == first, "cloudcore started again");
    replica::ask_at(&client, &node, second.address()).await?;
    let logs = || async { cluster.kubectl(&["logs", "kept"]).await };
    wait::until("its log through the other replica", LIMIT, logs, |log| log == "started\n").await?;
    node.kill_agent().await?;
    node.start_agent().await?;
    let later = |lease: &Value| generation(lease) != generation(&session);
    cluster.until(&client, &record(node.name()), "the next session", LIMIT, later).await?;

    node.until_ready(&client).await.map(drop)
}
