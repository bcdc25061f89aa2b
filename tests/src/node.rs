//! An edge site whose agent has joined the cluster.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::Client;
use serde_json::Value;
use tokio::process::Command;

use crate::cluster::{Cluster, unique};
use crate::process::{output, script, script_now};
use crate::site::Site;
use crate::{pods, wait};

/// How long a node may take to become Ready: a cold start on a busy machine, not a measurement.
pub const NODE_LIMIT: Duration = Duration::from_secs(90);

/// A site with a joined agent. Agent, site and Node object go when it is dropped.
#[derive(Debug)]
pub struct EdgeNode {
    name: String,
    site: Site,
    cluster: Cluster,
}

impl EdgeNode {
    /// Makes a site, joins its agent under a name of its own and waits until the node is Ready.
    pub async fn join(cluster: &Cluster, client: &Client) -> Result<Self> {
        Self::join_with(cluster, client, &[]).await
    }

    /// As [`EdgeNode::join`], with environment variables for `scripts/edge-site`.
    pub async fn join_with(
        cluster: &Cluster,
        client: &Client,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let name = format!("e{}", unique());
        let site = Site::up_with(&name, cluster.name(), env).await?;
        Self { name, site, cluster: cluster.clone() }.begin(client).await
    }

    /// As [`EdgeNode::join`], under a name that the cluster has once.
    pub async fn join_as(name: &str, cluster: &Cluster, client: &Client) -> Result<Self> {
        let site = Site::up(&format!("e{}", unique()), cluster.name()).await?;

        Self { name: name.to_owned(), site, cluster: cluster.clone() }.begin(client).await
    }

    /// As [`EdgeNode::join`], but behind NAT, and to the cloudcore at `address`.
    pub async fn join_behind_nat(
        cluster: &Cluster,
        client: &Client,
        address: &str,
    ) -> Result<Self> {
        let name = format!("e{}", unique());
        let site = Site::up_behind_nat(&name, cluster.name()).await?;
        let node = Self { name, site, cluster: cluster.clone() };
        node.start_agent_with(&[("HOLDFAST_CLOUDCORE", address)]).await?;
        node.until_ready(client).await?;

        Ok(node)
    }

    /// As [`EdgeNode::join`], of a cloudcore at another address than the cluster's first replica.
    pub async fn join_at(address: &str, cluster: &Cluster, client: &Client) -> Result<Self> {
        let name = format!("e{}", unique());
        let site = Site::up(&name, cluster.name()).await?;
        let node = Self { name, site, cluster: cluster.clone() };
        node.start_agent_with(&[("HOLDFAST_CLOUDCORE", address)]).await?;
        node.until_ready(client).await?;

        Ok(node)
    }

    /// As [`EdgeNode::join`], in a site that is there, with environment variables for `scripts/edge-agent`.
    pub async fn join_in(
        site: Site,
        cluster: &Cluster,
        client: &Client,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let node = Self { name: site.name().to_owned(), site, cluster: cluster.clone() };
        node.start_agent_with(env).await?;
        node.until_ready(client).await?;

        Ok(node)
    }

    async fn begin(self, client: &Client) -> Result<Self> {
        self.start_agent().await?;
        self.until_ready(client).await?;

        Ok(self)
    }

    /// The Kubernetes node name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The site the node is in.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The API path of the Node object.
    pub fn path(&self) -> String {
        format!("/api/v1/nodes/{}", self.name)
    }

    /// Starts the agent; the first time, it joins by a token.
    pub async fn start_agent(&self) -> Result<()> {
        self.agent("up").await
    }

    /// As [`EdgeNode::start_agent`], with environment variables for `scripts/edge-agent`.
    pub async fn start_agent_with(&self, env: &[(&str, &str)]) -> Result<()> {
        let args = ["up", "--site", self.site.name(), "--node", &self.name];

        script("edge-agent", &args, env).await.map(drop)
    }

    /// SIGKILL to the agent: nothing else of the node is touched.
    pub async fn kill_agent(&self) -> Result<()> {
        self.agent("kill").await
    }

    /// The agent's process id.
    pub async fn agent_pid(&self) -> Result<u32> {
        let args = ["pid", "--site", self.site.name(), "--node", &self.name];
        let pid = script("edge-agent", &args, &[]).await?;

        pid.trim().parse().with_context(|| format!("edge-agent pid printed {pid:?}"))
    }

    /// What the agent has said so far, in all its lives.
    pub async fn agent_log(&self) -> Result<String> {
        let args = ["log", "--site", self.site.name(), "--node", &self.name];

        script("edge-agent", &args, &[]).await
    }

    /// Names of the containers that run on the node, as the runtime itself says.
    pub async fn running_containers(&self) -> Result<Vec<String>> {
        let args = ["containers", "--name", self.site.name()];
        let listed = script("edge-site", &args, &[]).await?;

        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// Waits until the `key` of [`pods::sleeper_with_map`] says `data` to the pod.
    pub async fn until_map_says(&self, pod_uid: &str, data: &str, limit: Duration) -> Result<()> {
        let file = format!("pods/{pod_uid}/volumes/kubernetes.io~configmap/map/key");
        let file = self.site.path("KUBELET_ROOT")?.join(file);
        let read = || async { Ok(tokio::fs::read_to_string(&file).await.unwrap_or_default()) };

        wait::until(&format!("{data:?} in {}", file.display()), limit, read, |found| found == data)
            .await
            .map(drop)
    }

    /// Runs a program in the network of the node's site.
    pub async fn in_site(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.site.fact("NETNS")?]).args(args);

        output(command).await
    }

    async fn agent(&self, verb: &str) -> Result<()> {
        let args = [verb, "--site", self.site.name(), "--node", &self.name];

        script("edge-agent", &args, &[]).await.map(drop)
    }

    /// Waits until the Node object says Ready.
    pub async fn until_ready(&self, client: &Client) -> Result<Value> {
        let ready = |node: &Value| pods::condition(node, "Ready") == Some("True");

        self.cluster.until(client, &self.path(), "node Ready", NODE_LIMIT, ready).await
    }

    /// Waits until the node controller has noticed that the node is away.
    pub async fn until_unknown(&self, client: &Client) -> Result<Value> {
        let unknown = |node: &Value| pods::condition(node, "Ready") == Some("Unknown");

        self.cluster.until(client, &self.path(), "node Unknown", NODE_LIMIT, unknown).await
    }
}

impl Drop for EdgeNode {
    fn drop(&mut self) {
        if crate::site::is_kept() {
            return;
        }
        script_now("edge-agent", &["forget", "--site", self.site.name(), "--node", &self.name]);
    }
}
