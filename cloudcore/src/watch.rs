//! Lists and watches one kind, keeping the API server's own bytes.
//!
//! The list is a consistent read (`resourceVersion` unset), paged; the watch goes on from it with
//! bookmarks. When it can no longer (410 Gone, or the API server's word that it expired) the list is
//! read again. An object that is not understood is the receiver's to skip: the watch goes on.
//!
//! What is told is evidence: after each list, and before the first line of each watch, the API server
//! is asked which cluster and history it is ([`Evidence`]), and no watch goes on from a revision that the
//! server has not come to. A server that was restored would keep silent until it has.

mod read;

use std::time::Duration;

use bytes::Bytes;
use futures_util::AsyncBufReadExt as _;
use index::Reference;
use kube::Client;
use proto::ids::Kind;
use proto::object::Point;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub use self::read::get;
use self::read::{WatchError, follow, list, newest, understand};
use crate::clock;
use crate::evidence::{Doubt, Evidence, Orders};

/// Objects in a page of a list: at most 10 MB at once with large ones.
const PAGE_LIMIT: u32 = 500;
/// How long the API server keeps a watch open.
const WATCH_SECONDS: u32 = 240;
/// A kind that never changes gives no line, no bookmark either, until the API server ends the watch:
/// a path that is silent for longer than that is dead.
const SILENCE_MAX: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 30);
/// Delay after an error: doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Longest line of a watch: etcd refuses objects over 1.5 MiB.
const LINE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// A watch that is behind an edge comes as far by itself in this time if it is only late. If nothing
/// happens to its kind it would not say so for a minute, and the kind is listed instead.
const CATCH_UP_WAIT: Duration = Duration::from_secs(1);
/// Lists for the sake of edges that are ahead come no more often than this.
const CATCH_UP_INTERVAL: Duration = Duration::from_secs(15);

/// What is watched.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// The kind.
    pub kind: Kind,
    /// The collection.
    pub path: &'static str,
    /// `fieldSelector`, already encoded; empty for all.
    pub field_selector: &'static str,
    /// Only `metadata`, as `PartialObjectMetadata`.
    pub metadata_only: bool,
}

impl Watched {
    const fn whole(kind: Kind, path: &'static str) -> Self {
        Self { kind, path, field_selector: "", metadata_only: false }
    }

    /// Of a kind whose objects are asked for one by one.
    const fn metadata(kind: Kind, path: &'static str) -> Self {
        Self { kind, path, field_selector: "", metadata_only: true }
    }
}

/// Every kind the index is fed with.
pub const KINDS: [Watched; 8] = [
    Watched { field_selector: "spec.nodeName!%3D", ..Watched::whole(Kind::Pod, "/api/v1/pods") },
    Watched::metadata(Kind::ConfigMap, "/api/v1/configmaps"),
    Watched::metadata(Kind::Secret, "/api/v1/secrets"),
    Watched::whole(Kind::Service, "/api/v1/services"),
    Watched::whole(Kind::Node, "/api/v1/nodes"),
    Watched::metadata(Kind::PersistentVolumeClaim, "/api/v1/persistentvolumeclaims"),
    Watched::metadata(Kind::PersistentVolume, "/api/v1/persistentvolumes"),
    Watched::metadata(Kind::RuntimeClass, "/apis/node.k8s.io/v1/runtimeclasses"),
];

/// Where what pods refer to is asked for.
pub fn path_of(reference: &Reference) -> String {
    let watched = KINDS.iter().find(|watched| watched.kind == reference.kind);
    let (root, resource) =
        watched.and_then(|watched| watched.path.rsplit_once('/')).unwrap_or_default();
    let Reference { namespace, name, .. } = reference;
    if namespace.is_empty() {
        return format!("{root}/{resource}/{name}");
    }

    format!("{root}/namespaces/{namespace}/{resource}/{name}")
}

/// What a watch tells, in the epoch that it was read in.
pub type Telling = (u64, Told);

/// What a watch tells.
#[derive(Debug)]
pub enum Told {
    /// A consistent list took the place of everything told before.
    Listed {
        /// Of what.
        kind: Kind,
        /// Each object's JSON.
        objects: Vec<Bytes>,
        /// Revision of the list.
        revision: u64,
    },
    /// An object appeared or changed.
    Applied(Kind, Bytes),
    /// An object is gone.
    Deleted(Kind, Bytes),
    /// Nothing else happened up to this revision.
    Passed(Kind, u64),
}

impl Told {
    /// Of what it tells.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Listed { kind, .. }
            | Self::Applied(kind, _)
            | Self::Deleted(kind, _)
            | Self::Passed(kind, _) => *kind,
        }
    }
}

/// Watches for ever; ends only when nobody listens any more.
pub async fn run(
    client: Client,
    watched: Watched,
    evidence: Evidence,
    told: mpsc::Sender<Telling>,
) {
    let orders = evidence.orders();
    let mut watch = Watch {
        client,
        watched,
        evidence,
        orders,
        told,
        reached: Point::default(),
        goes_on: false,
        caught_up_at: None,
    };
    let mut delay = RETRY.0;
    loop {
        let began = clock::now();
        let outcome = watch.once().await;
        // It was not the API server that kept it from working.
        if clock::now() - began > RETRY.1 {
            delay = RETRY.0;
        }
        match outcome {
            Ok(()) => {
                delay = RETRY.0;
                continue;
            }
            Err(WatchError::Closed) => return,
            Err(WatchError::Ordered { .. }) => {
                watch.goes_on = false;
                continue;
            }
            Err(error @ WatchError::Expired { .. }) => {
                tracing::info!(error = %crate::telemetry::chain(&error), "listing again");
                watch.goes_on = false;
            }
            Err(error) => {
                tracing::warn!(error = %crate::telemetry::chain(&error), "a watch was interrupted");
            }
        }
        sleep(delay).await;
        delay = (delay * 2).min(RETRY.1);
    }
}

struct Watch {
    client: Client,
    watched: Watched,
    evidence: Evidence,
    orders: watch::Receiver<Orders>,
    told: mpsc::Sender<Telling>,
    /// The furthest that was told.
    reached: Point,
    /// A watch can go on from there.
    goes_on: bool,
    /// When the last list was made because an edge is ahead.
    caught_up_at: Option<std::time::Instant>,
}

impl Watch {
    /// Lists if there is nothing to go on from, then watches until the API server ends it.
    async fn once(&mut self) -> Result<(), WatchError> {
        let orders = self.orders.borrow_and_update().clone();
        let epoch = orders.epoch;
        if self.reached.epoch < epoch {
            self.reached = Point { epoch, revision: 0 };
            self.goes_on = false;
        }
        if self.goes_on {
            if newest(&self.client, self.watched).await? < self.reached.revision {
                self.look().await?;
                return self.restored(epoch).await;
            }
        } else if !self.relist(&orders).await? {
            return Ok(());
        }
        let watched = follow(&self.client, self.watched, self.reached.revision).await;
        let mut stream = std::pin::pin!(watched?);
        self.look().await?;
        if self.evidence.epoch() != epoch {
            return Ok(());
        }
        let ended = self.take_lines(epoch, &mut stream).await;
        // Another API server may answer now.
        self.evidence.doubt();

        ended
    }

    /// Tells a list; `false` if it turned out to be of another epoch.
    async fn relist(&mut self, orders: &Orders) -> Result<bool, WatchError> {
        let (epoch, kind) = (orders.epoch, self.watched.kind);
        let (objects, revision) = list(&self.client, self.watched).await?;
        self.look().await?;
        if self.evidence.epoch() != epoch {
            return Ok(false);
        }
        if revision < self.reached.revision {
            self.restored(epoch).await?;
            return Ok(false);
        }
        let edge = orders.catch_up.get(&kind).filter(|mark| mark.epoch == epoch);
        if edge.is_some_and(|mark| mark.revision > revision)
            && self.evidence.restored_says_edge(epoch).await.map_err(|doubt| self.doubt(doubt))?
        {
            return Ok(false);
        }
        self.tell(epoch, Told::Listed { kind, objects, revision }, revision).await?;
        self.goes_on = true;

        Ok(true)
    }

    async fn take_lines(
        &mut self,
        epoch: u64,
        stream: &mut (impl futures_util::AsyncBufRead + Unpin),
    ) -> Result<(), WatchError> {
        let path = self.watched.path;
        let mut line = Vec::new();
        loop {
            let mut limited = futures_util::AsyncReadExt::take(&mut *stream, LINE_BYTES_MAX);
            let mut next =
                std::pin::pin!(timeout(SILENCE_MAX, limited.read_until(b'\n', &mut line)));
            let read = loop {
                let list_at = self.catch_up_at();
                tokio::select! {
                    read = &mut next => break read,
                    _ = self.orders.changed() => {
                        if self.orders.borrow_and_update().epoch != epoch {
                            return Err(WatchError::Ordered { path });
                        }
                    }
                    () = sleep_until(list_at.unwrap_or_else(Instant::now)), if list_at.is_some() => {
                        self.caught_up_at = Some(clock::now());
                        return Err(WatchError::Ordered { path });
                    }
                }
            };
            match read {
                Err(_elapsed) => return Err(WatchError::Silent { path }),
                Ok(Err(source)) => return Err(WatchError::Broken { path, source }),
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => {}
            }
            if let Some((event, revision)) = understand(self.watched, &line)? {
                self.tell(epoch, event, revision).await?;
            }
            line.clear();
        }
    }

    /// When to list because an edge is ahead, if one is.
    fn catch_up_at(&self) -> Option<Instant> {
        let orders = self.orders.borrow();
        let mark = orders.catch_up.get(&self.watched.kind)?;
        if mark.epoch != self.reached.epoch || *mark <= self.reached {
            return None;
        }
        let soon = clock::now() + CATCH_UP_WAIT;
        let at = self.caught_up_at.map_or(soon, |last| soon.max(last + CATCH_UP_INTERVAL));

        Some(Instant::from_std(at))
    }

    async fn tell(&mut self, epoch: u64, event: Told, revision: u64) -> Result<(), WatchError> {
        self.told.send((epoch, event)).await.map_err(|_| WatchError::Closed)?;
        self.reached = self.reached.max(Point { epoch, revision });

        Ok(())
    }

    async fn look(&self) -> Result<(), WatchError> {
        self.evidence.look().await.map_err(|doubt| self.doubt(doubt))
    }

    async fn restored(&self, epoch: u64) -> Result<(), WatchError> {
        if self.evidence.epoch() != epoch {
            return Ok(());
        }

        self.evidence.restored(epoch).await.map_err(|doubt| self.doubt(doubt))
    }

    fn doubt(&self, source: Doubt) -> WatchError {
        WatchError::Doubt { path: self.watched.path, source: Box::new(source) }
    }
}
