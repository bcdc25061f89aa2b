//! The shell of one link: moves bytes between the socket and the session, and what the session
//! says between it and the node's worker. Every decision is the session's.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink as _, SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use proto::codec::{self, FRAME_BYTES_MAX};
use proto::session::{CloseReason, CloudInput, CloudOutput, CloudSession, FAREWELL_MAX};
use proto::wire::{CertificateRefusal, Features, Hello, IdentityHeld, Refusal, RefuseCode};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};
use tunnel::Tunnels;

use super::outdated::{Known, Outdated};
use super::renewal::Given;
use super::{
    COMMANDS_MAX, Command, Connected, SessionEvent, SessionHandle, Shared, admission, renewal,
};
use crate::pki::Holder;
use crate::{clock, telemetry};

/// Bytes read at once: an idle link holds this much.
const READ_BUFFER_BYTES: usize = 4 * 1024;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Runs a link until it ends.
pub(super) async fn run(stream: Upgraded, known: Known, peer: SocketAddr, shared: Arc<Shared>) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let socket =
        WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, Some(config)).await;
    let (sink, stream) = socket.split();
    let (inputs, commands) = mpsc::channel(COMMANDS_MAX);
    let link = Link {
        session: CloudSession::new(seed(), clock::now()),
        holder: known.holder.clone(),
        outdated: Outdated::new(known, shared.authority.changes(), shared.turns.clone()),
        peer,
        shared,
        inputs,
        tunnels: Tunnels::default(),
        worker: None,
        refused: None,
        waiting: VecDeque::new(),
        asked: JoinSet::new(),
        confirms: false,
        asked_at: None,
        leaving: None,
    };
    link.run(sink, stream, commands).await;
}

fn seed() -> u64 {
    let mut seed = [0; 8];
    // Only spreads retries: a fixed seed would do.
    let _fixed_seed_will_do = SystemRandom::new().fill(&mut seed);

    u64::from_ne_bytes(seed)
}

struct Link {
    session: CloudSession,
    /// By its certificate.
    holder: Holder,
    /// Whether it is to renew at once.
    outdated: Outdated,
    peer: SocketAddr,
    shared: Arc<Shared>,
    inputs: mpsc::Sender<Command>,
    tunnels: Tunnels,
    /// Set once admitted.
    worker: Option<(SessionHandle, mpsc::Sender<SessionEvent>)>,
    /// Said by the session and not yet taken by the worker. Bounded by what the session allows to
    /// be unanswered, and by what a node may hold.
    waiting: VecDeque<SessionEvent>,
    /// What it was refused for, instead.
    refused: Option<Refusal>,
    /// What the API server is asked for the node meanwhile: one of each kind.
    asked: JoinSet<Done>,
    /// The node has said that it holds its ticket.
    confirms: bool,
    /// When it last asked for a certificate.
    asked_at: Option<Instant>,
    /// What it is told, and when at the latest, once it has no streams.
    leaving: Option<(CloudInput, Instant)>,
}

/// What was asked.
enum Done {
    Kept,
    Certificate(Result<Given, CertificateRefusal>),
}

impl Link {
    async fn run(
        mut self,
        mut sink: SplitSink<Socket, Message>,
        mut stream: SplitStream<Socket>,
        mut commands: mpsc::Receiver<Command>,
    ) {
        let mut flushed = true;
        let reason = loop {
            if let Some(reason) = self.outputs().await {
                break reason;
            }
            self.leave_in_time();
            if flushed && let Some(frame) = self.session.poll_send() {
                let bytes = codec::encode(&frame);
                self.shared.metrics.frame_down(bytes.len());
                let message = Message::Binary(bytes);
                if let Err(error) = Pin::new(&mut sink).start_send(message) {
                    break error.to_string();
                }
                flushed = false;
                continue;
            }
            let timeout = self.timeout();
            let worker = self.worker.as_ref().map(|(_, events)| events.clone());
            tokio::select! {
                done = poll_fn(|cx| Pin::new(&mut sink).poll_flush(cx)), if !flushed => {
                    if let Err(error) = done {
                        break error.to_string();
                    }
                    flushed = true;
                }
                message = stream.next() => {
                    if let Some(reason) = self.receive(message) {
                        break reason;
                    }
                }
                Some(command) = commands.recv() => self.command(command),
                Some(done) = self.asked.join_next(), if !self.asked.is_empty() => {
                    if let Ok(Done::Certificate(answer)) = done {
                        self.certified(answer);
                    }
                }
                () = self.outdated.due(), if self.outdated.can_be_told => {
                    self.session.handle(CloudInput::CertificateOutdated, clock::now());
                }
                () = self.tunnels.changed() => {
                    for input in self.tunnels.take_inputs() {
                        self.session.handle(CloudInput::Stream(input), clock::now());
                    }
                }
                () = sleep_until(timeout.unwrap_or_else(clock::now).into()), if timeout.is_some() => {
                    self.session.handle_timeout(clock::now());
                }
                permit = reserve(worker.as_ref()), if !self.waiting.is_empty() && worker.is_some() => {
                    match (permit, self.waiting.pop_front()) {
                        (Some(permit), Some(event)) => permit.send(event),
                        (None, _) | (_, None) => break "the worker of the node ended".to_owned(),
                    }
                }
            }
        };
        // Its worker may be answering: it must not wait for who waits for it.
        drop(commands);
        let (shared, holder, peer) = (Arc::clone(&self.shared), self.holder.clone(), self.peer);
        let refused = self.refused.take();
        self.end(reason).await;
        // The last frame tells the edge why. Without it a refusal would look like a broken path.
        drop(timeout(FAREWELL_MAX, sink.flush()).await);
        if let Some(refusal) = refused {
            shared.alarms.raise(&shared.client, &holder.node, &refusal, peer.ip()).await;
        }
    }

    fn timeout(&self) -> Option<Instant> {
        let leave_at = self.leaving.as_ref().map(|(_, until)| *until);

        self.session.poll_timeout().into_iter().chain(leave_at).min()
    }

    /// Ends the session that is to leave, once nothing would be cut off or it is time.
    fn leave_in_time(&mut self) {
        let (now, tunnels) = (clock::now(), &self.tunnels);
        let is_due = |(_, until): &mut (_, Instant)| tunnels.is_empty() || now >= *until;
        if let Some((input, _)) = self.leaving.take_if(is_due) {
            self.session.handle(input, now);
        }
    }

    /// Takes a message from the socket; the reason if the link ended.
    fn receive(&mut self, message: Option<Result<Message, SocketError>>) -> Option<String> {
        let input = match message {
            None => return Some("the edge closed the connection".to_owned()),
            Some(Err(error)) => return Some(error.to_string()),
            Some(Ok(Message::Binary(bytes))) => {
                self.shared.metrics.frame_up(bytes.len());
                match codec::decode(&bytes) {
                    Ok(frame) => CloudInput::Received(frame),
                    Err(error) => CloudInput::Malformed(error),
                }
            }
            Some(Ok(Message::Close(_))) => {
                return Some("the edge closed the connection".to_owned());
            }
            Some(Ok(
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_),
            )) => CloudInput::Heard,
        };
        self.session.handle(input, clock::now());

        None
    }

    /// Does what the session says; the reason if it ends.
    async fn outputs(&mut self) -> Option<String> {
        while let Some(output) = self.session.poll_output() {
            let event = match output {
                CloudOutput::Hello(hello) => {
                    self.admit(hello).await;
                    continue;
                }
                CloudOutput::TicketHeld => {
                    self.confirm();
                    continue;
                }
                CloudOutput::CertificateWanted { csr } => {
                    self.certify(csr);
                    continue;
                }
                CloudOutput::IdentityHeld(held) => {
                    self.identity_held(&held);
                    continue;
                }
                CloudOutput::Close(reason) => {
                    // Who speaks another version was refused before anybody was asked.
                    if let CloseReason::Refused(refusal) = &reason
                        && refusal.code == RefuseCode::BadProtocol
                    {
                        self.note_refusal(refusal);
                    }
                    return Some(telemetry::chain(&reason));
                }
                CloudOutput::Nacked { key, reason } => {
                    tracing::warn!(node = %self.holder.node, %key, reason, "the edge cannot store an object");
                    continue;
                }
                CloudOutput::Stream(output) => {
                    // Only the cloud opens streams.
                    let _opened = self.tunnels.handle(output);
                    continue;
                }
                CloudOutput::Report { seq, report } => SessionEvent::Report { seq, report },
                CloudOutput::Event { seq, bytes } => SessionEvent::Event { seq, bytes },
                CloudOutput::Unwanted { key, version } => SessionEvent::Unwanted { key, version },
                CloudOutput::InSync => SessionEvent::InSync,
                CloudOutput::Alive { health } => {
                    // Only the latest matters.
                    self.waiting.retain(|event| !matches!(event, SessionEvent::Alive { .. }));
                    SessionEvent::Alive { health }
                }
            };
            self.waiting.push_back(event);
        }

        None
    }

    async fn admit(&mut self, hello: Hello) {
        let node = &self.holder.node;
        let answer = if hello.node == *node {
            let issuer = self.outdated.issuer();
            admission::admit(&self.shared, &hello, &self.holder, issuer).await
        } else {
            let reason = format!("the certificate is of {node}, not of {}", hello.node);
            let retry_after = std::time::Duration::from_mins(1);
            Err(Refusal { code: RefuseCode::UnknownNode, reason, retry_after })
        };
        let input = match answer {
            Ok(admission) => {
                self.shared.metrics.admission(None);
                let (events, receiver) = mpsc::channel(COMMANDS_MAX);
                self.outdated.can_be_told = hello.features.has(Features::AUTHORITIES);
                let session = SessionHandle {
                    node: node.clone(),
                    generation: admission.generation,
                    current: Arc::new(AtomicBool::new(true)),
                    expiry: self.outdated.expiry().clone(),
                    inputs: self.inputs.clone(),
                };
                if let Some(before) = self.shared.sessions.replace(session.clone()) {
                    let reason = "a newer session of the node was admitted".to_owned();
                    let retry_after = std::time::Duration::ZERO;
                    let refusal = Refusal { code: RefuseCode::Superseded, reason, retry_after };
                    // The old loop may be stuck on a dead path: it is fenced whether or not it reads.
                    drop(before.inputs.try_send(Command::Input(CloudInput::Refused(refusal))));
                }
                tracing::info!(%node, peer = %self.peer, generation = admission.generation, "a session began");
                if hello.ticket.is_none() && !hello.features.has(Features::TICKET_HELD) {
                    tracing::warn!(%node, "the agent is too old to say that it holds its ticket: until it connects again, a copy of its key is as good as it");
                }
                let connected = Connected { session: session.clone(), hello, events: receiver };
                self.worker = Some((session, events));
                drop(self.shared.connected.send(connected).await);
                CloudInput::Admitted(admission)
            }
            Err(refusal) => {
                self.note_refusal(&refusal);
                CloudInput::Refused(refusal)
            }
        };
        self.session.handle(input, clock::now());
    }

    /// The node gets no session: it is counted, and told of once the edge knows.
    fn note_refusal(&mut self, refusal: &Refusal) {
        let (node, code) = (&self.holder.node, refusal.code.as_str());
        tracing::warn!(%node, peer = %self.peer, code, reason = refusal.reason, "a session was refused");
        self.shared.metrics.admission(Some(refusal.code));
        self.refused = Some(refusal.clone());
    }

    /// The node holds its ticket.
    fn confirm(&mut self) {
        let Some((session, _)) = self.worker.as_ref().filter(|_| !self.confirms) else { return };
        self.confirms = true;
        let (shared, session) = (Arc::clone(&self.shared), session.clone());
        self.asked.spawn(async move {
            renewal::confirm(&shared, &session).await;
            Done::Kept
        });
    }

    /// The node has stored a certificate, which may be the one that it has connected with.
    fn identity_held(&mut self, held: &IdentityHeld) {
        let Some(issuer) = self.outdated.held(held) else { return };
        let Some((session, _)) = &self.worker else { return };
        let (shared, session) = (Arc::clone(&self.shared), session.clone());
        self.asked.spawn(async move {
            renewal::keep_issuer(&shared, &session, issuer).await;
            Done::Kept
        });
    }

    fn certified(&mut self, answer: Result<Given, CertificateRefusal>) {
        let answer = answer.map(|given| {
            self.outdated.given(&given);
            given.issued
        });
        self.session.handle(CloudInput::Certificate(answer), clock::now());
    }

    /// The node wants a certificate for another key. The session lets it ask for one at a time.
    fn certify(&mut self, csr: Bytes) {
        let Some((session, _)) = &self.worker else { return };
        let now = clock::now();
        if renewal::is_early(self.asked_at, now) {
            let answer = CloudInput::Certificate(Err(renewal::too_early()));
            return self.session.handle(answer, now);
        }
        self.asked_at = Some(now);
        let (shared, session) = (Arc::clone(&self.shared), session.clone());
        let key = self.holder.key.clone();
        self.asked.spawn(async move {
            Done::Certificate(renewal::over_link(&shared, &session, &key, &csr).await)
        });
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Input(input) => self.session.handle(input, clock::now()),
            Command::Leave { input, until } => self.leaving = Some((input, until)),
            Command::OpenStream { kind, opened } => {
                let stream = self.session.open_stream(kind).map(|id| self.tunnels.open(id));
                // A caller that went away drops its stream, which closes it.
                drop(opened.send(stream));
            }
        }
    }

    async fn end(mut self, reason: String) {
        self.tunnels.lose("the link to the node is down");
        let Some((session, events)) = self.worker else {
            tracing::info!(node = %self.holder.node, peer = %self.peer, reason, "a connection ended before it was a session");
            return;
        };
        self.shared.sessions.remove(&session);
        tracing::info!(node = %self.holder.node, generation = session.generation, reason, "a session ended");
        for event in self.waiting {
            if events.send(event).await.is_err() {
                return;
            }
        }
        drop(events.send(SessionEvent::Lost { reason }).await);
    }
}

async fn reserve(
    worker: Option<&mpsc::Sender<SessionEvent>>,
) -> Option<mpsc::Permit<'_, SessionEvent>> {
    worker?.reserve().await.ok()
}
