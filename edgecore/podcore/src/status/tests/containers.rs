//! Statuses of containers: state, last state, counts and flags.

use super::*;
use crate::observed::ContainerState;

const START: &str = "2026-01-01T00:00:00Z";

/// The status of a container, among those of either role.
fn of(status: &Value, name: &str) -> Value {
    let lists = [&status["initContainerStatuses"], &status["containerStatuses"]];
    let mut all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.find(|container| container["name"] == name).cloned().unwrap()
}

/// State, last state, readiness and restart count of a container.
fn compare(spec: &Value, steps: &[&str], name: &str, expected: &Value) {
    let mut found = of(&after(spec, steps), name);
    let ended = |at: u32, reason: &str, code: i32| {
        json!({ "terminated": { "containerID": format!("containerd://c{at}"), "exitCode": code,
            "reason": reason, "startedAt": START, "finishedAt": START } })
    };
    let mut expected = expected.clone();
    for field in ["state", "lastState"] {
        if let [Some(at), Some(reason), Some(code)] =
            [0, 1, 2].map(|index| expected[field].get(index).cloned())
        {
            let at = u32::try_from(at.as_u64().unwrap()).unwrap();
            let code = i32::try_from(code.as_i64().unwrap()).unwrap();
            expected[field] = ended(at, reason.as_str().unwrap(), code);
        }
    }
    let fields = ["state", "lastState", "ready", "started", "restartCount", "containerID"];
    let object = found.as_object_mut().unwrap();
    object.retain(|field, _| fields.contains(&field.as_str()) && !expected[field].is_null());
    expected.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    assert_eq!(found, expected, "{steps:?}");
}

fn waits(reason: &str, message: Option<&str>) -> Value {
    match message {
        Some(message) => json!({ "waiting": { "reason": reason, "message": message } }),
        None => json!({ "waiting": { "reason": reason } }),
    }
}

#[test]
fn that_have_not_started() {
    let initializing = json!({ "state": waits("PodInitializing", None), "lastState": {},
        "ready": false, "started": false, "restartCount": 0 });
    for (steps, name) in [(&[][..], "j"), (&[], "a"), (&["exit i 0"], "a")] {
        compare(&with_init("Always"), steps, name, &initializing);
    }
    // From the start on, before the first step of `after` settles: faults have to be there.
    for (fault, wait, reason, message) in [
        ("missing secret", 0, "ContainerCreating", None),
        ("slow sandbox", 0, "ContainerCreating", None),
        ("break volumes FailedMount m", 0, "ContainerCreating", None),
        ("break sandbox FailedCreatePodSandBox m", 60, "ContainerCreating", None),
        ("break image a ErrImagePull m", 0, "ErrImagePull", Some("m")),
        (
            "break image a ErrImagePull m",
            15,
            "ImagePullBackOff",
            Some("Back-off pulling image \"x\": ErrImagePull: m"),
        ),
        (
            "break mounted a ErrImagePull m",
            15,
            "ImagePullBackOff",
            Some("Back-off pulling image \"v\": ErrImagePull: m"),
        ),
        ("break image a ErrImageNeverPull m", 60, "ErrImageNeverPull", Some("m")),
        ("break image a InvalidImageName m", 60, "InvalidImageName", Some("m")),
        ("break start a CreateContainerConfigError m", 0, "CreateContainerConfigError", Some("m")),
        ("break start a CreateContainerError m", 60, "CreateContainerError", Some("m")),
        ("break start a RunContainerError m", 60, "RunContainerError", Some("m")),
    ] {
        let mut world = World::new(&one("Always"));
        world.step(fault);
        world.wait(wait);
        let found = of(&told(&world), "a");
        assert_eq!(found["state"], waits(reason, message), "{fault}");
        assert_eq!(found["lastState"], json!({}), "{fault}");
        assert_eq!(found["ready"], false);
    }
}

#[test]
fn that_run() {
    compare(
        &one("Always"),
        &[],
        "a",
        &json!({ "state": { "running": { "startedAt": START } }, "lastState": {}, "ready": true,
            "started": true, "restartCount": 0, "containerID": "containerd://c2" }),
    );
    compare(
        &one("Always"),
        &["exit a 3"],
        "a",
        &json!({ "state": { "running": { "startedAt": START } }, "lastState": [2, "Error", 3],
            "ready": true, "started": true, "restartCount": 1, "containerID": "containerd://c3" }),
    );
    // An init container is ready when it is done.
    compare(
        &with_init("Always"),
        &[],
        "i",
        &json!({ "state": { "running": { "startedAt": START } }, "lastState": {}, "ready": false,
            "started": true, "restartCount": 0 }),
    );
}

#[test]
fn that_ended() {
    let ended = |state: Value, last: Value, count: u32| {
        json!({ "state": state, "lastState": last, "ready": false, "started": false,
            "restartCount": count })
    };
    compare(&one("Never"), &["exit a 0"], "a", &ended(json!([2, "Completed", 0]), json!({}), 0));
    compare(&one("Never"), &["oom a"], "a", &ended(json!([2, "OOMKilled", 137]), json!({}), 0));
    // The runtime still knows the attempt before the last.
    compare(
        &one("OnFailure"),
        &["exit a 1", "exit a 0"],
        "a",
        &ended(json!([3, "Completed", 0]), json!([2, "Error", 1]), 1),
    );
    compare(
        &with_init("Always"),
        &["exit i 0"],
        "i",
        &json!({ "state": [2, "Completed", 0], "lastState": {}, "ready": true, "started": false,
            "restartCount": 0 }),
    );
}

#[test]
fn that_wait_for_their_restart() {
    let waiting = |delay: &str, name: &str, last: Value, count: u32| {
        let message =
            format!("back-off {delay} restarting failed container={name} pod=web_default(u-1)");
        json!({ "state": waits("CrashLoopBackOff", Some(&message)), "lastState": last,
            "ready": false, "started": false, "restartCount": count })
    };
    let spec = one("Always");
    compare(
        &spec,
        &["exit a 1", "exit a 0"],
        "a",
        &waiting("10s", "a", json!([3, "Completed", 0]), 1),
    );
    compare(
        &spec,
        &["exit a 1", "oom a"],
        "a",
        &waiting("10s", "a", json!([3, "OOMKilled", 137]), 1),
    );
    compare(
        &with_init("Always"),
        &["exit i 1", "exit i 1"],
        "i",
        &waiting("10s", "i", json!([3, "Error", 1]), 1),
    );
    let mut steps = vec!["exit a 1"];
    steps.extend(["exit a 1", "wait 400"].repeat(6));
    steps.push("exit a 1");
    let message = |steps: &[&str]| {
        of(&after(&spec, steps), "a")["state"]["waiting"]["message"].as_str().unwrap().to_owned()
    };
    assert!(message(&steps).starts_with("back-off 5m0s restarting"));
    assert!(
        message(&[
            "exit a 1", "exit a 1", "wait 10", "exit a 1", "wait 20", "exit a 1", "wait 40",
            "exit a 1"
        ])
        .starts_with("back-off 1m20s restarting")
    );
    // The image of the next attempt is not to be had.
    compare(
        &spec,
        &["break image a ErrImagePull m", "exit a 1"],
        "a",
        &json!({ "state": waits("ErrImagePull", Some("m")), "lastState": [2, "Error", 1],
            "ready": false, "started": false, "restartCount": 0 }),
    );
}

#[test]
fn that_nobody_saw_end() {
    let lost = json!({ "terminated": { "exitCode": 137, "reason": "ContainerStatusUnknown",
        "message": "The container could not be located when the pod was terminated" } });
    let mut world = World::new(&one("Never"));
    world.settle();
    world.step("vanish a");
    let mut found = of(&told(&world), "a");
    let finished = found["state"]["terminated"].as_object_mut().unwrap().remove("finishedAt");
    assert_eq!(finished, Some(json!(START)));
    assert_eq!((&found["state"], &found["containerID"]), (&lost, &Value::Null));
    assert_eq!((&found["image"], &found["imageID"]), (&json!("x"), &json!("")));

    let deleted = |spec: &Value, steps: &[&str], name: &str| {
        let mut world = World::new(spec);
        for step in steps {
            world.step(step);
        }
        world.step("delete 30");
        of(&told(&world), name)["state"].clone()
    };
    let (never, fault) = (waits("PodInitializing", None), "break image i ErrImagePull m");
    assert_eq!(deleted(&one("Always"), &["missing secret"], "a"), lost);
    assert_eq!(deleted(&with_init("Always"), &["missing secret"], "i"), lost);
    assert_eq!(deleted(&with_init("Always"), &["missing secret"], "j"), never);
    assert_eq!(deleted(&with_init("Always"), &["missing secret"], "a"), never);
    assert_eq!(deleted(&with_init("Always"), &[fault], "a"), never);
    let slow = ["slow image a", "exit i 0", "exit j 0"];
    assert_eq!(deleted(&with_init("Always"), &[&["look"][..], &slow].concat(), "a"), lost);
}

#[test]
fn flags_of_mounts_and_resources() {
    let spec = json!({
        "containers": [{ "name": "a",
            "resources": { "requests": { "cpu": "100m" }, "limits": { "memory": "64Mi" } },
            "volumeMounts": [
                { "name": "v", "mountPath": "/v" },
                { "name": "w", "mountPath": "/w", "readOnly": true },
            ] }],
    });
    let expected = json!({
        "name": "a", "image": "x", "imageID": "sha256:x", "containerID": "containerd://c2",
        "state": { "running": { "startedAt": START } }, "lastState": {}, "ready": true,
        "started": true, "restartCount": 0,
        "allocatedResources": { "cpu": "100m" },
        "resources": { "requests": { "cpu": "100m" }, "limits": { "memory": "64Mi" } },
        "volumeMounts": [
            { "name": "v", "mountPath": "/v" },
            { "name": "w", "mountPath": "/w", "readOnly": true, "recursiveReadOnly": "Disabled" },
        ],
    });
    assert_eq!(of(&after(&spec, &[]), "a"), expected);
    let ended = of(&after(&spec, &["exit a 1", "exit a 1"]), "a");
    assert_eq!(ended["resources"], expected["resources"]);
    let mut world = World::new(&spec);
    world.step("slow sandbox");
    let fresh = of(&told(&world), "a");
    assert_eq!((&fresh["resources"], &fresh["allocatedResources"]), (&Value::Null, &Value::Null));
}

#[test]
fn they_are_sorted_by_name() {
    let status = after(&two("Always"), &[]);
    let names: Vec<_> =
        status["containerStatuses"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn a_termination_message_is_told() {
    let mut world = World::new(&one("Never"));
    world.settle();
    let id = world.live("a").unwrap();
    world.end(&id, 2);
    for container in &mut world.observed.containers {
        if let ContainerState::Exited { message, .. } = &mut container.state {
            "no disk".clone_into(message);
        }
    }
    world.settle();
    assert_eq!(of(&told(&world), "a")["state"]["terminated"]["message"], "no disk");
}

#[test]
fn whom_a_container_runs_as_is_told_where_the_runtime_tells() {
    let mut world = World::new(&one("Never"));
    world.settle();
    assert_eq!(of(&told(&world), "a")["user"], Value::Null);
    let user = crate::observed::UserView { uid: 1000, gid: 0, groups: vec![7, 9] };
    world.observed.containers[0].user = Some(user);
    let expected = json!({ "linux": { "uid": 1000, "gid": 0, "supplementalGroups": [7, 9] } });
    assert_eq!(of(&told(&world), "a")["user"], expected);

    let id = world.live("a").unwrap();
    world.end(&id, 0);
    world.settle();
    world.observed.containers.clear();
    assert_eq!(of(&told(&world), "a")["user"], expected, "of one that is removed");
}

#[test]
fn the_termination_messages_of_a_pod_share_twelve_kibibytes() {
    let names = ["a", "b", "c", "d", "e"];
    // Characters stay whole.
    for (count, text, share) in
        [(3, "x", 4096), (4, "x", 3072), (5, "x", 2457), (5, "ß", 2456), (1, "ß", 4096)]
    {
        let named: Vec<_> = names[..count].iter().map(|name| json!({ "name": name })).collect();
        let (init, main) = named.split_at(count / 2);
        let spec = json!({ "restartPolicy": "Never", "initContainers": init, "containers": main });
        let mut world = World::new(&spec);
        world.settle();
        for name in &names[..count] {
            let id = world.live(name).unwrap();
            world.end(&id, 0);
            for ended in world.observed.containers.iter_mut().filter(|ended| ended.id == id) {
                let ContainerState::Exited { message, .. } = &mut ended.state else { panic!() };
                *message = text.repeat(4096 / text.len());
            }
            world.settle();
        }
        let status = told(&world);
        for name in &names[..count] {
            let message = of(&status, name)["state"]["terminated"]["message"].clone();
            let message = message.as_str().unwrap();
            assert!(message.starts_with(text) && message.len() == share, "{}", message.len());
        }
    }
}
