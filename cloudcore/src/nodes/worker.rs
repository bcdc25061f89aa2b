//! The worker of one session: everything that cloudcore does for one node happens here, in order, so
//! that a slow node delays nobody else.

mod gone;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::ids::{Kind, NodeName, ObjectKey, Uid};
use proto::object::{Point, Version};
use proto::outbox::Desired;
use proto::session::PING_INTERVAL;
use proto::wire::{Health, Outcome, Report, ReportKey, Seq};
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep_until};

use self::gone::UNCERTAIN_RETRY;
use super::mirrors::Mirrors;
use super::object::{self, Facing};
use super::{Shared, extended, lease, news, port, tokens};
use crate::hub::{Connected, SessionEvent, SessionHandle};
use crate::pods::{self, PodPath};
use crate::{clock, events, telemetry};

/// The node status is written again this often even if nothing changed (kubelet:
/// `nodeStatusReportFrequency`).
const STATUS_INTERVAL: Duration = Duration::from_mins(5);

/// The Lease is renewed only if the agent was heard within this: it pings every 20 s, and the ping may
/// take a bad mobile link's time. With the node controller's own period of 5 s, a node whose path
/// swallows packets is NotReady within the grace period and 30 s.
const ALIVE_MAX: Duration = PING_INTERVAL.saturating_add(Duration::from_secs(5));

/// Why a report about the node is not taken.
const NO_NODE: &str =
    "the status of a Node is an object, and so are its capacity, allocatable and conditions";

struct Worker {
    shared: Arc<Shared>,
    session: SessionHandle,
    node: NodeName,
    node_ip: String,
    /// What was sent or agreed on; empty before the first sync.
    sent: BTreeMap<ObjectKey, Version>,
    is_synced: bool,
    pods: pods::Writer,
    events: events::Writer,
    mirrors: Mirrors,
    node_report: Option<Value>,
    health: Option<Health>,
    /// When the agent last answered.
    alive: std::time::Instant,
    status_written: Option<std::time::Instant>,
    /// How often the status has waited for an Event that was not taken.
    waits: u32,
    /// When the node last spoke of a pod.
    pods_heard: std::time::Instant,
    /// Writes under way: answers to reports.
    writes: JoinSet<()>,
    /// Follows up what the edge was taken to; no longer than this worker lives.
    learning: JoinSet<()>,
    /// Held by the edge, not wanted, and not yet known to be gone: asked for again.
    unwanted: BTreeMap<ObjectKey, Version>,
}

/// Works for a session until it is lost.
pub(super) async fn run(shared: Arc<Shared>, connected: Connected) {
    let Connected { session, hello, events } = connected;
    let node = session.node().clone();
    let waker = shared.cluster.serve(&node);
    let worker = Worker {
        node_ip: hello.node_ip.clone(),
        sent: BTreeMap::new(),
        is_synced: false,
        pods: pods::Writer::new(shared.cluster.clone(), shared.client.clone(), session.clone()),
        events: events::Writer::new(shared.cluster.clone(), shared.client.clone(), session.clone()),
        mirrors: Mirrors::new(shared.client.clone(), session.clone()),
        node_report: None,
        health: None,
        alive: clock::now(),
        status_written: None,
        waits: 0,
        pods_heard: clock::now(),
        writes: JoinSet::new(),
        learning: JoinSet::new(),
        unwanted: BTreeMap::new(),
        shared,
        session,
        node,
    };
    worker.run(hello.held.high_water, events, waker).await;
}

impl Worker {
    async fn run(
        mut self,
        high_water: proto::digest::HighWater,
        mut events: mpsc::Receiver<SessionEvent>,
        waker: Arc<Notify>,
    ) {
        let every = self.shared.lease_renewal;
        let mut renewal = interval_at(Instant::from_std(clock::now()) + every, every);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = Arc::clone(&self.shared);
        let (evidence, marks) = (shared.evidence.clone(), high_water.clone());
        self.learning.spawn(async move { evidence.learn(&marks).await });
        let mut retries = interval(UNCERTAIN_RETRY);
        retries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if !self.is_synced && shared.cluster.index().has_passed(&high_water) {
                self.synchronise().await;
            }
            let events_due = self.events.due(self.pods_heard).filter(|_| self.is_synced);
            tokio::select! {
                event = events.recv() => match event {
                    None | Some(SessionEvent::Lost { .. }) => break,
                    Some(event) => self.event(event).await,
                },
                () = waker.notified(), if self.is_synced => self.send_changes().await,
                () = shared.cluster.progress(), if !self.is_synced => {}
                _ = renewal.tick() => self.renew().await,
                _ = retries.tick(), if self.is_uncertain() => self.make_certain().await,
                Some(_) = self.writes.join_next(), if !self.writes.is_empty() => {}
                ready = self.pods.ready() => self.pods.go_on(ready).await,
                () = self.mirrors.ready() => self.mirror(),
                ended = self.events.ended() => self.events.done(ended).await,
                () = sleep_until(events_due.unwrap_or_else(clock::now).into()), if events_due.is_some() => {
                    self.events.go_on().await;
                }
            }
        }
        self.pods.finish().await;
        while self.writes.join_next().await.is_some() {}
    }

    /// Says everything that the node must hold.
    async fn synchronise(&mut self) {
        let wanted = self.shared.cluster.index().desired(&self.node);
        self.sent = index::versions(&wanted);
        self.is_synced = true;
        self.session.sync(wanted).await;
        self.pods.look().await;
        self.mirror();
    }

    /// Mirrors what the node runs from files, once everything is known of what is there.
    fn mirror(&mut self) {
        if self.is_synced {
            let index = self.shared.cluster.index();
            let owner = index.node(&self.node).map(|node| &node.version.uid);
            self.mirrors.settle(index.mirrors_on(&self.node), owner);
        }
    }

    /// Says what has changed since, and takes in what the API server says of pods.
    async fn send_changes(&mut self) {
        self.confirm_missing().await;
        let (wanted, passed) = {
            let index = self.shared.cluster.index();
            (index.desired(&self.node), passed(&index))
        };
        let mut now = index::versions(&wanted);
        for object in wanted {
            let before = self.sent.get(&object.key);
            let is_same = before.is_some_and(|before| {
                before.hash == object.version.hash && before.uid == object.version.uid
            });
            if !is_same {
                self.session.change(Desired::Put(object)).await;
            }
        }
        let gone: Vec<_> = self
            .sent
            .iter()
            .filter(|(key, _)| key.kind() != Kind::Token && !now.contains_key(*key))
            .map(|(key, version)| (key.clone(), version.uid.clone()))
            .collect();
        for (key, uid) in gone {
            // What cannot be told just now is not gone.
            if self.shared.cluster.index().is_wanted(&self.node, &key) != Some(false) {
                now.extend(self.sent.remove_entry(&key));
                continue;
            }
            let gone_at = passed.get(&key.kind()).copied().unwrap_or_default();
            self.session.change(Desired::Delete { key, uid, gone_at }).await;
        }
        self.sent = now;
        self.pods.look().await;
        self.mirror();
        if !self.is_node_as_reported() {
            self.write_node().await;
        }
    }

    /// Whether the API server has a Node that says of its readiness what was written last: the node
    /// controller overwrites it, and a Node may be deleted; whether what others have put on the node may be
    /// used; and whether it says where the kubelet API is: another node may have got the same port.
    fn is_node_as_reported(&self) -> bool {
        let ready = |status: &Value| news::condition(status, news::READY)["status"].clone();
        let is_stuck = self.health.as_ref().is_some_and(|health| !object::is_responsive(health));
        let Some(report) = self.node_report.as_ref().filter(|_| !is_stuck) else { return true };
        let current = self.shared.cluster.index().node(&self.node).cloned();
        let current = current.and_then(|node| serde_json::from_slice::<Value>(&node.bytes).ok());

        let port = self.shared.ports.get(&self.node);

        current.is_some_and(|node| {
            ready(&node["status"]) == ready(&report["status"])
                && extended::is_allocatable(&node)
                && port.is_some_and(|port| port::is_told(&node, port))
        })
    }

    fn pod(&self, uid: &Uid) -> Option<(PodPath, Arc<proto::object::Object>)> {
        pods::find(&self.shared.cluster, &self.node, uid)
    }

    async fn event(&mut self, event: SessionEvent) {
        // Whatever it says, it was heard just now.
        self.alive = clock::now();
        match event {
            SessionEvent::Report { seq, report } => self.report(seq, report).await,
            SessionEvent::Event { seq, bytes } => self.events.take(seq, &bytes),
            SessionEvent::Unwanted { key, version } => self.unwanted(key, version).await,
            SessionEvent::InSync => tracing::info!(node = %self.node, "the node is in sync"),
            SessionEvent::Alive { health } => {
                let was = self.health.as_ref().is_none_or(object::is_responsive);
                let is = object::is_responsive(&health);
                self.health = Some(health);
                if was != is {
                    self.write_node().await;
                }
            }
            SessionEvent::Lost { .. } => {}
        }
    }

    async fn report(&mut self, seq: Seq, report: Report) {
        let Report { key, bytes, done } = report;
        match key {
            ReportKey::NodeStatus => {
                let outcome = match serde_json::from_slice(&bytes) {
                    Ok(report) if object::is_well_formed(&report) => {
                        self.node_report = Some(report);
                        self.write_node().await
                    }
                    Ok(_other) => Outcome::Refused { reason: NO_NODE.to_owned() },
                    Err(error) => Outcome::Refused { reason: error.to_string() },
                };
                self.session.report_done(seq, outcome).await;
            }
            ReportKey::StaticPods => {
                let outcome = match self.mirrors.report(&bytes) {
                    Ok(uids) => {
                        self.pods.set_statics(uids);
                        self.mirror();
                        Outcome::Done
                    }
                    Err(error) => Outcome::Refused { reason: error.to_string() },
                };
                self.session.report_done(seq, outcome).await;
            }
            ReportKey::PodStatus(uid) => {
                self.pods_heard = clock::now();
                self.pods.report(seq, uid, bytes, done, self.is_synced).await;
            }
            ReportKey::TokenWanted { pod, source } => self.token(seq, pod, source, bytes),
        }
    }

    fn token(&mut self, seq: Seq, pod: Uid, source: String, wanted: bytes::Bytes) {
        let found = self.pod(&pod);
        let (client, session) = (self.shared.client.clone(), self.session.clone());
        self.writes.spawn(async move {
            let Some((path, object)) = found else {
                let reason = "the pod is not bound to this node".to_owned();
                session.report_done(seq, Outcome::Refused { reason }).await;
                return;
            };
            let PodPath { namespace, name } = path;
            let pod = tokens::ForPod { namespace, name, uid: pod, object };
            let outcome = match tokens::request(&client, &pod, &source, &wanted).await {
                Ok(token) => {
                    session.change(Desired::Put(Arc::new(token))).await;
                    Outcome::Done
                }
                Err(reason) => {
                    let (node, pod) = (session.node(), &pod.name);
                    tracing::warn!(%node, pod, reason, "cannot get a token for a pod");
                    Outcome::Retry { reason }
                }
            };
            session.report_done(seq, outcome).await;
        });
    }

    async fn renew(&mut self) {
        if !self.session.is_current() || self.node_report.is_none() {
            return;
        }
        // A path that swallows packets: the session may be given up only later.
        if clock::now() - self.alive > ALIVE_MAX {
            return;
        }
        if self.health.as_ref().is_some_and(|health| !object::is_responsive(health)) {
            return;
        }
        let due = self.status_written.is_none_or(|at| clock::now() - at >= STATUS_INTERVAL);
        if due {
            self.write_node().await;
            return;
        }
        let uid = self.node_uid();
        let renewed = lease::renew(&self.shared.client, &self.node, &uid, clock::timestamp()).await;
        if let Err(error) = renewed {
            tracing::warn!(node = %self.node, error = %telemetry::chain(&error), "cannot renew the node's lease");
        }
    }

    fn node_uid(&self) -> String {
        let index = self.shared.cluster.index();

        index.node(&self.node).map(|node| node.version.uid.to_string()).unwrap_or_default()
    }

    /// Writes Node object, status and Lease.
    async fn write_node(&mut self) -> Outcome {
        let Some(report) = self.node_report.clone() else { return Outcome::Done };
        if !self.session.is_current() {
            return Outcome::Retry { reason: "a newer session writes for this node".to_owned() };
        }
        let Some(port) = self.shared.ports.open(&self.node) else {
            return Outcome::Retry { reason: "no port for the kubelet API is free".to_owned() };
        };
        let (client, node) = (&self.shared.client, &self.node);
        let now = clock::timestamp();
        let facing = Facing {
            address: self.shared.ports.address(),
            port,
            node_ip: &self.node_ip,
            health: self.health,
        };
        let written = async {
            let before = self.shared.registrations.description(node);
            let current = object::ensure(client, node, before, &report).await?;
            let uid = current["metadata"]["uid"].as_str().unwrap_or_default();
            lease::renew(client, node, uid, now).await?;
            let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let status = object::status(&report, &current, &facing, &now);
            // First: who dies in between tells the same again.
            let events = news::events(node, &current, &status, &now);
            object::tell(client, node, events, &mut self.waits).await?;
            object::write_status(client, node, &status, &facing).await
        };
        match written.await {
            Ok(()) => {
                self.status_written = Some(clock::now());
                Outcome::Done
            }
            Err(error) => {
                let reason = telemetry::chain(&error);
                tracing::warn!(node = %self.node, reason, "cannot write the node's status");
                // With the next renewal of the Lease.
                self.status_written = None;
                Outcome::Retry { reason }
            }
        }
    }
}

fn passed(index: &index::Index) -> BTreeMap<Kind, Point> {
    Kind::ALL.into_iter().map(|kind| (kind, index.passed(kind))).collect()
}
