//! Statuses as data: what happened to a pod, and what is reported of it. What is expected was read
//! from the kubelet's sources (1.35): `getPhase`, `generateAPIPodStatus`,
//! `convertToAPIContainerStatuses`, `status/generate.go`, `TerminatePod`.

mod conditions;
mod containers;
mod whole;

use serde_json::{Value, json};

use super::*;
use crate::sim::{World, check};

fn context() -> StatusContext {
    StatusContext {
        host_ips: vec!["192.0.2.5".to_owned(), "2001:db8::5".to_owned()],
        runtime: "containerd".to_owned(),
        recursive_read_only: false,
    }
}

fn told(world: &World) -> Value {
    let told = status(&world.pod, &world.memory, &world.observed, &context(), world.now);

    serde_json::to_value(told).unwrap()
}

/// Plays steps whose actions are not looked at, and tells the status after them.
fn after(spec: &Value, steps: &[&str]) -> Value {
    let mut world = check(spec, &[]);
    world.settle();
    for step in steps {
        world.step(step);
    }

    told(&world)
}

fn one(policy: &str) -> Value {
    json!({ "restartPolicy": policy, "containers": [{ "name": "a" }] })
}

fn with_init(policy: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "initContainers": [{ "name": "i" }, { "name": "j" }],
        "containers": [{ "name": "a" }],
    })
}

fn two(policy: &str) -> Value {
    json!({ "restartPolicy": policy, "containers": [{ "name": "b" }, { "name": "a" }] })
}
