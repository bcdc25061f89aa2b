//! Plans as data: what happens to a pod, and what the agent does about it. Each script runs on a
//! small node (`sim`), which also checks at every step what must hold of any plan.

mod ephemeral;
mod evict;
mod go_down;
mod hooks;
mod images;
mod init;
mod probes;
mod random;
mod resize;
mod restart;
mod rules;
mod sandbox;
mod sidecars;
mod start;
mod stop;
mod time;
mod total;

use serde_json::{Value, json};

/// A pod of one container `a`.
fn one(policy: &str) -> Value {
    json!({ "restartPolicy": policy, "containers": [{ "name": "a" }] })
}

/// A pod of containers `a` and `b`.
fn two(policy: &str) -> Value {
    json!({ "restartPolicy": policy, "containers": [{ "name": "a" }, { "name": "b" }] })
}

/// A pod of init containers `i` and `j`, then `a`.
fn with_init(policy: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "initContainers": [{ "name": "i" }, { "name": "j" }],
        "containers": [{ "name": "a" }],
    })
}

/// The first step of a pod of one container.
const STARTED: (&str, &str) = ("look", "volumes sandbox:0 image:a:0 start:a:0");
/// The first step of a pod of two containers.
const BOTH_STARTED: (&str, &str) =
    ("look", "volumes sandbox:0 image:a:0 start:a:0 image:b:0 start:b:0");
