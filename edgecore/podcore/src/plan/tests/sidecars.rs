//! Sidecars: init containers that go on beside the containers of the pod, and end after them.

use super::*;
use crate::plan::Action;
use crate::sim::{World, check, play};

/// A sidecar `s`, an init container `i`, a sidecar `t`, then `a`.
fn with_sidecars(policy: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "initContainers": [
            { "name": "s", "restartPolicy": "Always" },
            { "name": "i" },
            { "name": "t", "restartPolicy": "Always" },
        ],
        "containers": [{ "name": "a" }],
    })
}

const FIRST: (&str, &str) = ("look", "volumes sandbox:0 image:s:0 start:s:0 image:i:0 start:i:0");
const THEN: (&str, &str) = ("exit i 0", "image:t:0 start:t:0 image:a:0 start:a:0");

#[test]
fn they_start_in_their_place_and_are_kept_running() {
    check(
        &with_sidecars("OnFailure"),
        &[
            FIRST,
            ("status", "Pending s=running#0 i=running#0 t=PodInitializing#0 a=PodInitializing#0"),
            // One that ends holds nobody up who has begun, and begins again.
            ("exit s 0", "image:s:1 start:s:1"),
            THEN,
            ("status", "Running s=running#1 i=Completed(0)#0 t=running#0 a=running#0"),
            ("exit t 0", "image:t:1 start:t:1"),
            ("exit t 1", ""),
            ("status", "Running s=running#1 i=Completed(0)#0 t=CrashLoopBackOff#1 a=running#0"),
            // One that waits after an end without fault is told as ended.
            ("exit s 0", ""),
            (
                "status",
                "Running s=Completed(0)#1 i=Completed(0)#0 t=CrashLoopBackOff#1 a=running#0",
            ),
            ("wait 10", "image:s:2 image:t:2 start:s:2 start:t:2 remove:c2 remove:c5"),
            ("vanish i", ""),
            ("agent restart", "volumes"),
        ],
    );
}

#[test]
fn the_next_waits_until_they_have_started() {
    let mut spec = with_sidecars("Always");
    spec["initContainers"][0]["startupProbe"] =
        json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 5 });
    let mut world = check(&spec, &[]);
    world.step("break startup:s Failure m");
    play(
        &mut world,
        &[
            (
                "status",
                "Pending s=running#0 i=PodInitializing#0 t=PodInitializing#0 a=PodInitializing#0",
            ),
            ("mend", ""),
            ("wait 5", "startup:s image:i:0 start:i:0"),
            ("exit i 0", "image:t:0 start:t:0 image:a:0 start:a:0"),
            // Once past, nobody waits for them a second time.
            ("exit s 1", "image:s:1 start:s:1 startup:s"),
            ("status", "Running s=running#1 i=Completed(0)#0 t=running#0 a=running#0"),
        ],
    );
}

#[test]
fn a_pod_completes_without_them() {
    for (code, phase) in [(0, "Succeeded"), (3, "Failed")] {
        let mut world = check(&with_sidecars("Never"), &[FIRST, THEN]);
        world.step("stops s 0");
        world.step("stops t 7");
        let end = format!("exit a {code}");
        // The last that started is the first to stop.
        assert_eq!(world.step(&end), "stop:t:30s stop:s:30s stop:s1 tear-down");
        let reason = if code == 0 { "Completed" } else { "Error" };
        let told =
            format!("{phase} s=Completed(0)#0 i=Completed(0)#0 t=Error(7)#0 a={reason}({code})#0");
        assert_eq!(world.step("status"), told);
    }
}

#[test]
fn they_stop_after_the_containers_within_the_grace_of_the_pod() {
    let mut world = check(&with_sidecars("Always"), &[FIRST, THEN]);
    world.step("slow stop a");
    world.step("slow stop t");
    play(
        &mut world,
        &[
            ("delete 10", "stop:a:10s"),
            ("wait 4", ""),
            // Their turn comes with what is left of the grace, at its end with the least there is.
            ("exit a 0", "stop:t:6s"),
            ("wait 5", ""),
            ("wait 1", "stop:s:2s"),
            ("exit t 0", "remove:s1 tear-down"),
            ("finished", "true"),
        ],
    );
}

const KILLING: &str = "Killing: Stopping container s; Killing: Stopping container t; \
     Killing: Stopping container a";

/// Sidecars `s` and `t` with hooks before their stop, and `a`.
fn with_hooks() -> World {
    let mut spec = with_sidecars("Always");
    for at in [0, 2] {
        let hook = json!({ "preStop": { "exec": { "command": ["x"] } } });
        spec["initContainers"][at]["lifecycle"] = hook;
    }
    let mut world = check(&spec, &[FIRST, THEN]);
    for step in ["slow stop a", "slow stop t", "hooks 3"] {
        world.step(step);
    }

    world
}

#[test]
fn their_hooks_run_when_the_pod_begins_to_stop_and_their_kill_waits_for_its_turn() {
    play(
        &mut with_hooks(),
        &[
            ("delete 20", "pre-stop:s:20s pre-stop:t:20s stop:a:20s"),
            ("events", KILLING),
            ("wait 4", ""),
            // The grace without what the hook took and how long it waited.
            ("exit a 0", "stop:t:13s"),
            ("wait 5", ""),
            ("exit t 0", "stop:s:8s remove:s1 tear-down"),
            ("events", ""),
        ],
    );
}

#[test]
fn a_sidecar_is_not_killed_while_its_hook_runs() {
    let mut world = with_hooks();
    world.step("slow pre-stop t");
    play(
        &mut world,
        &[
            ("delete 20", "pre-stop:s:20s pre-stop:t:20s stop:a:20s"),
            ("exit a 0", ""),
            ("wait 7", ""),
            ("hooks 7", ""),
            ("release", "stop:t:13s stop:s:10s remove:s1 tear-down"),
        ],
    );
    let mut world = with_hooks();
    play(
        &mut world,
        &[
            // Nothing is left, and nobody waits any more.
            ("hooks 20", ""),
            ("delete 20", "pre-stop:s:20s pre-stop:t:20s stop:a:20s stop:s:2s stop:t:2s"),
        ],
    );
}

#[test]
fn a_hook_that_ran_does_not_run_again() {
    for ends in ["agent restart", "agent crash"] {
        let mut world = with_hooks();
        world.step("slow pre-stop t");
        play(
            &mut world,
            &[
                ("delete 20", "pre-stop:s:20s pre-stop:t:20s stop:a:20s"),
                // A shorter grace counts from now; of a hook that is under way nobody knows the end.
                ("wait 4", ""),
                ("delete 10", "pre-stop:t:10s stop:a:10s"),
                ("wait 4", ""),
            ],
        );
        assert!(world.memory.pre_stopped.len() == 1, "{:?}", world.memory.pre_stopped);
        world.under_way.retain(|action| !matches!(action, Action::StopContainer { .. }));
        let again = world.step(ends);
        assert_eq!(again, "pre-stop:t:10s stop:a:10s", "{ends}");
        play(
            &mut world,
            &[
                ("wait 2", ""),
                ("exit a 0", ""),
                ("hooks 2", ""),
                ("release", "stop:t:8s stop:s:8s remove:s1 tear-down"),
            ],
        );
    }
}

#[test]
fn a_stop_that_is_called_off_goes_on_in_its_order_and_all_begins_again() {
    play(
        &mut with_hooks(),
        &[
            ("shutdown 20", "pre-stop:s:20s pre-stop:t:20s stop:a:20s"),
            ("wait 15", ""),
            ("shutdown over", ""),
            ("wait 1", ""),
            ("wait 1", "stop:s:2s stop:t:2s"),
            ("exit a 0", ""),
            ("status", "Running s=Error(143)#0 i=Completed(0)#0 t=running#0 a=Completed(0)#0"),
            ("exit t 0", "stop:s1 sandbox:1 image:s:1 start:s:1 image:i:1 start:i:1"),
            ("events", KILLING),
            ("exit i 0", "image:t:1 start:t:1 image:a:1 start:a:1 remove:s1"),
            ("shutdown 20", "pre-stop:s:20s pre-stop:t:20s stop:a:20s"),
            ("events", KILLING),
        ],
    );
}

#[test]
fn a_new_sandbox_begins_with_them_again() {
    check(
        &with_sidecars("Always"),
        &[
            FIRST,
            THEN,
            ("power loss", "volumes sandbox:1 image:s:1 start:s:1 image:i:1 start:i:1"),
            ("exit i 0", "image:t:1 start:t:1 image:a:1 start:a:1 remove:s1"),
        ],
    );
}
