//! What the node decides about a pod: whether it is taken in, and that it must go.

use super::one;
use crate::admission::Refusal;
use crate::observed::{Admission, Eviction};
use crate::sim::World;
use crate::status::{StatusContext, status};

fn refusal() -> Admission {
    let reason = "OutOfcpu".to_owned();

    Admission::Refused(Refusal { reason, message: "too little of it".to_owned() })
}

#[test]
fn a_pod_is_taken_in_once_and_not_before_that_is_decided() {
    let mut world = World::new(&one("Always"));
    world.observed.admission = Admission::Pending;
    world.wait(60);
    assert!(world.trace.is_empty() && !world.memory.is_admitted(), "{:?}", world.trace);

    world.observed.admission = Admission::Granted;
    world.settle();
    assert!(world.stored.is_admitted(), "it could be refused after a crash");
    // Nothing that is decided later is of account.
    world.observed.admission = refusal();
    world.wait(60);
    assert_eq!(world.memory.ended, None);
    assert_eq!(world.step("status"), "Running a=running#0");
}

#[test]
fn a_refused_pod_fails_without_anything_being_made_for_it() {
    let mut world = World::new(&one("Always"));
    world.observed.admission = refusal();
    world.wait(60);

    assert_eq!(world.events, ["OutOfcpu: too little of it"]);
    let told =
        status(&world.pod, &world.memory, &world.observed, &StatusContext::default(), world.now);
    assert_eq!(told.message.as_deref(), Some("Pod was rejected: too little of it"));
    assert_eq!(told.phase.as_deref(), Some("Failed"));
    let made = |action: &String| action.contains("sandbox") || action.contains("start");
    assert!(!world.trace.iter().any(made), "{:?}", world.trace);
}

#[test]
fn an_evicted_pod_stops_in_the_time_that_it_is_given_and_says_why() {
    let mut world = World::new(&one("Always"));
    world.settle();
    world.trace.clear();
    world.slow.insert("stop a".to_owned());
    world.observed.eviction = Some(Eviction {
        reason: "Evicted".to_owned(),
        message: "The node was low on resource: memory. ".to_owned(),
        disruption: Some("The node was low on resource: memory. ".to_owned()),
        grace_s: Some(1),
    });
    world.settle();
    let told = |world: &World| {
        let context = StatusContext::default();
        let told = status(&world.pod, &world.memory, &world.observed, &context, world.now);
        let conditions = told.conditions.unwrap_or_default();
        let disrupted = conditions.into_iter().find(|one| one.type_ == "DisruptionTarget");
        (told.phase.unwrap(), told.reason, disrupted.map(|one| (one.status, one.reason)))
    };
    let events =
        ["Evicted: The node was low on resource: memory. ", "Killing: Stopping container a"];
    assert_eq!(world.events, events);
    assert!(world.stored.ended.is_some(), "it could go on after a crash");
    assert!(world.trace.contains(&"stop:a:2s".to_owned()), "{:?}", world.trace);
    // Told when nothing of it runs any more.
    assert_eq!(told(&world), ("Running".to_owned(), None, None));

    world.step("release");
    world.settle();
    let disrupted = ("True".to_owned(), Some("TerminationByKubelet".to_owned()));
    assert_eq!(told(&world), ("Failed".to_owned(), Some("Evicted".to_owned()), Some(disrupted)));
}
