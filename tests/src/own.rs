//! A control plane of a test's own, for what would break the cluster that tests share: API servers that
//! go away, are restored from a backup, emptied, or forbid everything.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster::{Cluster, unique};
use crate::process::{checkout, script, script_now};
use crate::wait;

/// What grants cloudcore what it may do, see `manifests/cloudcore/rbac.yaml`.
const GRANT: &str = "holdfast:cloudcore";

/// A control plane with a cloudcore. Both go when it is dropped, nodes must be dropped before.
#[derive(Debug)]
pub struct OwnCluster {
    cluster: Cluster,
    folder: PathBuf,
    /// `None` until there is one.
    cloudcore_kubeconfig: Option<PathBuf>,
}

impl OwnCluster {
    /// Starts a control plane, and a cloudcore with the service account that users install.
    pub async fn up() -> Result<Self> {
        Self::without_cloudcore().await?.with_account().await
    }

    /// As [`Self::up`], with further arguments of the API server.
    pub async fn up_with_apiserver_args(args: &str) -> Result<Self> {
        Self::without_cloudcore_and_with(args).await?.with_account().await
    }

    /// As [`Self::up`], but cloudcore is an administrator, whom every cluster of this name believes; an
    /// emptied one has no service accounts.
    pub async fn up_as_administrator() -> Result<Self> {
        let mut own = Self::without_cloudcore().await?;
        own.cloudcore_kubeconfig = Some(own.cluster.kubeconfig().to_owned());
        own.start_cloudcore().await?;

        Ok(own)
    }

    async fn with_account(mut self) -> Result<Self> {
        self.start_cloudcore().await?;
        // Made by that first start; a later one would grant everything again.
        let account = self.cluster.kubeconfig().with_file_name("cloudcore.kubeconfig");
        self.cloudcore_kubeconfig = Some(account);

        Ok(self)
    }

    /// As [`Self::up`], without a cloudcore: for one that is installed as users do.
    pub async fn without_cloudcore() -> Result<Self> {
        Self::without_cloudcore_and_with("").await
    }

    async fn without_cloudcore_and_with(apiserver_args: &str) -> Result<Self> {
        const ARGS: &str = "HOLDFAST_APISERVER_ARGS";

        // Cleaned away with the shared one, should this process not live to do it.
        let name = format!("{}-{}", Cluster::shared().await?.name(), unique());
        let usual = std::env::var(ARGS).unwrap_or_default();
        let all = format!("{usual} {apiserver_args}");
        let env = [(ARGS, all.trim())];
        script("dev-cluster", &["up", "--name", &name, "--no-site"], &env).await?;
        let cluster = Cluster::named(&name).await?;
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&folder)?;

        Ok(Self { cluster, folder, cloudcore_kubeconfig: None })
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

    /// Forbids cloudcore everything, also when it is started again.
    pub async fn forbid(&self) -> Result<()> {
        self.cluster.kubectl(&["delete", "clusterrolebinding", GRANT]).await?;
        for namespace in ["holdfast", "kube-node-lease"] {
            self.cluster.kubectl(&["delete", "rolebinding", GRANT, "-n", namespace]).await?;
        }

        Ok(())
    }

    /// Allows it again what users allow it.
    pub async fn allow(&self) -> Result<()> {
        let folder = checkout().join("manifests/cloudcore").display().to_string();

        self.cluster.kubectl(&["apply", "-f", &folder]).await.map(drop)
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

    /// The process of cloudcore.
    pub async fn cloudcore_pid(&self) -> Result<u32> {
        Ok(self.dev_cloudcore(&["pid"]).await?.trim().parse()?)
    }

    /// Where edges connect.
    pub async fn link_address(&self) -> Result<String> {
        Ok(self.dev_cloudcore(&["address"]).await?.trim().to_owned())
    }

    /// Waits until cloudcore has ended by itself.
    pub async fn until_cloudcore_ended(&self, limit: Duration) -> Result<()> {
        let look = || async { Ok(self.dev_cloudcore(&["pid"]).await.is_err()) };

        wait::until("the end of cloudcore", limit, look, |ended| *ended).await.map(drop)
    }

    /// Where probes ask.
    pub async fn probes_address(&self) -> Result<String> {
        Ok(self.dev_cloudcore(&["probes"]).await?.trim().to_owned())
    }

    /// What cloudcore answers to a probe: status and text.
    pub async fn probe(&self, path: &str) -> Result<(u16, String)> {
        let mut socket = TcpStream::connect(self.probes_address().await?).await?;
        socket.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        let (head, text) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
        let code = head.split(' ').nth(1).context("a head has a status")?;

        Ok((code.parse()?, text.to_owned()))
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
        let kubeconfig = self.cloudcore_kubeconfig.as_ref().map(|path| path.display().to_string());
        let env = kubeconfig.iter().map(|path| ("HOLDFAST_CLOUDCORE_KUBECONFIG", path.as_str()));

        script("dev-cloudcore", &args, &env.collect::<Vec<_>>()).await
    }
}

impl Drop for OwnCluster {
    fn drop(&mut self) {
        script_now("dev-cluster", &["down", "--name", self.cluster.name()]);
        // Only backups are left: of no use to anyone.
        drop(std::fs::remove_dir_all(&self.folder));
    }
}
