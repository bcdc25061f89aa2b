//! A node that has joined as others do, and then says on its link what it should not: frames are sent as they
//! are given, and nothing is run.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use proto::codec;
use proto::digest::{Digest, Summary};
use proto::ids::{KINDS_UNSAID, NodeName, ObjectKey};
use proto::object::Version;
use proto::payload::Payload;
use proto::wire::{Beat, Features, Frame, Hello, PROTOCOL_VERSION, Refusal, ReportKey, Seq};
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::Message;

use crate::joining::{self, Socket};

/// How long an answer may take: cloudcore asks the API server.
const ANSWER_MAX: Duration = Duration::from_mins(1);

/// Said while nothing else is: cloudcore gives up a silent link after 30 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// The node. Its link ends when it is dropped.
pub struct Impostor {
    socket: Socket,
    seq: Seq,
    /// What it was sent: objects that a node holds.
    pub sent: Vec<ObjectKey>,
}

/// What an impostor is.
#[derive(Clone)]
pub struct Identity {
    /// The name that it has joined under.
    pub node: NodeName,
    cloudcore: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Identity {
    /// Joins with a token, from an address of this machine.
    pub async fn join(
        node: &str,
        from: Ipv4Addr,
        (cloudcore, token): (SocketAddr, &str),
        roots: &RootCertStore,
    ) -> Result<Self> {
        let node = NodeName::new(node)?;
        let tls = joining::join(from, &node, (cloudcore, token), roots).await?;

        Ok(Self { node, cloudcore, tls })
    }

    /// Opens a link and says who it is, which may be somebody else; answers how it was refused if it was.
    async fn hello(&self, hello: Hello) -> Result<Result<Impostor, Refusal>> {
        let socket = joining::open(self.cloudcore, Arc::clone(&self.tls)).await?;
        let mut impostor = Impostor { socket, seq: 0, sent: Vec::new() };
        impostor.send(Frame::Hello(hello)).await?;
        let answer = impostor.next().await?;
        if let Frame::Refuse(refusal) = answer {
            return Ok(Err(refusal));
        }
        let name = answer.name();
        ensure!(matches!(answer, Frame::Welcome(_)), "a {name} came as an answer to Hello");

        Ok(Ok(impostor))
    }

    /// How it is refused if it says that it is another node.
    pub async fn refused_as(&self, other: &str) -> Result<Refusal> {
        let hello = hello(NodeName::new(other)?);

        self.hello(hello).await?.err().context("it was admitted as another node")
    }

    /// A session in which it says that it holds these objects, once it is in sync.
    pub async fn connect(&self, holds: Vec<(ObjectKey, Version)>) -> Result<Impostor> {
        let mut hello = hello(self.node.clone());
        // No set of objects has this digest: cloudcore asks what it holds.
        hello.held = Summary { digest: Digest([0xA5; 16]), count: 1, ..Summary::default() };
        let admitted = self.hello(hello).await?;
        let mut impostor = admitted.map_err(|refusal| anyhow!("refused: {refusal:?}"))?;
        let mut holds = Some(holds);
        loop {
            let frame = impostor.next().await?;
            if let Frame::ListHeld { request } = frame {
                let entries = holds.take().unwrap_or_default();
                impostor.send(Frame::Held { request, entries, last: true }).await?;
            } else if matches!(frame, Frame::Synced) {
                return Ok(impostor);
            }
        }
    }
}

fn hello(node: NodeName) -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        node,
        agent_version: "impostor".to_owned(),
        held: Summary::default(),
        ticket: None,
        node_ip: "192.0.2.66".to_owned(),
        boot_id: String::new(),
        kinds: KINDS_UNSAID,
        features: Features::OURS,
    }
}

impl Impostor {
    /// Sends a frame, whatever it is.
    pub async fn send(&mut self, frame: Frame) -> Result<()> {
        Ok(self.socket.send(Message::Binary(codec::encode(&frame))).await?)
    }

    /// The next frame. Changes are acknowledged and pings answered by the way.
    pub async fn next(&mut self) -> Result<Frame> {
        let deadline = Instant::now() + ANSWER_MAX;
        while Instant::now() < deadline {
            let Ok(message) = timeout(PING_INTERVAL, self.socket.next()).await else {
                self.send(Frame::Ping(Beat::default())).await?;
                continue;
            };
            let Message::Binary(bytes) = message.context("the link ended")?? else { continue };
            let frame = codec::decode(&bytes)?;
            if let Frame::Put { seq, key, .. } = frame {
                self.sent.push(key);
                self.send(Frame::Ack { seqs: vec![seq] }).await?;
            } else if let Frame::Delete { seq, .. } = frame {
                self.send(Frame::Ack { seqs: vec![seq] }).await?;
            } else if let Frame::Ping(beat) = frame {
                self.send(Frame::Pong(beat)).await?;
            } else if !matches!(frame, Frame::Pong(_)) {
                return Ok(frame);
            }
        }

        bail!("nothing came within {ANSWER_MAX:?}")
    }

    /// As [`Self::next`], of a session that is to go on.
    async fn next_in_session(&mut self) -> Result<Frame> {
        let frame = self.next().await?;
        if let Frame::Refuse(refusal) = &frame {
            bail!("the session was ended: {refusal:?}");
        }
        if let Frame::Bye(bye) = &frame {
            bail!("the session was ended: {}", bye.reason);
        }

        Ok(frame)
    }

    /// What a report comes to: nothing if it was taken, or why it was not and whether to try again.
    pub async fn report(&mut self, key: ReportKey, json: &Value) -> Result<Option<(String, bool)>> {
        self.report_with(key, json, false).await
    }

    /// As [`Self::report`], of something of which the node has nothing left.
    pub async fn report_done(
        &mut self,
        key: ReportKey,
        json: &Value,
    ) -> Result<Option<(String, bool)>> {
        self.report_with(key, json, true).await
    }

    async fn report_with(
        &mut self,
        key: ReportKey,
        json: &Value,
        done: bool,
    ) -> Result<Option<(String, bool)>> {
        self.seq += 1;
        let (asked, payload) = (self.seq, Payload::pack(&Bytes::from(json.to_string())));
        self.send(Frame::Report { seq: asked, key, payload, done }).await?;
        loop {
            let frame = self.next_in_session().await?;
            if frame == (Frame::ReportAck { seq: asked }) {
                return Ok(None);
            }
            if let Frame::ReportNack { seq, reason, retry } = frame
                && seq == asked
            {
                return Ok(Some((reason, retry)));
            }
        }
    }

    /// Says an Event, and waits until cloudcore is through with it.
    pub async fn event(&mut self, json: &Value) -> Result<()> {
        self.seq += 1;
        let (asked, bytes) = (self.seq, Bytes::from(json.to_string()));
        self.send(Frame::Event { seq: asked, bytes }).await?;
        while self.next_in_session().await? != (Frame::EventAck { seq: asked }) {}

        Ok(())
    }

    /// Asks for a certificate; why there is none.
    pub async fn certificate_refused(&mut self, csr: &[u8]) -> Result<String> {
        self.send(Frame::CertificateWanted { csr: Bytes::copy_from_slice(csr) }).await?;
        loop {
            let frame = self.next_in_session().await?;
            ensure!(!matches!(frame, Frame::CertificateIssued(_)), "it was given a certificate");
            if let Frame::CertificateRefused(refusal) = frame {
                return Ok(refusal.reason);
            }
        }
    }

    /// Waits until cloudcore has ended the link for what was said; what it said last.
    pub async fn until_ended(mut self) -> String {
        let mut said = String::new();
        while let Ok(frame) = self.next().await {
            if let Frame::Bye(bye) = frame {
                said = bye.reason;
            }
        }

        said
    }
}
