//! T14: what strangers do at the ports of cloudcore costs them their connections, and nodes nothing; what a node
//! says of what is another's comes to nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use kube::Client;
use proto::admission::Ticket;
use proto::ids::{Kind, NodeName, ObjectKey, Uid};
use proto::object::{ContentHash, Version};
use proto::payload::Payload;
use proto::renewal::{self, Renewal};
use proto::wire::{Frame, RefuseCode, ReportKey};
use rcgen::KeyPair;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::impostor::{Identity, Impostor};
use system_tests::node::EdgeNode;
use system_tests::own::OwnCluster;
use system_tests::pods::Incarnation;
use system_tests::process::{output, program};
use system_tests::replica::Replica;
use system_tests::strangers::{Port, Strangers};
use system_tests::{api, joining, pods, wait};
use tokio::process::Command;
use tokio_rustls::rustls::RootCertStore;

const LIMIT: Duration = Duration::from_mins(2);

/// Silent connections to all ports together.
const IDLE: usize = 10_000;

/// Descriptors that connections of strangers may take, to all ports together, and what comes and goes: each
/// port with TLS has its crowd, and probes have a smaller one.
const DESCRIPTORS_MAX: usize = 3 * 512 + 64 + 200;

/// Memory, in KiB, that they may take: 40 KB for each connection that is held, of which TLS takes most.
const MEMORY_MAX: u64 = 72 * 1024;

/// Where a replica of `scripts/dev-cloudcore` is asked by others.
const PEER_PORT: u16 = 10_002;

/// Descriptors and resident memory, KiB, of a process.
fn usage(pid: u32) -> Result<(usize, u64)> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.context("no VmRSS")?.trim().trim_end_matches(" kB");

    Ok((descriptors, resident.parse()?))
}

/// Where a node's kubelet API is.
fn kubelet_port(node: &Value) -> Result<SocketAddr> {
    let addresses = node["status"]["addresses"].as_array().context("no addresses")?;
    let address = addresses.iter().find(|address| address["type"] == "InternalIP");
    let address: IpAddr =
        address.and_then(|at| at["address"].as_str()).context("no IP")?.parse()?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();

    Ok(SocketAddr::new(address, u16::try_from(port.context("no port")?)?))
}

#[tokio::test]
async fn strangers_at_every_port_keep_no_node_out() -> Result<()> {
    // The test holds the other ends.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let own = OwnCluster::up().await?;
    let (cluster, client) = (own.cluster(), own.cluster().client().await?);
    let node = EdgeNode::join(cluster, &client).await?;
    let link: SocketAddr = own.link_address().await?.parse()?;
    let kubelet = kubelet_port(&node.until_ready(&client).await?)?;
    let probes: SocketAddr = own.probes_address().await?.parse()?;
    let peers = SocketAddr::new(link.ip(), PEER_PORT);
    let ports = [Port::Tls(link), Port::Tls(kubelet), Port::Tls(peers), Port::Plain(probes)];
    let pid = own.cloudcore_pid().await?;
    let (descriptors, memory) = usage(pid)?;

    let strangers = Strangers::start(&ports, IDLE);
    let look = async || Ok(strangers.opened());
    wait::until("all silent connections", LIMIT, look, |opened| *opened >= IDLE).await?;

    // One comes back, another joins, pods run, their logs are read.
    node.kill_agent().await?;
    node.start_agent().await?;
    let other = EdgeNode::join(cluster, &client).await?;
    for node in [&node, &other] {
        let name = format!("amid-{}", unique());
        cluster.apply(&[pods::sleeper(&name, node.name())]).await?;
        cluster.until(&client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;
        let logs = async || cluster.kubectl(&["logs", &name]).await;
        wait::until("logs", LIMIT, logs, |said| said == "started\n").await?;
    }
    let (descriptors_now, memory_now) = usage(pid)?;
    ensure!(
        descriptors_now <= descriptors + DESCRIPTORS_MAX,
        "{descriptors} descriptors became {descriptors_now}"
    );
    ensure!(memory_now <= memory + MEMORY_MAX, "{memory} KiB became {memory_now}");
    ensure!(own.probe("/livez").await?.0 == 200, "probes find it dead");

    drop(strangers);
    let look = async || Ok(usage(pid)?.0);
    let is_as_before = |now: &usize| *now <= descriptors + 100;
    wait::until("the strangers to be forgotten", LIMIT, look, is_as_before).await.map(drop)
}

/// A node with a pod that another one speaks about.
struct Victim {
    cluster: Cluster,
    client: Client,
    node: EdgeNode,
    pod: String,
}

/// What must not change for it: its pod, its Node's labels, and its session.
#[derive(Debug, PartialEq)]
struct Unharmed {
    pod: Incarnation,
    phase: Value,
    labels: Value,
    generation: Value,
}

impl Victim {
    async fn up() -> Result<Self> {
        let cluster = Cluster::shared().await?;
        let client = cluster.client().await?;
        let node = EdgeNode::join(&cluster, &client).await?;
        let pod = format!("victim-{}", unique());
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": pod },
            "stringData": { "key": "not for others" },
        });
        let mut sleeper = pods::sleeper(&pod, node.name());
        sleeper["spec"]["volumes"] = json!([{ "name": "s", "secret": { "secretName": pod } }]);
        cluster.apply(&[secret, sleeper]).await?;
        cluster.until(&client, &pods::path(&pod), "Ready", LIMIT, pods::is_ready).await?;

        Ok(Self { cluster, client, node, pod })
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.cluster.get(&self.client, path).await?.with_context(|| format!("no {path}"))
    }

    async fn look(&self) -> Result<Unharmed> {
        let pod = self.get(&pods::path(&self.pod)).await?;
        let node = self.get(&self.node.path()).await?;
        let name = self.node.name();
        let record = format!("/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/{name}");

        Ok(Unharmed {
            pod: Incarnation::of(&pod),
            phase: pod["status"]["phase"].clone(),
            labels: node["metadata"]["labels"].clone(),
            generation: self.get(&record).await?["spec"]["leaseTransitions"].clone(),
        })
    }

    async fn uid(&self) -> Result<Uid> {
        let pod = self.get(&pods::path(&self.pod)).await?;

        Ok(Uid::new(pod["metadata"]["uid"].as_str().context("no UID")?)?)
    }

    /// A token of the cluster's.
    async fn token(&self, args: &[&str]) -> Result<String> {
        let mut create = Command::new(program("edgeadm"));
        create.args(["token", "create", "--ttl", "1h", "--kubeconfig"]);
        create.arg(self.cluster.kubeconfig()).args(args);

        Ok(output(create).await?.trim().to_owned())
    }
}

/// The status of a pod that has failed, and whose node has nothing left of it.
fn failed() -> Value {
    json!({ "phase": "Failed", "containerStatuses": [], "conditions": [
        { "type": "Ready", "status": "False" },
    ] })
}

/// What is reported about pods: of another node, of none, and of a file that is said to be another's pod.
async fn claim_pods(impostor: &mut Impostor, own: &str, victim: &Victim) -> Result<()> {
    let uid = victim.uid().await?;
    impostor.report(ReportKey::PodStatus(uid.clone()), &failed()).await?;
    impostor.report_done(ReportKey::PodStatus(uid.clone()), &failed()).await?;
    let wanted = json!({ "expirationSeconds": 3600, "serviceAccount": "default" });
    let key = ReportKey::TokenWanted { pod: uid.clone(), source: "0011223344556677".to_owned() };
    let (reason, retry) = impostor.report(key, &wanted).await?.context("it was given a token")?;
    ensure!(reason.contains("not bound to this node") && !retry, "refused with {reason:?}");
    let manifest = |name: String, namespace: &str| {
        json!({
            "metadata": { "uid": uid.as_str(), "namespace": namespace, "name": name },
            "spec": { "containers": [{ "name": "c", "image": "x" }] },
        })
    };
    let theirs = format!("forged-{}", victim.node.name());
    let ours = format!("{}-{own}", victim.pod);
    let statics = json!([manifest(theirs.clone(), "default"), manifest(ours, "../kube-system")]);
    impostor.report(ReportKey::StaticPods, &statics).await?;
    impostor.report_done(ReportKey::PodStatus(uid.clone()), &failed()).await?;
    // Its own file, under the UID of the other's pod: what is said of that UID is said of its own mirror.
    let statics = json!([manifest(format!("own-{own}"), "default")]);
    impostor.report(ReportKey::StaticPods, &statics).await?;
    impostor.report(ReportKey::PodStatus(uid.clone()), &failed()).await?;
    for misshapen in [json!("text"), json!([]), json!([1])] {
        let mut pod = manifest(format!("odd-{own}"), "default");
        pod["metadata"]["annotations"] = misshapen.clone();
        impostor.report(ReportKey::StaticPods, &json!([pod])).await?;
        pod["metadata"]["annotations"] = Value::Null;
        pod["spec"] = misshapen;
        impostor.report(ReportKey::StaticPods, &json!([pod])).await?;
    }
    let mirror = victim.cluster.get(&victim.client, &pods::path(&theirs)).await?;
    ensure!(mirror.is_none(), "a mirror on another node: {mirror:?}");

    Ok(())
}

/// What is reported about nodes: of another name, and of no shape at all.
async fn claim_nodes(impostor: &mut Impostor, victim: &Victim) -> Result<()> {
    let report = json!({
        "metadata": { "name": victim.node.name(), "labels": { "forged": "yes" } },
        "status": { "conditions": [{ "type": "Ready", "status": "False" }] },
    });
    impostor.report(ReportKey::NodeStatus, &report).await?;
    for misshapen in [
        json!({ "status": "well" }),
        json!({ "status": { "conditions": [1] } }),
        json!({ "status": { "allocatable": "all", "capacity": [] } }),
        json!(null),
    ] {
        let (reason, retry) = impostor
            .report(ReportKey::NodeStatus, &misshapen)
            .await?
            .with_context(|| format!("taken: {misshapen}"))?;
        ensure!(reason.contains("object") && !retry, "{misshapen} is refused with {reason:?}");
    }

    Ok(())
}

/// Events about the other's pod and node, and in its name.
async fn claim_events(impostor: &mut Impostor, own: &str, victim: &Victim) -> Result<()> {
    let (pod, node) = (victim.pod.as_str(), victim.node.name());
    let uid = victim.uid().await?;
    let pod = json!({ "kind": "Pod", "namespace": "default", "name": pod, "uid": uid.as_str(),
        "apiVersion": "v1" });
    let of_node =
        |name: &str| json!({ "kind": "Node", "name": name, "uid": name, "apiVersion": "v1" });
    for (subject, host) in [
        (pod.clone(), own),
        (pod, node),
        (of_node(node), own),
        (of_node(node), node),
        (of_node(own), node),
    ] {
        let name = subject["name"].as_str().unwrap_or_default();
        let event = json!({
            "metadata": { "name": format!("{name}.66"), "namespace": "default" },
            "involvedObject": subject, "reason": "Forged", "message": "forged", "type": "Warning",
            "source": { "component": "kubelet", "host": host },
            "lastTimestamp": "2026-01-01T00:00:00Z",
        });
        impostor.event(&event).await?;
    }
    let forged = "/api/v1/namespaces/default/events?fieldSelector=reason%3DForged";
    let written = victim.get(forged).await?;
    ensure!(written["items"] == json!([]), "an Event that is not the node's: {written}");

    Ok(())
}

/// Certificates for other names: by a link, by joining, and in the place of one that has expired.
async fn claim_certificates(
    impostor: &mut Impostor,
    victim: &Victim,
    (cloudcore, roots): (SocketAddr, &RootCertStore),
) -> Result<()> {
    let theirs = format!("system:node:{}", victim.node.name());
    let key = KeyPair::generate()?;
    let csr = joining::request("system:nodes", &theirs, &key)?;
    let refused = impostor.certificate_refused(csr.der()).await?;
    ensure!(refused.contains("subject"), "refused with {refused:?}");

    let from = Ipv4Addr::new(127, 2, 0, 1);
    let token = victim.token(&[]).await?;
    for (token, name, group, subject, expected) in [
        (token.as_str(), "another", "system:nodes", theirs.as_str(), 400),
        (token.as_str(), "another", "system:masters", "system:node:another", 400),
        // Its name is taken, whatever the certificate is to say.
        (token.as_str(), victim.node.name(), "system:nodes", theirs.as_str(), 409),
        ("hf1.x.y.z", "another", "system:nodes", "system:node:another", 403),
    ] {
        let csr = joining::request(group, subject, &key)?.pem()?;
        let body = json!({ "token": token, "nodeName": name, "csr": csr }).to_string();
        let body = ("/v1/join", body.as_bytes());
        let (status, answer) = joining::post(from, cloudcore, roots, body).await?;
        ensure!(status == expected, "{name} with {group}, {subject}: {status} {answer}");
    }
    // Of an authority of its own: all of it is right but who has signed.
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, theirs);
    let foreign = params.self_signed(&key)?;
    let tls = joining::with_certificate(foreign.der().clone(), &key, roots)?;
    ensure!(joining::open(cloudcore, tls).await.is_err(), "a foreign authority opens a link");
    let renewal = Renewal {
        certificate: Bytes::copy_from_slice(foreign.der()),
        csr: Bytes::copy_from_slice(csr.der()),
        ticket: Ticket::new(vec![7; 56]).context("it is a ticket")?,
        signature: Bytes::from_static(b"signature"),
    };
    let body = renewal.encode();
    let (status, _) = joining::post(from, cloudcore, roots, (renewal::PATH, &body)).await?;
    ensure!(status == 403, "a certificate of a foreign authority is renewed: {status}");

    Ok(())
}

/// A token that is good once is good for one machine.
async fn use_twice(victim: &Victim, own: &str, cloudcore: SocketAddr) -> Result<Identity> {
    let roots = joining::roots(&victim.client).await?;
    let token = victim.token(&["--single-use"]).await?;
    let at = (cloudcore, token.as_str());
    let identity = Identity::join(own, Ipv4Addr::new(127, 2, 0, 2), at, &roots).await?;
    let again = Identity::join("another", Ipv4Addr::new(127, 2, 0, 3), at, &roots).await;
    ensure!(again.is_err(), "a token that is good once was good twice");

    Ok(identity)
}

/// Frames that only a cloud sends end the link on which they come.
async fn send_as_the_cloud(identity: &Identity, victim: &Victim) -> Result<()> {
    let uid = victim.uid().await?;
    let key = ObjectKey::pod(&uid);
    let version = Version { uid: uid.clone(), epoch: 1, revision: 1, hash: ContentHash([0; 16]) };
    let payload = Payload::pack(&Bytes::from_static(b"{}"));
    for frame in [
        Frame::Put { seq: 1, key: key.clone(), version: version.clone(), payload },
        Frame::Delete { seq: 1, key, uid, gone_at: version.point() },
        Frame::Synced,
    ] {
        let name = frame.name();
        let mut impostor = identity.connect(Vec::new()).await?;
        impostor.send(frame).await?;
        let said = impostor.until_ended().await;
        ensure!(said.contains(name), "{name} ends the link with {said:?}");
    }

    Ok(())
}

/// A node has a certificate and a session like any other, and says on it what is not its own.
#[tokio::test]
async fn what_a_node_says_of_what_is_anothers_comes_to_nothing() -> Result<()> {
    let victim = Victim::up().await?;
    let before = victim.look().await?;
    let cloudcore: SocketAddr = Replica::first(&victim.cluster).await?.link.parse()?;
    let roots = joining::roots(&victim.client).await?;
    let own = format!("imp-{}", unique());
    let identity = use_twice(&victim, &own, cloudcore).await?;
    let refusal = identity.refused_as(victim.node.name()).await?;
    ensure!(refusal.code == RefuseCode::UnknownNode, "refused with {refusal:?}");

    // It says that it holds what the other does, and gets nothing of it.
    let uid = victim.uid().await?;
    let version = Version { uid: uid.clone(), epoch: 1, revision: 1, hash: ContentHash([0; 16]) };
    let secret = ObjectKey::named(Kind::Secret, "default", &victim.pod);
    let node = ObjectKey::node(&NodeName::new(victim.node.name())?);
    let holds = [ObjectKey::pod(&uid), secret, node].map(|key| (key, version.clone()));
    let mut impostor = identity.connect(holds.to_vec()).await?;
    claim_nodes(&mut impostor, &victim).await?;
    claim_pods(&mut impostor, &own, &victim).await?;
    claim_events(&mut impostor, &own, &victim).await?;
    claim_certificates(&mut impostor, &victim, (cloudcore, &roots)).await?;
    let foreign = |key: &&ObjectKey| !matches!(key.kind(), Kind::Node | Kind::Service);
    let sent = impostor.sent.iter().find(foreign);
    ensure!(sent.is_none(), "a node without pods was sent {sent:?}");
    drop(impostor);
    send_as_the_cloud(&identity, &victim).await?;

    let after = victim.look().await?;
    ensure!(before == after, "{before:?} became {after:?}");
    victim.node.until_ready(&victim.client).await?;

    api::delete(&victim.client, &format!("/api/v1/nodes/{own}"), None).await
}
