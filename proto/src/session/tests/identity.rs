//! Who says that it holds its ticket, who is given certificates, and what a newer peer may say.

use super::*;
use crate::codec;
use crate::pb;
use crate::session::{CloseReason, EVENTS_IN_FLIGHT_MAX, REPORTS_IN_FLIGHT_MAX};
use crate::wire::{CertificateRefusal, Features, Fingerprint, IdentityHeld, Issued, Welcome};
use prost::Message as _;

/// An edge that was just welcomed by a cloud with these features.
fn welcomed(features: Features) -> Pair {
    let mut pair = Pair::new();
    pair.edge.handle_timeout(pair.now);
    pair.edge_input(EdgeInput::Connected);
    pair.edge_outputs();
    assert!(matches!(pair.edge.poll_send(), Some(Frame::Hello(_))));
    let welcome =
        Welcome { generation: 4, ticket: ticket(4), epoch: 1, server_time_ms: 0, features };
    pair.edge_input(EdgeInput::Received(Frame::Welcome(welcome)));
    pair.edge_outputs();

    pair
}

fn sent_by_edge(pair: &mut Pair) -> Vec<&'static str> {
    std::iter::from_fn(|| pair.edge.poll_send()).map(|frame| frame.name()).collect()
}

#[test]
fn a_ticket_is_said_to_be_held_once_it_is_durable_and_to_whom_it_means_something() {
    let mut pair = welcomed(Features::TICKET_HELD);
    assert!(!sent_by_edge(&mut pair).contains(&"TicketHeld"));
    pair.edge_input(EdgeInput::TicketStored);
    assert_eq!(sent_by_edge(&mut pair), ["TicketHeld"]);

    let mut pair = welcomed(Features::TICKET_HELD);
    pair.edge_input(EdgeInput::TicketNotStored);
    assert!(!sent_by_edge(&mut pair).contains(&"TicketHeld"));

    let mut pair = welcomed(Features::default());
    pair.edge_input(EdgeInput::TicketStored);
    assert!(!sent_by_edge(&mut pair).contains(&"TicketHeld"));

    // Durable only after the link was lost: it is shown instead.
    let mut pair = welcomed(Features::TICKET_HELD);
    pair.lose();
    pair.edge_input(EdgeInput::TicketStored);
    pair.now += 30 * SECOND;
    pair.connect();
    assert!(pair.passed.iter().any(|frame| matches!(
        frame,
        Frame::Hello(hello) if hello.ticket == Some(ticket(4))
    )));
    assert!(!pair.passed_names().contains(&"TicketHeld"));
}

#[test]
fn the_cloud_hears_that_a_ticket_is_held() {
    let mut pair = Pair::new();
    pair.connect();
    pair.edge_input(EdgeInput::TicketStored);
    pair.run();
    let heard = pair.cloud_said.iter().filter(|said| matches!(said, CloudOutput::TicketHeld));
    assert_eq!(heard.count(), 1);
}

#[test]
fn a_node_that_has_joined_anew_shows_no_ticket() {
    let mut pair = Pair::up();
    pair.lose();
    pair.edge_input(EdgeInput::TicketForgotten);
    pair.now += 30 * SECOND;
    pair.connect();
    let shown = pair.passed.iter().find_map(|frame| match frame {
        Frame::Hello(hello) => Some(hello.ticket.clone()),
        _ => None,
    });
    assert_eq!(shown, Some(None));
}

#[test]
fn a_certificate_is_asked_for_and_given_over_the_link() {
    let mut pair = Pair::up();
    let issued = Issued { certificate: Bytes::from_static(b"new"), authorities: Vec::new() };
    let refusal = CertificateRefusal { reason: "not now".to_owned(), retry_after: SECOND };
    for answer in [Err(refusal), Ok(issued)] {
        pair.edge_input(EdgeInput::CertificateWanted { csr: Bytes::from_static(b"csr") });
        pair.run();
        let asked = pair.cloud_said.drain(..).any(
            |said| matches!(said, CloudOutput::CertificateWanted { csr } if csr.as_ref() == b"csr"),
        );
        assert!(asked);
        pair.cloud_input(CloudInput::Certificate(answer.clone()));
        pair.run();
        let given = pair.edge_said.drain(..).find_map(|said| match said {
            EdgeOutput::Certificate(given) => Some(given),
            _ => None,
        });
        assert_eq!(given, Some(answer));
    }

    let mut pair = welcomed(Features::TICKET_HELD);
    assert!(!pair.edge.renews());
    pair.edge_input(EdgeInput::CertificateWanted { csr: Bytes::from_static(b"csr") });
    assert!(!sent_by_edge(&mut pair).contains(&"CertificateWanted"));
}

#[test]
fn an_identity_is_said_to_be_held_and_to_be_outdated_only_to_who_knows_it() {
    let print = |byte| Fingerprint([byte; 32]);
    let held = || IdentityHeld { certificate: print(1), authorities: vec![print(2)] };
    let mut pair = Pair::up();
    pair.edge_input(EdgeInput::IdentityHeld(held()));
    pair.run();
    let said = |said: &CloudOutput| matches!(said, CloudOutput::IdentityHeld(h) if *h == held());
    assert!(pair.cloud_said.iter().any(said));
    pair.cloud_input(CloudInput::CertificateOutdated);
    pair.run();
    assert!(pair.edge_said.iter().any(|said| matches!(said, EdgeOutput::CertificateOutdated)));

    let mut pair = welcomed(Features::CERTIFICATES);
    pair.edge_input(EdgeInput::IdentityHeld(held()));
    assert!(!sent_by_edge(&mut pair).contains(&"IdentityHeld"));

    // An edge that does not know the frame would end the link.
    let mut cloud = CloudSession::new(0, pair.now);
    let node = "edge-1".to_owned();
    let hello = pb::Hello { protocol: 1, node, ..pb::Hello::default() };
    let held = Some(pb::Summary { digest: vec![0; 16].into(), ..pb::Summary::default() });
    let hello = decoded(pb::frame::Body::Hello(pb::Hello { held, features: 3, ..hello }));
    cloud.handle(CloudInput::Received(hello), pair.now);
    let admission = Admission { generation: 1, ticket: ticket(1), epoch: 1, server_time_ms: 0 };
    cloud.handle(CloudInput::Admitted(admission), pair.now);
    cloud.handle(CloudInput::CertificateOutdated, pair.now);
    let sent: Vec<_> = std::iter::from_fn(|| cloud.poll_send()).map(|f| f.name()).collect();
    assert_eq!(sent, ["Welcome"]);
}

#[test]
fn certificates_are_asked_for_one_at_a_time() {
    let mut pair = Pair::up();
    for _ in 0..2 {
        let csr = Bytes::from_static(b"csr");
        pair.cloud_input(CloudInput::Received(Frame::CertificateWanted { csr }));
    }
    while pair.cloud.poll_send().is_some() {}
    pair.cloud_outputs();
    assert!(matches!(pair.cloud_said.last(), Some(CloudOutput::Close(CloseReason::Protocol(_)))));
}

#[test]
fn a_report_of_a_kind_that_the_cloud_does_not_know_is_refused_and_the_link_stays() {
    let mut pair = Pair::up();
    let unknown = |seq| CloudInput::Received(Frame::UnknownReport { seq, kind: 99 });
    pair.cloud_input(unknown(1));
    assert!(matches!(
        pair.cloud.poll_send(),
        Some(Frame::ReportNack { seq: 1, retry: false, reason }) if reason.ends_with("kind 99")
    ));

    // One that takes no answers is not answered for ever.
    let max = REPORTS_IN_FLIGHT_MAX + EVENTS_IN_FLIGHT_MAX;
    (0..=max as u64).for_each(|seq| pair.cloud_input(unknown(seq)));
    while pair.cloud.poll_send().is_some() {}
    pair.cloud_outputs();
    assert!(matches!(pair.cloud_said.last(), Some(CloudOutput::Close(CloseReason::Protocol(_)))));
}

/// Frames as a newer peer would send them.
fn decoded(body: pb::frame::Body) -> Frame {
    codec::decode(&pb::Frame { body: Some(body) }.encode_to_vec().into()).unwrap()
}

#[test]
fn kinds_of_a_newer_cloud_are_passed_over() {
    let point = Some(pb::Point { epoch: 1, revision: 7 });
    let mark = |kind| pb::Mark { kind, point };
    let held = pb::Summary {
        digest: vec![0; 16].into(),
        count: 2,
        high_water: vec![mark(Kind::Pod as u32), mark(77)],
    };
    let node = "edge-1".to_owned();
    let hello = pb::Hello { protocol: 1, node, held: Some(held), ..pb::Hello::default() };
    let Frame::Hello(hello) = decoded(pb::frame::Body::Hello(hello)) else { panic!("no Hello") };
    assert_eq!(hello.held.high_water.iter().count(), 1);

    let entry = |kind| {
        let version =
            pb::Version { uid: "u".to_owned(), hash: vec![0; 16].into(), ..pb::Version::default() };
        pb::HeldEntry {
            key: Some(pb::ObjectKey { kind, id: "x".to_owned() }),
            version: Some(version),
        }
    };
    let entries = vec![entry(77), entry(Kind::ConfigMap as u32)];
    let held = pb::Held { request: 1, entries, last: true };
    let Frame::Held { entries, .. } = decoded(pb::frame::Body::Held(held)) else {
        panic!("no Held")
    };
    assert_eq!(entries.len(), 1);
}
