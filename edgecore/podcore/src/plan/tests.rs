//! Plans as data: a pod, what is observed, and what is to be done.

use serde_json::{Value, json};

use super::*;
use crate::observed::SandboxView;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn pod(policy: &str, metadata: &Value) -> PodView {
    let mut pod = json!({
        "metadata": { "uid": "u-1", "namespace": "default", "name": "web" },
        "spec": { "restartPolicy": policy, "containers": [{ "name": "a", "image": "x" }] },
    });
    for (key, value) in metadata.as_object().into_iter().flatten() {
        pod["metadata"][key] = value.clone();
    }
    PodView::parse(pod.to_string().as_bytes()).unwrap()
}

fn sandbox(ready: bool) -> SandboxView {
    SandboxView { id: "s0".to_owned(), attempt: 0, ready, ips: vec!["10.1.0.5".to_owned()] }
}

fn container(attempt: u32, state: ContainerState) -> ContainerView {
    ContainerView {
        id: format!("c{attempt}"),
        name: "a".to_owned(),
        attempt,
        sandbox_id: "s0".to_owned(),
        state,
        image: "x".to_owned(),
        image_ref: "sha256:x".to_owned(),
        spec_hash: None,
    }
}

fn exited(exit_code: i32) -> ContainerState {
    let at = Some(now());
    let reason = "Error".to_owned();
    ContainerState::Exited {
        started_at: at,
        finished_at: at,
        exit_code,
        reason,
        message: String::new(),
    }
}

fn running() -> ContainerState {
    ContainerState::Running { started_at: now() }
}

/// The names of what is planned, Events apart.
fn check(pod: &PodView, memory: &Memory, observed: &Observed, expected: &[&str]) -> Plan {
    let plan = plan(pod, memory, observed, now());
    let mut planned: Vec<String> = plan
        .actions
        .iter()
        .filter(|action| !matches!(action, Action::Event { .. }))
        .map(|action| format!("{action:?}").split([' ', '{']).next().unwrap_or_default().to_owned())
        .collect();
    planned.sort();
    assert_eq!(planned, expected, "{:?}", plan.actions);

    plan
}

fn with(sandboxes: Vec<SandboxView>, containers: Vec<ContainerView>) -> Observed {
    let volumes = VolumesState::Ready;
    Observed { sandboxes, containers, volumes, missing: Vec::new() }
}

#[test]
fn a_start_does_at_once_what_can_be_done_at_once() {
    let pod = pod("Always", &json!({}));
    let expected = ["CreateSandbox", "EnsureImage", "SetUpVolumes"];
    let first = check(&pod, &Memory::default(), &Observed::default(), &expected);
    let mut memory = first.memory;
    memory.note(Outcome::SandboxCreated { attempt: 0 }, now());
    let (container_name, image_ref) = ("a".to_owned(), "sha256:x".to_owned());
    let ready = Outcome::ImageReady { container: container_name, attempt: 0, image_ref };
    memory.note(ready, now());

    check(&pod, &memory, &with(vec![sandbox(true)], Vec::new()), &["StartContainer"]);
}

#[test]
fn a_running_container_is_adopted_without_any_memory() {
    let observed = with(vec![sandbox(true)], vec![container(3, running())]);
    let plan = check(&pod("Always", &json!({})), &Memory::default(), &observed, &[]);

    assert_eq!(plan.memory.containers["a"].attempt, Some(3));
}

#[test]
fn missing_materials_never_touch_what_runs() {
    let mut observed = with(vec![sandbox(true)], vec![container(0, running())]);
    observed.volumes = VolumesState::Unknown;
    observed.missing = vec!["configmap \"c\" not found".to_owned()];

    check(&pod("Always", &json!({})), &Memory::default(), &observed, &[]);
}

#[test]
fn an_end_is_final_by_the_restart_policy() {
    let ended = |exit_code| with(vec![sandbox(true)], vec![container(0, exited(exit_code))]);
    let memory = Memory::default();
    check(&pod("Always", &json!({})), &memory, &ended(0), &["EnsureImage"]);
    check(&pod("OnFailure", &json!({})), &memory, &ended(1), &["EnsureImage"]);
    let done = check(&pod("OnFailure", &json!({})), &memory, &ended(0), &["StopSandbox"]);
    assert!(done.memory.ended.is_some_and(|ended| ended.succeeded));
    let failed = check(&pod("Never", &json!({})), &memory, &ended(1), &["StopSandbox"]);
    assert!(failed.memory.ended.is_some_and(|ended| !ended.succeeded));
}

#[test]
fn after_a_power_loss_it_starts_again_and_counts_on() {
    let observed = with(vec![sandbox(false)], vec![container(2, exited(255))]);
    let expected = ["CreateSandbox", "EnsureImage"];
    let plan = check(&pod("Always", &json!({})), &Memory::default(), &observed, &expected);

    assert!(plan.actions.contains(&Action::CreateSandbox { attempt: 1 }));
    assert!(plan.actions.contains(&Action::EnsureImage { container: "a".to_owned(), attempt: 3 }));
}

#[test]
fn a_deleted_pod_winds_down_to_nothing() {
    let deleted = json!({
        "deletionTimestamp": "2026-01-01T00:00:05Z", "deletionGracePeriodSeconds": 5,
    });
    let pod = pod("Always", &deleted);
    let memory = Memory::default();
    let observed = with(vec![sandbox(true)], vec![container(0, running())]);
    check(&pod, &memory, &observed, &["StopContainer"]);
    let observed = with(vec![sandbox(true)], vec![container(0, exited(0))]);
    check(&pod, &memory, &observed, &["RemoveSandbox"]);
    check(&pod, &memory, &with(Vec::new(), Vec::new()), &["TearDownVolumes"]);
    let nothing = Observed { volumes: VolumesState::Gone, ..Observed::default() };
    let last = check(&pod, &memory, &nothing, &[]);

    assert!(last.finished);
}
