//! Ephemeral containers: started once, at any time, and of no account for the pod.

use super::*;
use crate::sim::check;

#[test]
fn they_run_once() {
    check(
        &one("Always"),
        &[
            STARTED,
            ("debug e", "image:e:0 start:e:0"),
            ("status", "Running a=running#0 e=running#0"),
            ("ready", "a"),
            ("exit e 1", ""),
            ("status", "Running a=running#0 e=Error(1)#0"),
            ("vanish e", ""),
            ("agent restart", "volumes"),
            ("wait 3600", ""),
            ("debug f", "image:f:0 start:f:0"),
            ("power loss", "volumes sandbox:1 image:a:1 start:a:1 remove:s1"),
            ("status", "Running a=running#1 e=Error(1)#0 f=Error(255)#0"),
        ],
    );
}

#[test]
fn they_do_not_wait_for_init_containers_and_nothing_waits_for_them() {
    check(
        &with_init("Never"),
        &[
            ("look", "volumes sandbox:0 image:i:0 start:i:0"),
            ("debug e", "image:e:0 start:e:0"),
            ("exit i 0", "image:j:0 start:j:0"),
            ("exit j 0", "image:a:0 start:a:0"),
            ("exit a 0", "stop:e:30s stop:s1 tear-down"),
            (
                "status",
                "Succeeded i=Completed(0)#0 j=Completed(0)#0 a=Completed(0)#0 e=Error(143)#0",
            ),
        ],
    );
}

#[test]
fn one_that_cannot_start_is_tried_again() {
    let mut world = check(&one("Always"), &[STARTED]);
    world.step("break image e ErrImagePull gone");
    assert_eq!(world.step("debug e"), "image:e:0");
    assert_eq!(world.step("status"), "Running a=running#0 e=ErrImagePull#0");
    world.step("mend");
    assert_eq!(world.step("wait 30"), "image:e:0 start:e:0");
}
