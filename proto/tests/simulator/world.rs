//! The world: edges, replicas, one API server, the network between, and a queue of what happens
//! next. A seed decides everything.

mod cloud;
mod faults;
mod node;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::admission::TicketKey;
use proto::backoff::Rng;
use proto::ids::{ObjectKey, Uid};
use proto::object::{ContentHash, Version};
use proto::wire::{Hello, ReportKey, Seq};

use crate::api::{Api, Mode};
use crate::edge::Edge;
use crate::replica::Replica;

pub type ConnId = u64;

/// Frames that a socket takes before it pushes back.
const SOCKET_FRAMES: usize = 16;

/// One TCP connection, seen from both ends.
#[derive(Debug)]
pub struct Conn {
    pub edge: usize,
    pub replica: usize,
    pub up: VecDeque<Bytes>,
    pub down: VecDeque<Bytes>,
    pub edge_open: bool,
    pub cloud_open: bool,
    /// Something between has forgotten it: nothing passes, and nobody is told.
    pub forgotten: bool,
    /// Changes that the edge took on this connection and what each number was about.
    pub taken: BTreeMap<Seq, Taken>,
}

#[derive(Debug)]
pub enum Taken {
    Put(ObjectKey, ContentHash),
    Delete(ObjectKey, Uid),
}

#[derive(Debug)]
pub enum Event {
    /// The next frame of a direction arrives.
    Frame {
        conn: ConnId,
        up: bool,
    },
    /// An end learns that the other is gone.
    Reset {
        conn: ConnId,
        to_edge: bool,
    },
    EdgeTimer {
        edge: usize,
        life: u32,
    },
    LinkTimer {
        replica: usize,
        conn: ConnId,
    },
    Dialed {
        edge: usize,
        life: u32,
        dial: u32,
    },
    /// The oldest commit of the store is durable, or fails.
    Commit {
        edge: usize,
        life: u32,
    },
    Watch {
        replica: usize,
        life: u32,
    },
    List {
        replica: usize,
        life: u32,
    },
    Admit {
        replica: usize,
        conn: ConnId,
        hello: Box<Hello>,
    },
    /// The record is to say that the edge of the session holds its ticket.
    Confirm {
        replica: usize,
        conn: ConnId,
    },
    /// A GET is answered.
    Got {
        replica: usize,
        conn: ConnId,
        key: ObjectKey,
        version: Version,
    },
    /// A report reaches the API server.
    Write(Write),
    Recorded {
        replica: usize,
        conn: ConnId,
        seq: Seq,
    },
    /// A user does something.
    User,
    /// A pod changes its status.
    Status,
    Fault,
    Heal(Heal),
}

/// A status on its way to the API server.
#[derive(Debug)]
pub struct Write {
    pub replica: usize,
    pub conn: ConnId,
    pub node: usize,
    /// Of the session that writes.
    pub generation: u64,
    /// The start of the replica that writes.
    pub life: u32,
    /// A restore ends what was under way.
    pub timeline: u32,
    pub seq: Seq,
    pub key: ReportKey,
    pub status: u64,
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub enum Heal {
    Path { edge: usize },
    Edge { edge: usize },
    Store { edge: usize },
    Replica { replica: usize },
    Lag { replica: usize },
    Api,
}

pub struct World {
    pub now: Instant,
    pub start: Instant,
    pub rng: Rng,
    pub api: Api,
    pub key: TicketKey,
    pub edges: Vec<Edge>,
    pub replicas: Vec<Replica>,
    pub conns: BTreeMap<ConnId, Conn>,
    queue: BTreeMap<(Instant, u64), Event>,
    numbers: u64,
    /// No more faults, users or status changes.
    pub calm: bool,
    pub trace: bool,
    /// Frames that were delivered.
    pub frames: u64,
    /// How often somebody with the key of a node and no ticket was let in, and was not.
    pub thefts: (u64, u64),
}

impl World {
    pub fn new(seed: u64, start: Instant, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let nodes = 1 + usize::try_from(rng.below(3)).unwrap();
        let replicas = 1 + usize::try_from(rng.below(3)).unwrap();
        let mut world = Self {
            now: start,
            start,
            rng,
            api: Api::new(nodes),
            key: TicketKey::new(&[1; 32]),
            edges: (0..nodes).map(Edge::new).collect(),
            replicas: (0..replicas).map(|_| Replica::new()).collect(),
            conns: BTreeMap::new(),
            queue: BTreeMap::new(),
            numbers: 0,
            calm: false,
            trace,
            frames: 0,
            thefts: (0, 0),
        };
        for edge in 0..nodes {
            for _ in 0..world.rng.below(4) {
                world.api.create_pod(edge);
            }
            world.start_edge(edge);
        }
        for replica in 0..replicas {
            world.start_replica(replica);
        }
        world.after_ms(100, 3000, Event::User);
        world.after_ms(100, 3000, Event::Status);
        world.after_ms(100, 8000, Event::Fault);

        world
    }

    pub fn number(&mut self) -> u64 {
        self.numbers += 1;

        self.numbers
    }

    pub fn at(&mut self, at: Instant, event: Event) {
        let number = self.number();
        self.queue.insert((at.max(self.now), number), event);
    }

    /// Something happens after a random time of `low..high` milliseconds.
    pub fn after_ms(&mut self, low: u64, high: u64, event: Event) {
        let delay = Duration::from_millis(low + self.rng.below(high - low));
        self.at(self.now + delay, event);
    }

    /// `n` in `of`.
    pub fn chance(&mut self, n: u64, of: u64) -> bool {
        self.rng.below(of) < n
    }

    pub fn pick(&mut self, len: usize) -> usize {
        usize::try_from(self.rng.below(len as u64)).unwrap()
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>9.3} {}", (self.now - self.start).as_secs_f64(), what());
        }
    }

    /// Lets everything happen until `end`.
    pub fn run(&mut self, end: Duration) {
        let end = self.start + end;
        while let Some(entry) = self.queue.first_entry() {
            let (at, _) = *entry.key();
            if at > end {
                break;
            }
            self.now = at;
            let event = entry.remove();
            self.step(event);
        }
        self.now = end;
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Frame { conn, up: true } => self.frame_up(conn),
            Event::Frame { conn, up: false } => self.frame_down(conn),
            Event::Reset { conn, to_edge: true } => self.reset_edge(conn),
            Event::Reset { conn, to_edge: false } => self.reset_cloud(conn),
            Event::EdgeTimer { edge, life } => self.edge_timer(edge, life),
            Event::LinkTimer { replica, conn } => self.link_timer(replica, conn),
            Event::Dialed { edge, life, dial } => self.dialed(edge, life, dial),
            Event::Commit { edge, life } => self.commit(edge, life),
            Event::Watch { replica, life } => self.watch(replica, life),
            Event::List { replica, life } => self.list(replica, life),
            Event::Admit { replica, conn, hello } => self.admit(replica, conn, &hello),
            Event::Confirm { replica, conn } => self.confirm(replica, conn),
            Event::Got { replica, conn, key, version } => self.got(replica, conn, key, version),
            Event::Write(write) => self.write(write),
            Event::Recorded { replica, conn, seq } => self.event_done(replica, conn, seq),
            Event::User => self.user(),
            Event::Status => self.status(),
            Event::Fault => self.fault(),
            Event::Heal(heal) => self.heal(heal),
        }
    }

    /// Drops connections that nobody knows any more.
    pub fn forget(&mut self, conn: ConnId) {
        if self.conns.get(&conn).is_some_and(|c| !c.edge_open && !c.cloud_open) {
            self.conns.remove(&conn);
        }
    }

    /// Whether both sides agree on everything; otherwise what does not.
    pub fn disagreement(&self) -> Option<String> {
        if self.api.mode != Mode::Up {
            return Some("the API server is not up".to_owned());
        }
        for edge in &self.edges {
            let Some(session) = &edge.session else {
                return Some(format!("{} is dead", edge.name));
            };
            if !session.is_up() || !edge.synced {
                return Some(format!("{} is not in sync", edge.name));
            }
            let wanted: BTreeSet<_> = (self.api.state.objects.values())
                .filter(|object| object.node == edge.index)
                .map(|object| (&object.key, &object.uid, object.hash()))
                .collect();
            let held: BTreeSet<_> =
                edge.durable.iter().map(|(key, held)| (key, &held.uid, held.hash)).collect();
            let differ: Vec<_> = wanted.symmetric_difference(&held).map(|(key, ..)| key).collect();
            if !differ.is_empty() {
                return Some(format!("{} holds another state of {differ:?}", edge.name));
            }
            for pod in edge.pods() {
                let (latest, known) = (edge.statuses.get(pod), self.api.state.statuses.get(pod));
                if latest.is_some() && latest != known {
                    return Some(format!("{pod} is {latest:?}, the API server says {known:?}"));
                }
            }
            if session.reports_len() + session.events_len() > 0 {
                return Some(format!("{} has something to tell", edge.name));
            }
        }

        None
    }
}
