//! Which API server answers, and in which of its histories: whether what it says is evidence
//! (invariants 7 and 8).
//!
//! The cluster is known by the UID of namespace kube-system, kept with the authority that nodes trust
//! since they joined. A server with another UID is another cluster: nothing of it reaches an edge, and
//! [`gate`] lets no request out to it. The history is known by a [`record`] that goes back when the
//! server is restored from a backup, by revisions that do, and by what edges were taken to.

pub mod gate;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::Client;
use proto::digest::HighWater;
use proto::ids::Kind;
use proto::object::Point;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::record::Kept;
use crate::{clock, pki, telemetry};

/// Between looks at the record, and at a cluster that is not ours; see [`record`].
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A foreign API server is asked again who it is no more often than this, however many write to it.
const FOREIGN_RECHECK: Duration = Duration::from_secs(2);

/// An edge may be ahead of the record by the restores since the backup was made. One that claims to be
/// further ahead than this is not believed: epochs would run out.
const EPOCH_LEAP_MAX: u64 = 1024;

/// Epochs that begin on the word of one edge alone come no more often than this, so that an edge that
/// lies costs a list a minute and not one a connection.
const CLAIM_INTERVAL: Duration = Duration::from_mins(1);

/// Between attempts to follow up what an edge says.
const LEARN_RETRY: Duration = Duration::from_secs(2);

/// Why what the API server says counts for nothing now.
#[derive(Debug, thiserror::Error)]
pub enum Doubt {
    /// It does not say which cluster it is.
    #[error("cannot get namespace kube-system, by which a cluster is known")]
    Unknown(#[source] kube::Error),
    /// It is too new to say.
    #[error("the API server has no namespace kube-system (yet), by which a cluster is known")]
    Nameless,
    /// It is another one.
    #[error(
        "the API server is of another cluster: namespace kube-system has UID {found}, nodes have joined {ours}; \
         nothing is deleted and nothing is sent until the right one answers"
    )]
    OtherCluster {
        /// The UID that nodes have joined.
        ours: String,
        /// The one that answers.
        found: String,
    },
    /// It is another one, for which this installation has another authority.
    #[error(
        "the API server is of another cluster, {found}, with an authority of its own; a start will load that"
    )]
    OtherAuthority {
        /// The UID of the one that answers.
        found: String,
    },
    /// The record of epochs cannot be kept.
    #[error("cannot {verb} lease {lease} in namespace {namespace}")]
    Record {
        /// get, create or update.
        verb: &'static str,
        /// Its name.
        lease: &'static str,
        /// Where.
        namespace: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// Others change the record all the time.
    #[error("lease {0} is changed too often")]
    Contended(&'static str),
}

/// What the watches are to do.
#[derive(Clone, Debug)]
pub struct Orders {
    /// The epoch to list in.
    pub epoch: u64,
    /// How far edges were taken, for each kind.
    pub catch_up: BTreeMap<Kind, Point>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Trust {
    /// It was asked since any connection broke, and is ours.
    Ours,
    /// A connection broke: another may answer now.
    Doubted,
    /// It was another one when last asked.
    Foreign { found: String, asked_at: Instant },
}

/// See the module's documentation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Evidence(Arc<Inner>);

struct Inner {
    /// Not gated.
    client: Client,
    namespace: String,
    replica: String,
    /// UID of kube-system of the cluster that nodes have joined.
    ours: String,
    trust: Mutex<Trust>,
    /// One question at a time.
    asking: tokio::sync::Mutex<()>,
    kept: tokio::sync::Mutex<Kept>,
    orders: watch::Sender<Orders>,
    claimed_at: Mutex<Option<Instant>>,
    has_complained: AtomicBool,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evidence").field("ours", &self.ours).finish_non_exhaustive()
    }
}

impl Evidence {
    /// Takes part in the epochs of the cluster `ours`.
    pub async fn start(
        client: Client,
        namespace: &str,
        replica: &str,
        ours: String,
    ) -> Result<Self, Doubt> {
        let orders = Orders { epoch: 0, catch_up: BTreeMap::new() };
        let evidence = Self(Arc::new(Inner {
            client,
            namespace: namespace.to_owned(),
            replica: replica.to_owned(),
            ours,
            trust: Mutex::new(Trust::Doubted),
            asking: tokio::sync::Mutex::default(),
            kept: tokio::sync::Mutex::default(),
            orders: watch::Sender::new(orders),
            claimed_at: Mutex::default(),
            has_complained: AtomicBool::default(),
        }));
        evidence.look().await?;

        Ok(evidence)
    }

    /// The epoch that replicas agree on, as far as this one knows.
    pub fn epoch(&self) -> u64 {
        self.0.orders.borrow().epoch
    }

    /// What the watches are to do.
    pub fn orders(&self) -> watch::Receiver<Orders> {
        self.0.orders.subscribe()
    }

    /// A connection to the API server broke: nothing is written before [`Self::verify`].
    pub fn doubt(&self) {
        let mut trust = self.trust();
        if *trust == Trust::Ours {
            *trust = Trust::Doubted;
        }
    }

    /// Asks the API server which cluster it is. To be called after an answer, before that counts as
    /// evidence that something is gone.
    pub async fn verify(&self) -> Result<(), Doubt> {
        let found = cluster_uid(&self.0.client).await?;
        let ours = &self.0.ours;
        if found == *ours {
            *self.trust() = Trust::Ours;
            if self.0.has_complained.swap(false, Ordering::Relaxed) {
                tracing::info!(cluster = ours, "the API server of our cluster is back");
            }
            return Ok(());
        }
        *self.trust() = Trust::Foreign { found: found.clone(), asked_at: clock::now() };
        let doubt = Doubt::OtherCluster { ours: ours.clone(), found };
        if !self.0.has_complained.swap(true, Ordering::Relaxed) {
            tracing::error!("{doubt}");
        }

        Err(doubt)
    }

    /// Fails unless the API server is known to be ours; asks it if that is in doubt.
    async fn require(&self) -> Result<(), Doubt> {
        if *self.trust() == Trust::Ours {
            return Ok(());
        }
        let _one_at_a_time = self.0.asking.lock().await;
        let trust = self.trust().clone();
        match trust {
            Trust::Ours => Ok(()),
            Trust::Foreign { found, asked_at } if clock::now() - asked_at < FOREIGN_RECHECK => {
                Err(Doubt::OtherCluster { ours: self.0.ours.clone(), found })
            }
            Trust::Foreign { .. } | Trust::Doubted => self.verify().await,
        }
    }

    /// Asks which cluster and which history it is: what was read before, in the epoch of then, counts
    /// only if the epoch is the same after.
    pub async fn look(&self) -> Result<(), Doubt> {
        self.verify().await?;

        self.agree(0).await
    }

    /// A consistent read in `epoch` is older than what was told in it before.
    pub async fn restored(&self, epoch: u64) -> Result<(), Doubt> {
        tracing::warn!(
            epoch,
            "the API server has gone back in time: it was restored from a backup"
        );

        self.agree(epoch.saturating_add(1)).await
    }

    /// A consistent read in `epoch` is older than what an edge says it was taken to. `false`: not
    /// believed now, because another edge was not long ago.
    pub async fn restored_says_edge(&self, epoch: u64) -> Result<bool, Doubt> {
        if !self.may_claim() {
            return Ok(false);
        }
        self.restored(epoch).await?;

        Ok(true)
    }

    /// Follows up what an edge was taken to, until that is done.
    pub async fn learn(&self, marks: &HighWater) {
        while let Err(doubt) = self.try_learn(marks).await {
            tracing::debug!(error = %telemetry::chain(&doubt), "cannot follow up what an edge holds");
            sleep(LEARN_RETRY).await;
        }
    }

    async fn try_learn(&self, marks: &HighWater) -> Result<(), Doubt> {
        let ahead = marks.iter().map(|(_, mark)| mark.epoch).max().unwrap_or_default();
        if ahead > self.epoch() {
            // Another replica may have begun it.
            self.look().await?;
        }
        if ahead > self.epoch() {
            if ahead - self.epoch() > EPOCH_LEAP_MAX {
                tracing::error!(
                    claimed = ahead,
                    epoch = self.epoch(),
                    "an edge claims an impossible epoch"
                );
                return Ok(());
            }
            while !self.may_claim() {
                sleep(LEARN_RETRY).await;
            }
            self.restored(ahead).await?;
        }
        self.0.orders.send_if_modified(|orders| {
            let mut is_new = false;
            for (kind, mark) in marks.iter().filter(|(_, mark)| mark.epoch == orders.epoch) {
                let known = orders.catch_up.entry(kind).or_default();
                is_new |= mark > *known;
                *known = mark.max(*known);
            }
            is_new
        });

        Ok(())
    }

    fn may_claim(&self) -> bool {
        let mut claimed_at = self.0.claimed_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        let may = claimed_at.is_none_or(|at| now - at >= CLAIM_INTERVAL);
        if may {
            *claimed_at = Some(now);
        }

        may
    }

    fn trust(&self) -> MutexGuard<'_, Trust> {
        // A word, whole whatever panicked.
        self.0.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks after the record, until asked to stop. An error if only a new start can help.
pub async fn run(evidence: Evidence, stop: CancellationToken) -> Result<(), Doubt> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(LOOK_INTERVAL) => {}
        }
        match evidence.look().await {
            Ok(()) => {}
            Err(Doubt::OtherCluster { found, .. }) => {
                // Started for the wrong one, perhaps, and now the right one is back.
                let (client, namespace) = (&evidence.0.client, &evidence.0.namespace);
                let bound_to = pki::bound_to(client.clone(), namespace).await;
                if bound_to.is_ok_and(|uid| uid.as_ref() == Some(&found)) {
                    return Err(Doubt::OtherAuthority { found });
                }
            }
            Err(doubt) => {
                tracing::debug!(error = %telemetry::chain(&doubt), "cannot look at the epochs");
            }
        }
    }
}

/// UID of namespace kube-system, which lives as long as the cluster.
pub async fn cluster_uid(client: &Client) -> Result<String, Doubt> {
    use k8s_openapi::api::core::v1::Namespace;

    let namespaces: kube::Api<Namespace> = kube::Api::all(client.clone());
    let found = namespaces.get_opt("kube-system").await.map_err(Doubt::Unknown)?;

    found.and_then(|namespace| namespace.metadata.uid).ok_or(Doubt::Nameless)
}
