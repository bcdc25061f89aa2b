//! Desired state on its way down, and whether the peer is there.

use super::*;
use crate::outbox::{WINDOW_BYTES_MAX, WINDOW_CHANGES_MAX};
use crate::session::{CloseReason, PING_INTERVAL};
use crate::wire::{Outcome, Refusal, RefuseCode};

fn sync(pair: &mut Pair, wanted: &[&Arc<Object>]) {
    let wanted = wanted.iter().map(|object| Arc::clone(object)).collect();
    pair.cloud_input(CloudInput::Sync { wanted });
    pair.run_storing();
}

fn is_in_sync(pair: &Pair) -> bool {
    let cloud = pair.cloud_said.iter().any(|said| matches!(said, CloudOutput::InSync));
    let edge = pair.edge_said.iter().any(|said| matches!(said, EdgeOutput::Synced));
    assert_eq!(cloud, edge);

    cloud
}

fn unwanted(pair: &Pair) -> Vec<(ObjectKey, Uid)> {
    let of = |said: &CloudOutput| match said {
        CloudOutput::Unwanted { key, version } => Some((key.clone(), version.uid.clone())),
        _ => None,
    };

    pair.cloud_said.iter().filter_map(of).collect()
}

#[test]
fn equal_digests_need_no_list() {
    let a = config("a", "u", 1);
    let mut pair = Pair::new();
    pair.held.insert(a.key.clone(), a.version.clone());
    pair.connect();
    pair.passed.clear();
    sync(&mut pair, &[&a]);
    assert!(is_in_sync(&pair));
    assert_eq!(pair.passed_names(), ["Synced"]);
}

#[test]
fn a_sync_sends_what_differs_and_asks_before_it_deletes() {
    let (a, b, c) = (config("a", "u", 1), config("b", "u", 1), config("c", "u", 1));
    let mut pair = Pair::new();
    for held in [&a, &b] {
        pair.held.insert(held.key.clone(), held.version.clone());
    }
    pair.connect();
    let a2 = config("a", "u", 2);
    sync(&mut pair, &[&a2, &c]);
    assert_eq!(pair.held.get(&a.key), Some(&a2.version));
    assert_eq!(unwanted(&pair), [(b.key.clone(), uid("u"))]);
    assert!(!is_in_sync(&pair), "b is neither gone nor wanted");
    assert_eq!(pair.stored_keys(), ["default/a", "default/b", "default/c"]);
    pair.cloud_input(CloudInput::Absent {
        key: b.key.clone(),
        uid: uid("u"),
        gone_at: Point { epoch: 1, revision: 9 },
    });
    pair.run_storing();
    assert!(is_in_sync(&pair));
    assert_eq!(pair.stored_keys(), ["default/a", "default/c"]);
}

#[test]
fn nothing_is_sent_down_before_the_evidence_is_there() {
    let mut pair = Pair::new();
    pair.connect();
    pair.passed.clear();
    pair.put(&config("a", "u", 1));
    pair.change(delete(&config("b", "u", 1)));
    pair.run();
    assert_eq!(pair.passed_names(), [""; 0]);
    sync(&mut pair, &[&config("c", "u", 1)]);
    assert_eq!(pair.stored_keys(), ["default/c"]);
}

#[test]
fn the_high_water_rises_with_what_is_stored_deletes_included() {
    let a = config("a", "u", 40);
    let mark = |pair: &Pair| pair.held_set().summary().high_water.get(Kind::ConfigMap).revision;
    let mut pair = Pair::up();
    pair.put(&a);
    pair.run();
    assert_eq!(mark(&pair), 0, "not durable yet");
    pair.run_storing();
    assert_eq!(mark(&pair), 40);
    pair.change(delete(&a));
    pair.run_storing();
    assert_eq!(mark(&pair), 1000);
    pair.lose();
    pair.now += 30 * SECOND;
    pair.connect();
    let hello = pair.cloud_said.iter().find_map(|said| match said {
        CloudOutput::Hello(hello) => Some(hello.held.high_water.get(Kind::ConfigMap).revision),
        _ => None,
    });
    assert_eq!(hello, Some(1000));
}

#[test]
fn what_still_exists_stays() {
    let b = config("b", "u", 1);
    let mut pair = Pair::new();
    pair.held.insert(b.key.clone(), b.version.clone());
    pair.connect();
    sync(&mut pair, &[]);
    pair.cloud_input(CloudInput::StillWanted { key: b.key.clone() });
    pair.run_storing();
    assert!(is_in_sync(&pair));
    assert_eq!(pair.stored_keys(), ["default/b"]);
}

#[test]
fn changes_while_the_edge_lists_count() {
    let (a, b) = (config("a", "u", 1), config("b", "u", 1));
    let mut pair = Pair::new();
    pair.held.insert(a.key.clone(), a.version.clone());
    pair.connect();
    let wanted = vec![Arc::clone(&b)];
    pair.cloud_input(CloudInput::Sync { wanted });
    pair.put(&a);
    pair.change(delete(&b));
    pair.run_storing();
    assert!(is_in_sync(&pair));
    assert_eq!((unwanted(&pair), pair.stored_keys()), (vec![], vec!["default/a"]));
}

#[test]
fn a_long_list_comes_in_pieces() {
    let mut pair = Pair::new();
    let objects: Vec<_> = (0..1000).map(|n| config(&format!("c{n}"), "u", 1)).collect();
    for object in &objects {
        pair.held.insert(object.key.clone(), object.version.clone());
    }
    pair.connect();
    pair.passed.clear();
    sync(&mut pair, &objects[1..].iter().collect::<Vec<_>>());
    assert_eq!(pair.passed_names(), ["ListHeld", "Held", "Held", "Held", "Held"]);
    assert_eq!(unwanted(&pair).len(), 1);
}

#[test]
fn the_latest_state_of_a_key_wins_and_one_is_under_way() {
    let mut pair = Pair::up();
    pair.put(&config("a", "u", 1));
    pair.run();
    for revision in [2, 3, 4] {
        pair.put(&config("a", "u", revision));
    }
    pair.run_storing();
    let puts = pair.passed_names().iter().filter(|name| **name == "Put").count();
    assert_eq!(puts, 2, "the first, and the latest");
    assert_eq!(pair.held.values().map(|v| v.revision).collect::<Vec<_>>(), [4]);
}

#[test]
fn the_delete_of_a_pod_and_its_successor_are_both_delivered() {
    let pod = |u| sized(ObjectKey::pod(&uid(u)), u, 1, 100);
    let (old, new) = (pod("old"), pod("new"));
    let mut pair = Pair::up();
    pair.put(&old);
    pair.run_storing();
    pair.change(delete(&old));
    pair.put(&new);
    pair.run_storing();
    assert_eq!(pair.stored_keys(), ["new"]);
}

#[test]
fn a_late_delete_never_hits_the_successor_of_the_same_name() {
    let (old, new) = (config("a", "old", 1), config("a", "new", 2));
    for order in [[0, 1], [1, 0]] {
        let mut pair = Pair::up();
        pair.put(&old);
        pair.run_storing();
        for step in order {
            match step {
                0 => pair.change(delete(&old)),
                _ => pair.put(&new),
            }
        }
        pair.run_storing();
        assert_eq!(pair.held.get(&new.key), Some(&new.version), "{order:?}");
        // And one that comes after everything was stored.
        pair.change(delete(&old));
        pair.run_storing();
        assert_eq!(pair.held.get(&new.key), Some(&new.version), "{order:?}");
    }
}

#[test]
fn a_predecessor_goes_even_if_its_successor_was_never_sent() {
    let (first, second) = (config("a", "first", 1), config("a", "second", 2));
    for refused in [false, true] {
        let mut pair = Pair::up();
        pair.put(&first);
        pair.run_storing();
        // The successor comes and goes while the edge is busy.
        pair.put(&config("a", "first", 3));
        pair.run();
        pair.change(delete(&first));
        pair.put(&second);
        pair.change(delete(&second));
        if refused {
            pair.fail_unless(|_| false);
            pair.run();
            pair.wait(2 * SECOND);
        }
        pair.run_storing();
        assert_eq!(pair.stored_keys(), [""; 0], "refused: {refused}");
        assert_eq!(pair.cloud.outbox_len(), 0);
    }
}

#[test]
fn the_window_bounds_what_is_under_way() {
    for (len, expected) in [(100, WINDOW_CHANGES_MAX), (WINDOW_BYTES_MAX / 4, 4), (3 << 20, 1)] {
        let mut pair = Pair::up();
        for n in 0..WINDOW_CHANGES_MAX + 5 {
            let key = ObjectKey::named(Kind::ConfigMap, "default", &format!("c{n}"));
            pair.put(&sized(key, "u", 1, len));
        }
        pair.run();
        let batch: Vec<_> = pair.batches.iter().map(|(_, _, changes)| changes.len()).collect();
        assert_eq!(batch, [expected]);
        pair.run_storing();
        assert_eq!(pair.held.len(), WINDOW_CHANGES_MAX + 5);
    }
}

#[test]
fn an_unknown_number_is_harmless() {
    let mut pair = Pair::up();
    pair.put(&config("a", "u", 1));
    for seqs in [vec![99], vec![], vec![0, 1, 1]] {
        pair.cloud_input(CloudInput::Received(Frame::Ack { seqs }));
    }
    let nack = Frame::Nack { seq: 77, reason: String::new() };
    pair.cloud_input(CloudInput::Received(nack));
    pair.cloud_input(CloudInput::ReportDone { seq: 5, outcome: Outcome::Done });
    pair.edge_input(EdgeInput::Received(Frame::ReportAck { seq: 5 }));
    pair.edge_input(EdgeInput::Received(Frame::EventAck { seq: 5 }));
    pair.edge_input(EdgeInput::Persisted { batch: BatchId(12) });
    pair.run_storing();
    assert_eq!(pair.stored_keys(), ["default/a"]);
    assert_eq!(pair.cloud.outbox_len(), 0);
}

#[test]
fn what_was_under_way_when_the_link_broke_comes_by_the_next_sync() {
    let a = config("a", "u", 1);
    let mut pair = Pair::up();
    pair.put(&a);
    while let Some(frame) = pair.cloud.poll_send() {
        drop(frame);
    }
    pair.lose();
    pair.now += 30 * SECOND;
    pair.connect();
    sync(&mut pair, &[&a]);
    assert!(is_in_sync(&pair));
    assert_eq!(pair.stored_keys(), ["default/a"]);
}

#[test]
fn an_object_beyond_all_bounds_is_named_and_not_sent() {
    let mut pair = Pair::up();
    let big = sized(ObjectKey::named(Kind::Secret, "default", "big"), "u", 1, (3 << 20) + 1);
    sync(&mut pair, &[&big]);
    let nacked = pair
        .cloud_said
        .iter()
        .any(|s| matches!(s, CloudOutput::Nacked { key, .. } if *key == big.key));
    assert!(nacked && !is_in_sync(&pair) && pair.held.is_empty());
    pair.change(delete(&big));
    pair.run_storing();
    assert!(is_in_sync(&pair));
}

#[test]
fn silence_ends_both_ends_within_thirty_seconds() {
    let mut pair = Pair::up();
    pair.wait(100 * SECOND);
    assert!(pair.edge.is_up(), "{:?}", pair.edge_said);
    let before = pair.now;
    pair.wait_apart(30 * SECOND);
    let edge = pair.edge_said.iter().any(|said| {
        matches!(said, EdgeOutput::Close(CloseReason::PeerSilent { silent }) if *silent <= 30 * SECOND)
    });
    let cloud = pair
        .cloud_said
        .iter()
        .any(|said| matches!(said, CloudOutput::Close(CloseReason::PeerSilent { .. })));
    assert!(edge && cloud, "{:?} {:?}", pair.edge_said, pair.now - before);
}

#[test]
fn bytes_of_a_large_frame_keep_the_link_alive() {
    let mut pair = Pair::up();
    for _ in 0..20 {
        pair.wait_apart(5 * SECOND);
        pair.edge_input(EdgeInput::Heard);
        pair.cloud_input(CloudInput::Heard);
    }
    assert!(pair.edge.is_up());
}

#[test]
fn an_idle_link_carries_one_exchange_an_interval() {
    let mut pair = Pair::up();
    pair.wait(10 * PING_INTERVAL);
    let names = pair.passed_names();
    assert_eq!(names.len(), 20, "{names:?}");
    assert!(names.chunks(2).all(|pair| pair == ["Ping", "Pong"]), "{names:?}");
    let alive = pair.cloud_said.iter().filter(|s| matches!(s, CloudOutput::Alive { .. })).count();
    assert_eq!(alive, 10);
}

#[test]
fn what_is_urgent_goes_first() {
    let mut pair = Pair::up();
    let id = pair.cloud.open_stream(crate::wire::StreamKind::KUBELET_API).unwrap();
    pair.edge_input(EdgeInput::Report(pod_status("p", "1")));
    pair.run();
    pair.passed.clear();
    // Everything at once, the least urgent first.
    let bytes = Bytes::from(vec![0; 40_000]);
    pair.cloud_input(CloudInput::Stream(crate::stream::StreamInput::Write { id, bytes }));
    pair.cloud_input(CloudInput::ReportDone { seq: 1, outcome: Outcome::Done });
    pair.put(&config("a", "u", 1));
    pair.cloud_input(CloudInput::Received(Frame::Ping(crate::wire::Beat::default())));
    let order: Vec<_> = std::iter::from_fn(|| pair.cloud.poll_send()).map(|f| f.name()).collect();
    assert_eq!(order, ["Pong", "Put", "ReportAck", "StreamData", "StreamData", "StreamData"]);
}

#[test]
fn a_put_overtakes_a_stream_at_the_next_chunk() {
    let mut pair = Pair::up();
    let id = pair.cloud.open_stream(crate::wire::StreamKind::KUBELET_API).unwrap();
    let bytes = Bytes::from(vec![0; 60_000]);
    pair.cloud_input(CloudInput::Stream(crate::stream::StreamInput::Write { id, bytes }));
    assert_eq!(pair.cloud.poll_send().unwrap().name(), "StreamOpen");
    assert_eq!(pair.cloud.poll_send().unwrap().name(), "StreamData");
    pair.put(&config("a", "u", 1));
    assert_eq!(pair.cloud.poll_send().unwrap().name(), "Put");
}

#[test]
fn a_superseded_session_says_so_before_it_closes() {
    let mut pair = Pair::up();
    let refusal = Refusal {
        code: RefuseCode::Superseded,
        reason: "generation 2".to_owned(),
        retry_after: Duration::ZERO,
    };
    pair.cloud_input(CloudInput::Refused(refusal.clone()));
    pair.cloud_outputs();
    assert!(pair.cloud_said.is_empty(), "the frame goes first");
    pair.run();
    assert!(matches!(
        pair.cloud_said.as_slice(),
        [CloudOutput::Close(CloseReason::Refused(found))] if *found == refusal
    ));
    assert!(matches!(
        pair.edge_said.as_slice(),
        [EdgeOutput::Close(CloseReason::RefusedByCloud(_)), EdgeOutput::Down(_)]
    ));
}

#[test]
fn a_closing_session_does_not_wait_for_a_socket_that_is_stuck() {
    let mut pair = Pair::up();
    pair.cloud_input(CloudInput::Drain { reason: "upgrade".to_owned(), retry_after: SECOND });
    pair.wait_apart(2 * SECOND);
    assert!(matches!(pair.cloud_said.as_slice(), [CloudOutput::Close(CloseReason::Asked { .. })]));
    assert!(pair.cloud.poll_send().is_none() && pair.cloud.poll_timeout().is_none());
}

#[test]
fn an_edge_that_shuts_down_says_goodbye_and_never_dials_again() {
    let mut pair = Pair::up();
    pair.edge_input(EdgeInput::Shutdown { reason: "stopped".to_owned() });
    pair.run();
    assert_eq!(pair.passed_names(), ["Bye"]);
    assert!(matches!(
        pair.cloud_said.as_slice(),
        [CloudOutput::Close(CloseReason::Bye { reason })] if reason == "stopped"
    ));
    assert_eq!(pair.edge.poll_timeout(), None);
}
