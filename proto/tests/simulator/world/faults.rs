//! What users do and what goes wrong.

use std::time::Duration;

use proto::ids::Kind;
use proto::session::EdgeInput;

use crate::api::Mode;
use crate::replica::WATCH_DELAY;
use crate::world::{Event, Heal, World};

/// Objects of one kind in all.
const OBJECTS_MAX: usize = 24;

impl World {
    pub fn user(&mut self) {
        if self.calm {
            return;
        }
        self.after_ms(50, 3000, Event::User);
        if self.api.mode == Mode::Away {
            return;
        }
        let node = self.pick(self.edges.len());
        let kind = if self.chance(1, 2) { Kind::Pod } else { Kind::ConfigMap };
        let keys = self.object_keys(kind);
        let some = (!keys.is_empty()).then(|| keys[self.pick(keys.len())].clone());
        let action = self.rng.below(10);
        match (action, some) {
            (0..=3, _) | (_, None) if keys.len() < OBJECTS_MAX => {
                self.say(|| format!("user: creates a {} on {node}", kind.as_str()));
                if kind == Kind::Pod {
                    self.api.create_pod(node);
                } else {
                    let name = self.rng.below(4);
                    self.api.create_config(node, name);
                }
            }
            (4..=6, Some(key)) => {
                self.say(|| format!("user: updates {key}"));
                self.api.update(&key);
            }
            (7, Some(key)) => {
                self.say(|| format!("user: replaces {key}"));
                let node = self.api.state.objects[&key].node;
                self.api.delete(&key);
                if kind == Kind::Pod {
                    self.api.create_pod(node);
                } else {
                    let name = key.id().rsplit('-').next().and_then(|name| name.parse().ok());
                    self.api.create_config(node, name.unwrap());
                }
            }
            (_, Some(key)) => {
                self.say(|| format!("user: deletes {key}"));
                self.api.delete(&key);
            }
            (_, None) => {}
        }
    }

    pub fn status(&mut self) {
        if self.calm {
            return;
        }
        self.after_ms(20, 1500, Event::Status);
        let edge = self.pick(self.edges.len());
        let pods: Vec<_> = self.edges[edge].pods().cloned().collect();
        if pods.is_empty() || self.edges[edge].session.is_none() {
            return;
        }
        let pod = pods[self.pick(pods.len())].clone();
        self.edges[edge].next_status += 1;
        let status = self.edges[edge].next_status;
        self.edges[edge].statuses.insert(pod.clone(), status);
        self.report(edge, pod, status);
        if self.chance(1, 3) {
            self.edge_input(edge, EdgeInput::Event(status.to_string().into()));
        }
        self.pump_edge(edge);
    }

    pub fn fault(&mut self) {
        if self.calm {
            return;
        }
        self.after_ms(200, 12_000, Event::Fault);
        let edge = self.pick(self.edges.len());
        let replica = self.pick(self.replicas.len());
        match self.rng.below(20) {
            0..=2 => self.block(edge),
            3 | 14..=16 => self.cut(edge),
            4 | 5 => self.crash_edge(edge),
            6 => self.crash_replica(replica),
            7 => {
                let mode = [Mode::Away, Mode::Forbidden, Mode::Empty][self.pick(3)];
                self.say(|| format!("fault: the API server is {mode:?}"));
                self.api.mode = mode;
                self.after_ms(500, 30_000, Event::Heal(Heal::Api));
            }
            8 => {
                self.say(|| "fault: a backup is taken".to_owned());
                self.api.back_up();
            }
            9 if self.chance(1, 2) => self.restore(),
            10 | 17 => {
                let refuses = self.chance(1, 2);
                self.say(|| format!("fault: the store of {edge} is slow, refuses: {refuses}"));
                self.edges[edge].store_refuses = refuses;
                self.edges[edge].store_delay = Duration::from_millis(self.rng.below(4000));
                self.after_ms(500, 60_000, Event::Heal(Heal::Store { edge }));
            }
            11 => self.jump(edge, replica),
            12 => {
                self.say(|| format!("fault: the watch of replica {replica} lags"));
                self.replicas[replica].watch_delay = Duration::from_millis(self.rng.below(20_000));
                self.after_ms(500, 60_000, Event::Heal(Heal::Lag { replica }));
            }
            18 | 19 => self.steal(edge),
            _ => {
                let node_ip = format!("10.0.{}.1", self.rng.below(3));
                self.say(|| format!("fault: the address of {edge} is now {node_ip}"));
                self.edge_input(edge, EdgeInput::AddressChanged { node_ip });
                self.pump_edge(edge);
            }
        }
    }

    fn block(&mut self, edge: usize) {
        let (up, down) = [(true, true), (true, false), (false, true)][self.pick(3)];
        self.say(|| format!("fault: edge {edge} is cut off, up {up}, down {down}"));
        self.edges[edge].up_blocked = up;
        self.edges[edge].down_blocked = down;
        self.after_ms(100, 60_000, Event::Heal(Heal::Path { edge }));
    }

    /// The connection breaks; one end may not notice.
    fn cut(&mut self, edge: usize) {
        let Some(conn) = self.edges[edge].conn else { return };
        let replica = self.conns[&conn].replica;
        let forgotten = self.chance(1, 2);
        self.conns.get_mut(&conn).unwrap().forgotten = forgotten;
        let (up, down) = [(true, true), (true, false), (false, true)][self.pick(3)];
        self.say(|| format!("fault: conn {conn} breaks"));
        if down {
            self.close_edge_side(edge);
            self.edge_input(edge, EdgeInput::Lost { reason: "broken".to_owned() });
            self.pump_edge(edge);
        }
        if up {
            self.replicas[replica].links.remove(&conn);
            self.close_cloud_side(conn);
        }
    }

    fn crash_edge(&mut self, edge: usize) {
        if self.edges[edge].session.is_none() {
            return;
        }
        self.say(|| format!("fault: edge {edge} dies"));
        let kept = self.pick(3);
        self.close_edge_side(edge);
        self.edges[edge].crash(kept, &self.api);
        self.after_ms(100, 30_000, Event::Heal(Heal::Edge { edge }));
    }

    fn crash_replica(&mut self, replica: usize) {
        if !self.replicas[replica].alive {
            return;
        }
        self.say(|| format!("fault: replica {replica} dies"));
        let conns: Vec<_> = self.replicas[replica].links.keys().copied().collect();
        self.replicas[replica].crash();
        for conn in conns {
            self.close_cloud_side(conn);
        }
        self.after_ms(100, 30_000, Event::Heal(Heal::Replica { replica }));
    }

    fn restore(&mut self) {
        self.say(|| "fault: the API server is restored".to_owned());
        self.api.restore();
    }

    /// A machine wakes from a suspend: its clock is ahead.
    fn jump(&mut self, edge: usize, replica: usize) {
        let by = Duration::from_millis(self.rng.below(600_000));
        if self.chance(1, 2) {
            self.say(|| format!("fault: the clock of edge {edge} jumps by {by:?}"));
            self.edges[edge].ahead += by;
            self.edges[edge].timer_at = None;
            self.pump_edge(edge);
        } else {
            self.say(|| format!("fault: the clock of replica {replica} jumps by {by:?}"));
            self.replicas[replica].ahead += by;
            let conns: Vec<_> = self.replicas[replica].links.keys().copied().collect();
            for conn in conns {
                if let Some(link) = self.replicas[replica].links.get_mut(&conn) {
                    link.timer_at = None;
                }
                self.pump_link(replica, conn);
            }
        }
    }

    pub fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::Path { edge } => self.unblock(edge),
            Heal::Edge { edge } => {
                if self.edges[edge].session.is_none() {
                    self.start_edge(edge);
                }
            }
            Heal::Store { edge } => {
                self.edges[edge].store_refuses = false;
                self.edges[edge].store_delay = Duration::from_millis(5);
            }
            Heal::Replica { replica } => {
                if !self.replicas[replica].alive {
                    self.start_replica(replica);
                }
            }
            Heal::Lag { replica } => {
                self.replicas[replica].watch_delay = WATCH_DELAY;
            }
            Heal::Api => self.api.mode = Mode::Up,
        }
    }

    /// What was stuck arrives; ends that gave up meanwhile say so.
    fn unblock(&mut self, edge: usize) {
        self.edges[edge].up_blocked = false;
        self.edges[edge].down_blocked = false;
        let stuck: Vec<_> = (self.conns.iter())
            .filter(|(_, conn)| conn.edge == edge)
            .map(|(id, conn)| {
                (*id, conn.up.len(), conn.down.len(), conn.edge_open, conn.cloud_open)
            })
            .collect();
        for (conn, up, down, edge_open, cloud_open) in stuck {
            (0..up).for_each(|_| self.after_ms(1, 40, Event::Frame { conn, up: true }));
            (0..down).for_each(|_| self.after_ms(1, 40, Event::Frame { conn, up: false }));
            if !edge_open {
                self.after_ms(300, 400, Event::Reset { conn, to_edge: false });
            }
            if !cloud_open {
                self.after_ms(300, 400, Event::Reset { conn, to_edge: true });
            }
        }
    }

    /// Ends every fault.
    pub fn calm_down(&mut self) {
        self.say(|| "all faults end".to_owned());
        self.calm = true;
        self.api.mode = Mode::Up;
        for edge in 0..self.edges.len() {
            self.heal(Heal::Path { edge });
            self.heal(Heal::Store { edge });
            self.heal(Heal::Edge { edge });
        }
        for replica in 0..self.replicas.len() {
            self.heal(Heal::Replica { replica });
            self.heal(Heal::Lag { replica });
        }
    }
}
