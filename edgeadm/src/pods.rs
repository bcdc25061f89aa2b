//! Pods as the agent tells them, and what people are shown of them.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, AgentError};

/// A list as the agent answers it. What it does not say of a pod is not there.
#[derive(Debug, Deserialize, Serialize)]
pub struct PodList {
    /// In no order.
    pub items: Vec<Pod>,
}

/// All pods of this node, by namespace and name.
pub async fn all(agent: &Agent) -> Result<Vec<Pod>, AgentError> {
    let mut pods = agent.get::<PodList>("/pods").await?.items;
    pods.sort_by(|a, b| {
        let key = |pod: &Pod| (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        key(a).cmp(&key(b))
    });

    Ok(pods)
}

/// What a line of a table says of a pod, in the words of kubectl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// As `1/2`.
    pub ready: String,
    /// `Running`, `CrashLoopBackOff`, ...
    pub status: String,
    /// Of all its containers.
    pub restarts: i32,
    /// Since it was made.
    pub age: String,
    /// Its first address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip: String,
}

impl Summary {
    /// What is said of `pod`.
    pub fn of(pod: &Pod, now: Timestamp) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let mains = status.container_statuses.unwrap_or_default();
        let inits = status.init_container_statuses.unwrap_or_default();
        let count = pod.spec.as_ref().map_or(mains.len(), |spec| spec.containers.len());
        let is_ready = mains.iter().filter(|container| container.ready).count();
        let waiting = inits.iter().chain(&mains).find_map(not_running);
        let mut told =
            status.reason.or(waiting).or(status.phase).unwrap_or_else(|| "Pending".to_owned());
        if pod.metadata.deletion_timestamp.is_some() {
            "Terminating".clone_into(&mut told);
        }
        let text = |text: &Option<String>| text.clone().unwrap_or_default();

        Self {
            namespace: text(&pod.metadata.namespace),
            name: text(&pod.metadata.name),
            ready: format!("{is_ready}/{count}"),
            status: told,
            restarts: inits.iter().chain(&mains).map(|container| container.restart_count).sum(),
            age: pod.metadata.creation_timestamp.as_ref().map_or_else(
                || "<unknown>".to_owned(),
                |created| age(now.duration_since(created.0)),
            ),
            ip: text(&status.pod_ip),
        }
    }
}

/// Why a container does not run though it should; nothing of one that completed.
fn not_running(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        return waiting.reason.clone().filter(|reason| reason != "PodInitializing");
    }
    let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;

    ended.reason.clone()
}

/// As kubectl writes it, in its largest unit or two.
pub fn age(age: SignedDuration) -> String {
    let seconds = age.as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0 | 1) => format!("{seconds}s"),
        (0, 0, 2..10) => format!("{minutes}m{}s", seconds % 60),
        (0, 0..3, _) => format!("{minutes}m"),
        (0, 3..8, _) => format!("{hours}h{}m", minutes % 60),
        (0 | 1, _, _) => format!("{hours}h"),
        (2..8, _, _) => format!("{days}d{}h", hours % 24),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn summary(pod: Value) -> String {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let Summary { namespace, name, ready, status, restarts, age, .. } =
            Summary::of(&pod, "2026-01-01T02:00:00Z".parse().unwrap());

        format!("{namespace}/{name} {ready} {status} {restarts} {age}")
    }

    #[test]
    fn a_pod_is_summed_up_as_kubectl_does() {
        let mut pod = json!({
            "metadata": { "namespace": "shop", "name": "web", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "containers": [{ "name": "a" }, { "name": "b" }] },
        });
        assert_eq!(summary(pod.clone()), "shop/web 0/2 Pending 0 120m");
        pod["status"] = json!({ "phase": "Running", "containerStatuses": [
            { "name": "a", "ready": true, "restartCount": 2, "image": "", "imageID": "",
              "state": { "running": {} } },
            { "name": "b", "ready": false, "restartCount": 1, "image": "", "imageID": "",
              "state": { "waiting": { "reason": "CrashLoopBackOff" } } },
        ]});
        assert_eq!(summary(pod.clone()), "shop/web 1/2 CrashLoopBackOff 3 120m");
        pod["status"]["containerStatuses"][1]["state"] =
            json!({ "terminated": { "exitCode": 0, "reason": "Completed" } });
        assert_eq!(summary(pod.clone()), "shop/web 1/2 Running 3 120m");
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T01:59:00Z");
        assert_eq!(summary(pod), "shop/web 1/2 Terminating 3 120m");
    }

    #[test]
    fn ages_are_written_as_kubectl_does() {
        for (seconds, expected) in [
            (-1, "0s"),
            (119, "119s"),
            (125, "2m5s"),
            (600, "10m"),
            (7_200, "120m"),
            (3 * 3600 + 60, "3h1m"),
            (30 * 3600, "30h"),
            (49 * 3600, "2d1h"),
            (9 * 86_400, "9d"),
        ] {
            assert_eq!(age(SignedDuration::from_secs(seconds)), expected, "{seconds}");
        }
    }
}
