//! The cluster as this replica knows it: the index behind a lock, fed by the watches.
//!
//! Nothing waits while it holds the lock, so a slow node delays no other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use index::{Index, Reference, Touched};
use kube::Client;
use proto::ids::{Kind, NodeName};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::evidence::Evidence;
use crate::telemetry;
use crate::watch::{self, KINDS, Told};

/// Events of all watches that wait for the index. A full queue holds the watches back.
const TOLD_MAX: usize = 256;

/// GETs of what pods refer to under way at once.
const FETCHES_MAX: usize = 8;

/// See the module's documentation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    index: Mutex<Index>,
    /// Told when something that a node must hold may have changed.
    wakers: Mutex<BTreeMap<NodeName, Arc<Notify>>>,
    /// Told when any watch went on.
    progress: Notify,
    /// Told when another node is served.
    served: Notify,
    /// When each watch last said something.
    heard: Mutex<BTreeMap<Kind, Instant>>,
}

impl Cluster {
    /// A cluster of which nothing is known yet.
    pub fn new(epoch: u64) -> Self {
        Self(Arc::new(Inner {
            index: Mutex::new(Index::new(epoch)),
            wakers: Mutex::new(BTreeMap::new()),
            progress: Notify::new(),
            served: Notify::new(),
            heard: Mutex::new(BTreeMap::new()),
        }))
    }

    /// The index. Not to be held across an await.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        // Each change of the index is whole, whatever panicked after it.
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node is told what it must hold. Answers what wakes its worker: the one that asked last, as that
    /// of the session before may still be ending.
    pub fn serve(&self, node: &NodeName) -> Arc<Notify> {
        let waker = Arc::default();
        self.wakers().insert(node.clone(), Arc::clone(&waker));
        self.index().serve(node);
        self.0.served.notify_one();

        waker
    }

    /// Resolves when a watch has gone on.
    pub async fn progress(&self) {
        self.0.progress.notified().await;
    }

    /// When each watch last said something.
    pub fn heard(&self) -> BTreeMap<Kind, Instant> {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Wakes the workers of these nodes.
    pub fn wake(&self, touched: &Touched) {
        let wakers = self.wakers();
        for waker in touched.iter().filter_map(|node| wakers.get(node)) {
            waker.notify_one();
        }
    }

    /// Takes the answer to a GET in `epoch`; `false` if that is over.
    fn fetched(
        &self,
        epoch: u64,
        evidence: &Evidence,
        reference: &Reference,
        found: Option<bytes::Bytes>,
    ) -> bool {
        let mut index = self.index();
        if epoch != index.epoch() || epoch != evidence.epoch() {
            return false;
        }
        let touched = index.fetched(reference, found);
        drop(index);
        match touched {
            Ok(touched) => self.wake(&touched),
            Err(error) => {
                tracing::warn!(error = %telemetry::chain(&error), "skipping an object");
            }
        }

        true
    }

    fn wakers(&self) -> MutexGuard<'_, BTreeMap<NodeName, Arc<Notify>>> {
        self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a watch tells, unless it is of a history that is over.
    fn take(&self, (epoch, told): watch::Telling) {
        let mut heard = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(told.kind(), clock::now());
        drop(heard);
        {
            let mut index = self.index();
            if epoch < index.epoch() {
                return;
            }
            index.begin_epoch(epoch);
        }
        let result = match told {
            Told::Listed { kind, objects, revision } => {
                let (touched, errors) = self.index().reset(kind, objects, revision);
                for error in errors {
                    tracing::warn!(error = %telemetry::chain(&error), "skipping an object");
                }
                Ok(touched)
            }
            Told::Applied(kind, bytes) => self.index().apply(kind, bytes),
            Told::Deleted(kind, bytes) => self.index().delete(kind, &bytes),
            Told::Passed(kind, revision) => {
                self.index().pass(kind, revision);
                Ok(Touched::new())
            }
        };
        match result {
            Ok(touched) => self.wake(&touched),
            Err(error) => {
                tracing::warn!(error = %telemetry::chain(&error), "skipping an object");
            }
        }
        self.0.progress.notify_waiters();
    }
}

/// Watches every kind and fetches what pods refer to, until asked to stop.
pub async fn run(
    cluster: Cluster,
    evidence: Evidence,
    watches: Client,
    reads: Client,
    stop: CancellationToken,
) {
    let (sender, mut told) = mpsc::channel(TOLD_MAX);
    let mut watching = JoinSet::new();
    for watched in KINDS {
        watching.spawn(watch::run(watches.clone(), watched, evidence.clone(), sender.clone()));
    }
    let mut fetches: JoinSet<(Reference, bool)> = JoinSet::new();
    let mut rests: JoinSet<Reference> = JoinSet::new();
    let mut under_way: Vec<Reference> = Vec::new();
    loop {
        let stale = cluster.index().stale();
        for reference in stale {
            if under_way.len() >= FETCHES_MAX {
                break;
            }
            if !under_way.contains(&reference) {
                cluster.index().asking(&reference);
                under_way.push(reference.clone());
                fetches.spawn(fetch(cluster.clone(), evidence.clone(), reads.clone(), reference));
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            Some(event) = told.recv() => cluster.take(event),
            () = cluster.0.served.notified() => {}
            Some(Ok(reference)) = rests.join_next(), if !rests.is_empty() => {
                cluster.index().ask_again(&reference);
            }
            Some(fetched) = fetches.join_next(), if !fetches.is_empty() => {
                match fetched {
                    Ok((reference, is_answered)) => {
                        under_way.retain(|other| *other != reference);
                        if !is_answered {
                            // It holds up no other while it waits.
                            rests.spawn(async move {
                                tokio::time::sleep(FETCH_RETRY).await;
                                reference
                            });
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "a fetch panicked");
                        for reference in under_way.drain(..) {
                            cluster.index().ask_again(&reference);
                        }
                    }
                }
            }
        }
    }
}

/// Waits after a GET without use, so that a forbidding API server is not asked in a loop.
const FETCH_RETRY: std::time::Duration = std::time::Duration::from_secs(2);

/// Asks for the reference; whether that was of use.
async fn fetch(
    cluster: Cluster,
    evidence: Evidence,
    client: Client,
    reference: Reference,
) -> (Reference, bool) {
    let path = watch::path_of(&reference);
    let epoch = cluster.index().epoch();
    let found = match watch::get(&client, &path).await {
        // What is gone is deleted on the edge: only our cluster may say so, in this history.
        Ok(None) => evidence.look().await.map(|()| None).map_err(|doubt| telemetry::chain(&doubt)),
        Ok(found) => Ok(found),
        Err(error) => Err(telemetry::chain(&*error)),
    };
    match found {
        // If it is not taken, the lists of a new epoch are under way.
        Ok(found) => {
            let is_taken = cluster.fetched(epoch, &evidence, &reference, found);
            (reference, is_taken)
        }
        Err(error) => {
            tracing::warn!(path, error, "cannot get what a pod refers to");
            (reference, false)
        }
    }
}
