//! Protobuf messages to frames: every field is checked here.

use std::time::Duration;

use bytes::Bytes;

use crate::admission::Ticket;
use crate::codec::{
    AUTHORITIES_MAX, CERTIFICATE_BYTES_MAX, CodecError, EVENT_BYTES_MAX, TEXT_LEN_MAX, cut,
};
use crate::digest::{Digest, HighWater, Summary};
use crate::ids::{Kind, NodeName, ObjectKey, Uid};
use crate::object::{ContentHash, Point, Version};
use crate::payload::{Encoding, Payload};
use crate::pb::{self, frame::Body};
use crate::stream::CHUNK_BYTES_MAX;
use crate::wire::{
    Beat, Bye, CertificateRefusal, Features, Fingerprint, Frame, Health, Hello, IdentityHeld,
    Issued, Refusal, RefuseCode, ReportKey, StreamId, StreamKind, Welcome,
};

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

    fn point(&self, point: Option<pb::Point>) -> Result<Point, CodecError> {
        let pb::Point { epoch, revision } = self.some(point, "point")?;

        Ok(Point { epoch, revision })
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
            Ok(pb::ReportKind::StaticPods) => Ok(ReportKey::StaticPods),
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

pub(super) fn from_body(body: Body) -> Result<Frame, CodecError> {
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
        Body::TicketHeld(pb::TicketHeld {}) => Frame::TicketHeld,
        Body::CertificateWanted(pb::CertificateWanted { csr_der }) => {
            let csr = In("CertificateWanted").bytes(csr_der, CERTIFICATE_BYTES_MAX)?;
            Frame::CertificateWanted { csr }
        }
        Body::CertificateIssued(issued) => Frame::CertificateIssued(issued_from(issued)?),
        Body::CertificateRefused(pb::CertificateRefused { reason, retry_after_s }) => {
            let retry_after = Duration::from_secs(retry_after_s.into());
            Frame::CertificateRefused(CertificateRefusal { reason: cut(&reason), retry_after })
        }
        Body::IdentityHeld(held) => Frame::IdentityHeld(identity_from(&held)?),
        Body::CertificateOutdated(pb::CertificateOutdated {}) => Frame::CertificateOutdated,
        Body::Put(pb::Put { seq, key, version, payload }) => {
            let put = In("Put");
            let (key, version) = (put.key(key)?, put.version(version)?);
            Frame::Put { seq, key, version, payload: put.payload(payload)? }
        }
        Body::Delete(pb::Delete { seq, key, uid, gone_at }) => {
            let delete = In("Delete");
            let (key, uid) = (delete.key(key)?, delete.uid(uid)?);
            Frame::Delete { seq, key, uid, gone_at: delete.point(gone_at)? }
        }
        Body::Ack(pb::Ack { seqs }) => Frame::Ack { seqs },
        Body::Nack(pb::Nack { seq, reason }) => Frame::Nack { seq, reason: cut(&reason) },
        Body::ListHeld(pb::ListHeld { request }) => Frame::ListHeld { request },
        Body::Held(pb::Held { request, entries, last }) => {
            let known = entries.into_iter().filter(is_known);
            let entries = known.map(held_from).collect::<Result<_, _>>()?;
            Frame::Held { request, entries, last }
        }
        Body::Synced(pb::Synced {}) => Frame::Synced,
        Body::Report(report) => report_from(report)?,
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
    let mut high_water = HighWater::default();
    for mark in held.high_water {
        // A newer cloud has taken the edge further than this one can follow.
        let Some(kind) = Kind::from_wire(mark.kind) else { continue };
        high_water.raise(kind, frame.point(mark.point)?);
    }
    let ticket = if hello.ticket.is_empty() {
        None
    } else {
        Some(frame.some(Ticket::new(hello.ticket), "ticket")?)
    };

    Ok(Hello {
        protocol: hello.protocol,
        node: frame.some(NodeName::new(hello.node).ok(), "node")?,
        agent_version: frame.text(hello.agent_version, "agent_version")?,
        held: Summary { digest: Digest(digest), count: held.count, high_water },
        ticket,
        node_ip: frame.text(hello.node_ip, "node_ip")?,
        boot_id: frame.text(hello.boot_id, "boot_id")?,
        kinds: hello.kinds,
        features: Features(hello.features),
    })
}

fn welcome_from(welcome: pb::Welcome) -> Result<Welcome, CodecError> {
    let pb::Welcome { generation, ticket, epoch, server_time_ms, features } = welcome;
    let ticket = In("Welcome").some(Ticket::new(ticket), "ticket")?;
    let features = Features(features);

    Ok(Welcome { generation, ticket, epoch, server_time_ms, features })
}

fn issued_from(issued: pb::CertificateIssued) -> Result<Issued, CodecError> {
    let frame = In("CertificateIssued");
    let pb::CertificateIssued { certificate_der, ca_der } = issued;
    let ca_der = frame.some((ca_der.len() <= AUTHORITIES_MAX).then_some(ca_der), "ca_der")?;
    let authorities = ca_der.into_iter().map(|der| frame.bytes(der, CERTIFICATE_BYTES_MAX));

    Ok(Issued {
        certificate: frame.bytes(certificate_der, CERTIFICATE_BYTES_MAX)?,
        authorities: authorities.collect::<Result<_, _>>()?,
    })
}

fn identity_from(held: &pb::IdentityHeld) -> Result<IdentityHeld, CodecError> {
    let frame = In("IdentityHeld");
    let pb::IdentityHeld { certificate, authorities } = held;
    let print =
        |bytes: &Bytes, field| frame.some(bytes.as_ref().try_into().ok().map(Fingerprint), field);
    let few = (authorities.len() <= AUTHORITIES_MAX).then_some(authorities);
    let authorities = frame.some(few, "authorities")?.iter();

    Ok(IdentityHeld {
        certificate: print(certificate, "certificate")?,
        authorities: authorities.map(|der| print(der, "authorities")).collect::<Result<_, _>>()?,
    })
}

/// A report of a kind that only a newer edge knows is to be answered, not to end the link.
fn report_from(report: pb::Report) -> Result<Frame, CodecError> {
    let frame = In("Report");
    let pb::Report { seq, key, payload, done } = report;
    let kind = key.as_ref().map_or(0, |key| key.kind);
    if pb::ReportKind::try_from(kind).is_err() {
        return Ok(Frame::UnknownReport { seq, kind: kind.cast_unsigned() });
    }
    let (key, payload) = (frame.report_key(key)?, frame.payload(payload)?);

    Ok(Frame::Report { seq, key, payload, done })
}

fn refuse_from(refuse: &pb::Refuse) -> Result<Refusal, CodecError> {
    let code = RefuseCode::ALL.into_iter().find(|code| *code as i32 == refuse.code);

    Ok(Refusal {
        code: In("Refuse").some(code, "code")?,
        reason: cut(&refuse.reason),
        retry_after: Duration::from_secs(refuse.retry_after_s.into()),
    })
}

/// What a newer cloud has left is none of this one's business.
fn is_known(entry: &pb::HeldEntry) -> bool {
    entry.key.as_ref().is_none_or(|key| key.kind == 0 || Kind::from_wire(key.kind).is_some())
}

fn held_from(entry: pb::HeldEntry) -> Result<(ObjectKey, Version), CodecError> {
    let held = In("Held");

    Ok((held.key(entry.key)?, held.version(entry.version)?))
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
