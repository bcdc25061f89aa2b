//! What runs while the agent does not: told by the container runtime itself.

use std::collections::BTreeMap;

use cri::{CriError, Runtime};
use cri_api::v1;
use edgecore::Config;
use jiff::Timestamp;
use podcore::translate::{POD_NAME_LABEL, POD_NAMESPACE_LABEL};

use crate::held;
use crate::pods::{Summary, age};

/// The pods of this node that the runtime holds a sandbox of.
pub(super) async fn pods(config: &Config, now: Timestamp) -> Result<Vec<Summary>, CriError> {
    let Ok(runtime) = Runtime::new(&config.runtime_socket.to_string_lossy()) else {
        return Ok(Vec::new());
    };
    let (sandboxes, containers) = held::by(&runtime, config).await?;
    let mut pods: Vec<_> =
        sandboxes.iter().map(|sandbox| summary(sandbox, &containers, now)).collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));

    Ok(pods)
}

fn summary(sandbox: &v1::PodSandbox, containers: &[v1::Container], now: Timestamp) -> Summary {
    let label = |name: &str| sandbox.labels.get(name).cloned().unwrap_or_default();
    // Of each container only the last attempt counts.
    let mut own = BTreeMap::new();
    for container in containers.iter().filter(|container| container.pod_sandbox_id == sandbox.id) {
        let metadata = container.metadata.clone().unwrap_or_default();
        let newest = own.entry(metadata.name).or_insert((metadata.attempt, container));
        if metadata.attempt >= newest.0 {
            *newest = (metadata.attempt, container);
        }
    }
    let is_running = |c: &&v1::Container| c.state() == v1::ContainerState::ContainerRunning;
    let running = own.values().map(|(_, container)| *container).filter(is_running).count();
    let is_ready = sandbox.state() == v1::PodSandboxState::SandboxReady;
    let created = Timestamp::from_nanosecond(sandbox.created_at.into()).unwrap_or(now);

    Summary {
        namespace: label(POD_NAMESPACE_LABEL),
        name: label(POD_NAME_LABEL),
        ready: format!("{running}/{}", own.len()),
        status: if is_ready { "Running" } else { "Stopped" }.to_owned(),
        restarts: own.values().map(|(attempt, _)| attempt.cast_signed()).sum(),
        age: age(now.duration_since(created)),
        ip: String::new(),
    }
}
