//! When many edges come back: to another replica, and to a cloud that falls over again and again.

use std::time::{Duration, Instant};

use proto::admission::Ticket;
use proto::digest::HeldSet;
use proto::ids::NodeName;
use proto::session::{EdgeInput, EdgeOutput, EdgeSession, Introduction};
use proto::wire::{Features, Frame, Welcome};

use crate::origin;

const EDGES: u64 = 200;
const TICK: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);

/// Edges that have nothing, and a cloud that takes all who dial while it is there.
struct Fleet {
    now: Instant,
    edges: Vec<EdgeSession>,
    dials: usize,
}

impl Fleet {
    fn new() -> Self {
        let now = origin();
        let edge = |n: u64| {
            let who = Introduction {
                node: NodeName::new(format!("edge-{n}")).unwrap(),
                agent_version: "sim".to_owned(),
                node_ip: String::new(),
                boot_id: String::new(),
                ticket: None,
            };
            EdgeSession::new(who, n, now)
        };

        Self { now, edges: (0..EDGES).map(edge).collect(), dials: 0 }
    }

    fn up(&self) -> usize {
        self.edges.iter().filter(|edge| edge.is_up()).count()
    }

    /// All links break.
    fn lose(&mut self) {
        for edge in &mut self.edges {
            edge.handle(EdgeInput::Lost { reason: "reset".to_owned() }, self.now);
        }
    }

    /// Lets time pass.
    fn pass(&mut self, time: Duration, is_there: bool) {
        let end = self.now + time;
        while self.now < end {
            for edge in &mut self.edges {
                self.dials += turn(edge, self.now, is_there);
            }
            self.now += TICK;
        }
    }

    /// Until all are up. How long that took.
    fn until_up(&mut self) -> Duration {
        let began = self.now;
        while self.up() < self.edges.len() {
            self.pass(TICK, true);
            assert!(self.now - began < 60 * SECOND, "{} are up after a minute", self.up());
        }

        self.now - began
    }
}

/// Lets the edge do all it can; how often it dials.
fn turn(edge: &mut EdgeSession, now: Instant, is_there: bool) -> usize {
    let mut dials = 0;
    edge.handle_timeout(now);
    loop {
        if let Some(output) = edge.poll_output() {
            match output {
                EdgeOutput::Dial if is_there => {
                    dials += 1;
                    edge.handle(EdgeInput::Connected, now);
                }
                EdgeOutput::Dial => {
                    dials += 1;
                    let (reason, retry_after) = ("refused".to_owned(), None);
                    edge.handle(EdgeInput::DialFailed { reason, retry_after }, now);
                }
                EdgeOutput::AskHeld => edge.handle(EdgeInput::Held(HeldSet::default()), now),
                EdgeOutput::Up(_) => edge.handle(EdgeInput::TicketStored, now),
                _ => {}
            }
        } else if let Some(frame) = edge.poll_send() {
            if matches!(frame, Frame::Hello(_)) {
                edge.handle(EdgeInput::Received(welcome()), now);
            } else {
                // Whatever is said proves the path.
                edge.handle(EdgeInput::Heard, now);
            }
        } else {
            return dials;
        }
    }
}

fn welcome() -> Frame {
    Frame::Welcome(Welcome {
        generation: 1,
        ticket: Ticket::new(vec![7; 32]).unwrap(),
        epoch: 1,
        server_time_ms: 0,
        features: Features::default(),
    })
}

#[test]
fn two_hundred_edges_are_back_within_fifteen_seconds() {
    for before in [Duration::ZERO, SECOND, 5 * SECOND, 12 * SECOND, 40 * SECOND] {
        let mut fleet = Fleet::new();
        fleet.until_up();
        // Six replicas are lost in quick succession. Whom it takes a moment to find another is there before.
        for _ in 0..6 {
            fleet.pass(before, true);
            fleet.lose();
            fleet.pass(3 * SECOND, false);
            let took = 3 * SECOND + fleet.until_up();
            assert!(took < 15 * SECOND, "{took:?} after links of {before:?}");
        }
    }
}

#[test]
fn an_edge_is_back_within_twice_the_time_that_the_cloud_was_away() {
    for away_s in [1, 5, 7, 15] {
        let mut fleet = Fleet::new();
        fleet.until_up();
        fleet.pass(40 * SECOND, true);
        fleet.lose();
        fleet.pass(away_s * SECOND, false);
        let took = fleet.until_up();
        assert!(took <= away_s * SECOND + SECOND, "{took:?} after {away_s} s");
    }
}

#[test]
fn a_cloud_that_falls_over_again_and_again_is_not_stormed() {
    let mut fleet = Fleet::new();
    fleet.until_up();
    // It stays for three seconds, and is back one second later.
    let fall = |fleet: &mut Fleet| {
        fleet.lose();
        fleet.pass(SECOND, false);
        fleet.pass(3 * SECOND, true);
    };
    (0..15).for_each(|_| fall(&mut fleet));
    fleet.dials = 0;
    (0..30).for_each(|_| fall(&mut fleet));
    // In two minutes an edge comes twenty times or so, not at every fall and once more.
    let each = fleet.dials / fleet.edges.len();
    assert!((8..=26).contains(&each), "{each} dials of each edge");
}
