//! An edge site: a network namespace with its own containerd, made by `scripts/edge-site`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tokio::process::Command;

use crate::process::{checkout, script};

/// Whether sites and their agents stay for a look after the test, by `$HOLDFAST_KEEP_SITES`.
pub(crate) fn is_kept() -> bool {
    std::env::var_os("HOLDFAST_KEEP_SITES").is_some()
}

/// One site. It is taken down when dropped.
#[derive(Debug)]
pub struct Site {
    name: String,
    facts: BTreeMap<String, String>,
}

impl Site {
    /// Makes the site `name` next to `cluster` and starts its runtime.
    pub async fn up(name: &str, cluster: &str) -> Result<Self> {
        Self::up_with(name, cluster, &[]).await
    }

    /// As [`Site::up`], with environment variables for the script (`HOLDFAST_POD_SUBNET`, ...).
    pub async fn up_with(name: &str, cluster: &str, env: &[(&str, &str)]) -> Result<Self> {
        Self::made(&["up", "--name", name, "--cluster", cluster], name, env).await
    }

    /// As [`Site::up`], behind a router that lets nobody in.
    pub async fn up_behind_nat(name: &str, cluster: &str) -> Result<Self> {
        Self::made(&["up", "--nat", "--name", name, "--cluster", cluster], name, &[]).await
    }

    async fn made(up: &[&str], name: &str, env: &[(&str, &str)]) -> Result<Self> {
        script("edge-site", up, env).await?;
        let mut site = Self { name: name.to_owned(), facts: BTreeMap::new() };
        let status = script("edge-site", &["status", "--name", name], &[]).await?;
        site.facts = status
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();

        Ok(site)
    }

    /// The site's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A line of `edge-site status`, such as `ADDRESS` or `KUBELET_ROOT`.
    pub fn fact(&self, key: &str) -> Result<&str> {
        self.facts
            .get(key)
            .map(String::as_str)
            .with_context(|| format!("edge-site status of {} has no {key}", self.name))
    }

    /// A folder or file named by `edge-site status`.
    pub fn path(&self, key: &str) -> Result<PathBuf> {
        self.fact(key).map(PathBuf::from)
    }

    /// Drops every packet between the site and the cluster, silently.
    pub async fn cut(&self) -> Result<()> {
        self.call("cut").await
    }

    /// Lets packets pass again.
    pub async fn restore(&self) -> Result<()> {
        self.call("restore").await
    }

    /// Turns the power off: agent, runtime, shims and tasks are killed, and what lived in memory is
    /// gone. The caller must not use processes it started in the site afterwards.
    pub async fn power_off(&self) -> Result<()> {
        self.call("powercut").await
    }

    /// Turns the power on: starts the runtime, not the agent.
    pub async fn power_on(&self) -> Result<()> {
        self.call("up").await
    }

    /// Gives the runtime the images of an archive.
    pub async fn load(&self, archive: &str) -> Result<()> {
        script("edge-site", &["load", "--name", &self.name, archive], &[]).await.map(drop)
    }

    /// `up` or `down` of the registry beyond the link, see `scripts/edge-site`.
    pub async fn registry(&self, verb: &str) -> Result<()> {
        script("edge-site", &["registry", verb, "--name", &self.name], &[]).await.map(drop)
    }

    /// Where the runtime keeps what a reboot forgets.
    pub fn runtime_folder(&self) -> Result<PathBuf> {
        let socket = self.fact("RUNTIME")?.trim_start_matches("unix://");

        Path::new(socket).parent().map(Path::to_owned).context("the socket is in a folder")
    }

    /// A command to be run in the site's network. It dies with the site's power.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(checkout().join("scripts/edge-site"));
        command.args(["exec", "--name", &self.name, "--"]).args(words);

        command
    }

    async fn call(&self, verb: &str) -> Result<()> {
        script("edge-site", &[verb, "--name", &self.name], &[]).await.map(drop)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if is_kept() {
            return;
        }
        crate::process::script_now("edge-site", &["down", "--name", &self.name]);
    }
}
