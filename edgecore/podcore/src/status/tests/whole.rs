//! The status as a whole: phase, reason, addresses, times, class.

use super::*;

fn field(spec: &Value, steps: &[&str], name: &str) -> Value {
    after(spec, steps)[name].clone()
}

#[test]
fn the_phase_follows_the_containers() {
    for (spec, steps, phase) in [
        (one("Always"), &[][..], "Running"),
        (one("Always"), &["exit a 1", "exit a 1"], "Running"),
        (one("Always"), &["power loss"], "Running"),
        (one("Always"), &["break sandbox X m", "power loss"], "Running"),
        (one("OnFailure"), &["exit a 1", "exit a 1"], "Running"),
        (one("OnFailure"), &["exit a 0"], "Succeeded"),
        (one("Never"), &["exit a 1"], "Failed"),
        (one("Always"), &["unknown a"], "Running"),
        (two("Never"), &["exit a 1"], "Running"),
        (two("OnFailure"), &["exit a 0", "exit b 1", "exit b 1"], "Running"),
        (with_init("Always"), &[], "Pending"),
        (with_init("Always"), &["exit i 1", "exit i 1"], "Pending"),
        (with_init("Always"), &["exit i 0", "exit j 0"], "Running"),
        // Its init containers run again: the kubelet calls that Pending.
        (with_init("Always"), &["exit i 0", "exit j 0", "power loss"], "Pending"),
        (with_init("Never"), &["exit i 1"], "Failed"),
        (one("Always"), &["delete 30"], "Failed"),
        (one("Always"), &["stops a 0", "delete 30"], "Succeeded"),
        (one("Always"), &["slow stop a", "delete 30"], "Running"),
        (with_init("Always"), &["slow stop i", "delete 30"], "Pending"),
        (with_init("Always"), &["stops i 0", "delete 30"], "Failed"),
    ] {
        assert_eq!(field(&spec, steps, "phase"), phase, "{spec} {steps:?}");
    }
}

#[test]
fn a_deadline_is_told_when_nothing_runs_any_more() {
    let mut spec = one("Always");
    spec["activeDeadlineSeconds"] = json!(10);
    let status = after(&spec, &["wait 10"]);
    assert_eq!(
        (&status["phase"], &status["reason"], &status["message"]),
        (
            &json!("Failed"),
            &json!("DeadlineExceeded"),
            &json!("Pod was active on the node longer than the specified deadline")
        )
    );
    let status = after(&spec, &["slow stop a", "wait 10"]);
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Running"), &Value::Null));
}

#[test]
fn a_pod_that_runs_in_full() {
    let mut status = after(&one("Always"), &[]);
    let object = status.as_object_mut().unwrap();
    assert!(object.remove("conditions").is_some() && object.remove("containerStatuses").is_some());
    assert_eq!(
        status,
        json!({
            "phase": "Running", "observedGeneration": 1, "qosClass": "BestEffort",
            "startTime": "2026-01-01T00:00:00Z",
            "hostIP": "192.0.2.5", "hostIPs": [{ "ip": "192.0.2.5" }, { "ip": "2001:db8::5" }],
            "podIP": "10.1.0.5", "podIPs": [{ "ip": "10.1.0.5" }],
        })
    );
}

#[test]
fn a_refused_pod_in_full() {
    let spec = json!({ "resourceClaims": [{ "name": "c" }], "containers": [{ "name": "a" }] });
    assert_eq!(
        after(&spec, &["wait 60"]),
        json!({
            "phase": "Failed", "reason": "UnsupportedPodSpec",
            "message": "Pod was rejected: this node does not support resourceClaims",
            "observedGeneration": 1, "qosClass": "BestEffort", "startTime": "2026-01-01T00:00:00Z",
        })
    );
}

#[test]
fn addresses_are_those_of_the_last_sandbox_or_the_host() {
    for (steps, ip) in [
        (&[][..], json!("10.1.0.5")),
        (&["power loss"], json!("10.1.0.6")),
        (&["break sandbox X m", "power loss"], json!("10.1.0.5")),
        (&["delete 30"], json!("10.1.0.5")),
    ] {
        assert_eq!(field(&one("Always"), steps, "podIP"), ip, "{steps:?}");
    }
    let mut world = World::new(&one("Always"));
    world.step("slow sandbox");
    assert_eq!(told(&world)["podIP"], Value::Null);

    let mut spec = one("Always");
    spec["hostNetwork"] = json!(true);
    let mut world = World::new(&spec);
    world.step("slow sandbox");
    let status = told(&world);
    assert_eq!(status["podIP"], "192.0.2.5");
    assert_eq!(status["podIPs"], json!([{ "ip": "192.0.2.5" }, { "ip": "2001:db8::5" }]));
}

#[test]
fn the_class_follows_the_resources() {
    let one = json!({ "cpu": "1", "memory": "1Gi" });
    for (resources, class) in [
        (json!({}), "BestEffort"),
        (json!({ "requests": { "cpu": "1" } }), "Burstable"),
        (json!({ "limits": one, "requests": one }), "Guaranteed"),
    ] {
        let spec = json!({ "containers": [{ "name": "a", "resources": resources }] });
        assert_eq!(field(&spec, &["exit a 1"], "qosClass"), class, "{resources}");
    }
}

#[test]
fn the_start_stays_and_the_generation_follows() {
    let mut world = World::new(&one("Always"));
    world.settle();
    for step in ["wait 60", "power loss", "exit a 1"] {
        world.step(step);
    }
    world.object["metadata"]["generation"] = json!(2);
    world.apply();
    let status = told(&world);
    assert_eq!(status["startTime"], "2026-01-01T00:00:00Z");
    assert_eq!(status["observedGeneration"], 2);
    for condition in status["conditions"].as_array().unwrap() {
        assert_eq!(condition["observedGeneration"], 2);
    }
}
