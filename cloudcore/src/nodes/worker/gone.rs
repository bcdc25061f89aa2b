//! What is gone is deleted on the edge, on evidence and not on absence (invariant 8).

use std::time::Duration;

use proto::ids::{Kind, ObjectKey, Uid};
use proto::object::Version;
use serde_json::Value;

use super::{Worker, passed};
use crate::evidence::Doubt;
use crate::telemetry;

/// Between questions whether something is gone that nobody could answer.
pub(super) const UNCERTAIN_RETRY: Duration = Duration::from_secs(5);

impl Worker {
    /// Whether it is open of anything whether it is gone.
    pub(super) fn is_uncertain(&self) -> bool {
        !self.unwanted.is_empty() || !self.shared.cluster.index().missing(&self.node).is_empty()
    }

    /// Asks again.
    pub(super) async fn make_certain(&mut self) {
        for (key, version) in std::mem::take(&mut self.unwanted) {
            self.unwanted(key, version).await;
        }
        if self.is_synced {
            self.send_changes().await;
        }
    }

    /// Pods that a relist did not show are gone when a GET says so.
    pub(super) async fn confirm_missing(&self) {
        let (epoch, missing) = {
            let index = self.shared.cluster.index();
            (index.epoch(), index.missing(&self.node))
        };
        for (namespace, name, uid) in missing {
            let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
            match crate::watch::get(&self.shared.client, &path).await {
                Ok(found) => {
                    let found_uid = found.and_then(|bytes| {
                        let pod: Value = serde_json::from_slice(&bytes).ok()?;
                        Some(pod["metadata"]["uid"].as_str()?.to_owned())
                    });
                    if found_uid.as_deref() == Some(uid.as_str()) {
                        continue;
                    }
                    match self.counts(epoch).await {
                        Ok(true) => {
                            self.shared.cluster.index().confirm_gone(&uid);
                        }
                        Ok(false) => return,
                        Err(doubt) => {
                            tracing::warn!(path, error = %telemetry::chain(&doubt), "a pod is not there, which is no evidence");
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(path, error = %telemetry::chain(&*error), "cannot tell whether a pod is gone");
                }
            }
        }
    }

    /// The edge holds what is not wanted here: it is deleted only on positive evidence.
    pub(super) async fn unwanted(&mut self, key: ObjectKey, version: Version) {
        let (epoch, gone_at) = {
            let index = self.shared.cluster.index();
            (index.epoch(), passed(&index).get(&key.kind()).copied().unwrap_or_default())
        };
        let is_there = match key.kind() {
            Kind::Pod => self.is_pod_there(&version.uid).await,
            // A token belongs to its pod.
            Kind::Token => {
                Some(self.shared.cluster.index().pods_on(&self.node).contains(&version.uid))
            }
            // The index has seen every pod, but not yet all that pods refer to.
            Kind::ConfigMap
            | Kind::Secret
            | Kind::PersistentVolumeClaim
            | Kind::PersistentVolume
            | Kind::RuntimeClass => self.shared.cluster.index().is_wanted(&self.node, &key),
            Kind::Service | Kind::Node => Some(false),
        };
        match is_there {
            Some(true) => self.session.still_wanted(key).await,
            Some(false) if matches!(self.counts(epoch).await, Ok(true)) => {
                self.session.absent(key, version.uid, gone_at).await;
            }
            Some(false) | None => {
                self.unwanted.insert(key, version);
            }
        }
    }

    /// Whether what was read in `epoch` is evidence: it is still that epoch, and our cluster.
    async fn counts(&self, epoch: u64) -> Result<bool, Doubt> {
        self.shared.evidence.look().await?;

        Ok(self.shared.evidence.epoch() == epoch)
    }

    /// Whether a consistent list of the node's pods has it; `None` if there is no telling.
    async fn is_pod_there(&self, uid: &Uid) -> Option<bool> {
        let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.node);
        let listed = crate::watch::get(&self.shared.client, &path).await.ok()??;
        let list: Value = serde_json::from_slice(&listed).ok()?;
        let items = list["items"].as_array()?;

        Some(items.iter().any(|pod| pod["metadata"]["uid"] == uid.as_str()))
    }
}
