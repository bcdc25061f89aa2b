//! What the cloud makes of an edge that breaks the rules.

use super::*;
use crate::codec::{self, REPORT_BYTES_MAX};
use crate::digest::{HELD_OBJECTS_MAX, Summary};
use crate::payload::{Encoding, Payload};
use crate::session::{CloseReason, REPORTS_IN_FLIGHT_MAX};
use crate::stream::{STREAMS_MAX, WINDOW_BYTES};
use crate::wire::{Features, Hello, RefuseCode, StreamId, StreamKind};

fn hello(protocol: u32) -> Frame {
    hello_of(protocol, 0)
}

fn hello_of(protocol: u32, kinds: u32) -> Frame {
    Frame::Hello(Hello {
        protocol,
        node: NodeName::new("edge-1").unwrap(),
        agent_version: String::new(),
        held: Summary::default(),
        ticket: None,
        node_ip: String::new(),
        boot_id: String::new(),
        kinds,
        features: Features::default(),
    })
}

/// Feeds frames to a cloud session that is up; returns the text of its goodbye.
fn check(frames: impl IntoIterator<Item = Frame>, expected: &str) {
    let mut pair = Pair::up();
    for frame in frames {
        pair.cloud_input(CloudInput::Received(frame));
    }
    let said = std::iter::from_fn(|| pair.cloud.poll_send())
        .find_map(|frame| match frame {
            Frame::Bye(bye) => Some(bye.reason),
            _ => None,
        })
        .unwrap_or_default();
    assert!(said.contains(expected), "{said:?} does not say {expected:?}");
    pair.cloud_outputs();
    assert!(matches!(pair.cloud_said.last(), Some(CloudOutput::Close(CloseReason::Protocol(_)))));
}

fn report(seq: u64, payload: Payload) -> Frame {
    Frame::Report { seq, key: ReportKey::NodeStatus, payload, done: false }
}

#[test]
fn every_broken_rule_is_named() {
    let empty = Payload::pack(&Bytes::new());
    check([hello(1)], "a Hello frame came from the edge, on a link that is up");
    check([Frame::Synced], "a Synced frame came from the edge");
    check(
        (0..=REPORTS_IN_FLIGHT_MAX as u64).map(|seq| report(seq, empty.clone())),
        "more reports or events came than may await an answer",
    );
    check([report(1, empty.clone()), report(1, empty.clone())], "await an answer");
    let bomb = Payload { encoding: Encoding::Zstd, raw_len: u32::MAX, bytes: Bytes::new() };
    check([report(1, bomb)], "4294967295 bytes is announced, at most 1048576");
    assert_eq!(REPORT_BYTES_MAX, 1_048_576);
}

#[test]
fn a_message_that_is_no_frame_is_named() {
    let mut pair = Pair::up();
    let error = codec::decode(&Bytes::from_static(&[0xff; 9])).unwrap_err();
    pair.cloud_input(CloudInput::Malformed(error));
    let Some(Frame::Bye(bye)) = pair.cloud.poll_send() else { panic!("no goodbye") };
    assert_eq!(
        bye.reason,
        "a message is not a frame: a frame of 9 bytes does not hold exactly one field"
    );
}

#[test]
fn a_list_without_end_is_cut_off() {
    let mut pair = Pair::up();
    let wanted = vec![config("a", "u", 1)];
    pair.cloud_input(CloudInput::Sync { wanted });
    for n in 0..=HELD_OBJECTS_MAX / 256 {
        let entries = (0..256)
            .map(|m| config(&format!("c{n}-{m}"), "u", 1))
            .map(|object| (object.key.clone(), object.version.clone()))
            .collect();
        let frame = Frame::Held { request: 1, entries, last: false };
        pair.cloud_input(CloudInput::Received(frame));
    }
    pair.run();
    let last = pair.cloud_said.last();
    let Some(CloudOutput::Close(reason)) = last else { panic!("{last:?}") };
    assert_eq!(
        super::super::chain(reason),
        "the peer broke the protocol: the edge lists more than 16384 objects"
    );
}

#[test]
fn nothing_comes_before_hello_and_one_hello_is_enough() {
    let mut cloud = CloudSession::new(1, start());
    cloud.handle(CloudInput::Received(Frame::Ack { seqs: vec![] }), start());
    assert!(matches!(cloud.poll_send(), Some(Frame::Bye(_))));

    let mut cloud = CloudSession::new(1, start());
    cloud.handle(CloudInput::Received(hello(1)), start());
    cloud.handle(CloudInput::Received(hello(1)), start());
    assert!(matches!(cloud.poll_output(), Some(CloudOutput::Hello(_))));
    assert!(matches!(cloud.poll_send(), Some(Frame::Bye(_))));
}

#[test]
fn another_protocol_version_is_refused_with_both_numbers() {
    let mut cloud = CloudSession::new(1, start());
    cloud.handle(CloudInput::Received(hello(2)), start());
    let Some(Frame::Refuse(refusal)) = cloud.poll_send() else { panic!("not refused") };
    assert_eq!(refusal.code, RefuseCode::BadProtocol);
    assert_eq!(refusal.reason, "the edge speaks protocol version 2, this cloud 1");
    assert!(matches!(cloud.poll_output(), Some(CloudOutput::Close(CloseReason::Refused(_)))));
}

#[test]
fn a_cloud_that_breaks_the_rules_is_left() {
    let put = |seq, n: usize| {
        let object = config(&format!("c{n}"), "u", 1);
        let payload = Payload::pack(&object.bytes);
        Frame::Put { seq, key: object.key.clone(), version: object.version.clone(), payload }
    };
    let open = |id| Frame::StreamOpen { id: StreamId(id), kind: StreamKind::KUBELET_API };
    let data =
        |id, len| Frame::StreamData { id: StreamId(id), bytes: vec![0; len].into(), end: true };
    let credit = |id, bytes| Frame::StreamCredit { id: StreamId(id), bytes };
    let many = u32::try_from(STREAMS_MAX * 3 + 1).unwrap();
    let cases: Vec<(Vec<Frame>, &str)> = vec![
        ((0..200).map(|n| put(n as u64, n)).collect(), "without an acknowledgement"),
        (vec![open(3), open(3)], "stream 3 is opened after stream 3"),
        (vec![open(3), data(3, WINDOW_BYTES as usize + 1)], "sends 65537 bytes with credit for"),
        (vec![open(3), data(3, 1), data(3, 1)], "stream 3 sends bytes after its end"),
        (vec![open(3), credit(3, u32::MAX)], "stream 3 is given credit beyond"),
        ((1..=many).map(open).collect(), "more than 256 refused streams await the peer"),
    ];
    for (frames, expected) in cases {
        let mut pair = Pair::up();
        for frame in frames {
            pair.edge_input(EdgeInput::Received(frame));
        }
        pair.edge_outputs();
        let reason = pair.edge_said.iter().find_map(|said| match said {
            EdgeOutput::Close(reason) => Some(super::super::chain(reason)),
            _ => None,
        });
        let reason = reason.unwrap_or_default();
        assert!(reason.contains(expected), "{reason:?} does not say {expected:?}");
    }
}

/// What an edge that takes kinds up to this one is sent of a map, a claim and a class.
fn sent(kinds: u32) -> Vec<String> {
    let now = start();
    let named = |kind| sized(ObjectKey::in_cluster(kind, "x"), "u", 1, 10);
    let [map, claim, class] =
        [Kind::ConfigMap, Kind::PersistentVolumeClaim, Kind::RuntimeClass].map(named);
    let admission = Admission { generation: 1, ticket: ticket(7), epoch: 1, server_time_ms: 0 };
    let mut cloud = CloudSession::new(2, now);
    cloud.handle(CloudInput::Received(hello_of(1, kinds)), now);
    cloud.handle(CloudInput::Admitted(admission), now);
    cloud.handle(CloudInput::Sync { wanted: vec![map, claim] }, now);
    cloud.handle(CloudInput::Change(Desired::Put(class)), now);
    let mut keys = Vec::new();
    while let Some(frame) = cloud.poll_send() {
        match frame {
            Frame::ListHeld { request } => {
                let held = Frame::Held { request, entries: Vec::new(), last: true };
                cloud.handle(CloudInput::Received(held), now);
            }
            Frame::Put { seq, key, .. } => {
                keys.push(key.kind().as_str().to_owned());
                cloud.handle(CloudInput::Received(Frame::Ack { seqs: vec![seq] }), now);
            }
            _ => {}
        }
    }
    let outputs: Vec<_> = std::iter::from_fn(|| cloud.poll_output()).collect();
    assert!(outputs.iter().any(|output| matches!(output, CloudOutput::InSync)), "{outputs:?}");
    keys.sort();

    keys
}

#[test]
fn an_edge_is_sent_no_kind_that_it_does_not_know() {
    assert_eq!(sent(0), ["ConfigMap"], "it is of an earlier build");
    assert_eq!(sent(7), ["ConfigMap", "PersistentVolumeClaim"]);
    assert_eq!(sent(Kind::LAST as u32), ["ConfigMap", "PersistentVolumeClaim", "RuntimeClass"]);
    assert_eq!(Kind::ALL.last(), Some(&Kind::LAST));
}

#[test]
fn an_object_that_cannot_be_decoded_is_refused_and_holds_up_no_other() {
    let mut pair = Pair::up();
    let bad = config("bad", "u", 1);
    let payload = Payload { encoding: Encoding::Zstd, raw_len: 9, bytes: Bytes::from_static(b"x") };
    let (key, version) = (bad.key.clone(), bad.version.clone());
    pair.edge_input(EdgeInput::Received(Frame::Put { seq: 50, key, version, payload }));
    pair.put(&config("a", "u", 1));
    pair.run_storing();
    assert_eq!(pair.stored_keys(), ["default/a"]);
    assert!(pair.passed.iter().any(|frame| matches!(frame, Frame::Nack { seq: 50, .. })));
}
