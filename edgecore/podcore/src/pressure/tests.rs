//! How thresholds are read, and what becomes of observations as time passes.

use super::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn read(hard: Pairs<'_>, soft: Pairs<'_>, grace: Pairs<'_>) -> Result<Policy, Vec<Wrong>> {
    parse(&Texts {
        hard: &map(hard),
        soft: &map(soft),
        soft_grace: &map(grace),
        min_reclaim: &map(&[("nodefs.available", "5%")]),
        transition: "5m0s",
        pod_grace_max_s: 7,
    })
}

#[test]
fn amounts_are_written_as_they_are_read() {
    for (amount, expected) in [
        (Amount::Absolute(100 << 20), "100Mi"),
        (Amount::Absolute(1000), "1000"),
        (Amount::Absolute(0), "0"),
        (Amount::Share(10_000), "10%"),
        (Amount::Share(2_500), "2.5%"),
    ] {
        assert_eq!(amount.to_string(), expected);
    }
}

#[test]
fn thresholds_are_read_as_the_kubelet_reads_them() {
    let policy = read(
        &[("memory.available", "100Mi"), ("nodefs.available", "10%"), ("pid.available", "0%")],
        &[("nodefs.available", "1.5Gi")],
        &[("nodefs.available", "1m30s")],
    );
    let policy = policy.unwrap();
    let threshold =
        |signal, value, grace, min_reclaim| Threshold { signal, value, grace, min_reclaim };
    let more = Some(Amount::Share(5000));

    assert_eq!(
        policy.thresholds,
        [
            threshold(Signal::MemoryAvailable, Amount::Absolute(100 << 20), None, None),
            threshold(Signal::NodeFsAvailable, Amount::Share(10_000), None, more),
            threshold(
                Signal::NodeFsAvailable,
                Amount::Absolute(3 << 29),
                Some(Duration::from_secs(90)),
                more
            ),
            // It is added to that of all memory.
            threshold(Signal::AllocatableMemoryAvailable, Amount::Absolute(100 << 20), None, None),
        ]
    );
    assert_eq!((policy.transition, policy.pod_grace_max_s), (Duration::from_mins(5), 7));
    assert_eq!(policy.kept(Signal::NodeFsAvailable, 1000), 100);
    assert_eq!(policy.kept(Signal::PidAvailable, 1000), 0);
    let defaults = read(&DEFAULT_HARD, &[], &[]).unwrap();
    assert_eq!(defaults.kept(Signal::MemoryAvailable, 1 << 30), 100 << 20);
}

#[test]
fn pods_that_reach_what_they_may_have_in_all_make_memory_short() {
    let memory = [("memory.available", "10%")];
    let policy = read(&memory, &[], &[]).unwrap();
    let soft = read(&[], &memory, &[("memory.available", "1m")]).unwrap();
    let of_pods = |available| {
        let plenty = Seen { available: 900, capacity: 1000 };
        let pods = Seen { available, capacity: 100 };
        let signals = [Signal::AllocatableMemoryAvailable, Signal::MemoryAvailable];
        signals.into_iter().zip([pods, plenty]).collect::<Observations>()
    };
    for (available, expected) in [(10, None), (9, Some(Signal::AllocatableMemoryAvailable))] {
        let verdict = Watch::default().observe(&policy, &of_pods(available), Duration::ZERO);
        assert_eq!(verdict.due.first().map(|due| due.signal), expected);
        assert_eq!(verdict.conditions.contains(&"MemoryPressure"), expected.is_some());
    }
    assert_eq!(soft.thresholds.len(), 1, "only hard ones are for pods alone");
}

#[test]
fn what_is_wrong_is_named_all_at_once() {
    let wrong = read(
        &[("memory.free", "1Mi"), ("nodefs.available", "110%"), ("memory.available", "-1")],
        &[("imagefs.available", "10%"), ("nodefs.inodesFree", "5%")],
        &[("nodefs.inodesFree", "soon")],
    );
    let fields: Vec<_> = wrong.unwrap_err().into_iter().map(|(field, _)| field).collect();

    assert_eq!(
        fields,
        [
            "evictionHard.memory.available",
            "evictionHard",
            "evictionHard.nodefs.available",
            "evictionSoftGracePeriod.nodefs.inodesFree",
            "evictionSoft.imagefs.available",
        ]
    );
}

/// Plays observations of the free space of a disk of 100, by second; expects the conditions, and how
/// many thresholds are due.
#[track_caller]
fn check(policy: &Policy, steps: &[(u64, u64, &[&str], usize)]) {
    let mut watch = Watch::default();
    for (second, available, conditions, due) in steps {
        let seen = Seen { available: *available, capacity: 100 };
        let seen = [(Signal::NodeFsAvailable, seen)].into();
        let verdict = watch.observe(policy, &seen, Duration::from_secs(*second));
        assert_eq!(verdict.conditions, *conditions, "conditions after {second} s");
        assert_eq!(verdict.due.len(), *due, "due after {second} s");
    }
}

const PRESSED: &[&str] = &["DiskPressure"];

#[test]
fn a_hard_threshold_is_due_at_once_until_more_is_freed_than_it_says() {
    let policy = read(&[("nodefs.available", "10%")], &[], &[]).unwrap();
    check(
        &policy,
        &[
            (0, 10, &[], 0),
            (10, 9, PRESSED, 1),
            // 10 and 5 more are to be freed.
            (20, 14, PRESSED, 1),
            (30, 15, PRESSED, 0),
            (40, 14, PRESSED, 0),
            // The condition is told for 5 minutes after it was last seen.
            (319, 90, PRESSED, 0),
            (320, 90, &[], 0),
        ],
    );
}

#[test]
fn a_soft_threshold_waits_for_its_grace_without_a_break() {
    let soft = [("nodefs.available", "10%")];
    let policy = read(&[], &soft, &[("nodefs.available", "60s")]).unwrap();
    check(
        &policy,
        &[
            (0, 5, PRESSED, 0),
            (59, 5, PRESSED, 0),
            (60, 5, PRESSED, 1),
            (70, 50, PRESSED, 0),
            (80, 5, PRESSED, 0),
            (130, 12, PRESSED, 0),
            (140, 5, PRESSED, 0),
            (199, 5, PRESSED, 0),
            (200, 5, PRESSED, 1),
        ],
    );
}

#[test]
fn memory_comes_before_everything_else() {
    let hard = [("imagefs.available", "10%"), ("memory.available", "10%"), ("pid.available", "9%")];
    let policy = read(&hard, &[], &[]).unwrap();
    let short = Seen { available: 1, capacity: 100 };
    let seen: Observations = [
        (Signal::PidAvailable, short),
        (Signal::ImageFsAvailable, short),
        (Signal::MemoryAvailable, short),
    ]
    .into();
    let verdict = Watch::default().observe(&policy, &seen, Duration::ZERO);

    let due: Vec<_> = verdict.due.iter().map(|threshold| threshold.signal.as_str()).collect();
    assert_eq!(due, ["memory.available", "imagefs.available", "pid.available"]);
    assert_eq!(verdict.conditions, ["DiskPressure", "MemoryPressure", "PIDPressure"]);
    assert!(!is_relieved(&policy, &seen));
    // What cannot be read is not short.
    assert!(is_relieved(&policy, &Observations::new()));
}
