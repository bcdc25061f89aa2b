//! The shell of a replica: sockets, timers, watch, lists and writes around its sessions.

use proto::admission::{Decision, decide};
use proto::codec;
use proto::ids::{Kind, ObjectKey};
use proto::object::{Point, Version};
use proto::outbox::{Desired, ENTRIES_MAX};
use proto::session::{Admission, CloudInput, CloudOutput};
use proto::wire::{Hello, Outcome, Refusal, RefuseCode, ReportKey, Seq};
use std::time::Duration;

use crate::api::{Change, Mode};
use crate::world::{ConnId, Event, SOCKET_FRAMES, World, Write};

impl World {
    pub fn start_replica(&mut self, replica: usize) {
        self.replicas[replica].start();
        self.say(|| format!("replica {replica} starts"));
        let life = self.replicas[replica].life;
        self.after_ms(1, 100, Event::Watch { replica, life });
    }

    fn cloud_input(&mut self, replica: usize, conn: ConnId, input: CloudInput) {
        let now = self.now + self.replicas[replica].ahead;
        if let Some(link) = self.replicas[replica].links.get_mut(&conn) {
            link.session.handle(input, now);
        }
    }

    /// Does what the session wants, then sets its timer.
    pub fn pump_link(&mut self, replica: usize, conn: ConnId) {
        while let Some(link) = self.replicas[replica].links.get_mut(&conn) {
            if let Some(output) = link.session.poll_output() {
                self.cloud_output(replica, conn, output);
                continue;
            }
            let Some(socket) = self.conns.get_mut(&conn) else { break };
            if socket.down.len() >= SOCKET_FRAMES {
                break;
            }
            let Some(frame) = link.session.poll_send() else { break };
            socket.down.push_back(codec::encode(&frame));
            self.after_ms(1, 40, Event::Frame { conn, up: false });
        }
        let Some(link) = self.replicas[replica].links.get_mut(&conn) else { return };
        assert!(link.session.outbox_len() <= ENTRIES_MAX);
        let due = link.session.poll_timeout();
        if due != link.timer_at {
            link.timer_at = due;
            let ahead = self.replicas[replica].ahead;
            if let Some(at) = due.and_then(|due| due.checked_sub(ahead)) {
                self.at(at, Event::LinkTimer { replica, conn });
            }
        }
    }

    pub fn link_timer(&mut self, replica: usize, conn: ConnId) {
        let now = self.now + self.replicas[replica].ahead;
        let Some(link) = self.replicas[replica].links.get_mut(&conn) else { return };
        if link.timer_at.is_some_and(|due| due <= now) {
            link.timer_at = None;
            link.session.handle_timeout(now);
            self.pump_link(replica, conn);
        }
    }

    fn cloud_output(&mut self, replica: usize, conn: ConnId, output: CloudOutput) {
        match output {
            CloudOutput::Hello(hello) => {
                let hello = Box::new(hello);
                self.after_ms(1, 300, Event::Admit { replica, conn, hello });
            }
            CloudOutput::Report { seq, report } => {
                let status = std::str::from_utf8(&report.bytes).unwrap().parse().unwrap();
                let key = report.key;
                // A replica whose watch lags has a slow path to the API server.
                let lag = u64::try_from(self.replicas[replica].watch_delay.as_millis()).unwrap();
                let link = &self.replicas[replica].links[&conn];
                let (node, generation) = (link.node, link.generation);
                let (life, timeline) = (self.replicas[replica].life, self.api.timeline);
                let write =
                    Write { replica, conn, node, generation, life, timeline, seq, key, status };
                self.after_ms(1, 200 + lag, Event::Write(write));
            }
            CloudOutput::Event { seq, .. } => {
                self.after_ms(1, 100, Event::Recorded { replica, conn, seq });
            }
            CloudOutput::TicketHeld => {
                self.after_ms(1, 300, Event::Confirm { replica, conn });
            }
            CloudOutput::CertificateWanted { .. } | CloudOutput::IdentityHeld(_) => {
                panic!("no edge asks for a certificate")
            }
            CloudOutput::Unwanted { key, version } => {
                self.after_ms(1, 300, Event::Got { replica, conn, key, version });
            }
            CloudOutput::InSync => self.check_in_sync(replica, conn),
            CloudOutput::Alive { health } => assert!(health.runtime_ok),
            CloudOutput::Nacked { key, reason } => {
                self.say(|| format!("replica {replica}: {key} is refused: {reason}"));
            }
            CloudOutput::Stream(output) => panic!("nobody opened a stream: {output:?}"),
            CloudOutput::Close(reason) => {
                self.say(|| format!("replica {replica}: conn {conn} is closed: {reason}"));
                self.replicas[replica].links.remove(&conn);
                self.close_cloud_side(conn);
            }
        }
    }

    /// "In sync" is said when it is true.
    fn check_in_sync(&self, replica: usize, conn: ConnId) {
        let replica = &self.replicas[replica];
        let node = replica.links[&conn].node;
        if self.edges[node].conn != Some(conn) {
            return;
        }
        for object in replica.cache.wanted(node) {
            let held = self.edges[node].durable.get(&object.key);
            let same = held.is_some_and(|held| held.hash == object.version.hash);
            assert!(same, "{} is said to be in sync and lacks {}", node, object.key);
        }
    }

    pub fn close_cloud_side(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id)
            && conn.cloud_open
        {
            conn.cloud_open = false;
            self.after_ms(300, 400, Event::Reset { conn: id, to_edge: true });
        }
        self.forget(id);
    }

    pub fn frame_up(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (edge, replica) = (conn.edge, conn.replica);
        if self.edges[edge].up_blocked || conn.forgotten {
            return;
        }
        let Some(bytes) = conn.up.pop_front() else { return };
        if !self.replicas[replica].links.contains_key(&id) {
            return self.after_ms(1, 40, Event::Reset { conn: id, to_edge: true });
        }
        self.frames += 1;
        let frame = codec::decode(&bytes).expect("the edge sends frames");
        self.say(|| format!("conn {id}: edge {edge} -> replica {replica} {frame:?}"));
        self.cloud_input(replica, id, CloudInput::Received(frame));
        self.pump_link(replica, id);
        self.pump_edge(edge);
    }

    pub fn reset_cloud(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if self.edges[conn.edge].up_blocked || conn.edge_open || conn.forgotten {
            return;
        }
        conn.cloud_open = false;
        let replica = conn.replica;
        self.replicas[replica].links.remove(&id);
        self.forget(id);
    }

    pub fn admit(&mut self, replica: usize, conn: ConnId, hello: &Hello) {
        if !self.replicas[replica].links.contains_key(&conn) {
            return;
        }
        let node = self.replicas[replica].links[&conn].node;
        if self.api.mode != Mode::Up {
            let refusal = Refusal {
                code: RefuseCode::NotReady,
                reason: format!("the API server is {:?}", self.api.mode),
                retry_after: Duration::from_secs(self.rng.below(3)),
            };
            self.cloud_input(replica, conn, CloudInput::Refused(refusal));
            return self.pump_link(replica, conn);
        }
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.rng.next_u64().to_be_bytes());
        let record = self.api.state.records.get(&node);
        let (record, ticket) =
            match decide(record, &hello.node, hello.ticket.as_ref(), &self.key, nonce) {
                Decision::Admit { record, ticket } => (record, ticket),
                Decision::Refuse(refusal) => panic!("{} is locked out: {refusal:?}", hello.node),
            };
        self.api.state.records.insert(node, record);
        self.api.state.holders.insert(node, (replica, self.replicas[replica].life));
        let generation = record.generation;
        let link = self.replicas[replica].links.get_mut(&conn).unwrap();
        link.generation = generation;
        link.high_water = hello.held.high_water.clone();
        let epoch = self.api.state.epoch;
        let admission = Admission { generation, ticket, epoch, server_time_ms: 0 };
        self.cloud_input(replica, conn, CloudInput::Admitted(admission));
        self.check_evidence(replica, conn);
        self.pump_link(replica, conn);
        self.supersede(replica, Some((node, conn)));
    }

    /// Keeps that the edge of a session holds its ticket, sooner or later.
    pub fn confirm(&mut self, replica: usize, conn: ConnId) {
        let Some(link) = self.replicas[replica].links.get(&conn) else { return };
        let (node, generation) = (link.node, link.generation);
        if self.api.mode != Mode::Up {
            return self.after_ms(500, 2000, Event::Confirm { replica, conn });
        }
        let record = self.api.state.records.get(&node);
        if let Some(confirmed) = record.and_then(|record| record.confirm(generation)) {
            self.say(|| format!("edge {node} is known to hold ticket {generation}"));
            self.api.state.records.insert(node, confirmed);
        }
    }

    /// Somebody has copied the key of a node, and not its store. It may get in before the node is known to
    /// hold a ticket, and then keeps no ticket either; the node must come back all the same.
    pub fn steal(&mut self, edge: usize) {
        let replica = self.pick(self.replicas.len());
        if self.api.mode != Mode::Up || !self.replicas[replica].alive {
            return;
        }
        let record = self.api.state.records.get(&edge);
        let has_shown = record.is_some_and(|record| record.shown > 0);
        match decide(record, &self.edges[edge].name, None, &self.key, [0; 16]) {
            Decision::Admit { record, .. } => {
                assert!(!has_shown, "edge {edge} has shown a ticket, and none is enough");
                self.say(|| format!("a thief has session {} of edge {edge}", record.generation));
                self.api.state.records.insert(edge, record);
                self.api.state.holders.insert(edge, (replica, self.replicas[replica].life));
                self.supersede(replica, None);
                self.thefts.0 += 1;
            }
            Decision::Refuse(_) => self.thefts.1 += 1,
        }
    }

    /// Ends sessions that are not, or no longer, the one on record.
    fn supersede(&mut self, replica: usize, admitted: Option<(usize, ConnId)>) {
        let old: Vec<_> = (self.replicas[replica].links.iter())
            .filter(|(conn, link)| {
                let record = self.api.state.records.get(&link.node);
                let other = record.is_some_and(|r| r.generation != link.generation);
                let here = admitted.is_some_and(|(node, new)| node == link.node && new != **conn);
                link.generation > 0 && (other || here)
            })
            .map(|(conn, _)| *conn)
            .collect();
        for conn in old {
            let (code, reason) = (RefuseCode::Superseded, String::new());
            let refusal = Refusal { code, reason, retry_after: Duration::ZERO };
            self.cloud_input(replica, conn, CloudInput::Refused(refusal));
            self.pump_link(replica, conn);
        }
    }

    /// Starts the sync of a session if the replica knows enough, otherwise a list.
    fn check_evidence(&mut self, replica: usize, conn: ConnId) {
        let cache = &self.replicas[replica].cache;
        let Some(link) = self.replicas[replica].links.get(&conn) else { return };
        if link.synced || link.generation == 0 {
            return;
        }
        if !cache.reaches(&link.high_water) {
            return self.start_list(replica);
        }
        let wanted = cache.wanted(link.node);
        if let Some(link) = self.replicas[replica].links.get_mut(&conn) {
            link.synced = true;
        }
        self.cloud_input(replica, conn, CloudInput::Sync { wanted });
        self.pump_link(replica, conn);
    }

    fn start_list(&mut self, replica: usize) {
        let node = &mut self.replicas[replica];
        if !node.listing {
            node.listing = true;
            let life = node.life;
            let lag = u64::try_from(node.watch_delay.as_millis()).unwrap();
            self.after_ms(10, 400 + lag, Event::List { replica, life });
        }
    }

    pub fn list(&mut self, index: usize, life: u32) {
        let replica = &mut self.replicas[index];
        if replica.life != life || !replica.alive {
            return;
        }
        let marks = replica.links.values().flat_map(|link| link.high_water.iter());
        let known = marks.map(|(_, point)| point).max().unwrap_or_default();
        if replica.cache.list(&mut self.api, known).is_none() {
            return self.after_ms(500, 2000, Event::List { replica: index, life });
        }
        replica.listing = false;
        let at = self.replicas[index].cache.at;
        self.say(|| format!("replica {index} has listed up to {at:?}"));
        let conns: Vec<_> = self.replicas[index].links.keys().copied().collect();
        for conn in conns {
            self.check_evidence(index, conn);
            self.assert_statuses(index, conn);
            // Absence in a new list is no evidence: edges are compared again.
            let replica = &self.replicas[index];
            if let Some(link) = replica.links.get(&conn)
                && link.synced
            {
                let wanted = replica.cache.wanted(link.node);
                self.cloud_input(index, conn, CloudInput::Sync { wanted });
                self.pump_link(index, conn);
            }
        }
    }

    /// Undoes what a restore did to the statuses written by a session that is still current.
    fn assert_statuses(&mut self, replica: usize, conn: ConnId) {
        let Some(link) = self.replicas[replica].links.get(&conn) else { return };
        let record = self.api.state.records.get(&link.node);
        if record.is_none_or(|record| record.generation != link.generation) {
            return;
        }
        for (pod, status) in &link.statuses {
            if self.api.state.objects.contains_key(&ObjectKey::pod(pod)) {
                self.api.state.statuses.insert(pod.clone(), *status);
            }
        }
    }

    pub fn watch(&mut self, index: usize, life: u32) {
        let replica = &self.replicas[index];
        if replica.life != life || !replica.alive {
            return;
        }
        let delay = u64::try_from(replica.watch_delay.as_millis()).unwrap();
        self.after_ms(1, 2 + 2 * delay, Event::Watch { replica: index, life });
        let count = self.pick(6);
        let Some(changes) = self.replicas[index].cache.watch(&self.api, count) else {
            return self.start_list(index);
        };
        let epoch = self.replicas[index].cache.at.epoch;
        for change in changes {
            let (node, desired) = match change {
                Change::Put(object) => (object.node, Desired::Put(object.desired(epoch))),
                Change::Delete(gone) => {
                    let gone_at = Point { epoch, revision: gone.revision };
                    (gone.node, Desired::Delete { key: gone.key, uid: gone.uid, gone_at })
                }
            };
            let conns: Vec<_> = self.links_of(index, node);
            for conn in conns {
                self.cloud_input(index, conn, CloudInput::Change(desired.clone()));
            }
        }
        let conns: Vec<_> = self.replicas[index].links.keys().copied().collect();
        for conn in conns {
            self.check_evidence(index, conn);
            self.pump_link(index, conn);
        }
        self.supersede(index, None);
    }

    fn links_of(&self, replica: usize, node: usize) -> Vec<ConnId> {
        let of_node = self.replicas[replica].links.iter().filter(|(_, link)| link.node == node);

        of_node.map(|(conn, _)| *conn).collect()
    }

    pub fn got(&mut self, replica: usize, conn: ConnId, key: ObjectKey, version: Version) {
        if !self.replicas[replica].links.contains_key(&conn) {
            return;
        }
        if self.api.mode != Mode::Up {
            return self.after_ms(500, 2000, Event::Got { replica, conn, key, version });
        }
        let found = self.api.state.objects.get(&key);
        if found.is_some_and(|object| object.uid == version.uid) {
            self.cloud_input(replica, conn, CloudInput::StillWanted { key });
        } else {
            let (uid, gone_at) = (version.uid, self.replicas[replica].cache.at);
            self.cloud_input(replica, conn, CloudInput::Absent { key, uid, gone_at });
        }
        self.pump_link(replica, conn);
    }

    /// A write that is under way arrives. A replica knows of the end of its own sessions, not of
    /// what others have admitted since.
    pub fn write(&mut self, write: Write) {
        let Write { replica, conn, node, generation, life, timeline, seq, key, status } = write;
        let (started, now) = (life, self.replicas[replica].life);
        if started == now && !self.replicas[replica].links.contains_key(&conn) {
            return;
        }
        let record = self.api.state.records.get(&node);
        let holder = self.api.state.holders.get(&node);
        let outcome = if self.api.mode != Mode::Up || timeline != self.api.timeline {
            Outcome::Retry { reason: format!("the API server is {:?}", self.api.mode) }
        } else if record.is_none_or(|record| record.generation != generation)
            || holder != Some(&(replica, life))
        {
            // Fenced: another session speaks for the node.
            return;
        } else {
            let ReportKey::PodStatus(pod) = key else { panic!("only pods report: {key:?}") };
            if let Some(link) = self.replicas[replica].links.get_mut(&conn) {
                link.statuses.insert(pod.clone(), status);
            }
            if self.api.state.objects.contains_key(&ObjectKey::pod(&pod)) {
                let before = self.api.state.statuses.insert(pod.clone(), status);
                assert!(before <= Some(status), "the status of {pod} goes back to {status}");
            }
            Outcome::Done
        };
        self.cloud_input(replica, conn, CloudInput::ReportDone { seq, outcome });
        self.pump_link(replica, conn);
    }

    pub fn event_done(&mut self, replica: usize, conn: ConnId, seq: Seq) {
        self.cloud_input(replica, conn, CloudInput::EventDone { seq });
        self.pump_link(replica, conn);
    }

    /// Objects that users can change.
    pub fn object_keys(&self, kind: Kind) -> Vec<ObjectKey> {
        self.api.state.objects.keys().filter(|key| key.kind() == kind).cloned().collect()
    }
}
