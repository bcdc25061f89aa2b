//! Containers with a hook after their start.

use super::*;
use crate::sim::check;

/// A pod of container `a` with a hook.
fn hooked(policy: &str) -> Value {
    let mut pod = one(policy);
    pod["containers"][0]["lifecycle"] = json!({ "postStart": { "exec": { "command": ["x"] } } });
    pod["containers"][0]["readinessProbe"] = json!({ "tcpSocket": { "port": 80 } });

    pod
}

#[test]
fn a_container_is_being_created_until_its_hook_has_run() {
    check(
        &hooked("Always"),
        &[
            ("slow hook:a", "volumes sandbox:0 image:a:0 start:a:0 hook:a"),
            ("status", "Pending a=ContainerCreating#0"),
            ("ready", ""),
            ("release", "readiness:a"),
            ("status", "Running a=running#0"),
            ("ready", "a"),
            ("agent restart", "volumes readiness:a"),
            ("exit a 1", "image:a:1 start:a:1 hook:a readiness:a"),
        ],
    );
}

#[test]
fn a_container_whose_hook_fails_is_stopped_and_tried_again() {
    check(
        &hooked("Always"),
        &[
            (
                "break hook:a Failure no",
                "volumes sandbox:0 image:a:0 start:a:0 hook:a stop:a:30s image:a:1",
            ),
            ("status", "Running a=PostStartHookError#0"),
            ("mend", ""),
            ("wait 10", "start:a:1 hook:a readiness:a"),
        ],
    );
    check(
        &hooked("Never"),
        &[
            (
                "break hook:a Failure no",
                "volumes sandbox:0 image:a:0 start:a:0 hook:a stop:a:30s stop:s1 tear-down",
            ),
            ("status", "Failed a=Error(143)#0"),
        ],
    );
}

#[test]
fn a_pod_that_is_deleted_waits_for_no_hook() {
    check(
        &hooked("Always"),
        &[
            ("slow hook:a", "volumes sandbox:0 image:a:0 start:a:0 hook:a"),
            ("delete 30", "stop:a:30s remove:s1 tear-down"),
            ("finished", "true"),
        ],
    );
}
