//! Ends of containers, by restart policy.

use super::*;
use crate::sim::check;

#[test]
fn an_end_is_final_by_the_restart_policy() {
    for (policy, code, after, told) in [
        ("Always", 0, "image:a:1 start:a:1", "Running a=running#1"),
        ("Always", 1, "image:a:1 start:a:1", "Running a=running#1"),
        ("OnFailure", 0, "stop:s1 tear-down", "Succeeded a=Completed(0)#0"),
        ("OnFailure", 1, "image:a:1 start:a:1", "Running a=running#1"),
        ("Never", 0, "stop:s1 tear-down", "Succeeded a=Completed(0)#0"),
        ("Never", 1, "stop:s1 tear-down", "Failed a=Error(1)#0"),
    ] {
        let exit = format!("exit a {code}");
        check(&one(policy), &[STARTED, (&exit, after), ("status", told)]);
    }
}

#[test]
fn a_restart_that_is_asked_for_at_the_node_is_one_whatever_the_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let mut spec = two(policy);
        spec["terminationGracePeriodSeconds"] = json!(7);
        check(
            &spec,
            &[
                BOTH_STARTED,
                ("stops a 0", ""),
                ("restart a", "stop:a:7s image:a:1 start:a:1"),
                ("status", "Running a=running#1 b=running#0"),
                // Asked for once, it is done once.
                ("look", ""),
                ("agent restart", "volumes"),
            ],
        );
    }
}

#[test]
fn a_pod_ends_with_the_last_of_its_containers() {
    for (policy, codes, after, told) in [
        ("OnFailure", [0, 0], "stop:s1 tear-down", "Succeeded a=Completed(0)#0 b=Completed(0)#0"),
        ("OnFailure", [0, 3], "image:b:1 start:b:1", "Running a=Completed(0)#0 b=running#1"),
        ("Never", [0, 0], "stop:s1 tear-down", "Succeeded a=Completed(0)#0 b=Completed(0)#0"),
        ("Never", [3, 0], "stop:s1 tear-down", "Failed a=Error(3)#0 b=Completed(0)#0"),
    ] {
        let running = if codes[0] == 0 { "Completed(0)" } else { "Error(3)" };
        check(
            &two(policy),
            &[
                BOTH_STARTED,
                (&format!("exit a {}", codes[0]), ""),
                ("status", &format!("Running a={running}#0 b=running#0")),
                (&format!("exit b {}", codes[1]), after),
                ("status", told),
            ],
        );
    }
}

#[test]
fn crashes_wait_longer_and_longer() {
    let mut steps = vec![STARTED, ("exit a 1", "image:a:1 start:a:1")];
    let waits = [
        (9, "image:a:2 start:a:2 remove:c2"),
        (19, "image:a:3 start:a:3 remove:c3"),
        (39, "image:a:4 start:a:4 remove:c4"),
        (79, "image:a:5 start:a:5 remove:c5"),
        (159, "image:a:6 start:a:6 remove:c6"),
        (299, "image:a:7 start:a:7 remove:c7"),
        (299, "image:a:8 start:a:8 remove:c8"),
    ];
    let texts: Vec<_> =
        waits.iter().map(|(less, start)| (format!("wait {less}"), *start)).collect();
    for (less, start) in &texts {
        steps.extend([("exit a 1", ""), (less.as_str(), ""), ("wait 1", *start)]);
    }
    let mut world = check(&one("Always"), &steps);
    let told = std::mem::take(&mut world.events);
    assert_eq!(told.len(), waits.len(), "one Event a wait: {told:?}");
    assert_eq!(told[0], "BackOff: Back-off restarting failed container a in pod web_default(u-1)");
}

#[test]
fn a_run_of_ten_minutes_is_forgiven() {
    let crashing = [
        STARTED,
        ("exit a 1", "image:a:1 start:a:1"),
        ("exit a 1", ""),
        ("wait 10", "image:a:2 start:a:2 remove:c2"),
    ];
    let long = [
        ("wait 601", ""),
        ("exit a 1", "image:a:3 start:a:3 remove:c3"),
        ("exit a 1", ""),
        ("wait 9", ""),
        ("wait 1", "image:a:4 start:a:4 remove:c4"),
    ];
    let short = [
        ("wait 600", ""),
        ("exit a 1", ""),
        ("wait 19", ""),
        ("status", "Running a=CrashLoopBackOff#2"),
        ("wait 1", "image:a:3 start:a:3 remove:c3"),
    ];
    check(&one("Always"), &[&crashing[..], &long].concat());
    check(&one("Always"), &[&crashing[..], &short].concat());
}

#[test]
fn a_container_waits_for_itself_alone() {
    check(
        &two("Always"),
        &[
            BOTH_STARTED,
            ("exit a 1", "image:a:1 start:a:1"),
            ("exit a 1", ""),
            ("status", "Running a=CrashLoopBackOff#1 b=running#0"),
            ("exit b 0", "image:b:1 start:b:1"),
            ("status", "Running a=CrashLoopBackOff#1 b=running#1"),
        ],
    );
}

#[test]
fn only_the_last_dead_instance_is_kept() {
    check(
        &one("Always"),
        &[
            STARTED,
            ("exit a 1", "image:a:1 start:a:1"),
            ("wait 700", ""),
            ("exit a 1", "image:a:2 start:a:2 remove:c2"),
            ("wait 700", ""),
            ("exit a 1", "image:a:3 start:a:3 remove:c3"),
        ],
    );
}

#[test]
fn what_is_killed_from_outside_is_a_crash() {
    check(
        &one("Always"),
        &[
            STARTED,
            ("exit a 137", "image:a:1 start:a:1"),
            ("oom a", ""),
            ("status", "Running a=CrashLoopBackOff#1"),
        ],
    );
    check(
        &one("Never"),
        &[STARTED, ("oom a", "stop:s1 tear-down"), ("status", "Failed a=OOMKilled(137)#0")],
    );
    check(
        &one("Never"),
        &[
            STARTED,
            ("exit a 137", "stop:s1 tear-down"),
            ("oom a told", ""),
            ("agent restart", "tear-down"),
            ("status", "Failed a=OOMKilled(137)#0"),
        ],
    );
}

#[test]
fn what_nobody_saw_end_did_not_end_well() {
    check(
        &one("Always"),
        &[STARTED, ("vanish a", "image:a:1 start:a:1"), ("status", "Running a=running#1")],
    );
    for policy in ["OnFailure", "Always"] {
        check(
            &two(policy),
            &[
                BOTH_STARTED,
                ("exit a 0", if policy == "Always" { "image:a:1 start:a:1" } else { "" }),
                ("vanish b", "image:b:1 start:b:1"),
            ],
        );
    }
    // A pod that must not run twice does not.
    check(
        &one("Never"),
        &[
            STARTED,
            ("vanish a", "stop:s1 tear-down"),
            ("status", "Failed a=ContainerStatusUnknown(137)#0"),
        ],
    );
    check(
        &two("Never"),
        &[
            BOTH_STARTED,
            ("vanish a", ""),
            ("status", "Running a=ContainerStatusUnknown(137)#0 b=running#0"),
            ("exit b 0", "stop:s1 tear-down"),
        ],
    );
    // A record that went missing after the end was seen changes nothing.
    check(
        &two("Never"),
        &[
            BOTH_STARTED,
            ("exit a 0", ""),
            ("vanish a", ""),
            ("exit b 0", "stop:s1 tear-down"),
            ("status", "Succeeded a=Completed(0)#0 b=Completed(0)#0"),
        ],
    );
}

#[test]
fn an_unknown_container_is_stopped_before_another_starts() {
    check(&one("Always"), &[STARTED, ("unknown a", "stop:a:30s image:a:1 start:a:1")]);
}
