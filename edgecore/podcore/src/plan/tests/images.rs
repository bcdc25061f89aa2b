//! Images: pulls that fail, and other images for containers that run.

use super::*;
use crate::sim::check;

#[test]
fn a_failed_pull_is_tried_again() {
    check(
        &one("Always"),
        &[
            ("break image a ErrImagePull no-route", "volumes sandbox:0 image:a:0"),
            ("status", "Pending a=ErrImagePull#0"),
            ("events", "BackOff: Back-off pulling image \"x\"; Failed: Error: ImagePullBackOff"),
            ("wait 9", ""),
            ("events", ""),
            ("wait 1", "image:a:0"),
            ("events", "BackOff: Back-off pulling image \"x\"; Failed: Error: ImagePullBackOff"),
            ("status", "Pending a=ImagePullBackOff#0"),
            ("wait 20", "image:a:0"),
            ("wait 40", "image:a:0"),
            ("wait 80", "image:a:0"),
            ("wait 160", "image:a:0"),
            ("wait 300", "image:a:0"),
            ("wait 299", ""),
            ("mend", ""),
            ("wait 1", "image:a:0 start:a:0"),
            ("status", "Running a=running#0"),
        ],
    );
}

#[test]
fn a_failed_pull_for_a_volume_holds_the_container_that_mounts_it() {
    check(
        &two("Always"),
        &[
            (
                "break mounted a ErrImagePull no-route",
                "volumes sandbox:0 image:a:0 image:b:0 start:b:0",
            ),
            ("status", "Pending a=ErrImagePull#0 b=running#0"),
            ("events", "BackOff: Back-off pulling image \"v\"; Failed: Error: ImagePullBackOff"),
            ("wait 9", ""),
            ("wait 1", "image:a:0"),
            ("status", "Pending a=ImagePullBackOff#0 b=running#0"),
            ("events", "BackOff: Back-off pulling image \"v\"; Failed: Error: ImagePullBackOff"),
            ("mend", ""),
            // The failures of another image count for themselves.
            ("break image a ErrImagePull no-route", ""),
            ("wait 20", "image:a:0"),
            ("status", "Pending a=ErrImagePull#0 b=running#0"),
            ("events", "BackOff: Back-off pulling image \"x\"; Failed: Error: ImagePullBackOff"),
            ("mend", ""),
            ("wait 10", "image:a:0 start:a:0"),
        ],
    );
}

#[test]
fn other_reasons_are_told_as_they_are() {
    for reason in ["ErrImageNeverPull", "InvalidImageName"] {
        check(
            &one("Never"),
            &[
                (&format!("break image a {reason} x"), "volumes sandbox:0 image:a:0"),
                ("status", &format!("Pending a={reason}#0")),
                ("wait 10", "image:a:0"),
                ("status", &format!("Pending a={reason}#0")),
            ],
        );
    }
}

#[test]
fn one_image_does_not_wait_for_another() {
    check(
        &two("Always"),
        &[
            (
                "break image a ErrImagePull no-route",
                "volumes sandbox:0 image:a:0 image:b:0 start:b:0",
            ),
            ("status", "Pending a=ErrImagePull#0 b=running#0"),
            ("mend", ""),
            ("wait 10", "image:a:0 start:a:0"),
        ],
    );
}

#[test]
fn another_image_is_not_held_by_the_failures_of_the_first() {
    check(
        &one("Always"),
        &[
            ("break image a ErrImagePull no-route", "volumes sandbox:0 image:a:0"),
            ("wait 30", "image:a:0 image:a:0"),
            ("mend", ""),
            ("image a y", "image:a:0=y start:a:0"),
        ],
    );
}

#[test]
fn an_image_that_was_found_is_not_used_for_another() {
    let world = check(
        &one("Always"),
        &[
            (
                "break start a CreateContainerError broken",
                "volumes sandbox:0 image:a:0 start:a:0 remove:c2",
            ),
            ("mend", ""),
            ("image a y", "image:a:0=y"),
            ("wait 1", "start:a:0"),
        ],
    );
    assert_eq!(world.observed.containers[0].image_ref, "sha256:y");
    // A pull of the first that ends late is not taken for the second.
    let world = check(
        &one("Always"),
        &[
            ("slow image a", "volumes sandbox:0 image:a:0"),
            ("image a y", "image:a:0=y"),
            ("release", "start:a:0"),
        ],
    );
    assert_eq!(world.observed.containers[0].image_ref, "sha256:y");
}

#[test]
fn a_running_container_is_replaced_when_its_image_changes() {
    for policy in ["Always", "OnFailure", "Never"] {
        let world = check(
            &two(policy),
            &[
                BOTH_STARTED,
                ("stops a 0", ""),
                ("image a y", "stop:a:30s image:a:1=y start:a:1"),
                ("status", "Running a=running#1 b=running#0"),
                ("agent restart", "volumes"),
                // By itself it ends as its policy says.
                (
                    "exit a 0",
                    if policy == "Always" { "image:a:2=y start:a:2 remove:c2" } else { "" },
                ),
            ],
        );
        assert_eq!(world.observed.newest("a").unwrap().image_ref, "sha256:y", "{policy}");
    }
}

#[test]
fn a_replacement_is_not_forgotten_by_an_agent_that_restarts_meanwhile() {
    check(
        &one("Never"),
        &[
            STARTED,
            ("slow image a", ""),
            ("image a y", "stop:a:30s image:a:1=y"),
            ("status", "Running a=Error(143)#0"),
            ("agent restart", "volumes image:a:1=y"),
            ("release", "start:a:1"),
            ("exit a 0", "stop:s1 tear-down"),
            ("status", "Succeeded a=Completed(0)#1"),
        ],
    );
}

#[test]
fn another_image_ends_a_crash_loop() {
    check(
        &one("Always"),
        &[
            STARTED,
            ("exit a 1", "image:a:1 start:a:1"),
            ("exit a 1", ""),
            ("wait 10", "image:a:2 start:a:2 remove:c2"),
            ("exit a 1", ""),
            ("status", "Running a=CrashLoopBackOff#2"),
            ("image a y", "image:a:3=y start:a:3 remove:c3"),
            ("exit a 1", ""),
            ("wait 9", ""),
            ("wait 1", "image:a:4=y start:a:4 remove:c4"),
        ],
    );
}
