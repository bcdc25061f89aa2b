//! Further replicas of cloudcore beside a cluster's first.

use anyhow::{Context as _, Result};
use kube::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::api;
use crate::cluster::Cluster;
use crate::node::EdgeNode;
use crate::process::{script, script_now};

/// How long it is still led to when it was asked to stop.
const DRAIN: (&str, &str) = ("HOLDFAST_DRAIN_SECONDS", "1");

/// A replica with an address of its own. One beside the first ends when dropped.
#[derive(Debug)]
pub struct Replica {
    cluster: String,
    /// `None` is the first.
    number: Option<String>,
    /// Where edges connect.
    pub link: String,
    /// Where to ask how it is.
    pub probes: String,
}

impl Replica {
    /// The one that every cluster has.
    pub async fn first(cluster: &Cluster) -> Result<Self> {
        Self::new(cluster, None).start(&[]).await
    }

    /// Starts replica `number` beside the first; it takes edges when this returns.
    pub async fn up(cluster: &Cluster, number: u8) -> Result<Self> {
        Self::up_with(cluster, number, &[]).await
    }

    /// As [`Replica::up`], with environment variables for `scripts/dev-cloudcore`.
    pub async fn up_with(cluster: &Cluster, number: u8, env: &[(&str, &str)]) -> Result<Self> {
        Self::new(cluster, Some(number.to_string())).start(env).await
    }

    fn new(cluster: &Cluster, number: Option<String>) -> Self {
        let cluster = cluster.name().to_owned();

        Self { cluster, number, link: String::new(), probes: String::new() }
    }

    async fn start(mut self, env: &[(&str, &str)]) -> Result<Self> {
        script("dev-cloudcore", &self.args("up"), &[env, &[DRAIN]].concat()).await?;
        self.call("address").await?.trim().clone_into(&mut self.link);
        self.call("probes").await?.trim().clone_into(&mut self.probes);

        Ok(self)
    }

    /// Its name in the records of sessions.
    pub fn name(&self) -> String {
        match &self.number {
            Some(number) => format!("dev-{number}"),
            None => "dev".to_owned(),
        }
    }

    /// Its address without a port.
    pub fn address(&self) -> &str {
        self.link.split(':').next().unwrap_or_default()
    }

    /// A verb of `scripts/dev-cloudcore`, such as `kill` or `log`.
    pub async fn call(&self, verb: &str) -> Result<String> {
        script("dev-cloudcore", &self.args(verb), &[DRAIN]).await
    }

    /// Its process.
    pub async fn pid(&self) -> Result<u32> {
        Ok(self.call("pid").await?.trim().parse()?)
    }

    /// Sends its process a signal.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid().await?.try_into()?).context("no process has this id")?;

        Ok(kill_process(pid, signal)?)
    }

    fn args<'a>(&'a self, verb: &'a str) -> Vec<&'a str> {
        let mut args = vec![verb, "--name", &self.cluster];
        args.extend(self.number.iter().flat_map(|number| ["--replica", number]));

        args
    }

    /// Leads new connections of the node here, as a balancer would.
    pub async fn attract(&self, node: &EdgeNode) -> Result<()> {
        let first = script("dev-cloudcore", &["address", "--name", &self.cluster], &[]).await?;
        let (address, port) = first.trim().rsplit_once(':').context("an address has a port")?;
        let rule = ["iptables", "-w", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", address];
        let to = ["--dport", port, "-j", "DNAT", "--to-destination", &self.link];

        node.in_site(&[&rule[..], &to[..]].concat()).await.map(drop)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if self.number.is_none() {
            return;
        }
        script_now("dev-cloudcore", &self.args("down"));
    }
}

/// From now on the API server asks for the node's kubelet API there, as those do that have not heard yet
/// that its session is elsewhere, until the node's own replica writes its address again.
pub async fn ask_at(client: &Client, node: &EdgeNode, address: &str) -> Result<()> {
    let addresses = json!([{ "type": "InternalIP", "address": address }, { "$patch": "replace" }]);
    let status = json!({ "status": { "addresses": addresses } });
    let path = format!("{}/status", node.path());

    api::strategic_merge(client, &path, &status).await.map(drop)
}
