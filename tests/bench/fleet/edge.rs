//! A node of which only the link is real: it keeps what it is sent in memory, and runs nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use proto::codec;
use proto::digest::{HeldSet, HighWater};
use proto::ids::{NodeName, ObjectKey};
use proto::object::{Change, Version};
use proto::session::{DownReason, EdgeInput, EdgeOutput, EdgeSession, Introduction};
use proto::wire::{Health, Report, ReportKey};
use serde_json::json;
use system_tests::joining::{Socket, open};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::rustls::ClientConfig;
use tokio_tungstenite::tungstenite::Message;

/// What becomes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It holds what it should.
    InSync,
    /// Its link is gone, or could not be opened.
    Down,
}

/// Where nodes tell what becomes of them: the node's number, and what.
pub(super) type Tell = mpsc::Sender<(usize, Told)>;

/// A node.
pub(super) struct Edge {
    pub(super) number: usize,
    pub(super) name: NodeName,
    pub(super) address: SocketAddr,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) tell: Tell,
    /// Whether it says why its link is down.
    pub(super) is_loud: bool,
}

struct Running {
    edge: Edge,
    session: EdgeSession,
    socket: Option<Socket>,
    dialing: JoinSet<Result<Socket>>,
    held: BTreeMap<ObjectKey, Version>,
    high_water: HighWater,
}

/// Runs a node until it is dropped.
pub(super) async fn run(edge: Edge) {
    let who = Introduction {
        node: edge.name.clone(),
        agent_version: "fleet".to_owned(),
        node_ip: "192.0.2.1".to_owned(),
        boot_id: String::new(),
        ticket: None,
    };
    let seed = u64::try_from(edge.number).unwrap_or_default();
    let mut running = Running {
        session: EdgeSession::new(who, seed, Instant::now().into_std()),
        edge,
        socket: None,
        dialing: JoinSet::new(),
        held: BTreeMap::new(),
        high_water: HighWater::default(),
    };
    let health = Health { pod_loop_age_ms: 0, runtime_age_ms: 0, runtime_ok: true };
    running.handle(EdgeInput::Health(health));
    loop {
        running.outputs().await;
        if let Err(error) = running.send().await {
            running.lost(&error);
            continue;
        }
        running.wait().await;
    }
}

impl Running {
    fn handle(&mut self, input: EdgeInput) {
        self.session.handle(input, Instant::now().into_std());
    }

    fn lost(&mut self, reason: &anyhow::Error) {
        self.socket = None;
        self.handle(EdgeInput::Lost { reason: reason.to_string() });
    }

    async fn outputs(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                EdgeOutput::Dial => {
                    self.dialing = JoinSet::new();
                    self.dialing.spawn(open(self.edge.address, Arc::clone(&self.edge.tls)));
                }
                EdgeOutput::AskHeld => {
                    let (objects, high_water) = (self.held.clone(), self.high_water.clone());
                    self.handle(EdgeInput::Held(HeldSet { objects, high_water }));
                }
                EdgeOutput::Deliver { batch, high_water, changes } => {
                    for change in changes {
                        match change {
                            Change::Put(object) => {
                                drop(self.held.insert(object.key, object.version));
                            }
                            Change::Delete { key, .. } => drop(self.held.remove(&key)),
                        }
                    }
                    self.high_water = high_water;
                    self.handle(EdgeInput::Persisted { batch });
                }
                EdgeOutput::Up(_) => {
                    self.handle(EdgeInput::TicketStored);
                    self.handle(EdgeInput::Report(status()));
                }
                EdgeOutput::Synced => self.tell(Told::InSync).await,
                EdgeOutput::Down(reason) => {
                    self.log(&reason);
                    self.tell(Told::Down).await;
                }
                EdgeOutput::Certificate(_)
                | EdgeOutput::CertificateOutdated
                | EdgeOutput::ReportDone { .. }
                | EdgeOutput::Stream(_) => {}
                EdgeOutput::Close(_) => {
                    self.socket = None;
                    self.dialing = JoinSet::new();
                }
            }
        }
    }

    /// Says why its link is down.
    #[expect(
        clippy::print_stderr,
        reason = "what a program that is run by hand shows when asked to"
    )]
    fn log(&self, reason: &DownReason) {
        if self.edge.is_loud {
            eprintln!("{}: {reason}", self.edge.name);
        }
    }

    async fn tell(&self, told: Told) {
        // Nobody listens when the measurement is over.
        let _nobody = self.edge.tell.send((self.edge.number, told)).await;
    }

    async fn send(&mut self) -> Result<()> {
        let Some(socket) = &mut self.socket else { return Ok(()) };
        while let Some(frame) = self.session.poll_send() {
            socket.send(Message::Binary(codec::encode(&frame))).await?;
        }

        Ok(())
    }

    async fn wait(&mut self) {
        let due = self.session.poll_timeout();
        let due_at = due.map_or_else(Instant::now, Instant::from_std);
        tokio::select! {
            message = next(&mut self.socket) => match message {
                Ok(Message::Binary(bytes)) => match codec::decode(&bytes) {
                    Ok(frame) => self.handle(EdgeInput::Received(frame)),
                    Err(error) => self.handle(EdgeInput::Malformed(error)),
                },
                Ok(_) => self.handle(EdgeInput::Heard),
                Err(error) => self.lost(&error),
            },
            Some(Ok(dialed)) = self.dialing.join_next(), if !self.dialing.is_empty() => match dialed {
                Ok(socket) => {
                    self.socket = Some(socket);
                    self.handle(EdgeInput::Connected);
                }
                Err(error) => {
                    let reason = error.to_string();
                    self.handle(EdgeInput::DialFailed { reason, retry_after: None });
                }
            },
            () = sleep_until(due_at), if due.is_some() => {
                self.session.handle_timeout(Instant::now().into_std());
            }
        }
    }
}

/// The next message; never, if there is no connection.
async fn next(socket: &mut Option<Socket>) -> Result<Message> {
    match socket {
        Some(socket) => Ok(socket.next().await.context("the connection ended")??),
        None => std::future::pending().await,
    }
}

/// Enough for the node to be registered.
fn status() -> Report {
    let ready = json!({
        "type": "Ready", "status": "True", "reason": "Fleet", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let capacity = json!({ "cpu": "1", "memory": "1Gi", "pods": "10" });
    let bytes = json!({ "metadata": { "labels": {} }, "status": {
        "conditions": [ready], "capacity": capacity, "allocatable": capacity,
    } });

    Report { key: ReportKey::NodeStatus, bytes: Bytes::from(bytes.to_string()), done: false }
}
