//! A site with a stock kubelet: what an edge node is compared with.

use anyhow::Result;

use crate::cluster::{Cluster, unique};
use crate::process::{script, script_now};
use crate::site::Site;

/// A node with a stock kubelet, Ready. It goes when this is dropped.
#[derive(Debug)]
pub struct StockNode {
    site: Site,
}

impl StockNode {
    /// Makes a site and starts a kubelet in it.
    pub async fn up(cluster: &Cluster) -> Result<Self> {
        let site = Site::up(&format!("k{}", unique()), cluster.name()).await?;
        let node = Self { site };
        script("edge-site", &["kubelet", "up", "--name", node.name()], &[]).await?;

        Ok(node)
    }

    /// Starts kube-proxy beside the kubelet: Services work, and NodePorts are at the site's `ADDRESS`.
    pub async fn start_proxy(&self) -> Result<()> {
        script("edge-site", &["proxy", "up", "--name", self.name()], &[]).await.map(drop)
    }

    /// The Kubernetes node name: the site's.
    pub fn name(&self) -> &str {
        self.site.name()
    }

    /// The site the node is in.
    pub fn site(&self) -> &Site {
        &self.site
    }
}

impl Drop for StockNode {
    fn drop(&mut self) {
        script_now("edge-site", &["kubelet", "down", "--name", self.site.name()]);
    }
}
