//! Pods of the node's own files (`staticPodPath`): read when a file changes, kept in the store, run like
//! the others and told to the cloud, which mirrors them.
//!
//! What a file held when it could last be read goes on running: a file is its author's to mend, and a
//! folder that cannot be listed says nothing. Only a file that is gone ends its pod.

pub(crate) mod files;
mod notice;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use proto::ids::NodeName;
use proto::wire::{Report, ReportKey};
use store::{Store, Write};
use tokio_util::sync::CancellationToken;

use self::files::{Files, Kept};
use self::notice::Notice;
use crate::config::Config;
use crate::desired::{Desired, commit};
use crate::events::{self, EventType};
use crate::link::Upstream;
use crate::telemetry::chain;
use crate::{blocking, clock};

/// The store's setting that holds the pods of files.
pub const SETTING: &str = "static-pods";

/// It is looked that often even if the kernel says nothing.
const PERIOD: Duration = Duration::from_secs(30);
/// A file is often written in steps.
const SETTLE: Duration = Duration::from_millis(100);

/// The task and what it works with.
#[derive(Debug)]
pub struct StaticPods {
    /// None is one without files.
    dir: Option<PathBuf>,
    node: NodeName,
    desired: Desired,
    store: Store,
    upstream: Upstream,
    /// What the store kept, by file name.
    kept: BTreeMap<String, Kept>,
    /// There is, or was, something to tell the cloud.
    is_used: bool,
}

impl StaticPods {
    /// As the store has them: they run from here on. `stored` is the value of [`SETTING`].
    pub fn new(
        config: &Config,
        desired: &Desired,
        store: &Store,
        upstream: &Upstream,
        stored: Option<&[u8]>,
    ) -> Self {
        let kept = stored.map(serde_json::from_slice).transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "the store's pods of files are not understood; the files are");
            None
        });
        let kept: BTreeMap<String, Kept> = kept.unwrap_or_default();
        let dir = config.static_pod_path.clone();
        desired.set_statics(kept.values().filter_map(Kept::to_object).collect());

        Self {
            is_used: dir.is_some() || stored.is_some(),
            dir,
            node: config.node.clone(),
            desired: desired.clone(),
            store: store.clone(),
            upstream: upstream.clone(),
            kept,
        }
    }

    /// Follows the files until asked to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        if !self.is_used {
            return stop.cancelled().await;
        }
        let mut files = Files::new(self.node.clone(), std::mem::take(&mut self.kept));
        let (mut notice, mut told) = (Notice::default(), false);
        loop {
            if let Some(dir) = self.dir.clone() {
                notice.watch(&dir).await;
                let now = clock::now();
                let (read, seen) = blocking::run(move || {
                    let seen = files.look(&dir, now);
                    (files, seen)
                })
                .await;
                files = read;
                self.say(&seen.problems);
                // A folder that says nothing may be why there are none.
                if seen.changed || !told && (seen.listed || !files.kept().is_empty()) {
                    self.show(&files).await;
                    told = true;
                }
            } else if files.clear() || !told {
                self.show(&files).await;
                told = true;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = notice.wait() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(PERIOD), if self.dir.is_some() => {}
            }
            notice.drain();
        }
    }

    /// Keeps what the files hold, tells it, and has it run.
    async fn show(&self, files: &Files) {
        let value = match serde_json::to_vec(files.kept()) {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(%error, "pods of files cannot be written as JSON");
                return;
            }
        };
        let write = Write::Setting { name: SETTING.to_owned(), value };
        if let Err(error) = commit(&self.store, vec![write]).await {
            // The files say it again after a restart.
            tracing::warn!(error = %chain(&error), "the store refused the pods of files");
        }
        self.tell(files);
        let pods: Vec<_> = files.kept().values().filter_map(Kept::to_object).collect();
        tracing::info!(pods = pods.len(), "the pods of files have changed");
        self.desired.set_statics(pods);
    }

    fn tell(&self, files: &Files) {
        let pods: Vec<_> = files.kept().values().map(|kept| &kept.object).collect();
        match serde_json::to_vec(&pods) {
            Ok(json) => self.upstream.report(Report {
                key: ReportKey::StaticPods,
                bytes: json.into(),
                done: false,
            }),
            Err(error) => tracing::error!(%error, "pods of files cannot be written as JSON"),
        }
    }

    fn say(&self, problems: &[String]) {
        for problem in problems {
            tracing::warn!(problem, "a file of staticPodPath is of no use");
            let told = ("InvalidStaticPod", problem.as_str());
            self.upstream.event(events::about_node(self.node.as_str(), EventType::Warning, told));
        }
    }
}
