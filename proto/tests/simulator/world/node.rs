//! The shell of an edge: socket, store and timer around its session.

use proto::codec;
use proto::ids::Uid;
use proto::outbox::WINDOW_CHANGES_MAX;
use proto::session::{EVENTS_MAX, EdgeInput, EdgeOutput, EdgeSession, REPORT_KEYS_MAX};
use proto::wire::{Frame, Health, Outcome, Report, ReportKey};

use crate::edge::Commit;
use crate::replica::Link;
use crate::world::{Conn, ConnId, Event, SOCKET_FRAMES, Taken, World};

impl World {
    pub fn start_edge(&mut self, edge: usize) {
        let seed = self.rng.next_u64();
        let now = self.now + self.edges[edge].ahead;
        self.edges[edge].start(seed, now);
        self.say(|| format!("edge {edge} starts"));
        self.pump_edge(edge);
    }

    /// The node is the truth: on every session it tells the status of all its pods.
    fn report_all(&mut self, edge: usize) {
        let statuses = self.edges[edge].statuses.clone();
        for (pod, status) in statuses {
            self.report(edge, pod, status);
        }
    }

    pub fn report(&mut self, edge: usize, pod: Uid, status: u64) {
        let (key, bytes) = (ReportKey::PodStatus(pod), status.to_string().into());
        self.edge_input(edge, EdgeInput::Report(Report { key, bytes, done: false }));
    }

    pub fn edge_input(&mut self, edge: usize, input: EdgeInput) {
        let now = self.now + self.edges[edge].ahead;
        if let Some(session) = &mut self.edges[edge].session {
            session.handle(input, now);
        }
    }

    /// Does what the session wants, then sets its timer.
    pub fn pump_edge(&mut self, edge: usize) {
        while let Some(session) = &mut self.edges[edge].session {
            if let Some(output) = session.poll_output() {
                self.edge_output(edge, output);
                continue;
            }
            let Some(conn) = self.edges[edge].conn else { break };
            if self.conns[&conn].up.len() >= SOCKET_FRAMES {
                break;
            }
            let Some(frame) = self.edges[edge].session.as_mut().and_then(EdgeSession::poll_send)
            else {
                break;
            };
            self.check_acknowledged(conn, &frame);
            self.conns.get_mut(&conn).unwrap().up.push_back(codec::encode(&frame));
            self.after_ms(1, 40, Event::Frame { conn, up: true });
        }
        self.set_edge_timer(edge);
        self.check_edge_bounds(edge);
    }

    fn set_edge_timer(&mut self, edge: usize) {
        let node = &mut self.edges[edge];
        let due = node.session.as_ref().and_then(EdgeSession::poll_timeout);
        if due != node.timer_at {
            node.timer_at = due;
            let (ahead, life) = (node.ahead, node.life);
            if let Some(at) = due.and_then(|due| due.checked_sub(ahead)) {
                self.at(at, Event::EdgeTimer { edge, life });
            }
        }
    }

    pub fn edge_timer(&mut self, edge: usize, life: u32) {
        let node = &mut self.edges[edge];
        if node.life != life {
            return;
        }
        let now = self.now + node.ahead;
        let due = node.timer_at.is_some_and(|due| due <= now);
        if let Some(session) = &mut node.session
            && due
        {
            node.timer_at = None;
            session.handle_timeout(now);
            self.pump_edge(edge);
        }
    }

    fn edge_output(&mut self, edge: usize, output: EdgeOutput) {
        let life = self.edges[edge].life;
        match output {
            EdgeOutput::Dial => {
                self.edges[edge].dial += 1;
                let dial = self.edges[edge].dial;
                self.after_ms(2, 60, Event::Dialed { edge, life, dial });
            }
            EdgeOutput::AskHeld => {
                let held = self.edges[edge].held();
                self.edge_input(edge, EdgeInput::Held(held));
            }
            EdgeOutput::Deliver { batch, high_water, changes } => {
                self.enqueue_commit(edge, Commit::Batch { batch, high_water, changes });
            }
            EdgeOutput::Up(welcome) => {
                self.say(|| format!("edge {edge} is up, generation {}", welcome.generation));
                self.enqueue_commit(edge, Commit::Ticket(welcome.ticket));
                self.report_all(edge);
            }
            EdgeOutput::Synced => {
                self.say(|| format!("edge {edge} is in sync"));
                self.edges[edge].synced = true;
            }
            EdgeOutput::Down(reason) => {
                self.say(|| format!("edge {edge} is down: {reason}"));
                self.edges[edge].synced = false;
                self.close_edge_side(edge);
            }
            EdgeOutput::Close(_) => {
                self.edges[edge].dial += 1;
                self.close_edge_side(edge);
            }
            EdgeOutput::ReportDone { key, outcome } => {
                assert!(!matches!(outcome, Outcome::Refused { .. }), "{key:?} is refused");
            }
            EdgeOutput::Certificate(_) | EdgeOutput::CertificateOutdated => {
                panic!("nobody asked for a certificate")
            }
            EdgeOutput::Stream(output) => panic!("nobody opened a stream: {output:?}"),
        }
    }

    fn enqueue_commit(&mut self, edge: usize, commit: Commit) {
        self.edges[edge].commits.push_back(commit);
        let (life, delay) = (self.edges[edge].life, self.edges[edge].store_delay);
        let at = self.now + delay;
        self.at(at, Event::Commit { edge, life });
    }

    pub fn commit(&mut self, edge: usize, life: u32) {
        let node = &mut self.edges[edge];
        if node.life != life || node.session.is_none() {
            return;
        }
        if node.store_refuses {
            let reason = "disk full".to_owned();
            match node.commits.pop_front() {
                Some(Commit::Batch { batch, .. }) => {
                    self.edge_input(edge, EdgeInput::PersistFailed { batch, reason });
                }
                Some(Commit::Ticket(_)) => self.edge_input(edge, EdgeInput::TicketNotStored),
                None => {}
            }
        } else {
            match node.sync_one(&self.api) {
                Some(Commit::Batch { batch, .. }) => {
                    self.edge_input(edge, EdgeInput::Persisted { batch });
                }
                Some(Commit::Ticket(_)) => self.edge_input(edge, EdgeInput::TicketStored),
                None => {}
            }
        }
        self.pump_edge(edge);
    }

    pub fn dialed(&mut self, edge: usize, life: u32, dial: u32) {
        let node = &self.edges[edge];
        if node.life != life || node.dial != dial || node.session.is_none() {
            return;
        }
        if node.up_blocked || node.down_blocked {
            // The next SYN.
            return self.after_ms(900, 1100, Event::Dialed { edge, life, dial });
        }
        let alive: Vec<_> =
            (0..self.replicas.len()).filter(|replica| self.replicas[*replica].alive).collect();
        if alive.is_empty() {
            let reason = "connection refused".to_owned();
            self.edge_input(edge, EdgeInput::DialFailed { reason, retry_after: None });
            return self.pump_edge(edge);
        }
        let replica = alive[self.pick(alive.len())];
        let conn = self.number();
        self.conns.insert(
            conn,
            Conn {
                edge,
                replica,
                up: std::collections::VecDeque::new(),
                down: std::collections::VecDeque::new(),
                edge_open: true,
                cloud_open: true,
                forgotten: false,
                taken: std::collections::BTreeMap::new(),
            },
        );
        let seed = self.rng.next_u64();
        let now = self.now + self.replicas[replica].ahead;
        self.replicas[replica].links.insert(conn, Link::new(edge, seed, now));
        self.edges[edge].conn = Some(conn);
        self.edge_input(edge, EdgeInput::Connected);
        let health = Health { pod_loop_age_ms: 1, runtime_age_ms: 1, runtime_ok: true };
        self.edge_input(edge, EdgeInput::Health(health));
        self.pump_link(replica, conn);
        self.pump_edge(edge);
    }

    pub fn frame_down(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (edge, replica) = (conn.edge, conn.replica);
        if self.edges[edge].down_blocked || conn.forgotten {
            return;
        }
        let Some(bytes) = conn.down.pop_front() else { return };
        if self.edges[edge].conn != Some(id) {
            // Nobody listens there any more.
            return self.after_ms(1, 40, Event::Reset { conn: id, to_edge: false });
        }
        self.frames += 1;
        let frame = codec::decode(&bytes).expect("the cloud sends frames");
        self.say(|| format!("conn {id}: edge {edge} <- {frame:?}"));
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match &frame {
            Frame::Put { seq, key, version, .. } => {
                conn.taken.insert(*seq, Taken::Put(key.clone(), version.hash));
            }
            Frame::Delete { seq, key, uid, .. } => {
                conn.taken.insert(*seq, Taken::Delete(key.clone(), uid.clone()));
            }
            _ => {}
        }
        assert!(conn.taken.len() <= WINDOW_CHANGES_MAX, "the window is exceeded");
        self.edge_input(edge, EdgeInput::Received(frame));
        self.pump_edge(edge);
        self.pump_link(replica, id);
    }

    pub fn reset_edge(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(&id) else { return };
        let edge = conn.edge;
        if conn.forgotten || self.edges[edge].down_blocked || self.edges[edge].conn != Some(id) {
            return;
        }
        self.close_edge_side(edge);
        self.edge_input(edge, EdgeInput::Lost { reason: "reset".to_owned() });
        self.pump_edge(edge);
    }

    /// The edge's socket is gone; the other end learns it if the path is there.
    pub fn close_edge_side(&mut self, edge: usize) {
        let Some(id) = self.edges[edge].conn.take() else { return };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.edge_open = false;
            self.after_ms(300, 400, Event::Reset { conn: id, to_edge: false });
        }
        self.forget(id);
    }

    /// Nothing is acknowledged that was never durable.
    fn check_acknowledged(&mut self, conn: ConnId, frame: &Frame) {
        let conn = self.conns.get_mut(&conn).unwrap();
        let node = &self.edges[conn.edge];
        match frame {
            Frame::Ack { seqs } => {
                for seq in seqs {
                    match conn.taken.remove(seq).expect("it was sent on this connection") {
                        Taken::Put(key, hash) => {
                            let stored = node.stored.contains(&(key.clone(), hash));
                            assert!(stored, "{key} is acknowledged and was never durable");
                        }
                        Taken::Delete(key, uid) => {
                            let gone = node.durable.get(&key).is_none_or(|held| held.uid != uid);
                            assert!(gone, "{key} is acknowledged as deleted and is held");
                        }
                    }
                }
            }
            Frame::Nack { seq, .. } => {
                conn.taken.remove(seq);
            }
            _ => {}
        }
    }

    fn check_edge_bounds(&self, edge: usize) {
        let node = &self.edges[edge];
        let Some(session) = &node.session else { return };
        // One for each pod that is or was.
        let pods = node.statuses.len() + node.deleted.len();
        assert!(session.reports_len() <= REPORT_KEYS_MAX.min(pods));
        assert!(session.events_len() <= EVENTS_MAX);
        let batches = node.commits.iter().filter(|commit| matches!(commit, Commit::Batch { .. }));
        assert!(batches.count() <= 1, "one batch is with the store at a time");
    }
}
