//! Restart policies and rules of single containers.

use super::*;
use crate::sim::check;

fn with_own(pod: &str, own: &Value) -> Value {
    let mut first = own.clone();
    first["name"] = json!("a");

    json!({ "restartPolicy": pod, "containers": [first, { "name": "b" }] })
}

#[test]
fn the_policy_of_a_container_comes_before_that_of_the_pod() {
    check(
        &with_own("Never", &json!({ "restartPolicy": "Always" })),
        &[
            BOTH_STARTED,
            ("exit a 0", "image:a:1 start:a:1"),
            ("exit b 1", ""),
            ("status", "Running a=running#1 b=Error(1)#0"),
        ],
    );
    check(
        &with_own("Always", &json!({ "restartPolicy": "OnFailure" })),
        &[
            BOTH_STARTED,
            ("exit a 0", ""),
            ("status", "Running a=Completed(0)#0 b=running#0"),
            ("exit b 0", "image:b:1 start:b:1"),
        ],
    );
    check(
        &with_own("OnFailure", &json!({ "restartPolicy": "Never" })),
        &[BOTH_STARTED, ("exit a 1", ""), ("exit b 0", "stop:s1 tear-down"), ("finished", "false")],
    );
}

#[test]
fn a_rule_comes_before_both() {
    let rule = |operator: &str| {
        json!({
            "restartPolicy": "Never",
            "restartPolicyRules": [
                { "action": "Restart", "exitCodes": { "operator": operator, "values": [42, 43] } },
            ],
        })
    };
    check(
        &with_own("Never", &rule("In")),
        &[
            BOTH_STARTED,
            ("exit a 42", "image:a:1 start:a:1"),
            ("exit a 1", ""),
            ("exit b 0", "stop:s1 tear-down"),
            ("status", "Failed a=Error(1)#1 b=Completed(0)#0"),
        ],
    );
    check(
        &with_own("Never", &rule("NotIn")),
        &[BOTH_STARTED, ("exit a 1", "image:a:1 start:a:1"), ("exit a 43", "")],
    );
}
