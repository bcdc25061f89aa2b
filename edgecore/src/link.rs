//! The link to the cloud: what the rest of the agent sees of it. [`shell`] runs it; [`dial`] is the
//! only code of the agent that opens connections to the cloud.

pub mod addresses;
pub mod dial;
pub mod expired;
pub mod post;
pub mod proxy;
mod renewal;
pub mod shell;
mod ticket;
mod time;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use proto::object::Change;
use proto::session::EVENTS_MAX;
use proto::wire::{Report, ReportKey};
use tokio::sync::{Notify, oneshot};

/// The store's setting that says how far the cloud has taken this node in each kind.
pub const HIGH_WATER_SETTING: &str = "link.high-water";

/// An Event has some 600 bytes; what an hour of trouble brings is kept.
const RECENT_EVENTS_MAX: usize = 64;

/// Changes for the store. Answered when they are durable, or refused.
#[derive(Debug)]
pub struct Delivery {
    /// In the order of the cloud.
    pub changes: Vec<Change>,
    /// For [`HIGH_WATER_SETTING`], in the same transaction.
    pub high_water: Vec<u8>,
    /// Told the outcome; nothing is acknowledged before.
    pub done: oneshot::Sender<Result<(), StoreRefusal>>,
}

/// The store did not take a batch: the cloud will send it again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store refused: {reason}")]
pub struct StoreRefusal {
    /// For people.
    pub reason: String,
}

/// Whether the cloud is in reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// It is not.
    Down {
        /// Since when.
        since: Timestamp,
        /// Why, for people.
        reason: String,
    },
    /// It is.
    Up {
        /// Since when.
        since: Timestamp,
        /// Of the session.
        generation: u64,
        /// The edge holds exactly what the cloud wants.
        synced: bool,
    },
}

#[derive(Debug, Default)]
struct Queue {
    /// Latest wins, so bounded by the number of keys.
    reports: BTreeMap<ReportKey, Report>,
    /// At most [`EVENTS_MAX`]; the oldest is dropped.
    events: VecDeque<Bytes>,
    dropped: u64,
    /// Of those that were taken, by the session.
    dropped_later: u64,
    /// What the session has taken and the cloud has not: reports and Events.
    untold: (usize, usize),
    /// The newest Events, for who asks at the node. At most [`RECENT_EVENTS_MAX`].
    recent: VecDeque<Bytes>,
}

/// What waits for the cloud.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Latest states.
    pub reports: usize,
    /// Events.
    pub events: usize,
}

/// What the rest of the agent tells the cloud with. Never blocks.
#[derive(Clone, Debug, Default)]
pub struct Upstream(Arc<(Mutex<Queue>, Notify)>);

impl Upstream {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports the latest state of something: replaces an earlier report of the same key.
    pub fn report(&self, report: Report) {
        self.queue().reports.insert(report.key.clone(), report);
        self.0.1.notify_one();
    }

    /// Tells of something that happened. The oldest is dropped when too many wait.
    pub fn event(&self, bytes: Bytes) {
        let mut queue = self.queue();
        if queue.recent.len() == RECENT_EVENTS_MAX {
            queue.recent.pop_front();
        }
        queue.recent.push_back(bytes.clone());
        if queue.events.len() == EVENTS_MAX {
            queue.events.pop_front();
            queue.dropped += 1;
        }
        queue.events.push_back(bytes);
        drop(queue);
        self.0.1.notify_one();
    }

    /// Waits until there is something, and takes all reports and Events.
    pub async fn take(&self) -> (Vec<Report>, Vec<Bytes>) {
        loop {
            let taken = {
                let mut queue = self.queue();
                (std::mem::take(&mut queue.reports), std::mem::take(&mut queue.events))
            };
            if !taken.0.is_empty() || !taken.1.is_empty() {
                return (taken.0.into_values().collect(), taken.1.into());
            }
            self.0.1.notified().await;
        }
    }

    /// How many Events the session has dropped of those it took.
    fn dropped_later(&self, total: u64) {
        self.queue().dropped_later = total;
    }

    /// Notes what the session has taken and the cloud has not yet.
    pub fn note_untold(&self, reports: usize, events: usize) {
        self.queue().untold = (reports, events);
    }

    /// What waits for the cloud.
    pub fn backlog(&self) -> Backlog {
        let queue = self.queue();
        let (reports, events) = queue.untold;

        Backlog { reports: queue.reports.len() + reports, events: queue.events.len() + events }
    }

    /// The newest Events, oldest first.
    pub fn recent(&self) -> Vec<Bytes> {
        self.queue().recent.iter().cloned().collect()
    }

    /// How many Events were dropped.
    pub fn dropped(&self) -> u64 {
        let queue = self.queue();

        queue.dropped + queue.dropped_later
    }
}
