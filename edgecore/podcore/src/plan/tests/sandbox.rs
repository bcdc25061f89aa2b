//! Sandboxes that go, with or without the power, and agents that come back.

use super::*;
use crate::sim::check;

#[test]
fn a_lost_sandbox_is_replaced_as_the_policy_says() {
    for (policy, after, told) in [
        ("Always", "volumes sandbox:1 image:a:1 start:a:1 remove:s1", "Running a=running#1"),
        ("OnFailure", "volumes sandbox:1 image:a:1 start:a:1 remove:s1", "Running a=running#1"),
        ("Never", "stop:s1 tear-down", "Failed a=Error(255)#0"),
    ] {
        check(&one(policy), &[STARTED, ("power loss", after), ("status", told)]);
    }
    check(
        &two("OnFailure"),
        &[
            BOTH_STARTED,
            ("exit a 0", ""),
            // What has done its work does not run again, and holds nothing.
            ("power loss", "volumes sandbox:1 image:b:1 start:b:1 remove:s1"),
            ("status", "Running a=Completed(0)#0 b=running#1"),
            ("exit b 0", "stop:s4 tear-down"),
            ("status", "Succeeded a=Completed(0)#0 b=Completed(0)#1"),
        ],
    );
}

#[test]
fn a_new_sandbox_has_another_address() {
    let world = check(
        &one("Always"),
        &[STARTED, ("power loss", "volumes sandbox:1 image:a:1 start:a:1 remove:s1")],
    );
    assert_eq!(world.memory.ips, ["10.1.0.6"]);
}

#[test]
fn containers_that_outlive_their_sandbox_are_not_doubled() {
    // The sandbox of a running container died: the container's network is gone with it.
    check(
        &one("Always"),
        &[
            STARTED,
            ("sandbox lost", "stop:a:30s image:a:1 sandbox:1 start:a:1 remove:s1"),
            ("status", "Running a=running#1"),
        ],
    );
}

#[test]
fn a_runtime_that_knows_nothing_starts_over() {
    for (policy, after, told) in [
        ("Always", "sandbox:1 image:a:1 start:a:1", "Running a=running#1"),
        ("OnFailure", "sandbox:1 image:a:1 start:a:1", "Running a=running#1"),
        ("Never", "tear-down", "Failed a=ContainerStatusUnknown(137)#0"),
    ] {
        check(&one(policy), &[STARTED, ("wiped", after), ("status", told)]);
    }
    // What succeeded does not run again.
    check(
        &two("OnFailure"),
        &[BOTH_STARTED, ("exit a 0", ""), ("wiped", "sandbox:1 image:b:1 start:b:1")],
    );
}

#[test]
fn an_agent_restart_touches_nothing() {
    check(
        &two("Always"),
        &[
            BOTH_STARTED,
            ("agent restart", "volumes"),
            ("status", "Running a=running#0 b=running#0"),
        ],
    );
}

#[test]
fn a_start_that_dies_with_the_agent_is_no_end() {
    for policy in ["Always", "OnFailure", "Never"] {
        check(
            &one(policy),
            &[
                ("slow start a", "volumes sandbox:0 image:a:0 start:a:0"),
                ("agent cut", "volumes remove:c2 image:a:0 start:a:0"),
                ("release", ""),
                ("status", "Running a=running#0"),
            ],
        );
    }
}

#[test]
fn a_start_that_the_power_cut_short_is_made_again() {
    // The runtime has a name once: what the old sandbox never started goes first.
    check(
        &one("Always"),
        &[
            ("slow start a", "volumes sandbox:0 image:a:0 start:a:0"),
            ("power loss", "volumes sandbox:1 image:a:0 remove:c2 start:a:0"),
            ("release", "remove:s1"),
            ("status", "Running a=running#0"),
        ],
    );
}

#[test]
fn an_ephemeral_start_that_the_power_cut_short_is_made_again() {
    check(
        &one("Always"),
        &[
            STARTED,
            ("slow start e", ""),
            ("debug e", "image:e:0 start:e:0"),
            (
                "power loss",
                "volumes sandbox:1 image:a:1 remove:c3 start:a:1 image:e:0 remove:s1 start:e:0",
            ),
            ("release", ""),
            ("status", "Running a=running#1 e=running#0"),
        ],
    );
}

#[test]
fn an_agent_restart_forgets_no_crash() {
    check(
        &one("Always"),
        &[
            STARTED,
            ("exit a 1", "image:a:1 start:a:1"),
            ("exit a 1", ""),
            ("wait 10", "image:a:2 start:a:2 remove:c2"),
            ("exit a 1", ""),
            ("agent restart", "volumes"),
            ("status", "Running a=CrashLoopBackOff#2"),
            ("wait 19", ""),
            ("wait 1", "image:a:3 start:a:3 remove:c3"),
            // Nor does power loss.
            ("exit a 1", ""),
            ("power loss", "volumes sandbox:1 image:a:4 start:a:4 remove:s1"),
            ("exit a 1", ""),
            ("wait 39", ""),
            ("wait 1", "image:a:5 start:a:5"),
        ],
    );
}

#[test]
fn a_pod_is_adopted_without_any_memory() {
    let mut world = check(&one("Always"), &[STARTED, ("exit a 1", "image:a:1 start:a:1")]);
    world.memory = crate::memory::Memory::default();
    world.stored = crate::memory::Memory::default();
    crate::sim::play(
        &mut world,
        &[
            ("look", ""),
            ("status", "Running a=running#1"),
            ("exit a 1", "image:a:2 start:a:2 remove:c2"),
        ],
    );
}

/// A sandbox that is not ready has its network until its stop went through.
#[test]
fn the_stop_of_a_sandbox_that_was_cut_short_is_done_again() {
    check(
        &one("Never"),
        &[
            STARTED,
            ("slow stop-sandbox", ""),
            ("exit a 0", "stop:s1"),
            ("sandbox lost", "tear-down"),
            ("agent restart", "stop:s1 tear-down"),
            ("release", ""),
            ("agent restart", "tear-down"),
        ],
    );
}

#[test]
fn an_end_outlives_agent_and_power() {
    for policy in ["Never", "OnFailure"] {
        check(
            &one(policy),
            &[
                STARTED,
                ("exit a 0", "stop:s1 tear-down"),
                ("agent restart", "tear-down"),
                ("power loss", "tear-down"),
                ("wiped", ""),
                ("wait 86400", ""),
                ("status", "Succeeded a=Completed(0)#0"),
                ("delete 30", ""),
                ("finished", "true"),
                ("status", "Succeeded a=Completed(0)#0"),
            ],
        );
    }
}

#[test]
fn sandboxes_that_fail_leave_nothing_behind() {
    check(
        &one("Always"),
        &[
            STARTED,
            ("break sandbox FailedCreatePodSandBox no-ip", ""),
            // What is left of the first may hold the address that the second needs.
            ("power loss", "volumes sandbox:1 image:a:1 remove:s1"),
            ("wait 1", "sandbox:2"),
            ("mend", ""),
            ("wait 2", "sandbox:3 start:a:1"),
            ("status", "Running a=running#1"),
        ],
    );
}
