//! The shell of the link: moves bytes between the socket and the session, and what the session says
//! between it and the rest of the agent. Every decision is the session's.

mod identity;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{FutureExt as _, Sink as _, SinkExt as _, StreamExt as _};
use proto::codec;
use proto::digest::{HeldSet, HighWater};
use proto::ids::NodeName;
use proto::session::{
    BatchId, CloseReason, EdgeInput, EdgeOutput, EdgeSession, FAREWELL_MAX, Introduction,
};
use proto::stream::{STREAMS_MAX, StreamInput};
use proto::wire::{Outcome, Report, ReportKey, StreamKind};
use store::{Store, StoreError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tokio_util::sync::CancellationToken;
use tunnel::{TunnelStream, Tunnels};

use self::identity::{Caller, Dialed};
use super::dial::Connection;
use super::proxy::Way;
use super::renewal::Renewal;
use super::time::{self, Keeper};
use super::{Delivery, HIGH_WATER_SETTING, LinkState, StoreRefusal, Upstream, ticket};
use crate::clock::{self, KnownTime};
use crate::desired::Desired;
use crate::identity::{Identity, IdentityError};
use crate::telemetry::chain;

/// Streams opened by the cloud and not yet taken; the session bounds how many there are.
pub const ACCEPTED_MAX: usize = STREAMS_MAX;

/// A message more is taken from the socket before the session is asked, as long as they are there:
/// what arrives together is stored together.
const TAKEN_AT_ONCE_MAX: usize = 64;

/// What the link works with.
#[derive(Debug)]
pub struct LinkParts {
    /// The node, as in its certificate.
    pub node: NodeName,
    /// Where cloudcore is, and the way there.
    pub way: Way,
    /// Key and certificate.
    pub identity: Identity,
    /// Where they are.
    pub identity_dir: PathBuf,
    /// Spreads retries of many nodes.
    pub seed: u64,
    /// Changes with every boot.
    pub boot_id: String,
    /// Takes what the cloud wants.
    pub deliveries: mpsc::Sender<Delivery>,
    /// Tells the rest whether the cloud is in reach.
    pub link: watch::Sender<LinkState>,
    /// For pings.
    pub health: watch::Receiver<proto::wire::Health>,
    /// What is to be told to the cloud.
    pub upstream: Upstream,
    /// What is held, for the digest.
    pub desired: Desired,
    /// Keeps the ticket.
    pub store: Store,
    /// The folder of the store, for the ticket's spare.
    pub state_dir: PathBuf,
    /// What the store held at start.
    pub settings: BTreeMap<String, Vec<u8>>,
    /// What is known of the time.
    pub known: KnownTime,
    /// The node's addresses now.
    pub addresses: watch::Receiver<Vec<String>>,
    /// Takes streams of the kubelet API.
    pub accepted: mpsc::Sender<TunnelStream>,
}

type Stored = Result<(), StoreRefusal>;

struct Shell {
    parts: LinkParts,
    session: EdgeSession,
    connection: Option<Connection>,
    dialing: JoinSet<Dialed>,
    renewal: Renewal,
    time: Keeper,
    /// When the certificate ends that cloudcore showed last, since 1970.
    cloud_until: Option<Duration>,
    /// A certificate on its way to the disk: at most one.
    keeping: JoinSet<Result<Identity, IdentityError>>,
    /// What was last said of an identity that cannot be read.
    told_unread: String,
    tunnels: Tunnels,
    high_water: HighWater,
    storing: Option<(BatchId, HighWater, oneshot::Receiver<Stored>)>,
    ticket: Option<oneshot::Receiver<Result<(), StoreError>>>,
    told_down: String,
    /// The latest status of each thing that is still there: a cloud that has just met the node knows
    /// none. Bounded by the number of pods.
    latest: BTreeMap<ReportKey, Report>,
}

/// Keeps the link until asked to stop.
pub async fn run(parts: LinkParts, stop: CancellationToken) {
    let setting = |name: &str| parts.settings.get(name).cloned();
    let who = Introduction {
        node: parts.node.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        node_ip: first(&parts.addresses),
        boot_id: parts.boot_id.clone(),
        ticket: ticket::held(&parts.settings, &parts.state_dir, &parts.identity.join_id),
    };
    let high_water = setting(HIGH_WATER_SETTING).and_then(|b| HighWater::from_bytes(&b));
    time::recall(&parts.known, &parts.settings, &parts.identity, clock::instant());
    let mut shell = Shell {
        session: EdgeSession::new(who, parts.seed, clock::instant()),
        connection: None,
        dialing: JoinSet::new(),
        renewal: Renewal::new(parts.seed, clock::instant()),
        time: Keeper::new(clock::instant()),
        cloud_until: None,
        keeping: JoinSet::new(),
        told_unread: String::new(),
        tunnels: Tunnels::default(),
        high_water: high_water.unwrap_or_default(),
        storing: None,
        ticket: None,
        told_down: String::new(),
        latest: BTreeMap::new(),
        parts,
    };
    let mut stopping = false;
    loop {
        if shell.outputs().await && stopping {
            return;
        }
        shell.send();
        shell.parts.upstream.note_untold(shell.session.reports_len(), shell.session.events_len());
        tokio::select! {
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                let reason = "the agent stops".to_owned();
                shell.session.handle(EdgeInput::Shutdown { reason }, clock::instant());
                if shell.connection.is_none() {
                    return;
                }
            }
            input = shell.next() => {
                if let Some(input) = input {
                    shell.session.handle(input, clock::instant());
                } else {
                    shell.session.handle_timeout(clock::instant());
                }
            }
        }
    }
}

fn first(addresses: &watch::Receiver<Vec<String>>) -> String {
    addresses.borrow().first().cloned().unwrap_or_default()
}

impl Shell {
    /// Gives the socket the most urgent frame, as soon as it takes one.
    fn send(&mut self) {
        let Some(connection) = self.connection.as_mut().filter(|c| c.flushed) else { return };
        let Some(frame) = self.session.poll_send() else { return };
        connection.flushed = false;
        let message = Message::Binary(codec::encode(&frame));
        if let Err(error) = Pin::new(&mut connection.sink).start_send(message) {
            self.lost(error.to_string());
        }
    }

    fn lost(&mut self, reason: String) {
        self.connection = None;
        self.tunnels.lose("the link is down");
        self.session.handle(EdgeInput::Lost { reason }, clock::instant());
    }

    /// Waits for whatever happens next; `None` if it is only time that passed.
    async fn next(&mut self) -> Option<EdgeInput> {
        let timeout = self.session.poll_timeout();
        let may_renew = self.session.renews() && self.keeping.is_empty();
        let renewal = self.renewal.look_at().filter(|_| may_renew);
        tokio::select! {
            happened = socket(&mut self.connection) => match happened {
                Io::Flushed => None,
                Io::Message(message) => self.received(message),
                Io::Failed(error) => {
                    self.lost(error.to_string());
                    None
                }
            },
            Some(dialed) = self.dialing.join_next(), if !self.dialing.is_empty() => {
                Some(self.dialed(dialed.ok()?))
            }
            Some(kept) = self.keeping.join_next(), if !self.keeping.is_empty() => {
                self.kept(kept.ok()?);
                None
            }
            () = sleep_until(renewal.unwrap_or_else(clock::instant).into()), if renewal.is_some() => {
                self.renew();
                None
            }
            stored = answer(&mut self.storing) => Some(self.stored(stored)),
            stored = ticket_answer(&mut self.ticket) => {
                self.ticket = None;
                Some(if stored { EdgeInput::TicketStored } else { EdgeInput::TicketNotStored })
            }
            (reports, events) = self.parts.upstream.take() => {
                let now = clock::instant();
                for report in reports {
                    self.keep(&report);
                    self.session.handle(EdgeInput::Report(report), now);
                }
                for event in events {
                    self.session.handle(EdgeInput::Event(event), now);
                }
                self.parts.upstream.dropped_later(self.session.events_dropped());
                None
            }
            Ok(()) = self.parts.health.changed() => {
                let health = *self.parts.health.borrow_and_update();
                Some(EdgeInput::Health(health))
            }
            Ok(()) = self.parts.addresses.changed() => {
                let node_ip = first(&self.parts.addresses);
                Some(EdgeInput::AddressChanged { node_ip })
            }
            () = self.tunnels.changed() => {
                for input in self.tunnels.take_inputs() {
                    self.session.handle(EdgeInput::Stream(input), clock::instant());
                }
                None
            }
            () = sleep_until(timeout.unwrap_or_else(clock::instant).into()), if timeout.is_some() => None,
        }
    }

    /// Takes a message, and those that are there already.
    fn received(&mut self, message: Option<Result<Message, SocketError>>) -> Option<EdgeInput> {
        let mut message = message;
        for _ in 0..TAKEN_AT_ONCE_MAX {
            let input = match message {
                None => return self.ended("cloudcore closed the connection"),
                Some(Err(error)) => return self.ended(&error.to_string()),
                Some(Ok(Message::Binary(bytes))) => match codec::decode(&bytes) {
                    Ok(frame) => EdgeInput::Received(frame),
                    Err(error) => EdgeInput::Malformed(error),
                },
                Some(Ok(Message::Close(_))) => {
                    return self.ended("cloudcore closed the connection");
                }
                Some(Ok(
                    Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_),
                )) => EdgeInput::Heard,
            };
            self.session.handle(input, clock::instant());
            let connection = self.connection.as_mut()?;
            match connection.stream.next().now_or_never() {
                Some(next) => message = next,
                None => return None,
            }
        }

        None
    }

    fn ended(&mut self, reason: &str) -> Option<EdgeInput> {
        self.lost(reason.to_owned());

        None
    }

    fn dialed(&mut self, dialed: Dialed) -> EdgeInput {
        if let Some(found) = dialed.identity {
            self.found(found);
        }
        match dialed.connection {
            Ok(connection) => {
                self.parts.way.known = connection.peer.or(self.parts.way.known);
                self.cloud_until = connection.until;
                self.connection = Some(connection);
                EdgeInput::Connected
            }
            Err((error, retry_after)) => {
                EdgeInput::DialFailed { reason: chain(&error), retry_after }
            }
        }
    }

    fn stored(&mut self, stored: Stored) -> EdgeInput {
        let Some((batch, high_water, _)) = self.storing.take() else {
            return EdgeInput::Heard;
        };
        match stored {
            Ok(()) => {
                self.high_water = high_water;
                EdgeInput::Persisted { batch }
            }
            Err(refusal) => EdgeInput::PersistFailed { batch, reason: refusal.reason },
        }
    }

    /// Does what the session says; whether it closed.
    async fn outputs(&mut self) -> bool {
        let mut closed = false;
        while let Some(output) = self.session.poll_output() {
            match output {
                EdgeOutput::Dial => {
                    self.dialing.abort_all();
                    self.dialing = JoinSet::new();
                    self.keep_time();
                    let caller = Caller {
                        node: self.parts.node.clone(),
                        way: self.parts.way.clone(),
                        identity: self.parts.identity.clone(),
                        dir: self.parts.identity_dir.clone(),
                        ticket: self.session.ticket().cloned(),
                        known: self.parts.known.clone(),
                    };
                    self.dialing.spawn(caller.dial());
                }
                EdgeOutput::AskHeld => {
                    let objects = self.parts.desired.held().into_iter().collect();
                    let held = HeldSet { objects, high_water: self.high_water.clone() };
                    self.session.handle(EdgeInput::Held(held), clock::instant());
                }
                EdgeOutput::Deliver { batch, high_water, changes } => {
                    let (done, told) = oneshot::channel();
                    let marks = high_water.to_bytes();
                    self.storing = Some((batch, high_water, told));
                    let delivery = Delivery { changes, high_water: marks, done };
                    // Without a receiver the process is about to end.
                    drop(self.parts.deliveries.send(delivery).await);
                }
                EdgeOutput::Up(welcome) => self.up(&welcome),
                EdgeOutput::Certificate(answer) => self.certificate(answer),
                EdgeOutput::CertificateOutdated => self.renewal.outdated(clock::instant()),
                EdgeOutput::Synced => self.parts.link.send_modify(|state| {
                    if let LinkState::Up { synced, .. } = state {
                        *synced = true;
                    }
                }),
                EdgeOutput::Down(reason) => self.down(&chain(&reason)),
                EdgeOutput::ReportDone { key, outcome } => self.answered(&key, &outcome),
                EdgeOutput::Stream(output) => self.stream(output),
                EdgeOutput::Close(reason) => {
                    tracing::debug!(reason = %chain(&reason), "closing the connection");
                    self.hang_up(&reason).await;
                    self.dialing.abort_all();
                    self.tunnels.lose("the link is down");
                    closed = true;
                }
            }
        }

        closed
    }

    /// Drops the connection. When the agent ends it has said so, and the socket gets a moment to take
    /// that; otherwise the path is not to be trusted and the next dial must not wait for it.
    async fn hang_up(&mut self, reason: &CloseReason) {
        let Some(mut connection) = self.connection.take() else { return };
        if matches!(reason, CloseReason::Asked { .. }) && !connection.flushed {
            drop(timeout(FAREWELL_MAX, connection.sink.flush()).await);
        }
    }

    fn up(&mut self, welcome: &proto::wire::Welcome) {
        tracing::info!(generation = welcome.generation, "the link is up");
        self.say_identity();
        self.say_all();
        self.told_down.clear();
        let now = clock::instant();
        let time = Duration::from_millis(u64::try_from(welcome.server_time_ms).unwrap_or_default());
        self.renewal.up(time, now);
        self.parts.known.hear(time, self.cloud_until, now);
        let (tell, told) = oneshot::channel();
        let join_id = self.parts.identity.join_id.clone();
        let mut writes = ticket::writes(&welcome.ticket, &join_id);
        writes.push(self.time.keep(&self.parts.known, &join_id, now));
        let (folder, spare) = (self.parts.state_dir.clone(), welcome.ticket.clone());
        // On the store's thread, where a file may be waited for.
        let done = Box::new(move |stored: Result<(), StoreError>| {
            if let Err(error) = ticket::keep(&folder, &spare, &join_id) {
                tracing::warn!(%error, "cannot keep a spare of the resume ticket");
            }
            // The shell may have gone on to another session.
            drop(tell.send(stored));
        });
        self.parts.store.commit(writes, done);
        self.ticket = Some(told);
        let generation = welcome.generation;
        self.parts.link.send_replace(LinkState::Up {
            since: clock::now(),
            generation,
            synced: false,
        });
    }

    /// What is known of the time goes on without the cloud, too.
    fn keep_time(&mut self) {
        let LinkParts { store, known, identity, .. } = &self.parts;
        self.time.keep_if_due(store, known, &identity.join_id, clock::instant());
    }

    fn keep(&mut self, report: &Report) {
        match report.key {
            ReportKey::StaticPods | ReportKey::PodStatus(_) | ReportKey::NodeStatus => {
                self.latest.insert(report.key.clone(), report.clone());
            }
            // Asked for again by who wants it.
            ReportKey::TokenWanted { .. } => {}
        }
    }

    /// Forgets what is gone and known to be.
    fn answered(&mut self, key: &ReportKey, outcome: &Outcome) {
        let is_gone = self.latest.get(key).is_some_and(|report| report.done);
        match outcome {
            Outcome::Done | Outcome::Refused { .. } if is_gone => {
                self.latest.remove(key);
            }
            Outcome::Done | Outcome::Refused { .. } | Outcome::Retry { .. } => {}
        }
    }

    /// Says everything again to a cloud that may know nothing.
    fn say_all(&mut self) {
        for report in self.latest.values().cloned() {
            self.session.handle(EdgeInput::Report(report), clock::instant());
        }
    }

    fn down(&mut self, reason: &str) {
        // Said when it changes, not at every try.
        if self.told_down != reason {
            tracing::warn!(reason, "the link is down");
            reason.clone_into(&mut self.told_down);
        }
        self.parts.link.send_modify(|state| {
            let since = match state {
                LinkState::Down { since, .. } => *since,
                LinkState::Up { .. } => clock::now(),
            };
            *state = LinkState::Down { since, reason: reason.to_owned() };
        });
    }

    fn stream(&mut self, output: proto::stream::StreamOutput) {
        let Some((id, kind)) = self.tunnels.handle(output) else { return };
        let refuse = |reason: &str| StreamInput::Reset { id, reason: reason.to_owned() };
        if kind != StreamKind::KUBELET_API {
            let input = EdgeInput::Stream(refuse("this agent knows no such kind of stream"));
            self.session.handle(input, clock::instant());
            return;
        }
        let stream = self.tunnels.open(id);
        if self.parts.accepted.try_send(stream).is_err() {
            tracing::warn!("too many streams wait for the kubelet API");
        }
    }
}

/// What the socket did.
enum Io {
    /// It took the frame.
    Flushed,
    /// It gave a message, or its end.
    Message(Option<Result<Message, SocketError>>),
    /// It is broken.
    Failed(SocketError),
}

async fn socket(connection: &mut Option<Connection>) -> Io {
    let Some(Connection { sink, stream, flushed, .. }) = connection else {
        return std::future::pending().await;
    };
    tokio::select! {
        done = poll_fn(|cx| Pin::new(&mut *sink).poll_flush(cx)), if !*flushed => match done {
            Ok(()) => {
                *flushed = true;
                Io::Flushed
            }
            Err(error) => Io::Failed(error),
        },
        message = stream.next() => Io::Message(message),
    }
}

async fn answer(storing: &mut Option<(BatchId, HighWater, oneshot::Receiver<Stored>)>) -> Stored {
    match storing {
        Some((_, _, told)) => told
            .await
            .unwrap_or_else(|_| Err(StoreRefusal { reason: "the store's task ended".to_owned() })),
        None => std::future::pending().await,
    }
}

async fn ticket_answer(ticket: &mut Option<oneshot::Receiver<Result<(), StoreError>>>) -> bool {
    match ticket {
        Some(told) => match told.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "cannot store the resume ticket");
                false
            }
            Err(_) => false,
        },
        None => std::future::pending().await,
    }
}
