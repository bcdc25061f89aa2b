//! The real control plane, made by `scripts/dev-cluster`, with a cloudcore beside it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio::process::Command;

use crate::process::{output, script};
use crate::wait;

/// A control plane that is up.
#[derive(Clone, Debug)]
pub struct Cluster {
    name: String,
    kubeconfig: PathBuf,
}

impl Cluster {
    /// The cluster that `scripts/test` started: `$HOLDFAST_TEST_CLUSTER`.
    pub async fn shared() -> Result<Self> {
        let name = std::env::var("HOLDFAST_TEST_CLUSTER")
            .context("HOLDFAST_TEST_CLUSTER is not set: run the system tests by scripts/test")?;

        Self::named(&name).await
    }

    /// The running cluster of this name.
    pub async fn named(name: &str) -> Result<Self> {
        let path = script("dev-cluster", &["kubeconfig", "--name", name], &[]).await?;

        Ok(Self { name: name.to_owned(), kubeconfig: PathBuf::from(path.trim()) })
    }

    /// The name `scripts/dev-cluster` knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A client for the API server; belongs to the runtime that called.
    pub async fn client(&self) -> Result<Client> {
        let file = Kubeconfig::read_from(&self.kubeconfig)?;
        let config =
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;

        Ok(Client::try_from(config)?)
    }

    /// Runs kubectl as a user would and returns what it printed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        output(self.kubectl_command(args)?).await
    }

    /// A kubectl process to be run by the caller.
    pub fn kubectl_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(kubernetes_program("kubectl")?);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args);

        Ok(command)
    }

    /// `kubectl apply` of JSON manifests.
    pub async fn apply(&self, manifests: &[Value]) -> Result<()> {
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": manifests });
        let file = std::env::temp_dir().join(format!("holdfast-apply-{}.json", unique()));
        std::fs::write(&file, list.to_string())?;
        let applied =
            self.kubectl(&["apply", "-f", file.to_str().context("temporary folder")?]).await;
        std::fs::remove_file(&file)?;

        applied.map(drop)
    }

    /// GET of an API path, as JSON; `None` if the API server says 404.
    pub async fn get(&self, client: &Client, path: &str) -> Result<Option<Value>> {
        self.get_as(client, path).await
    }

    /// GET of an API path as `T`; `None` if the API server says 404.
    pub async fn get_as<T: DeserializeOwned>(
        &self,
        client: &Client,
        path: &str,
    ) -> Result<Option<T>> {
        let request = http::Request::get(path).body(Vec::new())?;
        match client.request::<T>(request).await {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error).with_context(|| format!("GET {path}")),
        }
    }

    /// Waits until the object at `path` satisfies `enough`.
    pub async fn until(
        &self,
        client: &Client,
        path: &str,
        what: &str,
        limit: Duration,
        enough: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let seen = wait::until(
            &format!("{path}: {what}"),
            limit,
            || self.get(client, path),
            |seen| seen.as_ref().is_some_and(&enough),
        )
        .await?;

        Ok(seen.unwrap_or_default())
    }

    /// Waits until there is no object at `path`.
    pub async fn until_gone(&self, client: &Client, path: &str, limit: Duration) -> Result<()> {
        wait::until(
            &format!("{path} to be gone"),
            limit,
            || self.get(client, path),
            Option::is_none,
        )
        .await
        .map(drop)
    }
}

/// A program of the control plane's multi-call binary.
pub fn kubernetes_program(name: &str) -> Result<PathBuf> {
    let folder = std::env::var("HOLDFAST_KUBERNETES")
        .context("HOLDFAST_KUBERNETES is not set: run the system tests by scripts/test")?;

    Ok(Path::new(&folder).join(name))
}

/// A number no other call in any test process of this machine returns.
pub fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);

    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
