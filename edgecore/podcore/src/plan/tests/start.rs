//! From nothing to running, and what may be in the way.

use super::*;
use crate::sim::check;

#[test]
fn a_pod_starts() {
    check(
        &one("Always"),
        &[
            STARTED,
            ("status", "Running a=running#0"),
            ("look", ""),
            ("wait 86400", ""),
            ("events", ""),
        ],
    );
    check(&two("Never"), &[BOTH_STARTED, ("status", "Running a=running#0 b=running#0")]);
}

#[test]
fn what_is_independent_is_done_at_once() {
    check(
        &one("Always"),
        &[
            ("slow volumes", "volumes sandbox:0 image:a:0"),
            ("status", "Pending a=ContainerCreating#0"),
            ("look", ""),
            ("release", "start:a:0"),
        ],
    );
    check(
        &one("Always"),
        &[("slow image a", "volumes sandbox:0 image:a:0"), ("release", "start:a:0")],
    );
    check(
        &one("Always"),
        &[("slow sandbox", "volumes sandbox:0 image:a:0"), ("release", "start:a:0")],
    );
}

#[test]
fn nothing_starts_without_what_it_needs() {
    check(
        &one("Always"),
        &[
            ("missing configmap", "image:a:0"),
            ("status", "Pending a=ContainerCreating#0"),
            ("wait 3600", ""),
            ("found", "volumes sandbox:0 start:a:0"),
            // What runs is not touched when it goes missing later.
            ("missing configmap", ""),
            ("agent restart", ""),
            ("status", "Running a=running#0"),
        ],
    );
}

#[test]
fn what_is_wrong_with_a_claim_is_told_once_as_the_kubelet_does() {
    let told = "FailedMount: Unable to attach or mount volumes: unmounted volumes=[data], \
                unattached volumes=[], failed to process volumes=[data]: \
                error processing PVC default/data: PVC is not bound";
    check(
        &one("Always"),
        &[
            ("missing claim", "image:a:0"),
            ("events", told),
            ("wait 60", ""),
            ("events", ""),
            ("found", "volumes sandbox:0 start:a:0"),
        ],
    );
}

#[test]
fn failures_are_tried_again_with_growing_delays() {
    check(
        &one("Always"),
        &[
            ("break volumes FailedMount busy", "volumes sandbox:0 image:a:0"),
            ("wait 1", "volumes"),
            ("wait 1", ""),
            ("wait 1", "volumes"),
            ("status", "Pending a=ContainerCreating#0"),
            ("mend", ""),
            ("wait 4", "volumes start:a:0"),
        ],
    );
    check(
        &one("Always"),
        &[
            ("break sandbox FailedCreatePodSandBox no-ip", "volumes sandbox:0 image:a:0"),
            ("wait 1", "sandbox:1"),
            ("mend", ""),
            ("wait 2", "sandbox:2 start:a:0"),
        ],
    );
    check(
        &two("Always"),
        &[
            (
                "break start a CreateContainerConfigError no-key",
                "volumes sandbox:0 image:a:0 start:a:0 image:b:0 start:b:0",
            ),
            ("status", "Pending a=CreateContainerConfigError#0 b=running#0"),
            ("wait 1", "start:a:0"),
            ("mend", ""),
            ("wait 2", "start:a:0"),
            ("status", "Running a=running#0 b=running#0"),
        ],
    );
}

#[test]
fn a_container_that_was_made_but_not_started_is_made_again() {
    check(
        &one("Never"),
        &[
            (
                "break start a RunContainerError no-such-file",
                "volumes sandbox:0 image:a:0 start:a:0 remove:c2",
            ),
            ("status", "Pending a=RunContainerError#0"),
            ("mend", ""),
            ("wait 1", "start:a:0"),
            ("status", "Running a=running#0"),
        ],
    );
}

#[test]
fn what_this_build_cannot_do_is_refused() {
    let spec = json!({ "resourceClaims": [{ "name": "c" }], "containers": [{ "name": "a" }] });
    let world = check(
        &spec,
        &[
            ("look", "tear-down"),
            ("events", "UnsupportedPodSpec: this node does not support resourceClaims"),
            ("status", "Failed UnsupportedPodSpec"),
            ("wait 3600", ""),
            ("agent restart", "tear-down"),
            ("delete 30", ""),
            ("finished", "true"),
        ],
    );
    assert!(world.observed.containers.is_empty());
}

#[test]
fn a_pod_that_asks_for_what_is_unknown_is_refused() {
    let spec = json!({ "resourceClaims": [{ "name": "c" }], "containers": [{ "name": "a" }] });
    check(
        &spec,
        &[
            ("look", "tear-down"),
            ("events", "UnsupportedPodSpec: this node does not support resourceClaims"),
            ("status", "Failed UnsupportedPodSpec"),
        ],
    );
}
