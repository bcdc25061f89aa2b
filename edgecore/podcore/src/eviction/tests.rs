//! Who goes first, with which words, and who has taken too much.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::pressure::{Amount, Seen};

const MIB: u64 = 1 << 20;

fn pod(name: &str, spec: &Value) -> PodView {
    let pod = json!({
        "metadata": { "uid": name, "namespace": "default", "name": name },
        "spec": spec,
    });

    PodView::parse(pod.to_string().as_bytes()).unwrap()
}

fn taken(mib: u64) -> Taken {
    Taken { bytes: mib * MIB, inodes: mib }
}

/// A pod `NAME` of priority, requesting that many MiB of memory and disk, and using so many of memory,
/// writable layer and volumes.
fn candidate(name: &str, priority: i32, requests: u64, used: [u64; 3]) -> Candidate {
    let amount = format!("{requests}Mi");
    let requests = json!({ "memory": amount, "ephemeral-storage": amount });
    let container = json!({ "name": "a", "image": "x", "resources": { "requests": requests } });
    let spec = json!({ "priority": priority, "containers": [container] });
    let [memory, layer, volume] = used;
    let usage = PodUsage {
        processes: memory,
        volumes: [("v".to_owned(), taken(volume))].into(),
        other: Taken::default(),
        containers: vec![ContainerUsage {
            name: "a".into(),
            memory: Some(memory * MIB),
            layer: Some(taken(layer)),
            logs: Some(Taken::default()),
        }],
    };

    Candidate { pod: pod(name, &spec), usage: Some(usage) }
}

fn unknown(name: &str) -> Candidate {
    Candidate { usage: None, ..candidate(name, 100, 0, [0, 0, 0]) }
}

#[track_caller]
fn check(signal: Signal, has_image_disk: bool, candidates: &[Candidate], expected: &[&str]) {
    let mut candidates = candidates.to_vec();
    rank(&mut candidates, signal, has_image_disk);
    let names: Vec<_> = candidates.iter().map(|one| one.pod.name.as_str()).collect();

    assert_eq!(names, expected, "{signal:?}");
}

#[test]
fn who_uses_more_than_it_asked_for_goes_first_then_the_least_important() {
    let all = vec![
        candidate("modest", 0, 100, [50, 0, 0]),
        candidate("tight", 0, 100, [90, 0, 0]),
        candidate("greedy", 1000, 10, [50, 0, 0]),
        candidate("large", 0, 10, [80, 0, 0]),
        candidate("larger", 0, 10, [90, 0, 0]),
        unknown("unknown"),
    ];
    let by_memory = ["unknown", "larger", "large", "greedy", "tight", "modest"];
    check(Signal::MemoryAvailable, false, &all, &by_memory);
    // Of process numbers nobody can ask for any.
    let by_processes = ["larger", "tight", "large", "modest", "unknown", "greedy"];
    check(Signal::PidAvailable, false, &all, &by_processes);
}

#[test]
fn a_disk_is_freed_by_who_fills_that_disk() {
    let all = [candidate("layer", 0, 10, [0, 90, 0]), candidate("volume", 0, 10, [0, 0, 50])];
    for (signal, has_image_disk, expected) in [
        (Signal::NodeFsAvailable, false, ["layer", "volume"]),
        (Signal::NodeFsAvailable, true, ["volume", "layer"]),
        (Signal::ImageFsAvailable, true, ["layer", "volume"]),
        (Signal::NodeFsInodesFree, true, ["volume", "layer"]),
        (Signal::ImageFsInodesFree, false, ["layer", "volume"]),
    ] {
        check(signal, has_image_disk, &all, &expected);
    }
}

fn policy(pod_grace_max_s: i64) -> Policy {
    Policy { thresholds: Vec::new(), transition: Duration::ZERO, pod_grace_max_s }
}

#[test]
fn an_eviction_is_told_in_the_kubelets_words() {
    let seen: Observations = [
        (Signal::MemoryAvailable, Seen { available: 60 * MIB, capacity: 1000 * MIB }),
        (Signal::NodeFsInodesFree, Seen { available: 2000, capacity: 1 << 20 }),
    ]
    .into();
    let threshold = |signal, value, grace| Threshold { signal, value, grace, min_reclaim: None };
    let hard = threshold(Signal::MemoryAvailable, Amount::Absolute(100 * MIB), None);
    let one = candidate("one", 0, 10, [50, 0, 0]);
    let gone = evict(&one, &hard, &policy(0), &seen).unwrap();
    assert_eq!(
        gone.message,
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 60Mi. \
         Container a was using 50Mi, request is 10Mi, has larger consumption of memory. "
    );
    assert_eq!((gone.reason.as_str(), gone.grace_s), ("Evicted", Some(1)));
    assert_eq!(gone.disruption, Some(gone.message));

    let grace = Some(Duration::from_secs(30));
    let soft = threshold(Signal::NodeFsInodesFree, Amount::Share(25_000), grace);
    let gone = evict(&one, &soft, &policy(20), &seen).unwrap();
    assert_eq!(
        gone.message,
        "The node was low on resource: inodes. Threshold quantity: 256Ki, available: 2k. "
    );
    assert_eq!(gone.grace_s, Some(20));

    let critical = candidate("critical", 2_000_000_000, 10, [50, 0, 0]);
    assert_eq!(evict(&critical, &hard, &policy(0), &seen), None);
}

#[test]
fn more_than_a_limit_of_disk_space_is_too_much() {
    let limit = |amount: &str| json!({ "limits": { "ephemeral-storage": amount } });
    let limited = json!({
        "containers": [
            { "name": "a", "image": "x", "resources": limit("10Mi") },
            { "name": "b", "image": "x", "resources": limit("20Mi") },
        ],
        "volumes": [
            { "name": "v", "emptyDir": { "sizeLimit": "5Mi" } },
            { "name": "ram", "emptyDir": { "medium": "Memory", "sizeLimit": "5Mi" } },
        ],
    });
    let plain = json!({ "containers": [{ "name": "a", "image": "x" }],
        "volumes": [{ "name": "v", "emptyDir": {} }] });
    assert!(has_limits(&pod("p", &limited)) && !has_limits(&pod("p", &plain)));
    let container = |name: &str, layer, logs| ContainerUsage {
        name: name.to_owned(),
        memory: None,
        layer: Some(taken(layer)),
        logs: Some(taken(logs)),
    };
    let check = |volume, (layer, logs), has_image_disk, expected: Option<&str>| {
        let usage = PodUsage {
            volumes: [("v".to_owned(), taken(volume)), ("ram".to_owned(), taken(99))].into(),
            containers: vec![container("a", layer, logs), container("b", 0, 0)],
            ..PodUsage::default()
        };
        let usage_of_disk = PodUsage { volumes: [("v".to_owned(), taken(volume))].into(), ..usage };
        let gone = over_limit(&pod("p", &limited), &usage_of_disk, has_image_disk);
        assert_eq!(gone.map(|gone| gone.message).as_deref(), expected);
        assert_eq!(over_limit(&pod("p", &plain), &usage_of_disk, has_image_disk), None);
    };
    check(5, (9, 1), false, None);
    check(6, (0, 0), false, Some("Usage of EmptyDir volume \"v\" exceeds the limit \"5Mi\". "));
    check(
        5,
        (20, 6),
        false,
        Some("Pod ephemeral local storage usage exceeds the total limit of containers 30Mi. "),
    );
    let container = Some("Container a exceeded its local ephemeral storage limit \"10Mi\". ");
    check(0, (10, 1), false, container);
    check(0, (10, 1), true, None);
    check(0, (0, 11), true, container);
}
