//! Actions and statuses in short, for tables.

use k8s_openapi::api::core::v1::{ContainerState, PodStatus};

use crate::plan::Action;

/// One word: what is done to what, and which attempt.
pub(crate) fn show_action(action: &Action) -> String {
    match action {
        Action::SetUpVolumes => "volumes".to_owned(),
        Action::EnsureImage { container, attempt, image } => {
            let image = if image == "x" { String::new() } else { format!("={image}") };
            format!("image:{container}:{attempt}{image}")
        }
        Action::CreateSandbox { attempt } => format!("sandbox:{attempt}"),
        Action::StartContainer { container, attempt, .. } => format!("start:{container}:{attempt}"),
        Action::PreStop { container, grace_s, .. } => format!("pre-stop:{container}:{grace_s}s"),
        Action::StopContainer { container, grace_s, .. } => format!("stop:{container}:{grace_s}s"),
        Action::PostStart { container, .. } => format!("hook:{container}"),
        Action::Resize { containers } => {
            let names: Vec<_> = containers.iter().map(|one| one.name.as_str()).collect();
            format!("resize:{}", names.join(","))
        }
        Action::Probe { container, kind, .. } => {
            format!("{}:{container}", kind.name().to_ascii_lowercase())
        }
        Action::RemoveContainer { id } | Action::RemoveSandbox { id } => format!("remove:{id}"),
        Action::StopSandbox { id } => format!("stop:{id}"),
        Action::TearDownVolumes => "tear-down".to_owned(),
        Action::Event { reason, .. } => format!("event:{reason}"),
    }
}

fn show_state(state: Option<&ContainerState>) -> String {
    let Some(state) = state else { return "none".to_owned() };
    if state.running.is_some() {
        return "running".to_owned();
    }
    let reason = |reason: &Option<String>| reason.clone().unwrap_or_default();
    if let Some(waiting) = &state.waiting {
        return reason(&waiting.reason);
    }

    state.terminated.as_ref().map_or_else(
        || "none".to_owned(),
        |ended| format!("{}({})", reason(&ended.reason), ended.exit_code),
    )
}

/// Phase and reason, and of each container its state and restart count.
pub(crate) fn show_status(status: &PodStatus) -> String {
    let mut words = vec![status.phase.clone().unwrap_or_default()];
    words.extend(status.reason.clone());
    let statuses = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    for container in statuses.into_iter().flatten().flatten() {
        let state = show_state(container.state.as_ref());
        words.push(format!("{}={state}#{}", container.name, container.restart_count));
    }

    words.join(" ")
}
