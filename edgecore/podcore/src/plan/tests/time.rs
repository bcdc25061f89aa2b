//! Clocks that jump: a node without a battery wakes up in 1970 and learns the time later.

use super::*;
use crate::sim::check;

const YEARS: i64 = 10 * 365 * 86400;

#[test]
fn nothing_that_runs_is_touched() {
    for years in [YEARS, -YEARS] {
        check(
            &two("Always"),
            &[
                BOTH_STARTED,
                (&format!("clock {years}"), ""),
                ("wait 60", ""),
                (&format!("clock {}", -years), ""),
                ("status", "Running a=running#0 b=running#0"),
            ],
        );
    }
}

#[test]
fn no_wait_lasts_for_years() {
    let crashing = [
        STARTED,
        ("exit a 1", "image:a:1 start:a:1"),
        ("exit a 1", ""),
        ("wait 10", "image:a:2 start:a:2 remove:c2"),
        ("exit a 1", ""),
    ];
    for jump in [YEARS, -YEARS, -3600] {
        let jump = format!("clock {jump}");
        check(
            &one("Always"),
            &[&crashing[..], &[(&jump, "image:a:3 start:a:3 remove:c3")]].concat(),
        );
    }
    // A small step moves the wait by as much.
    check(
        &one("Always"),
        &[
            &crashing[..],
            &[("clock -5", ""), ("wait 24", ""), ("wait 1", "image:a:3 start:a:3 remove:c3")],
        ]
        .concat(),
    );
    check(
        &one("Always"),
        &[
            ("break image a ErrImagePull no-route", "volumes sandbox:0 image:a:0"),
            (&format!("clock {}", -YEARS), "image:a:0"),
            ("mend", ""),
            ("wait 20", "image:a:0 start:a:0"),
        ],
    );
    check(
        &one("Always"),
        &[
            ("break volumes FailedMount busy", "volumes sandbox:0 image:a:0"),
            ("mend", ""),
            (&format!("clock {}", -YEARS), "volumes start:a:0"),
        ],
    );
}

#[test]
fn a_crash_loop_is_still_slowed_after_a_jump() {
    for years in [YEARS, -YEARS] {
        check(
            &one("Always"),
            &[
                STARTED,
                ("exit a 1", "image:a:1 start:a:1"),
                (&format!("clock {years}"), ""),
                ("exit a 1", if years > 0 { "image:a:2 start:a:2 remove:c2" } else { "" }),
                ("wait 10", if years > 0 { "" } else { "image:a:2 start:a:2 remove:c2" }),
            ],
        );
    }
}

#[test]
fn a_deadline_counts_the_time_that_passes() {
    let mut spec = one("Always");
    spec["activeDeadlineSeconds"] = json!(100);
    let over = "stop:a:30s stop:s1 tear-down";
    for years in [YEARS, -YEARS] {
        let (set, back) = (format!("clock {years}"), format!("clock {}", -years));
        check(&spec, &[STARTED, ("wait 40", ""), (&set, ""), ("wait 59", ""), ("wait 1", over)]);
        check(
            &spec,
            &[
                STARTED,
                ("wait 40", ""),
                (&set, ""),
                ("wait 30", ""),
                ("agent restart", "volumes"),
                (&back, ""),
                ("wait 29", ""),
                ("wait 1", over),
            ],
        );
    }
    // Set back while nobody measured: what passed before is not known, and nothing ends early.
    let mut world = check(&spec, &[STARTED, ("wait 40", "")]);
    world.agent_restart();
    world.now -= jiff::SignedDuration::from_secs(999_999_999);
    crate::sim::play(
        &mut world,
        &[
            ("look", "volumes"),
            ("wait 50", ""),
            ("clock 999999999", ""),
            ("wait 49", ""),
            ("wait 1", over),
        ],
    );
}

/// An agent starts again, and the clock says that so many seconds have passed.
fn away(seconds: i64) -> crate::sim::World {
    let mut spec = one("Always");
    spec["activeDeadlineSeconds"] = json!(100);
    let mut world = check(&spec, &[STARTED, ("wait 40", "")]);
    world.agent_restart();
    world.now += jiff::SignedDuration::from_secs(seconds);

    world
}

#[test]
fn a_clock_that_was_set_while_no_agent_ran_ends_no_pod() {
    let over = "stop:a:30s stop:s1 tear-down";
    for years in [YEARS, -YEARS] {
        // The memory was last stored when the pod ran.
        let rest = [("look", "volumes"), ("wait 99", ""), ("wait 1", over)];
        crate::sim::play(&mut away(years), &rest);
        let back = format!("clock {}", -years);
        let rest = [("look", "volumes"), (&back, ""), ("wait 99", ""), ("wait 1", over)];
        crate::sim::play(&mut away(years), &rest);
    }
    // What it may have been away counts, as on a kubelet.
    crate::sim::play(&mut away(50), &[("look", "volumes"), ("wait 9", ""), ("wait 1", over)]);
}
