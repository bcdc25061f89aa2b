//! What the container runtime holds of this node's pods.

use std::collections::{BTreeMap, BTreeSet};

use cri::{CriError, Runtime};
use cri_api::v1;
use edgecore::Config;
use podcore::translate::NODE_LABEL;

/// The sandboxes with this node's label, and the containers in them. Others are another agent's, or a
/// stock kubelet's.
pub async fn by(
    runtime: &Runtime,
    config: &Config,
) -> Result<(Vec<v1::PodSandbox>, Vec<v1::Container>), CriError> {
    let filter = v1::PodSandboxFilter {
        label_selector: BTreeMap::from([(NODE_LABEL.to_owned(), config.node.to_string())]),
        ..v1::PodSandboxFilter::default()
    };
    let (sandboxes, mut containers) =
        tokio::try_join!(runtime.list_pod_sandboxes(Some(filter)), runtime.list_containers(None),)?;
    let ids: BTreeSet<_> = sandboxes.iter().map(|sandbox| sandbox.id.as_str()).collect();
    containers.retain(|container| ids.contains(container.pod_sandbox_id.as_str()));

    Ok((sandboxes, containers))
}
