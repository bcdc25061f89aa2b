//! Init containers: one by one, to the end, before anything else.

use super::*;
use crate::sim::check;

const FIRST: (&str, &str) = ("look", "volumes sandbox:0 image:i:0 start:i:0");

#[test]
fn each_waits_for_the_one_before() {
    check(
        &with_init("Always"),
        &[
            FIRST,
            ("status", "Pending i=running#0 j=PodInitializing#0 a=PodInitializing#0"),
            ("exit i 0", "image:j:0 start:j:0"),
            ("status", "Pending i=Completed(0)#0 j=running#0 a=PodInitializing#0"),
            ("exit j 0", "image:a:0 start:a:0"),
            ("status", "Running i=Completed(0)#0 j=Completed(0)#0 a=running#0"),
            // Their records may go; they do not run again.
            ("vanish i", ""),
            ("vanish j", ""),
            ("agent restart", "volumes"),
            ("exit a 1", "image:a:1 start:a:1"),
        ],
    );
}

#[test]
fn a_failed_one_is_restarted_or_ends_the_pod() {
    for policy in ["Always", "OnFailure"] {
        check(
            &with_init(policy),
            &[
                FIRST,
                ("exit i 1", "image:i:1 start:i:1"),
                ("exit i 1", ""),
                ("status", "Pending i=CrashLoopBackOff#1 j=PodInitializing#0 a=PodInitializing#0"),
                ("wait 10", "image:i:2 start:i:2 remove:c2"),
                ("exit i 0", "image:j:0 start:j:0"),
            ],
        );
    }
    check(
        &with_init("Never"),
        &[
            FIRST,
            ("exit i 0", "image:j:0 start:j:0"),
            ("exit j 4", "stop:s1 tear-down"),
            ("status", "Failed i=Completed(0)#0 j=Error(4)#0 a=PodInitializing#0"),
            ("wait 3600", ""),
        ],
    );
}

#[test]
fn a_new_sandbox_begins_with_them_again() {
    check(
        &with_init("Always"),
        &[
            FIRST,
            ("exit i 0", "image:j:0 start:j:0"),
            ("exit j 0", "image:a:0 start:a:0"),
            ("power loss", "volumes sandbox:1 image:i:1 start:i:1"),
            ("exit i 0", "image:j:1 start:j:1"),
            ("exit j 0", "image:a:1 start:a:1 remove:s1"),
            ("status", "Running i=Completed(0)#1 j=Completed(0)#1 a=running#1"),
        ],
    );
    // Power lost between two of them.
    check(
        &with_init("OnFailure"),
        &[
            FIRST,
            ("exit i 0", "image:j:0 start:j:0"),
            ("power loss", "volumes sandbox:1 image:i:1 start:i:1"),
            ("exit i 0", "image:j:1 start:j:1"),
        ],
    );
    check(
        &with_init("Never"),
        &[
            FIRST,
            ("power loss", "stop:s1 tear-down"),
            ("status", "Failed i=Error(255)#0 j=PodInitializing#0 a=PodInitializing#0"),
        ],
    );
}

#[test]
fn an_agent_that_restarts_goes_on_where_it_was() {
    check(
        &with_init("Always"),
        &[
            FIRST,
            ("exit i 0", "image:j:0 start:j:0"),
            ("agent restart", "volumes"),
            ("exit j 0", "image:a:0 start:a:0"),
        ],
    );
    // The record of the first went while the second ran.
    check(
        &with_init("Always"),
        &[
            FIRST,
            ("exit i 0", "image:j:0 start:j:0"),
            ("vanish i", ""),
            ("exit j 0", "image:a:0 start:a:0"),
        ],
    );
    check(
        &with_init("Always"),
        &[FIRST, ("vanish i", "image:i:1 start:i:1"), ("exit i 0", "image:j:0 start:j:0")],
    );
}

#[test]
fn a_pod_is_deleted_while_they_run() {
    check(
        &with_init("Always"),
        &[
            FIRST,
            ("delete 10", "stop:i:10s remove:s1 tear-down"),
            ("finished", "true"),
            ("status", "Failed i=Error(143)#0 j=PodInitializing#0 a=PodInitializing#0"),
        ],
    );
}

#[test]
fn a_deadline_passes_while_they_run() {
    let mut spec = with_init("Always");
    spec["activeDeadlineSeconds"] = json!(60);
    check(
        &spec,
        &[
            FIRST,
            ("wait 59", ""),
            ("wait 1", "stop:i:30s stop:s1 tear-down"),
            (
                "status",
                "Failed DeadlineExceeded i=Error(143)#0 j=PodInitializing#0 a=PodInitializing#0",
            ),
        ],
    );
}
