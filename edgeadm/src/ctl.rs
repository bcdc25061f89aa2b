//! `edgeadm ctl`: kubectl for the pods of this node, by its agent, with or without the cloud.

mod describe;
mod exec;
mod get;
mod logs;
mod restart;
pub(crate) mod selector;
mod terminal;

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::agent::{Agent, AgentError};
use crate::args::ctl::CtlCommand;
use crate::{exit, pods};

/// Says which container is meant when none is named, as kubectl reads it.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Why a command on pods of this node failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The agent has no answer.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// It has no such pod.
    #[error("this node runs no pod {name} in namespace {namespace}; see: edgeadm ctl get pods -A")]
    NoPod {
        /// Where.
        namespace: String,
        /// Which.
        name: String,
    },
    /// The name is missing.
    #[error("which pod? give its name")]
    NoName,
    /// The pod has no such container.
    #[error("pod {pod} has no container {name}; it has: {has}")]
    NoContainer {
        /// Which pod.
        pod: String,
        /// Which container.
        name: String,
        /// Those that it has.
        has: String,
    },
    /// No selector.
    #[error(
        "--selector {0:?} is not understood: write KEY, !KEY, KEY=VALUE or KEY!=VALUE, with commas between"
    )]
    Selector(String),
    /// The streams of a command cannot be had.
    #[error("cannot run a command in container {container} of pod {pod}: {reason}")]
    Exec {
        /// Which pod.
        pod: String,
        /// Which container.
        container: String,
        /// Why.
        reason: String,
    },
    /// The command ended so.
    #[error("command terminated with exit code {code}")]
    Ended {
        /// Its own.
        code: u8,
    },
}

impl CtlError {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Agent(error) => error.exit_code(),
            Self::Ended { code } => *code,
            Self::NoPod { .. } | Self::NoContainer { .. } | Self::Exec { .. } => exit::FAILED,
            Self::NoName | Self::Selector(_) => exit::BAD_CONFIG,
        }
    }
}

/// Does one command.
pub async fn run(command: CtlCommand) -> Result<(), CtlError> {
    match command {
        CtlCommand::Get(args) => get::run(args).await,
        CtlCommand::Describe(args) => describe::run(args).await,
        CtlCommand::Logs(args) => logs::run(args).await,
        CtlCommand::Exec(args) => exec::run(args).await,
        CtlCommand::Restart(args) => restart::run(args).await,
    }
}

/// The agent with this configuration, and one of its pods.
async fn pod_of(config: &Path, namespace: &str, name: &str) -> Result<(Agent, Pod), CtlError> {
    let agent = Agent::of(config)?;
    let pods = pods::all(&agent).await?;
    let is_it = |pod: &Pod| {
        pod.metadata.namespace.as_deref() == Some(namespace)
            && pod.metadata.name.as_deref() == Some(name)
    };
    let found = pods.into_iter().find(is_it).ok_or_else(|| CtlError::NoPod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })?;

    Ok((agent, found))
}

/// The container of that name; of none, the one that the pod says or its first.
fn container_of(pod: &Pod, asked: Option<String>) -> Result<String, CtlError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let mains = spec.containers.into_iter().map(|container| container.name);
    let inits = spec.init_containers.into_iter().flatten().map(|container| container.name);
    let debugs = spec.ephemeral_containers.into_iter().flatten().map(|container| container.name);
    let names: Vec<String> = mains.chain(inits).chain(debugs).collect();
    let said = pod.metadata.annotations.as_ref().and_then(|all| all.get(DEFAULT_CONTAINER));
    let wanted = asked.or_else(|| said.cloned()).or_else(|| names.first().cloned());
    let wanted = wanted.unwrap_or_default();
    if names.contains(&wanted) {
        return Ok(wanted);
    }

    Err(CtlError::NoContainer {
        pod: pod.metadata.name.clone().unwrap_or_default(),
        name: wanted,
        has: names.join(", "),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_container_that_is_meant() {
        let mut pod = json!({ "metadata": { "name": "web" }, "spec": {
            "containers": [{ "name": "a" }, { "name": "b" }], "initContainers": [{ "name": "i" }],
        }});
        let check = |pod: &serde_json::Value, asked: Option<&str>, expected: Option<&str>| {
            let pod = serde_json::from_value(pod.clone()).unwrap();
            let found = container_of(&pod, asked.map(str::to_owned)).ok();
            assert_eq!(found.as_deref(), expected, "{asked:?}");
        };
        check(&pod, None, Some("a"));
        check(&pod, Some("i"), Some("i"));
        check(&pod, Some("x"), None);
        pod["metadata"]["annotations"] = json!({ DEFAULT_CONTAINER: "b" });
        check(&pod, None, Some("b"));
        check(&pod, Some("a"), Some("a"));
    }
}
