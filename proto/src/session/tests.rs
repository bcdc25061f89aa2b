//! Tests of both sessions, joined by a wire that loses nothing unless told to.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test looks for one output among many")]

mod edge;
mod identity;
mod link;
mod protocol;
mod streams;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::admission::Ticket;
use crate::digest::{HeldSet, HighWater};
use crate::ids::{Kind, NodeName, ObjectKey, Uid};
use crate::object::{Change, ContentHash, Object, Point, Version};
use crate::outbox::Desired;
use crate::session::{
    Admission, BatchId, CloudInput, CloudOutput, CloudSession, EdgeInput, EdgeOutput, EdgeSession,
    Introduction,
};
use crate::wire::{Frame, Report, ReportKey};

const SECOND: Duration = Duration::from_secs(1);

#[expect(clippy::disallowed_methods, reason = "any origin will do, time is passed in from here")]
fn start() -> Instant {
    Instant::now()
}

fn ticket(n: u8) -> Ticket {
    Ticket::new(vec![n; 32]).unwrap()
}

fn uid(text: &str) -> Uid {
    Uid::new(text).unwrap()
}

/// A ConfigMap `default/<name>`.
fn config(name: &str, uid_: &str, revision: u64) -> Arc<Object> {
    sized(ObjectKey::named(Kind::ConfigMap, "default", name), uid_, revision, 100)
}

fn sized(key: ObjectKey, uid_: &str, revision: u64, len: usize) -> Arc<Object> {
    let hash = ContentHash::of(&[uid_.as_bytes(), &revision.to_be_bytes()]);
    let version = Version { uid: uid(uid_), epoch: 1, revision, hash };

    Arc::new(Object { key, version, bytes: Bytes::from(vec![b'x'; len]) })
}

fn delete(object: &Object) -> Desired {
    let (key, uid) = (object.key.clone(), object.version.uid.clone());

    Desired::Delete { key, uid, gone_at: Point { epoch: 1, revision: 1000 } }
}

fn pod_status(pod: &str, text: &str) -> Report {
    let key = ReportKey::PodStatus(uid(pod));

    Report { key, bytes: Bytes::copy_from_slice(text.as_bytes()), done: false }
}

/// Both sessions, the edge's store, and everything either session said.
struct Pair {
    now: Instant,
    edge: EdgeSession,
    cloud: CloudSession,
    held: BTreeMap<ObjectKey, Version>,
    high_water: HighWater,
    /// Batches that wait for [`Pair::persist`].
    batches: Vec<(BatchId, HighWater, Vec<Change>)>,
    edge_said: Vec<EdgeOutput>,
    cloud_said: Vec<CloudOutput>,
    /// Every frame that passed, in order.
    passed: Vec<Frame>,
}

impl Pair {
    fn new() -> Self {
        let now = start();
        let who = Introduction {
            node: NodeName::new("edge-1").unwrap(),
            agent_version: "0.1.0".to_owned(),
            node_ip: "10.0.0.7".to_owned(),
            boot_id: "b".to_owned(),
            ticket: None,
        };
        let edge = EdgeSession::new(who, 1, now);

        Self {
            now,
            edge,
            cloud: CloudSession::new(2, now),
            held: BTreeMap::new(),
            high_water: HighWater::default(),
            batches: Vec::new(),
            edge_said: Vec::new(),
            cloud_said: Vec::new(),
            passed: Vec::new(),
        }
    }

    /// A pair whose link is up and in sync, with nothing wanted.
    fn up() -> Self {
        let mut pair = Self::new();
        pair.connect();
        pair.edge_input(EdgeInput::TicketStored);
        pair.cloud_input(CloudInput::Sync { wanted: Vec::new() });
        pair.run();
        assert!(pair.edge.is_up(), "{:?}", pair.edge_said);
        pair.edge_said.clear();
        pair.cloud_said.clear();
        pair.passed.clear();

        pair
    }

    /// Dials when the edge wants to, and answers for the hub.
    fn connect(&mut self) {
        self.cloud = CloudSession::new(2, self.now);
        self.edge.handle_timeout(self.now);
        self.edge.handle(EdgeInput::Connected, self.now);
        self.run();
        let ticket = ticket(7);
        let admission = Admission { generation: 1, ticket, epoch: 1, server_time_ms: 0 };
        self.cloud.handle(CloudInput::Admitted(admission), self.now);
        self.run();
    }

    fn held_set(&self) -> HeldSet {
        HeldSet { objects: self.held.clone(), high_water: self.high_water.clone() }
    }

    fn edge_input(&mut self, input: EdgeInput) {
        self.edge.handle(input, self.now);
    }

    fn cloud_input(&mut self, input: CloudInput) {
        self.cloud.handle(input, self.now);
    }

    fn change(&mut self, desired: Desired) {
        self.cloud_input(CloudInput::Change(desired));
    }

    fn put(&mut self, object: &Arc<Object>) {
        self.change(Desired::Put(Arc::clone(object)));
    }

    fn edge_outputs(&mut self) {
        while let Some(output) = self.edge.poll_output() {
            match output {
                EdgeOutput::AskHeld => {
                    let held = self.held_set();
                    self.edge.handle(EdgeInput::Held(held), self.now);
                }
                EdgeOutput::Deliver { batch, high_water, changes } => {
                    self.batches.push((batch, high_water, changes));
                }
                other => self.edge_said.push(other),
            }
        }
    }

    fn cloud_outputs(&mut self) {
        while let Some(output) = self.cloud.poll_output() {
            self.cloud_said.push(output);
        }
    }

    /// Passes one frame each way; whether there was any. All that is sent in one direction before
    /// the other end is polled arrives together.
    fn turn(&mut self) -> bool {
        let mut moved = false;
        self.cloud_outputs();
        while let Some(frame) = self.cloud.poll_send() {
            self.cloud_outputs();
            self.passed.push(frame.clone());
            self.edge.handle(EdgeInput::Received(frame), self.now);
            moved = true;
        }
        self.edge_outputs();
        while let Some(frame) = self.edge.poll_send() {
            self.edge_outputs();
            self.passed.push(frame.clone());
            self.cloud.handle(CloudInput::Received(frame), self.now);
            moved = true;
        }
        self.cloud_outputs();

        moved
    }

    /// Passes frames until both ends are quiet.
    fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.turn() {
                return;
            }
        }
        panic!("the ends never fall silent");
    }

    /// As [`Pair::run`], with a store that takes everything at once.
    fn run_storing(&mut self) {
        self.run();
        while !self.batches.is_empty() {
            self.persist();
            self.run();
        }
    }

    /// Makes the batches durable.
    fn persist(&mut self) {
        for (batch, high_water, changes) in std::mem::take(&mut self.batches) {
            self.high_water = high_water;
            for change in changes {
                match change {
                    Change::Put(object) => {
                        self.held.insert(object.key, object.version);
                    }
                    Change::Delete { key, uid } => {
                        if self.held.get(&key).is_some_and(|held| held.uid == uid) {
                            self.held.remove(&key);
                        }
                    }
                }
            }
            self.edge.handle(EdgeInput::Persisted { batch }, self.now);
        }
    }

    /// Makes the batches fail; those of one change that `takes` likes succeed.
    fn fail_unless(&mut self, takes: impl Fn(&ObjectKey) -> bool) {
        let batches = std::mem::take(&mut self.batches);
        for (batch, high_water, changes) in batches {
            if changes.iter().all(|change| takes(change.key())) {
                self.batches.push((batch, high_water, changes));
                self.persist();
            } else {
                let reason = "disk full".to_owned();
                self.edge.handle(EdgeInput::PersistFailed { batch, reason }, self.now);
            }
        }
    }

    fn lose(&mut self) {
        self.edge.handle(EdgeInput::Lost { reason: "cut".to_owned() }, self.now);
        self.edge_outputs();
    }

    /// Lets the time pass in steps in which timers fire, without passing frames.
    fn wait_apart(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let due = self.edge.poll_timeout().into_iter().chain(self.cloud.poll_timeout()).min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            self.edge.handle_timeout(self.now);
            self.cloud.handle_timeout(self.now);
            self.edge_outputs();
            self.cloud_outputs();
        }
        self.now = end;
    }

    /// Lets the time pass, passing frames at once.
    fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let due = self.edge.poll_timeout().into_iter().chain(self.cloud.poll_timeout()).min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            self.edge.handle_timeout(self.now);
            self.cloud.handle_timeout(self.now);
            self.run();
        }
        self.now = end;
    }

    fn passed_names(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.passed).iter().map(Frame::name).collect()
    }

    fn stored_keys(&self) -> Vec<&str> {
        self.held.keys().map(ObjectKey::id).collect()
    }
}
