//! A control plane of a test's own, for what would break the cluster that tests share: API servers that
//! go away, are restored from a backup, emptied, or forbid everything.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cluster::{Cluster, unique};
use crate::process::{script, script_now};
use crate::wait;

/// The service account of a cloudcore that can be forbidden everything, and its ClusterRoleBinding.
const ACCOUNT: &str = "holdfast-cloudcore";

/// A control plane with a cloudcore. Both go when it is dropped, nodes must be dropped before.
#[derive(Debug)]
pub struct OwnCluster {
    cluster: Cluster,
    folder: PathBuf,
    cloudcore_kubeconfig: PathBuf,
}

impl OwnCluster {
    /// Starts a control plane, and a cloudcore that is its administrator.
    pub async fn up() -> Result<Self> {
        let own = Self::without_cloudcore().await?;
        own.start_cloudcore().await?;

        Ok(own)
    }

    /// As [`Self::up`], with further arguments of the API server.
    pub async fn up_with_apiserver_args(args: &str) -> Result<Self> {
        let own = Self::without_cloudcore_and_with(args).await?;
        own.start_cloudcore().await?;

        Ok(own)
    }

    /// Starts a control plane, and a cloudcore that has a service account as in production; it may do
    /// everything until [`Self::forbid`].
    pub async fn up_with_account() -> Result<Self> {
        let mut own = Self::without_cloudcore().await?;
        own.cluster.kubectl(&["create", "serviceaccount", ACCOUNT]).await?;
        own.allow().await?;
        let token = own.cluster.kubectl(&["create", "token", ACCOUNT, "--duration=24h"]).await?;
        let admin = std::fs::read_to_string(own.cluster.kubeconfig())?;
        let (top, rest) = admin.split_once("users:").context("a kubeconfig has users")?;
        let (_, bottom) = rest.split_once('\n').context("then contexts")?;
        let users = format!("users: [{{name: user, user: {{token: {:?}}}}}]", token.trim());
        own.cloudcore_kubeconfig = own.file("cloudcore.kubeconfig");
        std::fs::write(&own.cloudcore_kubeconfig, format!("{top}{users}\n{bottom}"))?;
        own.start_cloudcore().await?;

        Ok(own)
    }

    async fn without_cloudcore() -> Result<Self> {
        Self::without_cloudcore_and_with("").await
    }

    async fn without_cloudcore_and_with(apiserver_args: &str) -> Result<Self> {
        const ARGS: &str = "HOLDFAST_APISERVER_ARGS";

        let name = format!("own{}", unique());
        let usual = std::env::var(ARGS).unwrap_or_default();
        let all = format!("{usual} {apiserver_args}");
        let env = [(ARGS, all.trim())];
        script("dev-cluster", &["up", "--name", &name, "--no-site"], &env).await?;
        let cluster = Cluster::named(&name).await?;
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&folder)?;
        let cloudcore_kubeconfig = cluster.kubeconfig().to_owned();

        Ok(Self { cluster, folder, cloudcore_kubeconfig })
    }

    /// To make clients and nodes for.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A file for a backup.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `stop`, `kill`, `start` or `restart` of a component such as `apiserver`.
    pub async fn component(&self, verb: &str, component: &str) -> Result<()> {
        self.dev_cluster(&[verb, component]).await
    }

    /// Writes a snapshot of etcd.
    pub async fn backup(&self, file: &Path) -> Result<()> {
        self.dev_cluster(&["backup", &file.display().to_string()]).await
    }

    /// Puts a snapshot back.
    pub async fn restore(&self, file: &Path) -> Result<()> {
        self.dev_cluster(&["restore", &file.display().to_string()]).await
    }

    /// Puts an etcd with nothing in it in the place of the old one.
    pub async fn empty(&self) -> Result<()> {
        self.dev_cluster(&["empty"]).await
    }

    /// Lets the cloudcore of [`Self::up_with_account`] do everything.
    pub async fn allow(&self) -> Result<()> {
        let account = format!("--serviceaccount=default:{ACCOUNT}");
        let create = ["create", "clusterrolebinding", ACCOUNT, "--clusterrole=cluster-admin"];

        self.cluster.kubectl(&[&create[..], &[&account]].concat()).await.map(drop)
    }

    /// Forbids it everything.
    pub async fn forbid(&self) -> Result<()> {
        self.cluster.kubectl(&["delete", "clusterrolebinding", ACCOUNT]).await.map(drop)
    }

    /// Starts cloudcore and waits until it serves edges.
    pub async fn start_cloudcore(&self) -> Result<()> {
        self.dev_cloudcore(&["up"]).await.map(drop)
    }

    /// Starts cloudcore, which need not be able to serve yet.
    pub async fn spawn_cloudcore(&self) -> Result<()> {
        self.dev_cloudcore(&["spawn"]).await.map(drop)
    }

    /// SIGKILL to cloudcore.
    pub async fn kill_cloudcore(&self) -> Result<()> {
        self.dev_cloudcore(&["kill"]).await.map(drop)
    }

    /// Waits until cloudcore has ended by itself.
    pub async fn until_cloudcore_ended(&self, limit: Duration) -> Result<()> {
        let look = || async { Ok(self.dev_cloudcore(&["pid"]).await.is_err()) };

        wait::until("the end of cloudcore", limit, look, |ended| *ended).await.map(drop)
    }

    /// What cloudcore has said, in all its lives.
    pub async fn cloudcore_log(&self) -> Result<String> {
        self.dev_cloudcore(&["log"]).await
    }

    async fn dev_cluster(&self, words: &[&str]) -> Result<()> {
        let args = [words, &["--name", self.cluster.name()]].concat();

        script("dev-cluster", &args, &[]).await.map(drop)
    }

    async fn dev_cloudcore(&self, words: &[&str]) -> Result<String> {
        let args = [words, &["--name", self.cluster.name()]].concat();
        let kubeconfig = self.cloudcore_kubeconfig.display().to_string();

        script("dev-cloudcore", &args, &[("HOLDFAST_CLOUDCORE_KUBECONFIG", &kubeconfig)]).await
    }
}

impl Drop for OwnCluster {
    fn drop(&mut self) {
        script_now("dev-cluster", &["down", "--name", self.cluster.name()]);
        // Only backups are left: of no use to anyone.
        drop(std::fs::remove_dir_all(&self.folder));
    }
}
