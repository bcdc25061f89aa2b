//! Pods as a user makes them: created at the API server, scheduled, Ready when a watch shows it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::unique;
use system_tests::{api, pods};
use tokio::time::Instant;

use crate::seen::Seen;

const COLLECTION: &str = "/api/v1/namespaces/default/pods";

/// The pods of one node. Each has a service account token, as every pod has.
pub(crate) struct Pods {
    client: Client,
    node: String,
    seen: Seen,
}

impl Pods {
    /// For the node of that name.
    pub(crate) async fn on(client: &Client, node: &str) -> Result<Self> {
        let seen = Seen::start(client).await?;

        Ok(Self { client: client.clone(), node: node.to_owned(), seen })
    }

    /// Creates pods at once; their names, and how long it took until the last was Ready.
    pub(crate) async fn create(&self, count: usize) -> Result<(Vec<String>, Duration)> {
        self.create_as(count, pods::sleeper).await
    }

    /// As [`Self::create`], of pods that `make` makes of name and node.
    pub(crate) async fn create_as(
        &self,
        count: usize,
        make: fn(&str, &str) -> Value,
    ) -> Result<(Vec<String>, Duration)> {
        let names: Vec<_> = (0..count).map(|_| format!("bench-{}", unique())).collect();
        let began = Instant::now();
        let created = names.iter().map(|name| async move {
            let pod = make(name, &self.node);
            let made = api::create(&self.client, COLLECTION, &pod).await?;
            has_token(&made).then_some(()).with_context(|| format!("{name} has no token"))
        });
        try_join_all(created).await?;
        let ready = try_join_all(names.iter().map(|name| self.seen.ready(name))).await?;
        let last = ready.into_iter().max().unwrap_or(began);

        Ok((names, last - began))
    }

    /// Deletes pods at once; how long it took until the last was gone.
    pub(crate) async fn delete(&self, names: &[String]) -> Result<Duration> {
        let began = Instant::now();
        let paths: Vec<_> = names.iter().map(|name| pods::path(name)).collect();
        try_join_all(paths.iter().map(|path| api::delete(&self.client, path, None))).await?;
        let gone = try_join_all(names.iter().map(|name| self.seen.gone(name))).await?;
        let last = gone.into_iter().max().unwrap_or(began);

        Ok(last - began)
    }
}

/// A sleeper with two probes that run a command in it every ten seconds.
pub(crate) fn probed(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    for kind in ["livenessProbe", "readinessProbe"] {
        pod["spec"]["containers"][0][kind] = json!({ "exec": { "command": ["true"] } });
    }

    pod
}

fn has_token(pod: &Value) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();

    volumes
        .flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten())
        .any(|source| source["serviceAccountToken"].is_object())
}
