//! An edge node: a store of which a crash loses what is not yet durable, pods, and the session.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use proto::admission::Ticket;
use proto::digest::{HeldSet, HighWater};
use proto::ids::{Kind, NodeName, ObjectKey, Uid};
use proto::object::{Change, ContentHash, Version};
use proto::session::{BatchId, EdgeSession, Introduction};

use crate::api::Api;
use crate::world::ConnId;

/// Waits for its sync to the disk.
#[derive(Debug)]
pub enum Commit {
    Batch { batch: BatchId, high_water: HighWater, changes: Vec<Change> },
    Ticket(Ticket),
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
pub struct Edge {
    pub index: usize,
    pub name: NodeName,
    /// Counts starts of the agent.
    pub life: u32,
    /// `None` while the agent is dead.
    pub session: Option<EdgeSession>,
    pub conn: Option<ConnId>,
    pub dial: u32,
    pub commits: VecDeque<Commit>,
    pub durable: BTreeMap<ObjectKey, Version>,
    pub high_water: HighWater,
    pub ticket: Option<Ticket>,
    /// Everything that was durable at some time.
    pub stored: BTreeSet<(ObjectKey, ContentHash)>,
    /// Pods it was told to delete.
    pub deleted: BTreeSet<Uid>,
    /// Latest status of each pod; survives the agent, as the runtime does.
    pub statuses: BTreeMap<Uid, u64>,
    pub next_status: u64,
    pub synced: bool,
    pub up_blocked: bool,
    pub down_blocked: bool,
    pub store_delay: Duration,
    pub store_refuses: bool,
    /// How far its clock is ahead, after suspends.
    pub ahead: Duration,
    pub timer_at: Option<Instant>,
}

impl Edge {
    pub fn new(index: usize) -> Self {
        Self {
            index,
            name: NodeName::new(format!("edge-{index}")).unwrap(),
            life: 0,
            session: None,
            conn: None,
            dial: 0,
            commits: VecDeque::new(),
            durable: BTreeMap::new(),
            high_water: HighWater::default(),
            ticket: None,
            stored: BTreeSet::new(),
            deleted: BTreeSet::new(),
            statuses: BTreeMap::new(),
            next_status: 0,
            synced: false,
            up_blocked: false,
            down_blocked: false,
            store_delay: Duration::from_millis(5),
            store_refuses: false,
            ahead: Duration::ZERO,
            timer_at: None,
        }
    }

    pub fn start(&mut self, seed: u64, now: Instant) {
        self.life += 1;
        let who = Introduction {
            node: self.name.clone(),
            agent_version: "sim".to_owned(),
            node_ip: format!("10.0.0.{}", self.index),
            boot_id: self.life.to_string(),
            ticket: self.ticket.clone(),
        };
        self.session = Some(EdgeSession::new(who, seed, now));
        self.timer_at = None;
    }

    /// The agent dies. Of what was on its way to the disk, the first `kept` commits made it.
    pub fn crash(&mut self, kept: usize, api: &Api) {
        for _ in 0..kept.min(self.commits.len()) {
            self.sync_one(api);
        }
        self.commits.clear();
        self.session = None;
        self.conn = None;
        self.synced = false;
    }

    pub fn held(&self) -> HeldSet {
        HeldSet { objects: self.durable.clone(), high_water: self.high_water.clone() }
    }

    /// Pods that run here.
    pub fn pods(&self) -> impl Iterator<Item = &Uid> {
        self.durable.iter().filter(|(key, _)| key.kind() == Kind::Pod).map(|(_, v)| &v.uid)
    }

    /// Makes the oldest commit durable.
    pub fn sync_one(&mut self, api: &Api) -> Option<Commit> {
        let commit = self.commits.pop_front()?;
        match &commit {
            Commit::Ticket(ticket) => self.ticket = Some(ticket.clone()),
            Commit::Batch { high_water, changes, .. } => {
                self.high_water = high_water.clone();
                for change in changes {
                    self.apply(change, api);
                }
            }
        }

        Some(commit)
    }

    fn apply(&mut self, change: &Change, api: &Api) {
        match change {
            Change::Put(object) => {
                let (key, version) = (object.key.clone(), object.version.clone());
                // A restore brings back what was deleted, and sets back what was changed.
                if api.timeline == 0 {
                    let deleted = self.deleted.contains(&version.uid);
                    assert!(!deleted, "{key} was deleted from {} and comes back", self.name);
                    let held = self.durable.get(&key);
                    let set_back = held.is_some_and(|held| held.is_newer_than(&version));
                    assert!(!set_back, "{key} is set back on {}", self.name);
                }
                self.stored.insert((key.clone(), version.hash));
                self.durable.insert(key, version);
            }
            Change::Delete { key, uid } => {
                if self.durable.get(key).is_some_and(|held| held.uid == *uid) {
                    assert!(
                        api.vanished.contains(&(key.clone(), uid.clone())),
                        "{key} is deleted from {} and was never gone from the API server",
                        self.name
                    );
                    self.durable.remove(key);
                    self.statuses.remove(uid);
                }
                if key.kind() == Kind::Pod {
                    self.deleted.insert(uid.clone());
                }
            }
        }
    }
}
