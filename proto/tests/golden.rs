//! Frames of every released protocol version decode to what they meant then, and encode to the
//! same bytes. A file is added for each new frame, never edited.
//!
//! `HOLDFAST_WRITE_GOLDEN=1` writes the files that are missing.

#![expect(clippy::unwrap_used, reason = "this crate is one test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use proto::admission::Ticket;
use proto::codec;
use proto::digest::{Digest, HighWater, Summary};
use proto::ids::{Kind, NodeName, ObjectKey, Uid};
use proto::object::{ContentHash, Point, Version};
use proto::payload::{Encoding, Payload};
use proto::wire::{
    Beat, Bye, CertificateRefusal, Features, Fingerprint, Frame, Health, Hello, IdentityHeld,
    Issued, Refusal, RefuseCode, ReportKey, StreamId, StreamKind, Welcome,
};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

fn uid() -> Uid {
    Uid::new("6f2c1a34-0d7e-4b7b-9f53-5f3c1d2e4a5b").unwrap()
}

fn ticket() -> Ticket {
    Ticket::new((0..56).collect::<Vec<u8>>()).unwrap()
}

fn version() -> Version {
    Version { uid: uid(), epoch: 2, revision: 300_123, hash: ContentHash([0xa5; 16]) }
}

fn plain(text: &'static str) -> Payload {
    Payload::pack(&Bytes::from_static(text.as_bytes()))
}

/// Compressed once and kept: another zstd may compress otherwise, and must read this.
fn zstd_payload() -> Payload {
    let bytes = fs::read(folder().join("payload.zst")).expect("it is committed");

    Payload { encoding: Encoding::Zstd, raw_len: 2400, bytes: bytes.into() }
}

fn control() -> Vec<(&'static str, Frame)> {
    let mut high_water = HighWater::default();
    high_water.raise(Kind::Pod, Point { epoch: 2, revision: 300_123 });
    high_water.raise(Kind::Secret, Point { epoch: 1, revision: 77 });
    let held = Summary { digest: Digest([0x3c; 16]), count: 12, high_water };
    let hello = Hello {
        protocol: 1,
        node: NodeName::new("edge-node").unwrap(),
        agent_version: "0.1.0".to_owned(),
        held,
        ticket: Some(ticket()),
        node_ip: "192.168.7.20".to_owned(),
        boot_id: "0f9a8f5e-53c5-4b0e-8f63-0d4f3a2c1b00".to_owned(),
        kinds: 0,
        features: Features::default(),
    };
    let kinds = Hello { kinds: 9, ..hello.clone() };
    let features = Hello { kinds: 9, features: Features(3), ..hello.clone() };
    let joined = Hello { held: Summary::default(), ticket: None, ..hello.clone() };
    let (epoch, server_time_ms) = (2, 1_787_000_000_123);
    let health = Health { pod_loop_age_ms: 15, runtime_age_ms: 2100, runtime_ok: true };
    let refusal = |code: RefuseCode| {
        let retry_after = Duration::from_mins(1);
        Frame::Refuse(Refusal { code, reason: "join it by token".to_owned(), retry_after })
    };

    let welcome = Welcome {
        generation: 41,
        ticket: ticket(),
        epoch,
        server_time_ms,
        features: Features::default(),
    };
    let able = Welcome { features: Features(3), ..welcome.clone() };

    vec![
        ("hello", Frame::Hello(hello)),
        ("hello-joined", Frame::Hello(joined)),
        ("hello-kinds", Frame::Hello(kinds)),
        ("hello-features", Frame::Hello(features)),
        ("welcome", Frame::Welcome(welcome)),
        ("welcome-features", Frame::Welcome(able)),
        ("refuse-bad-protocol", refusal(RefuseCode::BadProtocol)),
        ("refuse-unknown-node", refusal(RefuseCode::UnknownNode)),
        ("refuse-stale-ticket", refusal(RefuseCode::StaleTicket)),
        ("refuse-revoked", refusal(RefuseCode::Revoked)),
        ("refuse-superseded", refusal(RefuseCode::Superseded)),
        ("refuse-not-ready", refusal(RefuseCode::NotReady)),
        ("ping-edge", Frame::Ping(Beat { nonce: 7, health: Some(health) })),
        ("ping-cloud", Frame::Ping(Beat { nonce: 7, health: None })),
        ("pong-edge", Frame::Pong(Beat { nonce: 7, health: Some(Health::default()) })),
        ("pong-cloud", Frame::Pong(Beat { nonce: 300, health: None })),
        (
            "bye",
            Frame::Bye(Bye { reason: "upgrade".to_owned(), retry_after: Duration::from_secs(5) }),
        ),
    ]
}

fn identity() -> Vec<(&'static str, Frame)> {
    let der = |text: &'static str| Bytes::from_static(text.as_bytes());
    let issued = |authorities| Issued { certificate: der("certificate"), authorities };
    let print = |byte| Fingerprint([byte; 32]);
    let held = |authorities| IdentityHeld { certificate: print(7), authorities };
    let (reason, retry_after) = ("the session is over".to_owned(), Duration::from_secs(30));

    vec![
        ("ticket-held", Frame::TicketHeld),
        ("certificate-wanted", Frame::CertificateWanted { csr: der("request") }),
        ("certificate-issued", Frame::CertificateIssued(issued(vec![]))),
        ("certificate-issued-two", Frame::CertificateIssued(issued(vec![der("old"), der("new")]))),
        (
            "certificate-refused",
            Frame::CertificateRefused(CertificateRefusal { reason, retry_after }),
        ),
        ("identity-held", Frame::IdentityHeld(held(vec![]))),
        ("identity-held-two", Frame::IdentityHeld(held(vec![print(1), print(2)]))),
        ("certificate-outdated", Frame::CertificateOutdated),
    ]
}

fn desired() -> Vec<(&'static str, Frame)> {
    let pod = ObjectKey::pod(&uid());
    let config = ObjectKey::named(Kind::ConfigMap, "default", "kube-root-ca.crt");
    let service = ObjectKey::named(Kind::Service, "default", "kubernetes");
    let secret = ObjectKey::named(Kind::Secret, "shop", "db");
    let node = ObjectKey::node(&NodeName::new("edge-node").unwrap());
    let token = ObjectKey::token(&uid(), "9d3f");
    let entries = [&pod, &config, &service, &secret, &node, &token]
        .map(|key| (key.clone(), version()))
        .to_vec();
    let claim = ObjectKey::named(Kind::PersistentVolumeClaim, "shop", "data");
    let volume = ObjectKey::in_cluster(Kind::PersistentVolume, "disk-1");
    let class = ObjectKey::in_cluster(Kind::RuntimeClass, "kata");
    let later = [&claim, &volume, &class].map(|key| (key.clone(), version())).to_vec();
    let put = |key: &ObjectKey, payload| {
        let key = key.clone();
        Frame::Put { seq: 9, key, version: version(), payload }
    };

    vec![
        ("put-plain", put(&pod, plain(r#"{"kind":"Pod"}"#))),
        ("put-zstd", put(&config, zstd_payload())),
        ("put-claim", put(&claim, plain(r#"{"kind":"PersistentVolumeClaim"}"#))),
        ("put-volume", put(&volume, plain(r#"{"kind":"PersistentVolume"}"#))),
        (
            "delete",
            Frame::Delete {
                seq: 10,
                key: pod,
                uid: uid(),
                gone_at: Point { epoch: 2, revision: 300_200 },
            },
        ),
        ("ack", Frame::Ack { seqs: vec![1, 2, 300, 70_000] }),
        ("ack-none", Frame::Ack { seqs: vec![] }),
        ("nack", Frame::Nack { seq: 9, reason: "disk full".to_owned() }),
        ("list-held", Frame::ListHeld { request: 3 }),
        ("held", Frame::Held { request: 3, entries, last: false }),
        ("held-volumes", Frame::Held { request: 3, entries: later, last: false }),
        ("held-none", Frame::Held { request: 3, entries: vec![], last: true }),
        ("synced", Frame::Synced),
    ]
}

fn status() -> Vec<(&'static str, Frame)> {
    let report = |key, payload, done| Frame::Report { seq: 5, key, payload, done };
    let token = ReportKey::TokenWanted { pod: uid(), source: "9d3f".to_owned() };
    let reason = "the API server is away".to_owned();

    vec![
        ("report-pod", report(ReportKey::PodStatus(uid()), plain(r#"{"phase":"Running"}"#), false)),
        ("report-pod-done", report(ReportKey::PodStatus(uid()), zstd_payload(), true)),
        ("report-node", report(ReportKey::NodeStatus, plain("{}"), false)),
        ("report-token", report(token, plain("{}"), false)),
        ("report-static-pods", report(ReportKey::StaticPods, plain(r#"[{"kind":"Pod"}]"#), false)),
        ("report-unknown", Frame::UnknownReport { seq: 5, kind: 99 }),
        ("report-ack", Frame::ReportAck { seq: 5 }),
        ("report-retry", Frame::ReportNack { seq: 5, reason: reason.clone(), retry: true }),
        ("report-refused", Frame::ReportNack { seq: 5, reason, retry: false }),
        ("event", Frame::Event { seq: 6, bytes: Bytes::from_static(b"{\"reason\":\"Pulled\"}") }),
        ("event-ack", Frame::EventAck { seq: 6 }),
    ]
}

fn streams() -> Vec<(&'static str, Frame)> {
    let id = StreamId(12);
    let bytes = Bytes::from_static(b"GET /containerLogs/default/web/web HTTP/1.1\r\n\r\n");

    vec![
        ("stream-open", Frame::StreamOpen { id, kind: StreamKind::KUBELET_API }),
        ("stream-data", Frame::StreamData { id, bytes, end: false }),
        ("stream-end", Frame::StreamData { id, bytes: Bytes::new(), end: true }),
        ("stream-credit", Frame::StreamCredit { id, bytes: 32_768 }),
        ("stream-close", Frame::StreamClose { id, reason: "client gone".to_owned() }),
    ]
}

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().fold(String::new(), |s, b| s + &format!("{b:02x}"));

    bytes.chunks(32).map(|chunk| line(chunk) + "\n").collect()
}

fn unhex(text: &str) -> Bytes {
    let digits: Vec<_> = text.chars().filter_map(|c| c.to_digit(16)).collect();

    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
}

#[test]
fn every_frame_of_version_1_is_read_and_written_as_ever() {
    let frames = [control(), identity(), desired(), status(), streams()].concat();
    let write = std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some();
    let mut seen = BTreeSet::new();
    for (name, frame) in frames {
        let path = folder().join(format!("{name}.hex"));
        if write && !path.exists() {
            fs::write(&path, hex(&codec::encode(&frame))).unwrap();
        }
        let golden = unhex(&fs::read_to_string(&path).expect(name));
        assert_eq!(codec::decode(&golden).expect(name), frame, "{name} has another meaning");
        assert_eq!(codec::encode(&frame), golden, "{name} has other bytes");
        seen.insert(format!("{name}.hex"));
    }
    seen.insert("payload.zst".to_owned());
    let files = fs::read_dir(folder()).unwrap();
    let files: BTreeSet<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, seen, "every file has its meaning here");
    // Every kind of frame is among them.
    assert!(seen.len() > 35);
}

#[test]
fn the_compressed_payload_can_be_read() {
    let raw = zstd_payload().unpack(4096).unwrap();
    assert_eq!(raw, b"holdfast ".repeat(300)[..2400]);
}
