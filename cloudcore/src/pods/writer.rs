//! The one writer of a node's pods: carries out what its [`Queue`] decides, while the session is the
//! node's current one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kube::Client;
use proto::ids::{NodeName, Uid};
use proto::object::Object;
use proto::wire::{Outcome, Seq};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::patch::says;
use super::queue::{Answer, Queue, Shown, Write, Written};
use super::request::{self, PodPath};
use crate::clock;
use crate::cluster::Cluster;
use crate::hub::SessionHandle;

/// In a row, about one pod: then people are told. The API server has been asked for 15 s.
const FAILURES_TOLD: u32 = 6;

/// See the module's documentation.
pub struct Writer {
    cluster: Cluster,
    client: Client,
    session: SessionHandle,
    queue: Queue,
    /// What the node runs from files: it speaks of these before, between and after their mirrors.
    statics: BTreeSet<Uid>,
    under_way: JoinSet<Ended>,
}

/// A write that has ended.
#[derive(Debug)]
pub struct Ended {
    uid: Uid,
    write: Write,
    written: Written,
    epoch: u64,
}

/// Why a writer goes on; see [`Writer::ready`].
#[derive(Debug)]
pub enum Ready {
    /// A write has ended.
    Ended(Box<Ended>),
    /// It is time for one.
    Due,
}

impl Writer {
    /// A writer for the node of `session`.
    pub fn new(cluster: Cluster, client: Client, session: SessionHandle) -> Self {
        let queue = Queue::new(session.generation());

        let statics = BTreeSet::new();

        Self { cluster, client, session, queue, statics, under_way: JoinSet::new() }
    }

    /// What the node runs from files.
    pub fn set_statics(&mut self, statics: BTreeSet<Uid>) {
        self.statics = statics;
    }

    /// The node reports. Before the watches have caught up, nothing is known of pods that are not
    /// seen: `is_synced` is false then, and the report waits.
    pub async fn report(&mut self, seq: Seq, uid: Uid, bytes: Bytes, done: bool, is_synced: bool) {
        if let Err(error) = serde_json::from_slice::<Value>(&bytes) {
            let reason = format!("the status is not JSON: {error}");
            self.session.report_done(seq, Outcome::Refused { reason }).await;
            return;
        }
        let mut answers: Vec<_> = self.queue.report(&uid, bytes, done, seq).into_iter().collect();
        answers.extend(self.compare(&uid));
        if self.statics.contains(&uid) && self.find(&uid).is_none() {
            answers.extend(self.queue.keep(&uid));
        }
        if is_synced {
            answers.extend(self.forget());
        }
        self.answer(answers).await;
    }

    /// Something about the node's pods has changed in the API server.
    pub async fn look(&mut self) {
        let mut answers = self.forget();
        let uids = self.cluster.index().pods_on(self.session.node());
        let statics = self.statics.clone();
        for uid in uids.into_iter().chain(statics) {
            answers.extend(self.compare(&uid));
        }
        self.answer(answers).await;
    }

    /// Resolves when [`Self::go_on`] has something to do. May be dropped and called again.
    pub async fn ready(&mut self) -> Ready {
        let wake_at = self.queue.wake_at();
        tokio::select! {
            Some(ended) = self.under_way.join_next() => match ended {
                Ok(ended) => Ready::Ended(Box::new(ended)),
                // In builds that unwind: the write is lost, as if it were still under way.
                Err(_panic) => Ready::Due,
            },
            () = sleep_until(wake_at.unwrap_or_else(clock::now).into()), if wake_at.is_some() => {
                Ready::Due
            }
            else => std::future::pending().await,
        }
    }

    /// Takes the end of a write, and starts what is due.
    pub async fn go_on(&mut self, ready: Ready) {
        let answers = match ready {
            Ready::Due => Vec::new(),
            Ready::Ended(ended) => {
                let Ended { uid, write, mut written, epoch } = *ended;
                if written == Written::Gone && self.statics.contains(&uid) {
                    written = Written::MirrorGone;
                }
                let failure = if let Written::Failed { reason, .. } = &written {
                    Some(reason.clone())
                } else {
                    None
                };
                let mut answers = self.queue.written(&uid, &write, written, epoch, clock::now());
                if let Some(reason) = failure.filter(|_| self.queue.failures(&uid) == FAILURES_TOLD)
                {
                    let node = self.session.node();
                    tracing::warn!(%node, %uid, reason, "the API server does not take what a node says of a pod; it is asked again");
                }
                answers.extend(self.compare(&uid));
                answers
            }
        };
        self.answer(answers).await;
    }

    /// Waits for the writes under way: the session is over.
    pub async fn finish(mut self) {
        while self.under_way.join_next().await.is_some() {}
    }

    async fn answer(&mut self, answers: Vec<Answer>) {
        self.start(clock::now());
        for (seq, outcome) in answers {
            self.session.report_done(seq, outcome).await;
        }
    }

    /// Pods that are not bound to the node (any more): there is nothing to say about them.
    fn forget(&mut self) -> Vec<Answer> {
        let uids = self.cluster.index().pods_on(self.session.node());

        self.queue.retain(|uid| uids.contains(uid) || self.statics.contains(uid))
    }

    fn find(&self, uid: &Uid) -> Option<(PodPath, Arc<Object>)> {
        find(&self.cluster, self.session.node(), uid)
    }

    /// Compares what the watch shows of a pod with what the node reported.
    fn compare(&mut self, uid: &Uid) -> Vec<Answer> {
        let Some((_, object)) = self.find(uid) else { return Vec::new() };
        let point = object.version.point();
        let Some(report) = self.queue.to_compare(uid, point) else { return Vec::new() };
        let (Ok(current), Ok(report)) = (
            serde_json::from_slice::<Value>(&object.bytes),
            serde_json::from_slice::<Value>(report),
        ) else {
            return Vec::new();
        };
        let shown = Shown {
            point,
            says_report: says(&current["status"], &report),
            is_terminating: current["metadata"]["deletionTimestamp"].is_string(),
        };

        self.queue.shown(uid, shown, clock::now())
    }

    fn start(&mut self, now: Instant) {
        while let Some((uid, write)) = self.queue.next(now) {
            let found = self.find(&uid);
            let (client, session) = (self.client.clone(), self.session.clone());
            self.under_way.spawn(async move {
                let Some((path, object)) = found else {
                    return Ended { uid, write, written: Written::Gone, epoch: 0 };
                };
                let written = if session.is_current() {
                    // A mirror has a UID of its own.
                    request::send(&client, &path, &object.version.uid, &write).await
                } else {
                    let reason = "a newer session writes for this node".to_owned();
                    Written::Failed { reason, retry_after: None }
                };

                Ended { uid, write, written, epoch: object.version.epoch }
            });
        }
    }
}

/// A pod of the node, as the watch shows it (invariant 12: no other is); of a pod of a file, the mirror.
pub fn find(cluster: &Cluster, node: &NodeName, uid: &Uid) -> Option<(PodPath, Arc<Object>)> {
    let index = cluster.index();
    let pod = index.pod_of(node, uid)?;
    let path = PodPath { namespace: pod.namespace.to_owned(), name: pod.name.to_owned() };

    Some((path, Arc::clone(pod.object)))
}
