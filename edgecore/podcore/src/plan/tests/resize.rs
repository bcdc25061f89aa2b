//! In-place resize: what is asked for is granted when there is room, and given to what runs.

use super::*;
use crate::plan::Action;
use crate::sim::{check, play};

fn sized() -> Value {
    json!({ "containers": [
        { "name": "a", "resources": { "requests": { "cpu": "100m" } } },
        { "name": "b", "resources": { "requests": { "cpu": "200m" } },
          "resizePolicy": [{ "resourceName": "cpu", "restartPolicy": "RestartContainer" }] },
    ] })
}

#[test]
fn a_running_container_gets_what_it_asks_for() {
    let mut world = check(
        &sized(),
        &[
            BOTH_STARTED,
            ("sizes", "a=100m/100m b=200m/200m"),
            ("resize a 150m", "resize:a"),
            ("sizes", "a=150m/150m b=200m/200m"),
            // The same amount in other words is no resize.
            ("resize a 0.15", ""),
            ("agent restart", "volumes"),
            ("exit a 1", "image:a:1 start:a:1"),
            ("sizes", "a=0.15/0.15 b=200m/200m"),
        ],
    );
    let events = world.step("events");
    assert_eq!(
        events,
        "ResizeStarted: Pod resize started: {\"containers\":[\
         {\"name\":\"a\",\"resources\":{\"requests\":{\"cpu\":\"150m\"}}},\
         {\"name\":\"b\",\"resources\":{\"requests\":{\"cpu\":\"200m\"}}}],\"generation\":2}; \
         ResizeCompleted: Pod resize completed: {\"containers\":[\
         {\"name\":\"a\",\"resources\":{\"requests\":{\"cpu\":\"150m\"}}},\
         {\"name\":\"b\",\"resources\":{\"requests\":{\"cpu\":\"200m\"}}}],\"generation\":2}"
    );
}

#[test]
fn one_that_must_restart_for_it_is_restarted() {
    check(
        &sized(),
        &[
            BOTH_STARTED,
            ("slow start b", ""),
            // The pod's cgroup changes between the end of the one and the start of the other.
            ("resize b 250m", "stop:b:30s image:b:1 resize: start:b:1"),
            ("sizes", "a=100m/100m b=250m/250m InProgress:"),
            ("release", ""),
            ("sizes", "a=100m/100m b=250m/250m"),
            ("status", "Running a=running#0 b=running#1"),
        ],
    );
}

#[test]
fn the_pod_keeps_its_limits_while_one_that_must_restart_stops() {
    let mut world = check(
        &sized(),
        &[
            BOTH_STARTED,
            ("slow stop b", ""),
            ("resize b 50m", "stop:b:30s"),
            ("resize a 150m", ""),
            ("sizes", "a=150m/100m b=50m/200m InProgress:"),
        ],
    );
    world.step("break resize Error busy");
    play(
        &mut world,
        &[
            // A failure keeps nobody from starting.
            ("release", "image:b:1 resize:a start:b:1"),
            ("sizes", "a=150m/100m b=50m/50m InProgress:Error"),
            ("mend", ""),
            ("wait 1", "resize:a"),
            ("sizes", "a=150m/150m b=50m/50m"),
        ],
    );
}

#[test]
fn what_does_not_fit_waits_and_what_never_will_is_said_so() {
    let mut world = check(
        &sized(),
        &[
            BOTH_STARTED,
            ("room 1000 500", ""),
            ("resize a 900m", ""),
            ("sizes", "a=100m/100m b=200m/200m Pending:Infeasible"),
            ("resize a 400m", ""),
            ("sizes", "a=100m/100m b=200m/200m Pending:Deferred"),
            // What starts again has what it was granted.
            ("exit a 1", "image:a:1 start:a:1"),
            ("sizes", "a=100m/100m b=200m/200m Pending:Deferred"),
            ("agent restart", "volumes"),
            ("sizes", "a=100m/100m b=200m/200m Pending:Deferred"),
            ("room 1000 300", "resize:a"),
            ("sizes", "a=400m/400m b=200m/200m"),
        ],
    );
    let events = world.step("events");
    let told: Vec<_> = events.split("; ").map(|event| event.split(' ').next().unwrap()).collect();
    assert_eq!(
        told,
        ["ResizeInfeasible:", "ResizeDeferred:", "ResizeStarted:", "ResizeCompleted:"],
        "{events}"
    );
    assert!(
        events.contains("Node didn't have enough capacity: cpu, requested: 1100, capacity: 1000")
            && events.contains(
                "Node didn't have enough resource: cpu, requested: 600, used: 500, capacity: 1000"
            ),
        "{events}"
    );
}

#[test]
fn a_failure_is_told_and_tried_again() {
    let mut world = check(&sized(), &[BOTH_STARTED]);
    world.step("break resize Error busy");
    play(
        &mut world,
        &[
            ("resize a 150m", "resize:a"),
            ("sizes", "a=150m/100m b=200m/200m InProgress:Error"),
            ("mend", ""),
            ("wait 1", "resize:a"),
            ("sizes", "a=150m/150m b=200m/200m"),
        ],
    );
}

#[test]
fn an_instance_of_which_nothing_is_known_is_told_again() {
    let mut world = check(&sized(), &[BOTH_STARTED]);
    for kept in world.stored.containers.values_mut() {
        kept.actual = None;
    }
    assert_eq!(world.step("agent restart"), "volumes resize:a,b");
    assert_eq!(world.step("status"), "Running a=running#0 b=running#0");
}

#[test]
fn less_memory_comes_before_more() {
    let memory = |a: &str, b: &str| {
        let of = |name: &str, limit: &str| {
            let all = json!({ "memory": limit });
            json!({ "name": name, "resources": { "limits": all, "requests": all } })
        };
        json!({ "containers": [of("a", a), of("b", b)] })
    };
    let mut world = check(&memory("20Mi", "20Mi"), &[BOTH_STARTED]);
    world.object["spec"] = crate::sim::object(&memory("30Mi", "0.015Gi"))["spec"].clone();
    world.apply();
    world.step("slow resize");
    let lowered = world.under_way.iter().find_map(|action| {
        let Action::Resize { containers } = action else { return None };
        Some(containers.iter().map(|one| (one.name.as_str(), one.lowers_memory)).collect())
    });
    assert_eq!(lowered, Some(vec![("b", true), ("a", false)]));
}

#[test]
fn a_resize_that_is_taken_back_while_a_hook_runs_holds_no_start_for_good() {
    for ends in ["look", "agent restart"] {
        let mut pod = sized();
        pod["containers"][1]["lifecycle"] = json!({ "preStop": { "exec": { "command": ["x"] } } });
        let mut world = check(
            &pod,
            &[
                BOTH_STARTED,
                ("slow pre-stop b", ""),
                ("resize b 250m", "pre-stop:b:30s"),
                ("resize b 200m", ""),
            ],
        );
        world.stored = world.remembered();
        world.step(ends);
        play(
            &mut world,
            &[
                ("release", "stop:b:30s image:b:1 resize: start:b:1"),
                ("sizes", "a=100m/100m b=200m/200m"),
                ("exit a 1", "image:a:1 start:a:1"),
            ],
        );
    }
}

#[test]
fn one_resize_waits_for_the_other() {
    let mut pod = sized();
    pod["containers"][1]["resizePolicy"] = Value::Null;
    check(
        &pod,
        &[
            BOTH_STARTED,
            ("slow resize", ""),
            ("resize a 150m", "resize:a"),
            ("resize b 250m", ""),
            ("release", "resize:b"),
            ("sizes", "a=150m/150m b=250m/250m"),
        ],
    );
}
