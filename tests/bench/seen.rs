//! When a watch of the API server showed that a pod is Ready, and that it is gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// A pod that takes longer is not measured but broken.
const LIMIT: Duration = Duration::from_mins(2);

/// Before a watch that broke off is taken up.
const AGAIN: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    ready: Option<Instant>,
    gone: Option<Instant>,
}

#[derive(Debug, Default)]
struct Log {
    pods: Mutex<BTreeMap<String, Times>>,
    changed: Notify,
}

/// A watch of the pods of namespace `default`.
#[derive(Debug)]
pub(crate) struct Seen {
    api: Api<Pod>,
    log: Arc<Log>,
    _watch: JoinSet<()>,
}

impl Seen {
    /// Lists once, then watches for as long as it lives.
    pub(crate) async fn start(client: &Client) -> Result<Self> {
        let api: Api<Pod> = Api::namespaced(client.clone(), "default");
        let listed = api.list(&ListParams::default()).await.context("cannot list pods")?;
        let version = listed.metadata.resource_version.unwrap_or_default();
        let log = Arc::new(Log::default());
        let mut watch = JoinSet::new();
        watch.spawn(follow(api.clone(), version, Arc::clone(&log)));

        Ok(Self { api, log, _watch: watch })
    }

    /// When the pod was first seen Ready.
    pub(crate) async fn ready(&self, pod: &str) -> Result<Instant> {
        self.when(pod, |times| times.ready).await.with_context(|| format!("{pod} to be Ready"))
    }

    /// When the pod was seen to be gone.
    pub(crate) async fn gone(&self, pod: &str) -> Result<Instant> {
        self.when(pod, |times| times.gone).await.with_context(|| format!("{pod} to be gone"))
    }

    async fn when(&self, pod: &str, of: impl Fn(Times) -> Option<Instant>) -> Result<Instant> {
        let seen = async {
            loop {
                let changed = self.log.changed.notified();
                let times = self.lock().get(pod).copied().unwrap_or_default();
                if let Some(at) = of(times) {
                    return at;
                }
                changed.await;
            }
        };

        match timeout(LIMIT, seen).await {
            Ok(at) => Ok(at),
            Err(_elapsed) => {
                bail!("waited too long; the API server has {:?}", self.api.get_opt(pod).await)
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Times>> {
        self.log.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Goes on where a watch ends; where it cannot, times are lost, and a bench that wants them says so.
async fn follow(api: Api<Pod>, mut version: String, log: Arc<Log>) {
    loop {
        match watch(&api, &mut version, &log).await {
            Ok(()) => {}
            Err(error) => {
                crate::report::say(&format!("the watch of pods broke off at {version}: {error:#}"));
                sleep(AGAIN).await;
            }
        }
    }
}

/// Until the API server ends it.
async fn watch(api: &Api<Pod>, version: &mut String, log: &Log) -> Result<()> {
    let mut events = Box::pin(api.watch(&WatchParams::default(), version).await?);
    while let Some(event) = events.next().await {
        let (pod, is_gone) = match event? {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) => (pod, false),
            WatchEvent::Deleted(pod) => (pod, true),
            WatchEvent::Bookmark(mark) => {
                *version = mark.metadata.resource_version;
                continue;
            }
            WatchEvent::Error(status) => bail!("{status}"),
        };
        if let Some(later) = &pod.metadata.resource_version {
            version.clone_from(later);
        }
        note(log, &pod, is_gone);
    }

    Ok(())
}

fn note(log: &Log, pod: &Pod, is_gone: bool) {
    let now = Instant::now();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref());
    let is_ready =
        conditions.unwrap_or_default().iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let mut pods = log.pods.lock().unwrap_or_else(PoisonError::into_inner);
    let times = pods.entry(name).or_default();
    if is_ready {
        times.ready.get_or_insert(now);
    }
    if is_gone {
        times.gone.get_or_insert(now);
    }
    drop(pods);
    log.changed.notify_waiters();
}
