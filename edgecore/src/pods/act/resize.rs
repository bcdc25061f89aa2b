//! Gives running containers other CPU and memory, within the cgroup of their pod.

use podcore::plan::Outcome;
use podcore::resize::Resources;
use podcore::translate::container_resources;

use super::{Done, Job};

impl Job {
    pub(super) async fn resize(self, containers: Vec<(String, String, u32)>) -> Done {
        if let Err(message) = self.try_resize(&containers).await {
            return Done::noted(Outcome::ResizeFailed { message });
        }
        let has = |name: &str| self.container(name).map(Resources::of).unwrap_or_default();
        let containers = containers.into_iter().map(|(name, _, attempt)| {
            let resources = has(&name);
            (name, attempt, resources)
        });

        Done::noted(Outcome::Resized { containers: containers.collect() })
    }

    async fn try_resize(&self, containers: &[(String, String, u32)]) -> Result<(), String> {
        // More for the pod comes before more for its containers. Less of it may be refused as long as
        // they have more, and comes after them.
        let early = self.make_cgroup().await;
        if let Err(refused) = early {
            tracing::debug!(pod = %self.pod.uid, refused, "the pod is resized after its containers");
        }
        let fields = self.context.node_fields(self.pod_ips());
        for (name, id, _) in containers {
            let container = self.container(name).ok_or("the pod has no such container")?;
            let resources = container_resources(&self.pod, container, &fields);
            self.check_usage(name, id, resources.memory_limit_in_bytes).await?;
            let updated = self.context.runtime.update_container_resources(id, resources).await;
            updated.map_err(|error| error.message())?;
        }

        self.make_cgroup().await
    }

    /// A limit below what is used would end the container (kubelet: `validateMemoryResizeAction`).
    async fn check_usage(&self, name: &str, id: &str, limit: i64) -> Result<(), String> {
        if limit <= 0 {
            return Ok(());
        }
        let stats = self.context.runtime.container_stats(id).await.map_err(|e| e.message())?;
        let used = stats.memory.and_then(|memory| memory.usage_bytes).map_or(0, |used| used.value);
        if used < u64::try_from(limit).unwrap_or(u64::MAX) {
            return Ok(());
        }

        Err(format!(
            "cannot decrease memory limits: attempting to set container \"{name}\" memory limit ({limit}) below current usage ({used})"
        ))
    }
}
