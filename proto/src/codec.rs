//! Bytes to frames and back. Lengths are checked before anything is allocated for them.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::admission::Ticket;
use crate::digest::{Digest, Summary};
use crate::ids::{Kind, NodeName, ObjectKey, Uid};
use crate::object::{ContentHash, Version};
use crate::payload::{Encoding, Payload};
use crate::pb::{self, frame::Body};
use crate::stream::CHUNK_BYTES_MAX;
use crate::wire::{
    Beat, Bye, Frame, Health, Hello, Refusal, RefuseCode, ReportKey, StreamId, StreamKind, Welcome,
};

/// Longest frame: the largest object ([`crate::object::OBJECT_BYTES_MAX`]) with its key and some
/// room. What a WebSocket shell must accept, and no more.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Longest report, packed or not. A status of 100 containers has 60 KiB; etcd ends at 1.5 MiB.
pub const REPORT_BYTES_MAX: usize = 1024 * 1024;

/// Longest of all other frames: a Held of 256 usual entries has 30 KiB, a stream chunk 16.
pub const SMALL_FRAME_BYTES_MAX: usize = 64 * 1024;

/// Longest event: an API server's own limit for its message and annotations is far lower.
pub const EVENT_BYTES_MAX: usize = 32 * 1024;

/// Longest text for people; longer ones are cut when sent.
pub const REASON_LEN_MAX: usize = 1024;

/// Longest agent version, address, boot id or token source.
pub const TEXT_LEN_MAX: usize = 128;

/// Room for keys, versions and tags around a payload.
const ENVELOPE_BYTES_MAX: usize = 8 * 1024;

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Too many bytes for what they say they are.
    #[error("a frame with field {field} has {len} bytes, at most {max} are allowed")]
    TooLong {
        /// Field number in `frames.proto`.
        field: usize,
        /// Bytes.
        len: usize,
        /// Allowed for that field.
        max: usize,
    },
    /// Not a single length-delimited field.
    #[error("a frame of {len} bytes does not hold exactly one field")]
    Envelope {
        /// Bytes.
        len: usize,
    },
    /// A field that this version does not have.
    #[error("a frame holds field {field}, which protocol version 1 does not have")]
    UnknownFrame {
        /// Field number.
        field: usize,
    },
    /// Not protobuf.
    #[error("cannot decode a frame with field {field}")]
    Decode {
        /// Field number.
        field: usize,
        /// prost's word.
        #[source]
        source: prost::DecodeError,
    },
    /// Protobuf, but nonsense.
    #[error("a {frame} frame has a bad {field}")]
    BadField {
        /// Name of the frame.
        frame: &'static str,
        /// Name of the field.
        field: &'static str,
    },
}

/// Encodes `frame`.
pub fn encode(frame: &Frame) -> Bytes {
    pb::Frame { body: Some(body(frame)) }.encode_to_vec().into()
}

/// Decodes one WebSocket message.
pub fn decode(bytes: &Bytes) -> Result<Frame, CodecError> {
    let field = check_envelope(bytes)?;
    let frame =
        pb::Frame::decode(bytes.clone()).map_err(|source| CodecError::Decode { field, source })?;
    let body = frame.body.ok_or(CodecError::UnknownFrame { field })?;

    from_body(body)
}

/// The number of the only field, whose length is within its limit.
fn check_envelope(bytes: &Bytes) -> Result<usize, CodecError> {
    const LENGTH_DELIMITED: usize = 2;
    let envelope = || CodecError::Envelope { len: bytes.len() };
    let mut rest: &[u8] = bytes;
    // Tags and lengths are both varints.
    let tag = prost::decode_length_delimiter(&mut rest).map_err(|_| envelope())?;
    let len = prost::decode_length_delimiter(&mut rest).map_err(|_| envelope())?;
    if tag & 7 != LENGTH_DELIMITED || len != rest.len() {
        return Err(envelope());
    }
    let field = tag >> 3;
    let max = match field {
        PUT_FIELD => FRAME_BYTES_MAX,
        REPORT_FIELD => REPORT_BYTES_MAX + ENVELOPE_BYTES_MAX,
        _ => SMALL_FRAME_BYTES_MAX,
    };
    if bytes.len() > max {
        return Err(CodecError::TooLong { field, len: bytes.len(), max });
    }

    Ok(field)
}

/// In `frames.proto`.
const PUT_FIELD: usize = 10;
/// In `frames.proto`.
const REPORT_FIELD: usize = 20;

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// Cuts a text for people at [`REASON_LEN_MAX`].
fn cut(reason: &str) -> String {
    reason[..reason.floor_char_boundary(REASON_LEN_MAX)].to_owned()
}

fn body(frame: &Frame) -> Body {
    match frame {
        Frame::Hello(hello) => Body::Hello(hello.into()),
        Frame::Welcome(welcome) => Body::Welcome(welcome.into()),
        Frame::Refuse(refusal) => Body::Refuse(refusal.into()),
        Frame::Ping(Beat { nonce, health }) => {
            Body::Ping(pb::Ping { nonce: *nonce, health: health.map(Into::into) })
        }
        Frame::Pong(Beat { nonce, health }) => {
            Body::Pong(pb::Pong { nonce: *nonce, health: health.map(Into::into) })
        }
        Frame::Bye(Bye { reason, retry_after }) => {
            Body::Bye(pb::Bye { reason: cut(reason), retry_after_s: seconds(*retry_after) })
        }
        Frame::Put { seq, key, version, payload } => Body::Put(pb::Put {
            seq: *seq,
            key: Some(key.into()),
            version: Some(version.into()),
            payload: Some(payload.into()),
        }),
        Frame::Delete { seq, key, uid } => {
            Body::Delete(pb::Delete { seq: *seq, key: Some(key.into()), uid: uid.to_string() })
        }
        Frame::Ack { seqs } => Body::Ack(pb::Ack { seqs: seqs.clone() }),
        Frame::Nack { seq, reason } => Body::Nack(pb::Nack { seq: *seq, reason: cut(reason) }),
        Frame::ListHeld { request } => Body::ListHeld(pb::ListHeld { request: *request }),
        Frame::Held { request, entries, last } => {
            let entries = entries.iter().map(Into::into).collect();
            Body::Held(pb::Held { request: *request, entries, last: *last })
        }
        Frame::Synced => Body::Synced(pb::Synced {}),
        Frame::Report { seq, key, payload, done } => Body::Report(pb::Report {
            seq: *seq,
            key: Some(key.into()),
            payload: Some(payload.into()),
            done: *done,
        }),
        Frame::ReportAck { seq } => Body::ReportAck(pb::ReportAck { seq: *seq }),
        Frame::ReportNack { seq, reason, retry } => {
            Body::ReportNack(pb::ReportNack { seq: *seq, reason: cut(reason), retry: *retry })
        }
        Frame::Event { seq, bytes } => Body::Event(pb::Event { seq: *seq, bytes: bytes.clone() }),
        Frame::EventAck { seq } => Body::EventAck(pb::EventAck { seq: *seq }),
        Frame::StreamOpen { id, kind } => {
            Body::StreamOpen(pb::StreamOpen { id: id.0, kind: kind.0 })
        }
        Frame::StreamData { id, bytes, end } => {
            Body::StreamData(pb::StreamData { id: id.0, bytes: bytes.clone(), end: *end })
        }
        Frame::StreamCredit { id, bytes } => {
            Body::StreamCredit(pb::StreamCredit { id: id.0, bytes: *bytes })
        }
        Frame::StreamClose { id, reason } => {
            Body::StreamClose(pb::StreamClose { id: id.0, reason: cut(reason) })
        }
    }
}

/// Names the frame of a bad field.
struct In(&'static str);

impl In {
    fn some<T>(&self, value: Option<T>, field: &'static str) -> Result<T, CodecError> {
        value.ok_or(CodecError::BadField { frame: self.0, field })
    }

    fn uid(&self, uid: String) -> Result<Uid, CodecError> {
        self.some(Uid::new(uid).ok(), "uid")
    }

    fn key(&self, key: Option<pb::ObjectKey>) -> Result<ObjectKey, CodecError> {
        let key = key.and_then(|key| ObjectKey::from_parts(Kind::from_wire(key.kind)?, key.id));

        self.some(key, "key")
    }

    fn version(&self, version: Option<pb::Version>) -> Result<Version, CodecError> {
        let pb::Version { uid, epoch, revision, hash } = self.some(version, "version")?;
        let hash = self.some(hash.as_ref().try_into().ok(), "hash")?;

        Ok(Version { uid: self.uid(uid)?, epoch, revision, hash: ContentHash(hash) })
    }

    fn payload(&self, payload: Option<pb::Payload>) -> Result<Payload, CodecError> {
        let payload = self.some(payload, "payload")?;
        let encoding = match pb::Encoding::try_from(payload.encoding) {
            Ok(pb::Encoding::None) => Encoding::None,
            Ok(pb::Encoding::Zstd) => Encoding::Zstd,
            Err(_) => return Err(CodecError::BadField { frame: self.0, field: "encoding" }),
        };

        Ok(Payload { encoding, raw_len: payload.raw_len, bytes: payload.bytes })
    }

    fn report_key(&self, key: Option<pb::ReportKey>) -> Result<ReportKey, CodecError> {
        let pb::ReportKey { kind, uid, source } = self.some(key, "key")?;
        match pb::ReportKind::try_from(kind) {
            Ok(pb::ReportKind::PodStatus) => Ok(ReportKey::PodStatus(self.uid(uid)?)),
            Ok(pb::ReportKind::NodeStatus) => Ok(ReportKey::NodeStatus),
            Ok(pb::ReportKind::TokenWanted) => {
                let source = self.text(source, "source")?;
                Ok(ReportKey::TokenWanted { pod: self.uid(uid)?, source })
            }
            Ok(pb::ReportKind::Unspecified) | Err(_) => {
                Err(CodecError::BadField { frame: self.0, field: "kind" })
            }
        }
    }

    fn text(&self, text: String, field: &'static str) -> Result<String, CodecError> {
        self.some((text.len() <= TEXT_LEN_MAX).then_some(text), field)
    }

    fn bytes(&self, bytes: Bytes, max: usize) -> Result<Bytes, CodecError> {
        self.some((bytes.len() <= max).then_some(bytes), "bytes")
    }
}

fn from_body(body: Body) -> Result<Frame, CodecError> {
    Ok(match body {
        Body::Hello(hello) => Frame::Hello(hello_from(hello)?),
        Body::Welcome(welcome) => Frame::Welcome(welcome_from(welcome)?),
        Body::Refuse(refuse) => Frame::Refuse(refuse_from(&refuse)?),
        Body::Ping(pb::Ping { nonce, health }) => {
            Frame::Ping(Beat { nonce, health: health.map(Into::into) })
        }
        Body::Pong(pb::Pong { nonce, health }) => {
            Frame::Pong(Beat { nonce, health: health.map(Into::into) })
        }
        Body::Bye(pb::Bye { reason, retry_after_s }) => {
            let retry_after = Duration::from_secs(retry_after_s.into());
            Frame::Bye(Bye { reason: cut(&reason), retry_after })
        }
        Body::Put(pb::Put { seq, key, version, payload }) => {
            let put = In("Put");
            let (key, version) = (put.key(key)?, put.version(version)?);
            Frame::Put { seq, key, version, payload: put.payload(payload)? }
        }
        Body::Delete(pb::Delete { seq, key, uid }) => {
            let delete = In("Delete");
            Frame::Delete { seq, key: delete.key(key)?, uid: delete.uid(uid)? }
        }
        Body::Ack(pb::Ack { seqs }) => Frame::Ack { seqs },
        Body::Nack(pb::Nack { seq, reason }) => Frame::Nack { seq, reason: cut(&reason) },
        Body::ListHeld(pb::ListHeld { request }) => Frame::ListHeld { request },
        Body::Held(pb::Held { request, entries, last }) => {
            let entries = entries.into_iter().map(held_from).collect::<Result<_, _>>()?;
            Frame::Held { request, entries, last }
        }
        Body::Synced(pb::Synced {}) => Frame::Synced,
        Body::Report(pb::Report { seq, key, payload, done }) => {
            let report = In("Report");
            let (key, payload) = (report.report_key(key)?, report.payload(payload)?);
            Frame::Report { seq, key, payload, done }
        }
        Body::ReportAck(pb::ReportAck { seq }) => Frame::ReportAck { seq },
        Body::ReportNack(pb::ReportNack { seq, reason, retry }) => {
            Frame::ReportNack { seq, reason: cut(&reason), retry }
        }
        Body::Event(pb::Event { seq, bytes }) => {
            Frame::Event { seq, bytes: In("Event").bytes(bytes, EVENT_BYTES_MAX)? }
        }
        Body::EventAck(pb::EventAck { seq }) => Frame::EventAck { seq },
        Body::StreamOpen(pb::StreamOpen { id, kind }) => {
            Frame::StreamOpen { id: StreamId(id), kind: StreamKind(kind) }
        }
        Body::StreamData(pb::StreamData { id, bytes, end }) => {
            let bytes = In("StreamData").bytes(bytes, CHUNK_BYTES_MAX)?;
            Frame::StreamData { id: StreamId(id), bytes, end }
        }
        Body::StreamCredit(pb::StreamCredit { id, bytes }) => {
            Frame::StreamCredit { id: StreamId(id), bytes }
        }
        Body::StreamClose(pb::StreamClose { id, reason }) => {
            Frame::StreamClose { id: StreamId(id), reason: cut(&reason) }
        }
    })
}

fn hello_from(hello: pb::Hello) -> Result<Hello, CodecError> {
    let frame = In("Hello");
    let held = frame.some(hello.held, "held")?;
    let digest = frame.some(held.digest.as_ref().try_into().ok(), "digest")?;
    let ticket = if hello.ticket.is_empty() {
        None
    } else {
        Some(frame.some(Ticket::new(hello.ticket), "ticket")?)
    };

    Ok(Hello {
        protocol: hello.protocol,
        node: frame.some(NodeName::new(hello.node).ok(), "node")?,
        agent_version: frame.text(hello.agent_version, "agent_version")?,
        held: Summary {
            digest: Digest(digest),
            count: held.count,
            high_water: (held.epoch, held.revision),
        },
        ticket,
        node_ip: frame.text(hello.node_ip, "node_ip")?,
        boot_id: frame.text(hello.boot_id, "boot_id")?,
    })
}

fn welcome_from(welcome: pb::Welcome) -> Result<Welcome, CodecError> {
    let pb::Welcome { generation, ticket, epoch, server_time_ms } = welcome;
    let ticket = In("Welcome").some(Ticket::new(ticket), "ticket")?;

    Ok(Welcome { generation, ticket, epoch, server_time_ms })
}

fn refuse_from(refuse: &pb::Refuse) -> Result<Refusal, CodecError> {
    let code = RefuseCode::ALL.into_iter().find(|code| *code as i32 == refuse.code);

    Ok(Refusal {
        code: In("Refuse").some(code, "code")?,
        reason: cut(&refuse.reason),
        retry_after: Duration::from_secs(refuse.retry_after_s.into()),
    })
}

fn held_from(entry: pb::HeldEntry) -> Result<(ObjectKey, Version), CodecError> {
    let held = In("Held");

    Ok((held.key(entry.key)?, held.version(entry.version)?))
}

impl From<&Hello> for pb::Hello {
    fn from(hello: &Hello) -> Self {
        Self {
            protocol: hello.protocol,
            node: hello.node.to_string(),
            agent_version: hello.agent_version.clone(),
            held: Some(pb::Summary {
                digest: Bytes::copy_from_slice(&hello.held.digest.0),
                count: hello.held.count,
                epoch: hello.held.high_water.0,
                revision: hello.held.high_water.1,
            }),
            ticket: hello.ticket.as_ref().map(Ticket::as_bytes).cloned().unwrap_or_default(),
            node_ip: hello.node_ip.clone(),
            boot_id: hello.boot_id.clone(),
        }
    }
}

impl From<&Welcome> for pb::Welcome {
    fn from(welcome: &Welcome) -> Self {
        Self {
            generation: welcome.generation,
            ticket: welcome.ticket.as_bytes().clone(),
            epoch: welcome.epoch,
            server_time_ms: welcome.server_time_ms,
        }
    }
}

impl From<&Refusal> for pb::Refuse {
    fn from(refusal: &Refusal) -> Self {
        Self {
            code: refusal.code as i32,
            reason: cut(&refusal.reason),
            retry_after_s: seconds(refusal.retry_after),
        }
    }
}

impl From<Health> for pb::Health {
    fn from(health: Health) -> Self {
        Self {
            pod_loop_age_ms: health.pod_loop_age_ms,
            runtime_age_ms: health.runtime_age_ms,
            runtime_ok: health.runtime_ok,
        }
    }
}

impl From<pb::Health> for Health {
    fn from(health: pb::Health) -> Self {
        Self {
            pod_loop_age_ms: health.pod_loop_age_ms,
            runtime_age_ms: health.runtime_age_ms,
            runtime_ok: health.runtime_ok,
        }
    }
}

impl From<&ObjectKey> for pb::ObjectKey {
    fn from(key: &ObjectKey) -> Self {
        Self { kind: key.kind() as u32, id: key.id().to_owned() }
    }
}

impl From<&Version> for pb::Version {
    fn from(version: &Version) -> Self {
        Self {
            uid: version.uid.to_string(),
            epoch: version.epoch,
            revision: version.revision,
            hash: Bytes::copy_from_slice(&version.hash.0),
        }
    }
}

impl From<&(ObjectKey, Version)> for pb::HeldEntry {
    fn from((key, version): &(ObjectKey, Version)) -> Self {
        Self { key: Some(key.into()), version: Some(version.into()) }
    }
}

impl From<&Payload> for pb::Payload {
    fn from(payload: &Payload) -> Self {
        let encoding = match payload.encoding {
            Encoding::None => pb::Encoding::None,
            Encoding::Zstd => pb::Encoding::Zstd,
        };

        Self { encoding: encoding.into(), raw_len: payload.raw_len, bytes: payload.bytes.clone() }
    }
}

impl From<&ReportKey> for pb::ReportKey {
    fn from(key: &ReportKey) -> Self {
        let (kind, uid, source) = match key {
            ReportKey::PodStatus(uid) => (pb::ReportKind::PodStatus, uid.to_string(), ""),
            ReportKey::NodeStatus => (pb::ReportKind::NodeStatus, String::new(), ""),
            ReportKey::TokenWanted { pod, source } => {
                (pb::ReportKind::TokenWanted, pod.to_string(), source.as_str())
            }
        };

        Self { kind: kind.into(), uid, source: source.to_owned() }
    }
}
