//! Gives running containers other CPU and memory, within the cgroup of their pod.

use podcore::plan::Outcome;
use podcore::resize::{Lowered, Outdated, Resources, below_usage};
use podcore::resources::pod_limits;
use podcore::translate::container_resources;

use super::{Done, Job};
use crate::blocking;
use crate::node::cgroups::{CgroupError, Cgroups, Limits};
use crate::telemetry::chain;

/// The cgroup of a pod, and what it is to have.
#[derive(Clone, Debug)]
pub(super) struct PodCgroup {
    pub(super) cgroups: Cgroups,
    /// As the runtime is told.
    pub(super) parent: String,
    pub(super) limits: Limits,
}

impl PodCgroup {
    /// Changes the cgroup together with what is in it: more for the pod comes before more for its
    /// containers, and less of it after less for them. Nothing is changed if `check` refuses.
    async fn resize(
        &self,
        check: impl Future<Output = Result<(), String>>,
        containers: impl Future<Output = Result<(), String>>,
    ) -> Result<(), String> {
        let Self { cgroups, parent, limits } = self;
        let failed =
            |error: CgroupError| format!("failed to set pod cgroup config: {}", chain(&error));
        check.await?;
        cgroups.raise(parent, limits.clone()).await.map_err(failed)?;
        containers.await?;

        cgroups.ensure(parent, limits.clone()).await.map_err(failed)
    }

    /// The pod's limit of memory, if it becomes less.
    async fn lowered(&self) -> Option<Lowered<'static>> {
        let Self { cgroups, parent, limits } = self.clone();
        let limit = limits.memory_bytes.filter(|limit| *limit > 0)?;
        let becomes = u64::try_from(limit).ok()?;

        blocking::run(move || {
            let is_lower = cgroups.memory_limit(&parent).is_none_or(|has| becomes < has);
            let used = || cgroups.usage(&parent).memory.map(|memory| memory.usage);
            is_lower.then(|| Lowered { container: None, limit, used: used() })
        })
        .await
    }
}

impl Job {
    pub(super) async fn resize(self, containers: Vec<Outdated>) -> Done {
        let cgroup = self.cgroup();
        let check = self.check_usage(&cgroup, &containers);
        if let Err(message) = cgroup.resize(check, self.update(&containers)).await {
            return Done::noted(Outcome::ResizeFailed { message });
        }
        let has = |name: &str| self.container(name).map(Resources::of).unwrap_or_default();
        let containers = containers.into_iter().map(|Outdated { name, attempt, .. }| {
            let resources = has(&name);
            (name, attempt, resources)
        });
        let (containers, limits) = (containers.collect(), pod_limits(&self.pod));

        Done::noted(Outcome::Resized { containers, limits })
    }

    async fn update(&self, containers: &[Outdated]) -> Result<(), String> {
        let fields = self.context.node_fields(self.pod_ips());
        for Outdated { name, id, .. } in containers {
            let container = self.container(name).ok_or("the pod has no such container")?;
            let resources = container_resources(&self.pod, container, &fields);
            let updated = self.context.runtime.update_container_resources(id, resources).await;
            updated.map_err(|error| error.message())?;
        }

        Ok(())
    }

    async fn check_usage(&self, cgroup: &PodCgroup, containers: &[Outdated]) -> Result<(), String> {
        let mut lowered: Vec<_> = cgroup.lowered().await.into_iter().collect();
        let fields = self.context.node_fields(self.pod_ips());
        for Outdated { name, id, .. } in containers.iter().filter(|one| one.lowers_memory) {
            let container = self.container(name).ok_or("the pod has no such container")?;
            let limit = container_resources(&self.pod, container, &fields).memory_limit_in_bytes;
            let stats = self.context.runtime.container_stats(id).await.map_err(|e| e.message())?;
            let used = stats.memory.and_then(|memory| memory.usage_bytes).map(|used| used.value);
            lowered.push(Lowered { container: Some(name), limit, used });
        }

        below_usage(&lowered).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const OLD: i64 = 64 << 20;

    /// What file has the limit of the pod's memory while its containers are changed, and afterwards.
    async fn seen(
        cgroups: &Cgroups,
        file: &std::path::Path,
        limit: i64,
        is_refused: bool,
    ) -> [i64; 2] {
        let read = || fs::read_to_string(file).unwrap().trim().parse::<i64>().unwrap();
        let limits = |bytes| Limits { memory_bytes: Some(bytes), ..Limits::default() };
        let parent = "/kubepods/pod1".to_owned();
        cgroups.ensure(&parent, limits(OLD)).await.unwrap();
        let cgroup = PodCgroup { cgroups: cgroups.clone(), parent, limits: limits(limit) };
        let mut during = 0;
        let check = async { if is_refused { Err("used".to_owned()) } else { Ok(()) } };
        let update = async {
            during = read();
            Ok(())
        };
        let resized = cgroup.resize(check, update).await;
        assert_eq!(resized.is_err(), is_refused);

        [during, read()]
    }

    #[tokio::test]
    async fn a_pod_gets_more_before_its_containers_and_less_after_them() {
        let dir = tempfile::tempdir().unwrap();
        let v1: &[&str] = &["memory"];
        for (controllers, file) in [(v1, "memory.limit_in_bytes"), (&[], "memory.max")] {
            let mount = dir.path().join(file);
            let file = mount.join("kubepods/pod1").join(file);
            fs::create_dir(&mount).unwrap();
            let cgroups = Cgroups::of_one(&mount, controllers);
            for (limit, is_refused, expected) in [
                (OLD * 2, false, [OLD * 2, OLD * 2]),
                (OLD / 2, false, [OLD, OLD / 2]),
                (OLD / 2, true, [0, OLD]),
                (OLD * 2, true, [0, OLD]),
            ] {
                let seen = seen(&cgroups, &file, limit, is_refused).await;
                assert_eq!(seen, expected, "{limit} in {}", file.display());
            }
            fs::write(file, "max").unwrap();
            cgroups
                .raise("/kubepods/pod1", Limits { memory_bytes: Some(OLD), ..Limits::default() })
                .await
                .unwrap();
            assert_eq!(cgroups.memory_limit("/kubepods/pod1"), Some(u64::MAX));
        }
    }
}
