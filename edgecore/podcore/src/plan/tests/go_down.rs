//! The node goes down.

use super::*;
use crate::observed::{ContainerState, ContainerView};
use crate::plan::plan;
use crate::sim::{World, check};

#[test]
fn a_pod_that_restarts_is_stopped_and_runs_again_after() {
    for policy in ["Always", "OnFailure"] {
        // Whatever its containers make of the signal.
        for (code, ended) in [(0, "Completed(0)"), (143, "Error(143)")] {
            check(
                &one(policy),
                &[
                    STARTED,
                    (&format!("stops a {code}"), ""),
                    ("shutdown 20", "stop:a:20s stop:s1"),
                    ("status", &format!("Running Terminated a={ended}#0")),
                    ("agent crash", ""),
                    ("shutdown over", "volumes sandbox:1 image:a:1 start:a:1 remove:s1"),
                    ("status", "Running a=running#1"),
                ],
            );
        }
    }
}

#[test]
fn a_pod_that_never_restarts_has_failed() {
    check(
        &one("Never"),
        &[
            STARTED,
            ("shutdown 20", "stop:a:20s stop:s1 tear-down"),
            ("status", "Failed Terminated a=Error(143)#0"),
            ("agent crash", "tear-down"),
            ("shutdown over", ""),
            ("power loss", "tear-down"),
            ("status", "Failed Terminated a=Error(143)#0"),
        ],
    );
}

#[test]
fn the_grace_is_the_shorter_one() {
    for (period, own, grace) in [(20, 5, 5), (3, 5, 3), (0, 5, 2)] {
        let mut spec = one("Always");
        spec["terminationGracePeriodSeconds"] = json!(own);
        let stopped = format!("stop:a:{grace}s stop:s1");
        check(&spec, &[STARTED, (&format!("shutdown {period}"), &stopped)]);
    }
}

#[test]
fn what_was_initialized_is_initialized_again() {
    check(
        &with_init("Always"),
        &[
            ("look", "volumes sandbox:0 image:i:0 start:i:0"),
            ("stops i 0", ""),
            ("shutdown 20", "stop:i:20s stop:s1"),
            ("shutdown over", "sandbox:1 image:i:1 start:i:1"),
        ],
    );
}

#[test]
fn a_pod_that_had_completed_has_not_failed() {
    for policy in ["Never", "OnFailure"] {
        let mut world = World::new(&one(policy));
        world.settle();
        // Both are seen at once.
        world.observed.shutdown_s = Some(20);
        world.step("exit a 0");
        world.settle();
        assert_eq!(world.step("status"), "Succeeded a=Completed(0)#0", "{policy}");
    }
}

/// Beside the running container there is `other` of the same name; the stop of that attempt has begun.
fn check_that_a_stop_goes_on(interrupted: u32, other: impl FnOnce(ContainerView) -> ContainerView) {
    let mut world = World::new(&one("Always"));
    world.settle();
    let other = other(world.observed.containers[0].clone());
    world.observed.containers.push(other);
    world.memory.container("a").interrupted = Some(interrupted);
    let first = plan(&world.pod, &world.memory, &world.observed, world.now);
    assert!(first.memory.transient.stopping.is_some());
    let again = plan(&world.pod, &first.memory, &world.observed, world.now);
    assert_eq!(again.memory, first.memory);
}

/// As after a crash of the runtime, which does not know any more what became of it.
#[test]
fn an_earlier_instance_that_may_run_does_not_call_off_a_stop() {
    check_that_a_stop_goes_on(3, |running| ContainerView {
        id: "later".to_owned(),
        attempt: 3,
        state: ContainerState::Created,
        ..running
    });
}

#[test]
fn a_later_stray_does_not_call_off_a_stop() {
    check_that_a_stop_goes_on(0, |running| ContainerView {
        id: "stray".to_owned(),
        attempt: 3,
        sandbox_id: "gone".to_owned(),
        state: ContainerState::Unknown,
        ..running
    });
}
