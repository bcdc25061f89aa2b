//! How the edge dials, and what it keeps over a break.

use super::*;
use crate::session::{CloseReason, DIAL_MAX, DownReason, EVENTS_MAX, ProtocolError};
use crate::wire::{Bye, Features, Outcome, Refusal, RefuseCode, Welcome};

fn delivered_report(pair: &Pair) -> Vec<String> {
    let text = |report: &Report| String::from_utf8(report.bytes.to_vec()).unwrap();
    pair.cloud_said
        .iter()
        .filter_map(|said| match said {
            CloudOutput::Report { report, .. } => Some(text(report)),
            _ => None,
        })
        .collect()
}

fn answer_reports(pair: &mut Pair, outcome: &Outcome) {
    for said in std::mem::take(&mut pair.cloud_said) {
        if let CloudOutput::Report { seq, .. } = said {
            pair.cloud_input(CloudInput::ReportDone { seq, outcome: outcome.clone() });
        }
    }
}

#[test]
fn nothing_follows_hello_before_welcome() {
    let mut pair = Pair::new();
    pair.edge_input(EdgeInput::Report(pod_status("p", "1")));
    pair.edge_input(EdgeInput::Event(Bytes::from_static(b"{}")));
    pair.edge.handle_timeout(pair.now);
    pair.edge_input(EdgeInput::Connected);
    pair.run();
    pair.wait(9 * SECOND);
    assert_eq!(pair.passed_names(), ["Hello"]);
    pair.wait(SECOND);
    assert!(matches!(
        pair.edge_said.as_slice(),
        [
            EdgeOutput::Dial,
            EdgeOutput::Close(CloseReason::HandshakeTimeout),
            EdgeOutput::Down(_),
            ..
        ]
    ));
}

#[test]
fn the_latest_report_of_a_key_wins_and_one_is_under_way() {
    let mut pair = Pair::up();
    for text in ["1", "2", "3"] {
        pair.edge_input(EdgeInput::Report(pod_status("p", text)));
    }
    pair.run();
    assert_eq!(delivered_report(&pair), ["3"]);
    pair.edge_input(EdgeInput::Report(pod_status("p", "4")));
    pair.edge_input(EdgeInput::Report(pod_status("p", "5")));
    pair.run();
    assert_eq!(delivered_report(&pair), ["3"], "the first is not answered yet");
    answer_reports(&mut pair, &Outcome::Done);
    pair.run();
    assert_eq!(delivered_report(&pair), ["5"]);
    answer_reports(&mut pair, &Outcome::Done);
    pair.run();
    assert_eq!(pair.edge.reports_len(), 0);
}

#[test]
fn reports_and_events_are_sent_again_after_a_break_until_answered() {
    let mut pair = Pair::up();
    pair.edge_input(EdgeInput::Report(pod_status("p", "1")));
    pair.edge_input(EdgeInput::Event(Bytes::from_static(b"{}")));
    pair.run();
    pair.lose();
    pair.cloud_said.clear();
    pair.now += 30 * SECOND;
    pair.connect();
    assert_eq!(delivered_report(&pair), ["1"]);
    let events = pair.cloud_said.iter().filter(|s| matches!(s, CloudOutput::Event { .. })).count();
    assert_eq!(events, 1);
    answer_reports(&mut pair, &Outcome::Done);
    pair.cloud_input(CloudInput::EventDone { seq: 1 });
    pair.run();
    assert_eq!((pair.edge.reports_len(), pair.edge.events_len()), (0, 0));
}

#[test]
fn a_report_to_be_retried_waits_and_holds_up_no_other() {
    let mut pair = Pair::up();
    pair.edge_input(EdgeInput::Report(pod_status("p", "p1")));
    pair.run();
    answer_reports(&mut pair, &Outcome::Retry { reason: "away".to_owned() });
    pair.run();
    pair.edge_input(EdgeInput::Report(pod_status("q", "q1")));
    pair.run();
    assert_eq!(delivered_report(&pair), ["q1"]);
    pair.wait(2 * SECOND);
    assert_eq!(delivered_report(&pair), ["q1", "p1"]);
}

#[test]
fn the_oldest_events_are_dropped_and_counted() {
    let mut pair = Pair::new();
    for n in 0..EVENTS_MAX + 3 {
        pair.edge_input(EdgeInput::Event(Bytes::from(n.to_string())));
    }
    assert_eq!((pair.edge.events_len(), pair.edge.events_dropped()), (EVENTS_MAX, 3));
    pair.connect();
    let first = pair.cloud_said.iter().find_map(|said| match said {
        CloudOutput::Event { bytes, .. } => Some(bytes.clone()),
        _ => None,
    });
    assert_eq!(first.unwrap(), "3");
}

/// Feeds `frame` to an edge that has just said Hello; returns the time until it dials again.
fn redial_after(frame: Frame) -> Duration {
    let mut pair = Pair::new();
    pair.edge.handle_timeout(pair.now);
    pair.edge_input(EdgeInput::Connected);
    pair.run();
    pair.edge_input(EdgeInput::Received(frame));

    pair.edge.poll_timeout().unwrap() - pair.now
}

#[test]
fn retry_after_is_honoured_within_reason() {
    let refuse = |s| {
        let (code, reason) = (RefuseCode::NotReady, String::new());
        Frame::Refuse(Refusal { code, reason, retry_after: Duration::from_secs(s) })
    };
    let bye = |s| Frame::Bye(Bye { reason: String::new(), retry_after: Duration::from_secs(s) });
    for (frame, low_s, high_s) in [
        (refuse(60), 60, 65),
        (refuse(2), 2, 4),
        (refuse(0), 0, 1),
        (refuse(1_000_000), 300, 305),
        (bye(20), 20, 25),
        (bye(0), 0, 1),
    ] {
        let after = redial_after(frame.clone());
        assert!(after >= low_s * SECOND && after <= high_s * SECOND, "{frame:?}: {after:?}");
    }
}

#[test]
fn a_path_that_returns_is_tried_within_thirty_seconds() {
    let mut pair = Pair::new();
    let mut last = pair.now;
    for _ in 0..200 {
        pair.now = pair.now.max(pair.edge.poll_timeout().unwrap());
        pair.edge.handle_timeout(pair.now);
        pair.edge_outputs();
        assert!(pair.now - last <= 30 * SECOND, "{:?} between dials", pair.now - last);
        last = pair.now;
        // SYNs are lost: the dial is abandoned by the session.
        pair.now += DIAL_MAX;
        pair.edge.handle_timeout(pair.now);
    }
}

#[test]
fn a_new_ticket_is_shown_only_once_it_is_stored() {
    for (answer, expected) in
        [(EdgeInput::TicketStored, Some(ticket(7))), (EdgeInput::TicketNotStored, None)]
    {
        let mut pair = Pair::new();
        pair.connect();
        pair.lose();
        assert_eq!(pair.edge.poll_timeout(), None, "the store may have it or not");
        pair.edge_input(answer);
        pair.passed.clear();
        pair.now += 30 * SECOND;
        pair.connect();
        let Some(Frame::Hello(hello)) = pair.passed.first() else { panic!("{:?}", pair.passed) };
        assert_eq!(hello.ticket, expected);
    }
}

#[test]
fn it_does_not_dial_while_the_store_has_not_answered() {
    let mut pair = Pair::up();
    let old = config("a", "u", 1);
    pair.put(&old);
    pair.run();
    pair.lose();
    assert_eq!(pair.edge.poll_timeout(), None);
    pair.persist();
    assert!(pair.edge.poll_timeout().is_some());
    pair.now += 30 * SECOND;
    pair.passed.clear();
    pair.connect();
    // The acknowledgement belonged to the connection that is gone.
    assert_eq!(pair.passed_names(), ["Hello", "Welcome"]);
}

#[test]
fn a_new_address_reconnects_at_once_and_the_old_one_is_probed() {
    let mut pair = Pair::up();
    pair.edge_input(EdgeInput::AddressChanged { node_ip: "10.0.0.7".to_owned() });
    pair.run();
    assert_eq!(pair.passed_names(), ["Ping", "Pong"]);
    pair.edge_input(EdgeInput::AddressChanged { node_ip: "10.9.0.7".to_owned() });
    pair.edge_outputs();
    assert!(matches!(
        pair.edge_said.as_slice(),
        [EdgeOutput::Close(CloseReason::AddressChanged), EdgeOutput::Down(_)]
    ));
    assert!(pair.edge.poll_timeout().unwrap() - pair.now < SECOND);
}

#[test]
fn a_failed_batch_is_tried_one_by_one_and_only_the_culprit_is_refused() {
    let mut pair = Pair::up();
    for name in ["a", "b", "c"] {
        pair.put(&config(name, "u", 1));
    }
    pair.run();
    assert_eq!(pair.batches.len(), 1, "they arrived together");
    let is_fine = |key: &ObjectKey| key.id() != "default/b";
    while !pair.batches.is_empty() {
        pair.fail_unless(is_fine);
        pair.run();
    }
    assert_eq!(pair.stored_keys(), ["default/a", "default/c"]);
    let [CloudOutput::Nacked { key, reason }] = pair.cloud_said.as_slice() else {
        panic!("{:?}", pair.cloud_said)
    };
    assert_eq!((key.id(), reason.as_str()), ("default/b", "disk full"));
    pair.wait(2 * SECOND);
    pair.run_storing();
    assert_eq!(pair.stored_keys(), ["default/a", "default/b", "default/c"]);
}

#[test]
fn frames_that_do_not_belong_close_the_link_by_name() {
    let welcome = || Welcome {
        generation: 1,
        ticket: ticket(1),
        epoch: 1,
        server_time_ms: 0,
        features: Features::default(),
    };
    for frame in [
        Frame::Welcome(welcome()),
        Frame::Ack { seqs: vec![1] },
        Frame::Report {
            seq: 1,
            key: ReportKey::NodeStatus,
            payload: crate::payload::Payload::pack(&Bytes::new()),
            done: false,
        },
    ] {
        let name = frame.name();
        let mut pair = Pair::up();
        pair.edge_input(EdgeInput::Received(frame));
        pair.edge_outputs();
        let [
            EdgeOutput::Close(CloseReason::Protocol(ProtocolError::Unexpected { frame, .. })),
            EdgeOutput::Down(DownReason::Closed { reason }),
        ] = pair.edge_said.as_slice()
        else {
            panic!("{:?}", pair.edge_said)
        };
        assert_eq!(*frame, name);
        assert!(reason.contains(name), "{reason}");
    }
}
