//! Many nodes at once (T18), and one whose backlog is huge (T20).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::admission::{Decision, Record, TicketKey, decide};
use proto::digest::{HeldSet, HighWater};
use proto::ids::{Kind, NodeName, ObjectKey, Uid};
use proto::object::{Change, ContentHash, Object, Version};
use proto::outbox::Desired;
use proto::session::{
    Admission, CloudInput, CloudOutput, CloudSession, EVENTS_MAX, EdgeInput, EdgeOutput,
    EdgeSession, Introduction, PING_INTERVAL,
};
use proto::wire::{Frame, Health, Outcome, Report, ReportKey};

use crate::origin;

fn introduction(node: usize) -> Introduction {
    Introduction {
        node: NodeName::new(format!("edge-{node}")).unwrap(),
        agent_version: "sim".to_owned(),
        node_ip: String::new(),
        boot_id: String::new(),
        ticket: None,
    }
}

fn pod(node: usize, pod: usize, revision: u64) -> Arc<Object> {
    let uid = Uid::new(format!("pod-{node}-{pod}")).unwrap();
    let hash = ContentHash::of(&[uid.as_str().as_bytes(), &revision.to_be_bytes()]);
    let key = ObjectKey::pod(&uid);
    let version = Version { uid, epoch: 1, revision, hash };

    Arc::new(Object { key, version, bytes: Bytes::from_static(b"{}") })
}

fn status(node: usize, pod: usize, text: u64) -> EdgeInput {
    let key = ReportKey::PodStatus(Uid::new(format!("pod-{node}-{pod}")).unwrap());

    EdgeInput::Report(Report { key, bytes: text.to_string().into(), done: false })
}

/// One node with a store that is always quick, and its session at the hub.
struct Node {
    index: usize,
    edge: EdgeSession,
    cloud: Option<CloudSession>,
    record: Record,
    held: BTreeMap<ObjectKey, Version>,
    high_water: HighWater,
    wanted: Vec<Arc<Object>>,
    /// What the hub has yet to take, and since when it waits.
    inbound: VecDeque<(Instant, Frame)>,
    alive_at: Option<Instant>,
    longest_silence: Duration,
    in_sync: bool,
    statuses: BTreeMap<ReportKey, Bytes>,
}

impl Node {
    fn new(index: usize, now: Instant) -> Self {
        let wanted: Vec<_> = (0..10).map(|n| pod(index, n, 1)).collect();

        Self {
            index,
            edge: EdgeSession::new(introduction(index), index as u64, now),
            cloud: None,
            record: Record::joined(None),
            held: wanted.iter().map(|o| (o.key.clone(), o.version.clone())).collect(),
            high_water: HighWater::default(),
            wanted,
            inbound: VecDeque::new(),
            alive_at: None,
            longest_silence: Duration::ZERO,
            in_sync: false,
            statuses: BTreeMap::new(),
        }
    }

    /// Lets the edge do all it can at `now`.
    fn turn_edge(&mut self, now: Instant) {
        self.edge.handle_timeout(now);
        loop {
            if let Some(output) = self.edge.poll_output() {
                self.edge_output(output, now);
            } else if let Some(frame) = self.edge.poll_send() {
                self.inbound.push_back((now, frame));
            } else {
                return;
            }
        }
    }

    fn edge_output(&mut self, output: EdgeOutput, now: Instant) {
        match output {
            EdgeOutput::Dial => {
                self.cloud = Some(CloudSession::new(self.index as u64, now));
                self.inbound.clear();
                self.edge.handle(EdgeInput::Connected, now);
            }
            EdgeOutput::AskHeld => {
                let (objects, high_water) = (self.held.clone(), self.high_water.clone());
                self.edge.handle(EdgeInput::Held(HeldSet { objects, high_water }), now);
            }
            EdgeOutput::Deliver { batch, high_water, changes } => {
                self.high_water = high_water;
                for change in changes {
                    let Change::Put(object) = change else { panic!("nothing is deleted here") };
                    self.held.insert(object.key, object.version);
                }
                self.edge.handle(EdgeInput::Persisted { batch }, now);
            }
            EdgeOutput::Up(_) => self.edge.handle(EdgeInput::TicketStored, now),
            EdgeOutput::Synced => self.in_sync = true,
            EdgeOutput::Down(reason) => panic!("edge {} is down: {reason}", self.index),
            EdgeOutput::Certificate(_)
            | EdgeOutput::CertificateOutdated
            | EdgeOutput::ReportDone { .. }
            | EdgeOutput::Stream(_)
            | EdgeOutput::Close(_) => {}
        }
    }

    /// The hub takes one frame of this node, and answers.
    fn turn_cloud(&mut self, key: &TicketKey, now: Instant) {
        let (Some(cloud), Some((_, frame))) = (&mut self.cloud, self.inbound.pop_front()) else {
            return;
        };
        cloud.handle(CloudInput::Received(frame), now);
        while let Some(cloud) = &mut self.cloud {
            if let Some(output) = cloud.poll_output() {
                self.cloud_output(output, key, now);
            } else if let Some(frame) = cloud.poll_send() {
                self.edge.handle(EdgeInput::Received(frame), now);
            } else {
                break;
            }
        }
    }

    fn cloud_output(&mut self, output: CloudOutput, key: &TicketKey, now: Instant) {
        let Some(cloud) = &mut self.cloud else { return };
        match output {
            CloudOutput::Hello(hello) => {
                let shown = hello.ticket.as_ref();
                let Decision::Admit { record, ticket } =
                    decide(Some(&self.record), &hello.node, shown, key, [0; 16])
                else {
                    panic!("{} is refused", hello.node)
                };
                self.record = record;
                let generation = record.generation;
                let admission = Admission { generation, ticket, epoch: 1, server_time_ms: 0 };
                cloud.handle(CloudInput::Admitted(admission), now);
                cloud.handle(CloudInput::Sync { wanted: self.wanted.clone() }, now);
            }
            CloudOutput::Report { seq, report } => {
                self.statuses.insert(report.key, report.bytes);
                cloud.handle(CloudInput::ReportDone { seq, outcome: Outcome::Done }, now);
            }
            CloudOutput::Event { seq, .. } => cloud.handle(CloudInput::EventDone { seq }, now),
            CloudOutput::Alive { .. } => {
                let before = self.alive_at.replace(now).unwrap_or(now);
                self.longest_silence = self.longest_silence.max(now - before);
            }
            CloudOutput::TicketHeld | CloudOutput::InSync => {}
            other => panic!("unexpected for {}: {other:?}", self.index),
        }
    }
}

#[test]
fn two_days_offline_are_bounded_and_coalesced() {
    const PODS: usize = 50;
    let mut now = origin();
    let mut node = Node::new(0, now);
    let two_days = 2 * 24 * 3600;
    for second in 0..two_days {
        now += Duration::from_secs(1);
        let index = usize::try_from(second).unwrap() % PODS;
        node.edge.handle(status(0, index, second), now);
        node.edge.handle(EdgeInput::Event(Bytes::from(second.to_string())), now);
        node.edge.handle_timeout(now);
        while let Some(output) = node.edge.poll_output() {
            if matches!(output, EdgeOutput::Dial) {
                let (reason, retry_after) = ("unreachable".to_owned(), None);
                node.edge.handle(EdgeInput::DialFailed { reason, retry_after }, now);
            }
        }
        assert!(node.edge.reports_len() <= PODS && node.edge.events_len() <= EVENTS_MAX);
    }
    assert_eq!(node.edge.events_dropped(), two_days - EVENTS_MAX as u64);
    assert!(node.edge.poll_timeout().unwrap() - now <= Duration::from_secs(20));

    // Back: the latest of each, once.
    now += Duration::from_secs(20);
    let (key, mut reports, mut events) = (TicketKey::new(&[1; 32]), 0, 0);
    node.turn_edge(now);
    while let Some((_, frame)) = node.inbound.front() {
        reports += usize::from(matches!(frame, Frame::Report { .. }));
        events += usize::from(matches!(frame, Frame::Event { .. }));
        node.turn_cloud(&key, now);
        node.turn_edge(now);
    }
    assert_eq!((reports, events), (PODS, EVENTS_MAX));
    assert_eq!((node.edge.reports_len(), node.edge.events_len()), (0, 0));
    let oldest = node.statuses.values().map(|b| std::str::from_utf8(b).unwrap()).min();
    assert_eq!(oldest, Some((two_days - PODS as u64).to_string().as_str()));
}

#[test]
fn a_thousand_nodes_return_and_no_other_starves() {
    const RETURNING: usize = 1000;
    const STEADY: usize = 10;
    // What one frame and one handshake cost the hub (design part 8: 3,300 handshakes a second for
    // both ends together).
    const FRAME: Duration = Duration::from_micros(100);
    const HANDSHAKE: Duration = Duration::from_micros(600);

    let start = origin();
    let key = TicketKey::new(&[1; 32]);
    let back_at = start + Duration::from_mins(1);
    let mut nodes: Vec<_> = (0..STEADY).map(|n| Node::new(n, start)).collect();
    for n in STEADY..STEADY + RETURNING {
        let mut node = Node::new(n, back_at);
        for pod in 0..10 {
            node.edge.handle(status(n, pod, 7), back_at);
        }
        // Things have changed while it was away.
        node.wanted[3] = pod(n, 3, 9);
        nodes.push(node);
    }
    for node in &mut nodes {
        let health = Health { pod_loop_age_ms: 1, runtime_age_ms: 1, runtime_ok: true };
        node.edge.handle(EdgeInput::Health(health), start);
    }

    // The hub takes frames in the order in which they arrived, one at a time.
    let (mut now, end) = (start, start + Duration::from_mins(2));
    let mut all_in_sync_at = None;
    while now < end {
        let mut work: Vec<_> = Vec::new();
        for (n, node) in nodes.iter_mut().enumerate() {
            if node.edge.poll_timeout().is_some_and(|due| due <= now) {
                node.turn_edge(now);
            }
            work.extend(node.inbound.iter().map(|(since, _)| (*since, n)));
        }
        work.sort_unstable();
        now += Duration::from_millis(1);
        for (_, n) in work {
            let hello = matches!(nodes[n].inbound.front(), Some((_, Frame::Hello(_))));
            now += if hello { FRAME + HANDSHAKE } else { FRAME };
            nodes[n].turn_cloud(&key, now);
            nodes[n].turn_edge(now);
        }
        if all_in_sync_at.is_none() && nodes.iter().all(|node| node.in_sync) {
            all_in_sync_at = Some(now - back_at);
        }
    }

    let took = all_in_sync_at.expect("all are in sync");
    assert!(took < Duration::from_secs(15), "{took:?}");
    // A Lease is renewed every 20 s if the node was heard of within an interval and 5 s.
    for node in &nodes {
        // Up to the end: a node that was never heard of is not one that was never silent.
        let last = node.alive_at.expect("it was heard of");
        let silence = node.longest_silence.max(now - last);
        assert!(
            silence < PING_INTERVAL + Duration::from_secs(5),
            "{} unheard for {silence:?}",
            node.index
        );
        assert_eq!(node.edge.reports_len(), 0);
    }
    assert!(nodes[STEADY..].iter().all(|node| node.statuses.len() == 10));
}

#[test]
fn a_huge_backlog_of_one_node_delays_no_other() {
    const OTHERS: usize = 5;
    const BACKLOG: usize = 10_000;
    let now = origin();
    let key = TicketKey::new(&[1; 32]);
    let mut nodes: Vec<_> = (0..=OTHERS).map(|n| Node::new(n, now)).collect();
    for node in &mut nodes {
        node.turn_edge(now);
        while !node.inbound.is_empty() {
            node.turn_cloud(&key, now);
            node.turn_edge(now);
        }
    }
    let change = |cloud: &mut CloudSession, name: &str, revision| {
        let uid = Uid::new("u").unwrap();
        let hash = ContentHash::of(&[name.as_bytes(), &u64::to_be_bytes(revision)]);
        let version = Version { uid, epoch: 1, revision, hash };
        let key = ObjectKey::named(Kind::ConfigMap, "default", name);
        let bytes = Bytes::from(vec![b'x'; 2000]);
        let object = Arc::new(Object { key, version, bytes });
        cloud.handle(CloudInput::Change(Desired::Put(object)), now);
    };

    // The first node takes one frame in a hundred rounds and acknowledges nothing.
    let (slow, others) = nodes.split_first_mut().unwrap();
    let slow = slow.cloud.as_mut().unwrap();
    let mut order = Vec::new();
    for round in 0..5 * BACKLOG {
        change(slow, &format!("c{}", round % BACKLOG), round as u64);
        if round % 100 == 0
            && let Some(frame) = slow.poll_send()
        {
            order.push((0, frame.name()));
        }
        let lucky = round % OTHERS;
        let node = &mut others[lucky];
        change(node.cloud.as_mut().unwrap(), "c", round as u64);
        let frame = node.cloud.as_mut().unwrap().poll_send().expect("it goes out in its round");
        assert_eq!(frame.name(), "Put");
        order.push((lucky + 1, frame.name()));
        node.edge.handle(EdgeInput::Received(frame), now);
        node.turn_edge(now);
        node.turn_cloud(&key, now);
        assert_eq!(node.cloud.as_ref().unwrap().outbox_len(), 0);
    }
    assert_eq!(slow.outbox_len(), BACKLOG, "latest wins");
    let served = order.iter().filter(|(node, _)| *node != 0).count();
    assert_eq!(served, 5 * BACKLOG);
}
