//! Conditions: values, reasons, messages, and when they changed.

use super::*;

/// `Type=True` or `Type=False(Reason: message)`, in the order of the status.
fn shown(status: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let show = |condition: &Value| {
        let [name, value, reason, message] =
            ["type", "status", "reason", "message"].map(|field| text(&condition[field]));
        let message = if message.is_empty() { message } else { format!(": {message}") };
        let why = format!("{reason}{message}");
        if why.is_empty() { format!("{name}={value}") } else { format!("{name}={value}({why})") }
    };
    status["conditions"].as_array().into_iter().flatten().map(show).collect()
}

fn compare(spec: &Value, steps: &[&str], sandbox: &str, initialized: &str, ready: &str) {
    let status = after(spec, steps);
    let expected = [
        format!("PodReadyToStartContainers={sandbox}"),
        format!("Initialized={initialized}"),
        format!("Ready={ready}"),
        format!("ContainersReady={ready}"),
        "PodScheduled=True".to_owned(),
    ];
    assert_eq!(shown(&status), expected, "{steps:?}");
    for condition in status["conditions"].as_array().unwrap() {
        assert_eq!(condition["observedGeneration"], 1);
    }
}

#[test]
fn of_a_pod_that_runs() {
    compare(&one("Always"), &[], "True", "True", "True");
    let unready = "False(ContainersNotReady: containers with unready status: [a])";
    let none = "False(ContainersNotReady: containers with unready status: [b a])";
    compare(&one("Always"), &["exit a 1", "exit a 1"], "True", "True", unready);
    compare(&one("Always"), &["break sandbox X m", "power loss"], "False", "True", unready);
    compare(&two("Always"), &["break sandbox X m", "power loss"], "False", "True", none);
    compare(&two("Never"), &["exit a 0"], "True", "True", unready);
    compare(&one("Always"), &["slow stop a", "delete 30"], "True", "True", "True");
}

#[test]
fn of_a_pod_with_gates() {
    let mut spec = one("Always");
    spec["readinessGates"] = json!([{ "conditionType": "x/a" }, { "conditionType": "x/b" }]);
    let mut world = check(&spec, &[]);
    world.settle();
    let is = |status: &str| format!("is not \"True\", but {status}");
    let gate = |name: &str| format!("pod readiness gate \"x/{name}\"");
    let (a, b) = (gate("a"), gate("b"));
    for (conditions, closed) in [
        (
            json!([]),
            Some(format!(
                "corresponding condition of {a} does not exist., corresponding condition of {b} does not exist."
            )),
        ),
        (
            json!([{ "type": "x/a", "status": "False" }, { "type": "x/b", "status": "True" }]),
            Some(format!("the status of {a} {}", is("False"))),
        ),
        (json!([{ "type": "x/a", "status": "True" }, { "type": "x/b", "status": "True" }]), None),
    ] {
        world.object["status"] = json!({ "conditions": conditions });
        world.apply();
        let shown = shown(&told(&world));
        let ready = closed.map_or_else(
            || "Ready=True".to_owned(),
            |closed| format!("Ready=False(ReadinessGatesNotReady: {closed})"),
        );
        assert!(shown.contains(&ready), "{shown:?} {ready}");
        assert!(shown.contains(&"ContainersReady=True".to_owned()), "{shown:?}");
    }
}

#[test]
fn of_a_pod_that_initializes() {
    let unready = "False(ContainersNotReady: containers with unready status: [a])";
    let incomplete = "False(ContainersNotInitialized: containers with incomplete status: ";
    let spec = with_init("Always");
    compare(&spec, &[], "True", &format!("{incomplete}[i j])"), unready);
    compare(&spec, &["exit i 0"], "True", &format!("{incomplete}[j])"), unready);
    compare(&spec, &["exit i 1"], "True", &format!("{incomplete}[i j])"), unready);
    compare(&spec, &["exit i 0", "exit j 0"], "True", "True", "True");
    // Once initialized, always: also while its init containers run again.
    compare(&spec, &["exit i 0", "exit j 0", "power loss"], "True", "True", unready);
}

#[test]
fn of_a_pod_that_ended() {
    let (done, failed) = ("False(PodCompleted)", "False(PodFailed)");
    compare(&one("Never"), &["exit a 0"], "False", "True(PodCompleted)", done);
    compare(&one("Never"), &["exit a 1"], "False", "True", failed);
    compare(&one("Always"), &["delete 30"], "False", "True", failed);
    compare(&one("Always"), &["stops a 0", "delete 30"], "False", "True(PodCompleted)", done);
    let incomplete = "False(ContainersNotInitialized: containers with incomplete status: [j])";
    compare(&with_init("Never"), &["exit i 0", "exit j 1"], "False", incomplete, failed);
    let mut spec = one("Always");
    spec["activeDeadlineSeconds"] = json!(10);
    compare(&spec, &["slow stop a", "wait 10"], "True", "True", failed);
    compare(&spec, &["wait 10"], "False", "True", failed);
}

#[test]
fn a_condition_tells_when_it_changed() {
    let since = |status: &Value, name: &str| {
        let conditions = status["conditions"].as_array().unwrap();
        let found = conditions.iter().find(|condition| condition["type"] == name).unwrap();
        found["lastTransitionTime"].as_str().unwrap().to_owned()
    };
    let (start, later) = ("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z");
    let status = after(&one("Always"), &["wait 60", "exit a 1", "exit a 1"]);
    assert_eq!(since(&status, "Ready"), later);
    assert_eq!(since(&status, "ContainersReady"), later);
    assert_eq!(since(&status, "Initialized"), start);
    assert_eq!(since(&status, "PodScheduled"), start);
    // It did not change while nothing happened, nor by an agent that restarted.
    let status = after(&one("Always"), &["wait 60", "agent restart", "wait 60"]);
    assert_eq!(since(&status, "Ready"), start);
}
