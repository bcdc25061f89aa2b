//! Networks as they are: proxies, IPv6, ways that swallow large packets, captive portals, name servers that are
//! wrong, addresses that change. The link holds, or says what is in its way.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::Value;
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods;
use system_tests::process::{Daemon, output, program, script};
use system_tests::proxy::{Portal, Proxy};
use system_tests::replica::Replica;
use system_tests::site::Site;
use system_tests::{api, wait};
use tokio::process::Command;

/// For conditions that hold within seconds on an idle machine.
const LIMIT: Duration = Duration::from_mins(2);
/// Of the proxy's user.
const PASSWORD: &str = "secret-7d21";
/// What a client says who knows it.
const WORDS: &str = "Basic bWU6c2VjcmV0LTdkMjE=";
/// More than fits into many packets.
const LARGE_BYTES: usize = 100_000;

/// Where edges connect to the first replica: address and port.
async fn cloudcore(cluster: &Cluster) -> Result<(String, String)> {
    let address = script("dev-cloudcore", &["address", "--name", cluster.name()], &[]).await?;
    let (host, port) = address.trim().rsplit_once(':').context("an address has a port")?;

    Ok((host.to_owned(), port.to_owned()))
}

/// The number of the node's current session.
async fn generation(cluster: &Cluster, client: &Client, node: &EdgeNode) -> Result<u64> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/{}", node.name());
    let lease = cluster.get(client, &path).await?.context("no session record")?;

    lease["spec"]["leaseTransitions"].as_u64().context("the record has no generation")
}

/// Waits for a session after that one.
async fn until_after(
    cluster: &Cluster,
    client: &Client,
    node: &EdgeNode,
    before: u64,
) -> Result<()> {
    let look = || generation(cluster, client, node);
    wait::until("another session", LIMIT, look, |now| *now > before).await?;

    node.until_ready(client).await.map(drop)
}

/// Waits until the agent says this of its link.
async fn until_said(node: &EdgeNode, words: &str) -> Result<String> {
    let log = async || node.agent_log().await;
    let is_said = |log: &String| log.lines().any(|l| l.contains("is down") && l.contains(words));

    wait::until(&format!("{words:?} in the log"), LIMIT, log, is_said).await
}

async fn in_site(site: &Site, words: &[&str]) -> Result<String> {
    output(site.command(words)).await
}

/// What `edgeadm check` prints, well or not, where names are those that the site was given.
async fn check(site: &Site, words: &[&str]) -> Result<String> {
    let edgeadm = program("edgeadm").display().to_string();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", site.fact("NETNS")?, &edgeadm, "check"]).args(words);
    let ended = command.kill_on_drop(true).output().await?;

    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// The configuration of the site's agent.
fn config(site: &Site) -> Result<String> {
    Ok(site.path("STATE")?.join("holdfast/edgecore.yaml").display().to_string())
}

/// Files that stand for those of /etc in the site's network; they go with the site.
fn give(site: &Site, file: &str, text: &str) -> Result<()> {
    let dir = PathBuf::from("/etc/netns").join(site.fact("NETNS")?);
    std::fs::create_dir_all(&dir)?;

    Ok(std::fs::write(dir.join(file), text)?)
}

fn says(text: &str, words: &[&str]) -> Result<()> {
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    ensure!(missing.is_empty(), "{missing:?} is not said in:\n{text}");

    Ok(())
}

/// A pod whose log is as long as its ConfigMap: both ways carry much.
async fn exchange_much(cluster: &Cluster, client: &Client, node: &EdgeNode) -> Result<String> {
    let name = format!("much-{}", unique());
    let data = "0123456789abcdef".repeat(LARGE_BYTES / 16);
    let mut pod = pods::sleeper_with_map(&name, node.name(), &name);
    let script = "trap 'exit 0' TERM; cat /map/key; echo; while :; do sleep 1000 & wait; done";
    pod["spec"]["containers"][0]["command"][2] = script.into();
    cluster.apply(&[pods::config_map(&name, &data), pod]).await?;
    cluster.until(client, &pods::path(&name), "Ready", LIMIT, pods::is_ready).await?;
    let logs = async || cluster.kubectl(&["logs", &name]).await;
    wait::until("all of its log", LIMIT, logs, |log| log.trim_end() == data).await?;

    Ok(name)
}

#[tokio::test]
async fn a_node_joins_and_works_through_a_proxy_and_says_what_is_wrong_with_it() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let site = Site::up(&format!("e{}", unique()), cluster.name()).await?;
    let (host, port) = cloudcore(&cluster).await?;
    let proxy = Proxy::start(site.fact("GATEWAY")?, WORDS).await?;
    let rule = ["iptables", "-w", "-A", "OUTPUT", "-p", "tcp", "-d", &host, "--dport", &port];
    in_site(&site, &[&rule[..], &["-j", "REJECT"]].concat()).await?;
    let url = format!("http://me:{PASSWORD}@{}", proxy.address);
    let node =
        EdgeNode::join_in(site, &cluster, &client, &[("HOLDFAST_PROXY", url.as_str())]).await?;
    let name = exchange_much(&cluster, &client, &node).await?;
    ensure!(proxy.tunnels() >= 2, "join and the link need a tunnel each: {}", proxy.tunnels());
    let config = config(node.site())?;
    let mode = std::fs::metadata(&config)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "the password can be read by all: {mode:o}");
    let checked = check(node.site(), &["--config", &config]).await?;
    says(&checked, &["the proxy leads to", "the right one answers"])?;
    let direct = check(node.site(), &["--config", &config, "--proxy", "none"]).await?;
    says(&direct, &["cannot connect to"])?;

    // Another password, and then the right one again.
    let before = generation(&cluster, &client, &node).await?;
    proxy.want("Basic bWU6b3RoZXI=");
    let log = until_said(&node, "does not take the credentials (407)").await?;
    let refused = check(node.site(), &["--config", &config]).await?;
    says(&refused, &["does not take the credentials (407)"])?;
    proxy.want(WORDS);
    until_after(&cluster, &client, &node, before).await?;

    // The password is nowhere but in its file.
    let archive = node.site().path("STATE")?.join("debug.tar.gz").display().to_string();
    let edgeadm = program("edgeadm").display().to_string();
    let status = in_site(node.site(), &[&edgeadm, "status", "--config", &config]).await?;
    says(&status, &[&format!("through http://{}", proxy.address)])?;
    let collect = [edgeadm.as_str(), "debug", "collect", "-o", &archive, "--config", &config];
    in_site(node.site(), &collect).await?;
    let mut tar = Command::new("tar");
    tar.args(["-xzOf", &archive]);
    let collected = output(tar).await?;
    says(&collected, &["proxy: <cut>@"])?;
    for text in [log, checked, refused, status, collected, node.agent_log().await?] {
        ensure!(!text.contains(PASSWORD) && !text.contains("bWU6"), "{text}");
    }
    api::delete(&client, &pods::path(&name), Some(0)).await
}

#[tokio::test]
async fn a_node_without_ipv4_works_and_its_address_may_change() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let only = [("HOLDFAST_SITE_IPV6", "only")];
    let site = Site::up_with(&format!("e{}", unique()), cluster.name(), &only).await?;
    let (old, gateway) = (site.fact("ADDRESS6")?.to_owned(), site.fact("GATEWAY6")?.to_owned());
    // Of this cluster alone: it is taken at every address of the machine.
    let slot = site.fact("GATEWAY")?.split('.').nth(1).context("an IPv4 address")?.to_owned();
    let everywhere = format!("[::]:10{slot}");
    let listen = [("HOLDFAST_CLOUDCORE_LISTEN", everywhere.as_str())];
    let replica = Replica::up_with(&cluster, 6, &listen).await?;
    let to = format!("[{gateway}]:10{slot}");
    let env = [("HOLDFAST_CLOUDCORE", to.as_str()), ("HOLDFAST_NODE_IP", "auto")];
    let node = EdgeNode::join_in(site, &cluster, &client, &env).await?;
    let name = exchange_much(&cluster, &client, &node).await?;
    let host_ip = |ip: &str| {
        let ip = ip.to_owned();
        move |pod: &Value| pod["status"]["hostIP"] == ip.as_str()
    };
    let path = pods::path(&name);
    cluster.until(&client, &path, "its node's address", LIMIT, host_ip(&old)).await?;

    // A name with two addresses, of which one leads nowhere here.
    let both = format!("{gateway} cloud.test\n{} cloud.test\n", replica.address());
    give(node.site(), "hosts", &both)?;
    let (config, named) = (config(node.site())?, format!("cloud.test:10{slot}"));
    let checked = check(node.site(), &["--config", &config, "--cloudcore", &named]).await?;
    says(&checked, &["the right one answers", "but ", "nreachable"])?;

    let before = generation(&cluster, &client, &node).await?;
    let follow = cluster.kubectl_command(&["logs", "-f", "--tail=1", &name])?;
    let log = std::env::temp_dir().join(&name);
    let mut follow = Daemon::start(follow, log.clone())?;
    wait::until("the log", LIMIT, async || Ok(follow.log()), |log| !log.is_empty()).await?;
    let new = old.replace("::", "::1:");
    let ip = |verb: &str, address: &str| {
        let address = format!("{address}/64");
        let words = ["ip", "-6", "addr", verb, &address, "dev", "eth0"].map(str::to_owned);
        words.to_vec()
    };
    for mut words in [ip("add", &new), ip("del", &old)] {
        if words[3] == "add" {
            words.push("nodad".to_owned());
        }
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        in_site(node.site(), &words).await?;
    }
    until_after(&cluster, &client, &node, before).await?;
    // Who followed over the old path is told, and may ask again.
    let has_ended = || std::future::ready(Ok(!follow.is_running()));
    wait::until("the end of kubectl logs -f", LIMIT, has_ended, |over| *over).await?;
    let logs = async || cluster.kubectl(&["logs", "--tail=1", &name]).await;
    wait::until("its log again", LIMIT, logs, |log| log.contains("0123456789abcdef")).await?;
    std::fs::remove_file(log)?;

    api::delete(&client, &path, Some(0)).await
}

#[tokio::test]
async fn what_swallows_packets_or_answers_in_the_place_of_cloudcore_is_told_apart() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let narrow = [("HOLDFAST_SITE_MTU", "1280")];
    let site = Site::up_with(&format!("e{}", unique()), cluster.name(), &narrow).await?;
    let portal = Portal::start(site.fact("GATEWAY")?).await?;
    let (host, port) = cloudcore(&cluster).await?;
    let node = EdgeNode::join_in(site, &cluster, &client, &[]).await?;
    // Nothing that is sent is larger than what passes.
    let pod = exchange_much(&cluster, &client, &node).await?;
    let config = config(node.site())?;
    let checked = check(node.site(), &["--config", &config]).await?;
    says(&checked, &["the right one answers", "they get lost, and nobody says so"])?;

    // Name servers that are away, that filter, and that know no such name.
    let at = ["--config", &config, "--cloudcore", "cloud.test:10000"];
    for (file, text, said) in [
        (
            "resolv.conf",
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
            "no name server answers",
        ),
        ("hosts", "0.0.0.0 cloud.test\n", "no server can be there"),
        ("hosts", "127.0.0.1 cloud.test\n", "that is this machine"),
    ] {
        give(node.site(), file, text)?;
        says(&check(node.site(), &at).await?, &[said])?;
    }

    // A captive portal takes all connections, until somebody logs in.
    let before = generation(&cluster, &client, &node).await?;
    let portal_at = portal.address.to_string();
    let rule = |verb| {
        let matching = ["iptables", "-w", "-t", "nat", verb, "OUTPUT", "-p", "tcp", "-d", &host];
        let to = ["--dport", &port, "-j", "DNAT", "--to-destination", &portal_at];
        [&matching[..], &to[..]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = async |words: Vec<String>| {
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        in_site(node.site(), &words).await
    };
    run(rule("-A")).await?;
    node.kill_agent().await?;
    node.start_agent().await?;
    until_said(&node, "captive portal").await?;
    let checked = check(node.site(), &["--config", &config]).await?;
    says(&checked, &["a web server answers there", "captive portal"])?;
    // Also of a machine that has not joined and has no token.
    let checked = check(node.site(), &["--config", "/nowhere", "--cloudcore", &portal_at]).await?;
    says(&checked, &["a web server answers there", "captive portal"])?;
    run(rule("-D")).await?;
    until_after(&cluster, &client, &node, before).await?;

    api::delete(&client, &pods::path(&pod), Some(0)).await
}
