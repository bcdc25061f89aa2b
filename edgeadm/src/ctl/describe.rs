//! `ctl describe`: one pod, with its containers and what happened to it lately.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Event, Pod, PodStatus};

use super::{CtlError, get, pod_of};
use crate::agent::Agent;
use crate::args::OutputArgs;
use crate::args::ctl::{DescribeArgs, Kind};
use crate::args::node::StatusArgs;
use crate::output::{Table, pairs};
use crate::pods::Summary;
use crate::status::{self, StatusError};
use crate::{clock, ui};

pub(super) async fn run(args: DescribeArgs) -> Result<(), CtlError> {
    match args.kind {
        Kind::Pods => {
            let name = args.name.ok_or(CtlError::NoName)?;
            let (agent, pod) =
                pod_of(&args.config.config, &args.namespace.namespace, &name).await?;
            let mut events = get::events(&agent).await?;
            events.retain(|event| event.involved_object.uid == pod.metadata.uid);
            ui::answer(&text(&pod, &events));
        }
        Kind::Events => {
            let agent = Agent::of(&args.config.config)?;
            ui::answer(&get::table(&get::events(&agent).await?));
        }
        Kind::Nodes => {
            let args = StatusArgs { output: OutputArgs::default(), config: args.config };
            status::run(args).await.map_err(|error| match error {
                StatusError::Config(error) => {
                    CtlError::Agent(crate::agent::AgentError::Config(error))
                }
                StatusError::Agent(error) => CtlError::Agent(error),
            })?;
        }
    }

    Ok(())
}

fn text(pod: &Pod, events: &[Event]) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let summary = Summary::of(pod, clock::now());
    let spec = pod.spec.clone().unwrap_or_default();
    let labels = pod.metadata.labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let labels = labels.collect::<Vec<_>>().join(", ");
    let mut lines = vec![
        ("Name", summary.name),
        ("Namespace", summary.namespace),
        ("UID", pod.metadata.uid.clone().unwrap_or_default()),
        ("Labels", labels),
        ("Status", summary.status),
        ("Started", status.start_time.as_ref().map_or_else(String::new, |at| at.0.to_string())),
        ("IP", summary.ip),
        ("Restart policy", spec.restart_policy.unwrap_or_else(|| "Always".to_owned())),
    ];
    if let Some(message) = &status.message {
        lines.push(("Message", message.clone()));
    }
    let mut parts = vec![pairs(lines)];
    parts.extend(containers("Init containers", status.init_container_statuses.as_deref()));
    parts.extend(containers("Containers", status.container_statuses.as_deref()));
    parts.extend(containers("Debug containers", status.ephemeral_container_statuses.as_deref()));
    parts.extend(conditions(&status));
    parts.push(if events.is_empty() {
        "Events: none of late".to_owned()
    } else {
        format!("Events:\n{}", indented(&get::table(events)))
    });

    parts.join("\n")
}

fn containers(heading: &str, statuses: Option<&[ContainerStatus]>) -> Option<String> {
    let statuses = statuses.filter(|statuses| !statuses.is_empty())?;
    let told = statuses.iter().map(|status| {
        let mut lines = vec![
            ("Image", status.image.clone()),
            ("Id", status.container_id.clone().unwrap_or_default()),
            ("State", status.state.as_ref().map_or_else(|| "unknown".to_owned(), state)),
            ("Ready", if status.ready { "yes" } else { "no" }.to_owned()),
            ("Restarts", status.restart_count.to_string()),
        ];
        if let Some(last) = &status.last_state
            && *last != ContainerState::default()
        {
            lines.insert(3, ("Before", state(last)));
        }
        format!("{}:\n{}", status.name, indented(&pairs(lines)))
    });
    let told = told.collect::<Vec<_>>().join("\n");

    Some(format!("{heading}:\n{}", indented(&told)))
}

fn state(state: &ContainerState) -> String {
    if let Some(running) = &state.running {
        let since = running.started_at.as_ref().map(|at| format!(" since {}", at.0));
        return format!("running{}", since.unwrap_or_default());
    }
    if let Some(ended) = &state.terminated {
        let at = ended.finished_at.as_ref().map(|at| format!(" at {}", at.0)).unwrap_or_default();
        let reason = ended.reason.as_deref().unwrap_or("ended");
        let message = ended.message.as_ref().map(|message| format!(": {}", message.trim()));
        let message = message.unwrap_or_default();
        return format!("ended{at}, {reason}, exit code {}{message}", ended.exit_code);
    }
    let waiting = state.waiting.clone().unwrap_or_default();
    let reason = waiting.reason.unwrap_or_else(|| "ContainerCreating".to_owned());
    let message = waiting.message.map(|message| format!(": {message}")).unwrap_or_default();

    format!("waits, {reason}{message}")
}

fn conditions(status: &PodStatus) -> Option<String> {
    let conditions = status.conditions.as_ref().filter(|conditions| !conditions.is_empty())?;
    let mut table = Table::new(&["TYPE", "STATUS", "REASON"]);
    for condition in conditions {
        let reason = condition.reason.clone().unwrap_or_default();
        table.row([&condition.type_, &condition.status, &reason]);
    }

    Some(format!("Conditions:\n{}", indented(&table.text())))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_described() {
        let pod = json!({
            "metadata": { "name": "web", "namespace": "shop", "uid": "u1", "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "app" }], "restartPolicy": "Always" },
            "status": {
                "phase": "Running", "startTime": "2026-01-01T00:00:00Z", "podIP": "10.0.0.2",
                "conditions": [{ "type": "Ready", "status": "False", "reason": "ContainersNotReady" }],
                "containerStatuses": [{
                    "name": "app", "image": "x:1", "imageID": "", "containerID": "containerd://c1",
                    "ready": false, "restartCount": 2,
                    "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 10s" } },
                    "lastState": { "terminated": {
                        "exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:01:00Z",
                    } },
                }],
            },
        });
        let expected = "\
Name:             web
Namespace:        shop
UID:              u1
Labels:           app=web
Status:           CrashLoopBackOff
Started:          2026-01-01T00:00:00Z
IP:               10.0.0.2
Restart policy:   Always
Containers:
  app:
    Image:      x:1
    Id:         containerd://c1
    State:      waits, CrashLoopBackOff: back-off 10s
    Before:     ended at 2026-01-01T00:01:00Z, Error, exit code 1
    Ready:      no
    Restarts:   2
Conditions:
  TYPE    STATUS   REASON
  Ready   False    ContainersNotReady
Events: none of late";
        assert_eq!(text(&serde_json::from_value(pod).unwrap(), &[]), expected);
    }
}
