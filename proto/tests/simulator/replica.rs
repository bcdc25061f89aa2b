//! A cloudcore replica: a watch cache that lags, the evidence rules, and a session for each node.
//!
//! What is modelled here of `index` is only what the rules need: a cache with the point it has
//! come to, consistent lists, and epochs kept under a Lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::digest::HighWater;
use proto::ids::{ObjectKey, Uid};
use proto::object::{Object, Point};
use proto::session::CloudSession;

use crate::api::{Api, ApiObject, Change, Mode};
use crate::world::ConnId;

/// How late a watch usually is, about.
pub const WATCH_DELAY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Link {
    pub node: usize,
    pub session: CloudSession,
    /// Zero until admitted.
    pub generation: u64,
    pub high_water: HighWater,
    /// What was written last, to be asserted again if it is found changed (invariant 9).
    pub statuses: BTreeMap<Uid, u64>,
    /// Whether the evidence was there once.
    pub synced: bool,
    pub timer_at: Option<Instant>,
}

impl Link {
    pub fn new(node: usize, seed: u64, now: Instant) -> Self {
        Self {
            node,
            session: CloudSession::new(seed, now),
            generation: 0,
            high_water: HighWater::default(),
            statuses: BTreeMap::new(),
            synced: false,
            timer_at: None,
        }
    }
}

#[derive(Debug, Default)]
pub struct Cache {
    /// A consistent list has finished in this life, and the watch since is unbroken.
    pub watching: bool,
    pub listed: bool,
    pub timeline: u32,
    pub at: Point,
    pub objects: BTreeMap<ObjectKey, ApiObject>,
}

impl Cache {
    /// Whether it has come as far as the edge was taken.
    pub fn reaches(&self, high_water: &HighWater) -> bool {
        self.listed && high_water.iter().all(|(_, mark)| mark <= self.at)
    }

    pub fn wanted(&self, node: usize) -> Vec<Arc<Object>> {
        let of_node = self.objects.values().filter(|object| object.node == node);

        of_node.map(|object| object.desired(self.at.epoch)).collect()
    }

    /// A consistent list. One that is older than what is known shows a restore, which starts an
    /// epoch: what is known are this cache and what edges were taken to. `None` if the API server
    /// does not answer, or is another one.
    pub fn list(&mut self, api: &mut Api, known: Point) -> Option<()> {
        if api.mode != Mode::Up {
            return None;
        }
        let known = known.max(self.at);
        let found = Point { epoch: api.state.epoch, revision: api.state.revision };
        if found < known {
            api.state.epoch = known.epoch.max(found.epoch) + 1;
        }
        *self = Self {
            watching: true,
            listed: true,
            timeline: api.timeline,
            at: Point { epoch: api.state.epoch, revision: api.state.revision },
            objects: api.state.objects.clone(),
        };

        Some(())
    }

    /// Takes up to `count` changes from the watch. `None` if it is broken.
    pub fn watch(&mut self, api: &Api, count: usize) -> Option<Vec<Change>> {
        if !self.watching || api.mode != Mode::Up || api.timeline != self.timeline {
            self.watching = false;
            return None;
        }
        let from = api.log.partition_point(|(revision, _)| *revision <= self.at.revision);
        let taken: Vec<_> = api.log[from..].iter().take(count).cloned().collect();
        for (revision, change) in &taken {
            self.at.revision = *revision;
            match change {
                Change::Put(object) => {
                    self.objects.insert(object.key.clone(), object.clone());
                }
                Change::Delete(object) => {
                    self.objects.remove(&object.key);
                }
            }
        }

        Some(taken.into_iter().map(|(_, change)| change).collect())
    }
}

#[derive(Debug)]
pub struct Replica {
    /// Counts starts.
    pub life: u32,
    pub alive: bool,
    pub cache: Cache,
    pub links: BTreeMap<ConnId, Link>,
    /// A list is under way.
    pub listing: bool,
    pub watch_delay: Duration,
    pub ahead: Duration,
}

impl Replica {
    pub fn new() -> Self {
        Self {
            life: 0,
            alive: false,
            cache: Cache::default(),
            links: BTreeMap::new(),
            listing: false,
            watch_delay: WATCH_DELAY,
            ahead: Duration::ZERO,
        }
    }

    pub fn start(&mut self) {
        self.life += 1;
        self.alive = true;
        self.listing = false;
        self.cache = Cache::default();
    }

    pub fn crash(&mut self) {
        self.alive = false;
        self.links.clear();
    }
}
