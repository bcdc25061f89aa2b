//! Frames to protobuf messages.

use bytes::Bytes;

use crate::admission::Ticket;
use crate::codec::{cut, seconds};
use crate::ids::{Kind, ObjectKey};
use crate::object::{Point, Version};
use crate::payload::{Encoding, Payload};
use crate::pb::{self, frame::Body};
use crate::wire::{
    Beat, Bye, CertificateRefusal, Fingerprint, Frame, Health, Hello, IdentityHeld, Issued,
    Refusal, ReportKey, Seq, Welcome,
};

pub(super) fn body(frame: &Frame) -> Body {
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
        Frame::TicketHeld => Body::TicketHeld(pb::TicketHeld {}),
        Frame::CertificateWanted { csr } => {
            Body::CertificateWanted(pb::CertificateWanted { csr_der: csr.clone() })
        }
        Frame::CertificateIssued(issued) => Body::CertificateIssued(issued.into()),
        Frame::CertificateRefused(refusal) => Body::CertificateRefused(refusal.into()),
        Frame::IdentityHeld(held) => Body::IdentityHeld(held.into()),
        Frame::CertificateOutdated => Body::CertificateOutdated(pb::CertificateOutdated {}),
        Frame::Put { seq, key, version, payload } => Body::Put(pb::Put {
            seq: *seq,
            key: Some(key.into()),
            version: Some(version.into()),
            payload: Some(payload.into()),
        }),
        Frame::Delete { seq, key, uid, gone_at } => Body::Delete(pb::Delete {
            seq: *seq,
            key: Some(key.into()),
            uid: uid.to_string(),
            gone_at: Some((*gone_at).into()),
        }),
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
        Frame::UnknownReport { seq, kind } => Body::Report(unknown_report(*seq, *kind)),
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

fn unknown_report(seq: Seq, kind: u32) -> pb::Report {
    let kind = kind.cast_signed();
    let key = pb::ReportKey { kind, uid: String::new(), source: String::new() };

    pb::Report { seq, key: Some(key), payload: None, done: false }
}

impl From<&Issued> for pb::CertificateIssued {
    fn from(issued: &Issued) -> Self {
        let Issued { certificate, authorities } = issued.clone();

        Self { certificate_der: certificate, ca_der: authorities }
    }
}

impl From<&IdentityHeld> for pb::IdentityHeld {
    fn from(held: &IdentityHeld) -> Self {
        let bytes = |print: &Fingerprint| Bytes::copy_from_slice(&print.0);

        Self {
            certificate: bytes(&held.certificate),
            authorities: held.authorities.iter().map(bytes).collect(),
        }
    }
}

impl From<&CertificateRefusal> for pb::CertificateRefused {
    fn from(refusal: &CertificateRefusal) -> Self {
        Self { reason: cut(&refusal.reason), retry_after_s: seconds(refusal.retry_after) }
    }
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
                high_water: hello.held.high_water.iter().map(Into::into).collect(),
            }),
            ticket: hello.ticket.as_ref().map(Ticket::as_bytes).cloned().unwrap_or_default(),
            node_ip: hello.node_ip.clone(),
            boot_id: hello.boot_id.clone(),
            kinds: hello.kinds,
            features: hello.features.0,
        }
    }
}

impl From<(Kind, Point)> for pb::Mark {
    fn from((kind, point): (Kind, Point)) -> Self {
        Self { kind: kind as u32, point: Some(point.into()) }
    }
}

impl From<Point> for pb::Point {
    fn from(Point { epoch, revision }: Point) -> Self {
        Self { epoch, revision }
    }
}

impl From<&Welcome> for pb::Welcome {
    fn from(welcome: &Welcome) -> Self {
        Self {
            generation: welcome.generation,
            ticket: welcome.ticket.as_bytes().clone(),
            epoch: welcome.epoch,
            server_time_ms: welcome.server_time_ms,
            features: welcome.features.0,
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
            ReportKey::StaticPods => (pb::ReportKind::StaticPods, String::new(), ""),
            ReportKey::PodStatus(uid) => (pb::ReportKind::PodStatus, uid.to_string(), ""),
            ReportKey::NodeStatus => (pb::ReportKind::NodeStatus, String::new(), ""),
            ReportKey::TokenWanted { pod, source } => {
                (pb::ReportKind::TokenWanted, pod.to_string(), source.as_str())
            }
        };

        Self { kind: kind.into(), uid, source: source.to_owned() }
    }
}
