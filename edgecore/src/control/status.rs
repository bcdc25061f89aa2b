//! How the agent is.

use jiff::Timestamp;
use serde::Serialize;

use super::Control;
use crate::link::LinkState;
use crate::link::proxy::Way;
use crate::node::status::rfc3339;
use crate::{Config, blocking};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    node: &'a str,
    version: &'static str,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    resident_bytes: u64,
    link: Link,
    backlog: Backlog,
    runtime: Runtime,
    /// How long ago the loop of the pods turned.
    pod_loop_age_ms: u32,
    /// Of the databases.
    store_bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    /// `Up` or `Down`.
    state: &'static str,
    since: String,
    address: String,
    /// On the way there; without credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    synced: Option<bool>,
}

impl Link {
    fn of(state: &LinkState, config: &Config) -> Self {
        let way = Way::of(config).unwrap_or_else(|_| Way::direct(config));
        let (address, proxy) = (way.address, way.proxy.map(|proxy| proxy.to_string()));
        let at = |since: &Timestamp| rfc3339(*since);
        match state {
            LinkState::Up { since, generation, synced } => Self {
                state: "Up",
                since: at(since),
                address,
                proxy,
                reason: None,
                generation: Some(*generation),
                synced: Some(*synced),
            },
            LinkState::Down { since, reason } => Self {
                state: "Down",
                since: at(since),
                address,
                proxy,
                reason: Some(reason.clone()),
                generation: None,
                synced: None,
            },
        }
    }
}

/// What waits for the cloud.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Backlog {
    reports: usize,
    events: usize,
    dropped_events: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Runtime {
    endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// How long ago it answered.
    age_ms: u32,
}

/// As JSON.
pub(super) async fn of(control: &Control) -> Vec<u8> {
    let node = &control.api.node;
    let own = node.usages.own().await;
    let dir = node.config.state_dir.clone();
    let store_bytes = blocking::run(move || bytes_of(&dir)).await;
    let health = *node.health.borrow();
    let backlog = node.upstream.backlog();
    let runtime = control.runtime_version.borrow().clone();
    let (name, version) = runtime.map(|found| (found.name, found.version)).unzip();
    let status = Status {
        node: node.config.node.as_str(),
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        started_at: own.started_at.map(rfc3339),
        resident_bytes: own.resident_bytes,
        link: Link::of(&node.link.borrow(), &node.config),
        backlog: Backlog {
            reports: backlog.reports,
            events: backlog.events,
            dropped_events: node.upstream.dropped(),
        },
        runtime: Runtime {
            endpoint: format!("unix://{}", control.api.runtime.socket()),
            name,
            version,
            age_ms: health.runtime_age_ms,
        },
        pod_loop_age_ms: health.pod_loop_age_ms,
        store_bytes,
    };

    serde_json::to_vec(&status).expect("strings and numbers are always JSON")
}

/// Of all files of a folder: the databases have no folders in theirs.
fn bytes_of(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let files =
        entries.filter_map(|entry| entry.metadata().ok()).filter(std::fs::Metadata::is_file);

    files.map(|file| file.len()).sum()
}
