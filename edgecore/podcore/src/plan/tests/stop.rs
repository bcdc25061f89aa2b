//! Deletion and deadlines.

use super::*;
use crate::sim::{check, play};

#[test]
fn a_deleted_pod_winds_down_to_nothing() {
    for (delete, grace) in [("delete 30", 30), ("delete 5", 5), ("delete 0", 2)] {
        check(
            &two("Always"),
            &[
                BOTH_STARTED,
                (delete, &format!("stop:a:{grace}s stop:b:{grace}s remove:s1 tear-down")),
                ("finished", "true"),
                ("status", "Failed a=Error(143)#0 b=Error(143)#0"),
                ("wait 86400", ""),
                ("agent restart", "tear-down"),
                ("finished", "true"),
            ],
        );
    }
}

#[test]
fn the_phase_of_a_deleted_pod_is_how_its_containers_ended() {
    for (codes, phase) in [([0, 0], "Succeeded"), ([0, 143], "Failed"), ([1, 0], "Failed")] {
        let shown =
            |code| if code == 0 { "Completed(0)".to_owned() } else { format!("Error({code})") };
        check(
            &two("Always"),
            &[
                BOTH_STARTED,
                (&format!("stops a {}", codes[0]), ""),
                (&format!("stops b {}", codes[1]), ""),
                ("delete 30", "stop:a:30s stop:b:30s remove:s1 tear-down"),
                ("status", &format!("{phase} a={}#0 b={}#0", shown(codes[0]), shown(codes[1]))),
            ],
        );
    }
}

#[test]
fn a_shorter_grace_is_passed_on() {
    check(
        &one("Always"),
        &[
            STARTED,
            ("slow stop a", ""),
            ("delete 30", "stop:a:30s"),
            ("status", "Running a=running#0"),
            ("wait 10", ""),
            ("delete 0", "stop:a:2s"),
            ("finished", "false"),
            ("release", "remove:s1 tear-down"),
            ("finished", "true"),
        ],
    );
}

#[test]
fn nothing_starts_once_deleted() {
    let taken_away = ("delete 30", "remove:s1 tear-down");
    // What is being made is finished first.
    let finished = [("delete 30", ""), ("release", "remove:s1 tear-down")];
    for (slow, then) in [("slow image a", &[taken_away][..]), ("slow volumes", &finished[..])] {
        let mut world = check(&one("Always"), &[(slow, "volumes sandbox:0 image:a:0")]);
        play(&mut world, then);
        play(
            &mut world,
            &[("finished", "true"), ("status", "Failed a=ContainerStatusUnknown(137)#0")],
        );
    }
    // Even in a crash loop.
    check(
        &one("Always"),
        &[
            STARTED,
            ("exit a 1", "image:a:1 start:a:1"),
            ("exit a 1", ""),
            ("delete 30", "remove:s1 tear-down"),
            ("status", "Failed a=Error(1)#1"),
            ("wait 3600", ""),
        ],
    );
    // Nor anything that was missing.
    check(
        &one("Always"),
        &[
            ("missing secret", "image:a:0"),
            ("delete 30", "tear-down"),
            ("found", ""),
            ("finished", "true"),
        ],
    );
}

#[test]
fn a_deadline_ends_the_pod() {
    let mut spec = two("Always");
    spec["activeDeadlineSeconds"] = json!(100);
    spec["terminationGracePeriodSeconds"] = json!(7);
    check(
        &spec,
        &[
            BOTH_STARTED,
            ("wait 99", ""),
            ("events", ""),
            ("slow stop a", ""),
            ("wait 1", "stop:a:7s stop:b:7s"),
            (
                "events",
                "DeadlineExceeded: Pod was active on the node longer than the specified deadline; \
                 Killing: Stopping container a; Killing: Stopping container b",
            ),
            // Not told to have ended while it may still run.
            ("status", "Running a=running#0 b=Error(143)#0"),
            ("agent restart", "stop:a:7s"),
            ("release", "stop:s1 tear-down"),
            ("status", "Failed DeadlineExceeded a=Error(143)#0 b=Error(143)#0"),
            ("agent restart", "tear-down"),
            ("wait 86400", ""),
        ],
    );
}

#[test]
fn a_deadline_does_not_change_how_a_pod_has_ended() {
    let mut spec = one("Never");
    spec["activeDeadlineSeconds"] = json!(100);
    check(
        &spec,
        &[
            STARTED,
            ("exit a 0", "stop:s1 tear-down"),
            ("wait 200", ""),
            ("status", "Succeeded a=Completed(0)#0"),
        ],
    );
    check(
        &spec,
        &[
            ("missing secret", "image:a:0"),
            ("wait 100", "tear-down"),
            ("status", "Failed DeadlineExceeded a=ContainerCreating#0"),
        ],
    );
}

/// A pod of container `a` with a hook before its stop.
fn hooked(policy: &str) -> Value {
    let mut pod = one(policy);
    pod["containers"][0]["lifecycle"] = json!({ "preStop": { "exec": { "command": ["x"] } } });

    pod
}

#[test]
fn a_hook_is_always_followed_by_the_kill_and_that_by_another_attempt() {
    for ends in ["look", "agent restart", "agent cut"] {
        let mut world = check(&hooked("Never"), &[STARTED, ("slow pre-stop a", "")]);
        world.step("image a y");
        world.step("image a x");
        // The attempt is noted as replaced; that its hook was under way nobody knows any more.
        world.stored = world.remembered();
        world.step(ends);
        assert_eq!(world.step("release"), "stop:a:30s image:a:1 start:a:1", "{ends}");
        world.step("exit a 1");
        // It ended by itself, and nobody has asked for more.
        assert_eq!(world.step("status"), "Failed a=Error(1)#1", "{ends}");
    }
}

#[test]
fn a_pod_that_was_to_go_down_completes_when_the_node_goes_on() {
    check(
        &hooked("OnFailure"),
        &[
            STARTED,
            ("slow pre-stop a", ""),
            ("shutdown 20", "pre-stop:a:20s"),
            ("shutdown over", ""),
            ("release", "stop:a:20s stop:s1 sandbox:1 image:a:1 start:a:1 remove:s1"),
            ("exit a 0", "stop:s3 tear-down"),
            ("status", "Succeeded a=Completed(0)#1"),
        ],
    );
}

#[test]
fn no_hook_runs_beside_itself() {
    let mut world = check(
        &hooked("Always"),
        &[
            STARTED,
            ("slow pre-stop a", ""),
            ("shutdown 20", "pre-stop:a:20s"),
            // The earlier one is given up.
            ("shutdown 10", "pre-stop:a:10s"),
            ("delete 5", "pre-stop:a:5s"),
        ],
    );
    assert_eq!(world.under_way.len(), 1, "{:?}", world.under_way);
    // Nor is it waited for when there is nobody any more to run it.
    world.step("exit a 0");
    assert!(world.under_way.is_empty(), "{:?}", world.under_way);
}

#[test]
fn without_a_grace_no_hook_runs() {
    let mut pod = hooked("Always");
    pod["terminationGracePeriodSeconds"] = json!(0);
    check(
        &pod,
        &[
            STARTED,
            ("image a y", "stop:a:2s image:a:1=y start:a:1"),
            // A pod that stops as a whole has a second.
            ("delete 0", "pre-stop:a:1s stop:a:2s remove:s1 tear-down"),
        ],
    );
}
