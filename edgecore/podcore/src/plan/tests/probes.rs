//! Containers that are asked how they are.

use super::*;
use crate::sim::check;

/// A pod of container `a` with one probe, which takes any handler.
fn probed(policy: &str, name: &str, probe: &Value) -> Value {
    let mut pod = one(policy);
    pod["containers"][0][name] = probe.clone();
    pod["containers"][0][name]["tcpSocket"] = json!({ "port": 80 });

    pod
}

#[test]
fn a_container_is_ready_when_its_probe_says_so() {
    let probe = json!({ "periodSeconds": 5, "failureThreshold": 2, "successThreshold": 2 });
    check(
        &probed("Always", "readinessProbe", &probe),
        &[
            ("look", "volumes sandbox:0 image:a:0 start:a:0 readiness:a"),
            ("ready", "(a)"),
            ("wait 4", ""),
            ("wait 1", "readiness:a"),
            ("ready", "a"),
            ("break readiness:a Failure x", ""),
            ("wait 5", "readiness:a"),
            ("ready", "a"),
            ("wait 5", "readiness:a"),
            ("ready", "(a)"),
            ("mend", ""),
            ("wait 5", "readiness:a"),
            ("ready", "(a)"),
            ("wait 5", "readiness:a"),
            ("ready", "a"),
        ],
    );
}

#[test]
fn what_could_not_be_asked_says_nothing() {
    let probe = json!({ "failureThreshold": 1 });
    check(
        &probed("Always", "livenessProbe", &probe),
        &[
            ("break liveness:a Unasked x", "volumes sandbox:0 image:a:0 start:a:0 liveness:a"),
            ("wait 10", "liveness:a"),
            ("wait 10", "liveness:a"),
            ("ready", "a"),
        ],
    );
}

#[test]
fn a_container_that_is_not_alive_is_restarted_with_the_probes_grace() {
    let probe = json!({
        "initialDelaySeconds": 7, "failureThreshold": 2, "terminationGracePeriodSeconds": 3,
    });
    for policy in ["Always", "OnFailure"] {
        let mut world = check(
            &probed(policy, "livenessProbe", &probe),
            &[
                STARTED,
                ("wait 6", ""),
                ("wait 1", "liveness:a"),
                ("break liveness:a Failure x", ""),
                ("wait 10", "liveness:a"),
                ("wait 10", "liveness:a stop:a:3s image:a:1 start:a:1"),
                ("mend", ""),
                ("wait 6", ""),
                ("wait 1", "liveness:a"),
                ("status", "Running a=running#1"),
            ],
        );
        // Whatever the exit code.
        world.on_stop.insert("a".to_owned(), 0);
        crate::sim::play(
            &mut world,
            &[
                ("break liveness:a Failure x", ""),
                ("wait 10", "liveness:a"),
                ("wait 10", "liveness:a stop:a:3s image:a:2 start:a:2 remove:c2"),
            ],
        );
    }
    check(
        &probed("Never", "livenessProbe", &json!({ "failureThreshold": 1 })),
        &[
            (
                "break liveness:a Failure x",
                "volumes sandbox:0 image:a:0 start:a:0 liveness:a stop:a:30s stop:s1 tear-down",
            ),
            ("status", "Failed a=Error(143)#0"),
        ],
    );
}

/// As on a kubelet, which starts again what it stops before it knows of that end.
#[test]
fn restarts_that_a_probe_causes_are_slowed_by_the_end_before() {
    let probe = json!({ "initialDelaySeconds": 4, "periodSeconds": 1, "failureThreshold": 1 });
    check(
        &probed("Always", "livenessProbe", &probe),
        &[
            STARTED,
            ("break liveness:a Failure x", ""),
            // Nothing has ended before: neither this restart nor the next waits.
            ("wait 4", "liveness:a stop:a:30s image:a:1 start:a:1"),
            ("wait 4", "liveness:a stop:a:30s image:a:2 start:a:2 remove:c2"),
            // The last end is 4 s ago, and 10 s must pass; from now on, since this one is known.
            ("wait 4", "liveness:a stop:a:30s"),
            ("wait 9", ""),
            ("status", "Running a=CrashLoopBackOff#2"),
            ("wait 1", "image:a:3 start:a:3 remove:c3"),
            ("wait 4", "liveness:a stop:a:30s"),
            ("wait 19", ""),
            ("wait 1", "image:a:4 start:a:4 remove:c4"),
        ],
    );
    let seldom = json!({ "initialDelaySeconds": 25, "periodSeconds": 1, "failureThreshold": 1 });
    check(
        &probed("Always", "livenessProbe", &seldom),
        &[
            STARTED,
            ("break liveness:a Failure x", ""),
            ("wait 25", "liveness:a stop:a:30s image:a:1 start:a:1"),
            ("wait 25", "liveness:a stop:a:30s image:a:2 start:a:2 remove:c2"),
            ("wait 25", "liveness:a stop:a:30s image:a:3 start:a:3 remove:c3"),
            ("wait 25", "liveness:a stop:a:30s image:a:4 start:a:4 remove:c4"),
            // By now 40 s.
            ("wait 25", "liveness:a stop:a:30s"),
            ("wait 39", ""),
            ("wait 1", "image:a:5 start:a:5 remove:c5"),
        ],
    );
}

#[test]
fn what_a_probe_restarts_seldom_is_forgiven_too() {
    let probe = json!({ "initialDelaySeconds": 20, "periodSeconds": 1, "failureThreshold": 1 });
    let mut world = check(&probed("Always", "livenessProbe", &probe), &[STARTED]);
    for _ in 0..5 {
        world.step("wait 700");
        world.step("break liveness:a Failure x");
        world.step("wait 1");
        world.step("mend");
    }
    assert_eq!(world.step("status"), "Running a=running#5");
    crate::sim::play(
        &mut world,
        &[
            // Of five restarts in an hour only the last counts: 10 s have passed since then.
            ("break liveness:a Failure x", ""),
            ("wait 20", "liveness:a stop:a:30s image:a:6 start:a:6 remove:c6"),
            ("mend", ""),
            ("exit a 1", ""),
            ("wait 19", ""),
            ("wait 1", "image:a:7 start:a:7 remove:c7"),
        ],
    );
}

#[test]
fn a_container_that_a_probe_stops_is_asked_whether_it_is_ready_until_it_ends() {
    let mut pod = probed("Always", "livenessProbe", &json!({ "failureThreshold": 1 }));
    pod["containers"][0]["readinessProbe"] =
        json!({ "tcpSocket": { "port": 80 }, "failureThreshold": 1 });
    check(
        &pod,
        &[
            ("look", "volumes sandbox:0 image:a:0 start:a:0 liveness:a readiness:a"),
            ("slow stop a", ""),
            ("break liveness:a Failure x", ""),
            ("wait 10", "liveness:a readiness:a stop:a:30s"),
            ("ready", "a"),
            ("break readiness:a Failure x", ""),
            ("wait 10", "readiness:a"),
            ("ready", "(a)"),
        ],
    );
}

#[test]
fn nothing_else_is_asked_before_the_container_has_started() {
    let mut pod =
        probed("Always", "startupProbe", &json!({ "failureThreshold": 3, "periodSeconds": 2 }));
    pod["containers"][0]["livenessProbe"] = json!({ "tcpSocket": { "port": 80 } });
    pod["containers"][0]["readinessProbe"] = json!({ "tcpSocket": { "port": 80 } });
    check(
        &pod,
        &[
            ("break startup:a Failure x", "volumes sandbox:0 image:a:0 start:a:0 startup:a"),
            ("ready", ""),
            ("wait 2", "startup:a"),
            ("mend", ""),
            ("wait 2", "startup:a liveness:a readiness:a"),
            ("ready", "a"),
            ("wait 9", ""),
            ("wait 1", "liveness:a readiness:a"),
        ],
    );
    check(
        &pod,
        &[
            ("break startup:a Failure x", "volumes sandbox:0 image:a:0 start:a:0 startup:a"),
            ("wait 2", "startup:a"),
            ("wait 2", "startup:a stop:a:30s image:a:1 start:a:1 startup:a"),
        ],
    );
}

#[test]
fn a_new_agent_takes_over_what_the_probes_came_to() {
    check(
        &probed("Always", "readinessProbe", &json!({})),
        &[
            ("look", "volumes sandbox:0 image:a:0 start:a:0 readiness:a"),
            ("ready", "a"),
            ("agent restart", "volumes readiness:a"),
            ("ready", "a"),
            ("power loss", "volumes sandbox:1 image:a:1 start:a:1 remove:s1 readiness:a"),
            ("ready", "a"),
        ],
    );
}

#[test]
fn a_pod_that_ends_is_asked_only_whether_it_is_ready() {
    let mut pod = probed("Always", "readinessProbe", &json!({}));
    pod["containers"][0]["livenessProbe"] = json!({ "tcpSocket": { "port": 80 } });
    check(
        &pod,
        &[
            ("look", "volumes sandbox:0 image:a:0 start:a:0 liveness:a readiness:a"),
            ("slow stop a", ""),
            ("delete 30", "stop:a:30s"),
            ("wait 10", "readiness:a"),
            ("break readiness:a Failure x", ""),
            ("wait 10", "readiness:a"),
            ("wait 10", "readiness:a"),
            ("ready", "a"),
            ("wait 10", "readiness:a"),
            ("ready", "(a)"),
        ],
    );
}

#[test]
fn a_clock_that_is_set_stops_no_questions() {
    for jump in ["clock -315360000", "clock 315360000"] {
        check(
            &probed("Always", "livenessProbe", &json!({})),
            &[
                ("look", "volumes sandbox:0 image:a:0 start:a:0 liveness:a"),
                (jump, "liveness:a"),
                ("wait 10", "liveness:a"),
            ],
        );
    }
}
