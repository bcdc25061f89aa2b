//! Starts the containers of a pod anew because somebody at the node asks for it. The pod's own task does
//! it, with hooks and grace as at any other stop.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use proto::ids::ObjectKey;
use serde::{Deserialize, Serialize};

use super::Control;
use crate::kubelet_api::answer::Refusal;
use crate::kubelet_api::{ContainerState, PodLookup as _, PodRef};

/// What matters of a pod here.
#[derive(Deserialize)]
struct Pod {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    containers: Vec<Container>,
    #[serde(default)]
    init_containers: Vec<Container>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    #[serde(default)]
    restart_policy: String,
}

impl Spec {
    /// Those that run together: sidecars, too.
    fn lasting(self) -> BTreeSet<String> {
        let sidecars = self.init_containers.into_iter().filter(|c| c.restart_policy == "Always");

        self.containers.into_iter().chain(sidecars).map(|container| container.name).collect()
    }
}

/// The containers that are started anew.
#[derive(Serialize)]
pub(super) struct Restarting {
    containers: Vec<String>,
}

impl Restarting {
    pub(super) fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings are always JSON")
    }
}

/// Asks for it. Only `container`, if one is named.
pub(super) fn pod(
    control: &Control,
    namespace: &str,
    name: &str,
    container: Option<&str>,
) -> Result<Restarting, Refusal> {
    let refused = |status, message: String| Refusal::new(status, message);
    let found = control.registry.find(namespace, name).ok_or_else(|| {
        refused(StatusCode::NOT_FOUND, format!("there is no pod {name} in namespace {namespace}"))
    })?;
    let object = control.api.node.desired.get(&ObjectKey::pod(&found.uid));
    let spec = object.and_then(|object| serde_json::from_slice::<Pod>(&object.bytes).ok());
    let lasting = spec.map(|pod| pod.spec.lasting()).unwrap_or_default();
    if let Some(container) = container.filter(|container| !lasting.contains(*container)) {
        let message = format!("pod {name} has no container {container} that could be restarted");
        return Err(refused(StatusCode::NOT_FOUND, message));
    }
    let running = running(&found, |name| {
        lasting.contains(name) && container.is_none_or(|container| container == name)
    });
    if running.is_empty() {
        let message = format!("nothing of pod {name} runs that could be restarted");
        return Err(refused(StatusCode::CONFLICT, message));
    }
    tracing::info!(namespace, name, "restarting containers: somebody at this node asked for it");
    control.registry.restart(&found.uid, running.values().cloned().collect());

    Ok(Restarting { containers: running.into_keys().collect() })
}

/// Ids of those that run, by name.
fn running(pod: &PodRef, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let running = pod.containers.iter().filter_map(|container| match &container.state {
        ContainerState::Running(current) if wanted(&container.name) => {
            Some((container.name.clone(), current.id.clone()))
        }
        ContainerState::Running(_)
        | ContainerState::Terminated(_)
        | ContainerState::Waiting { .. } => None,
    });

    running.collect()
}
