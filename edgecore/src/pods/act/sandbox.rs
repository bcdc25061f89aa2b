//! The sandbox of a pod and the cgroup around it.

use cri::CriError;
use cri_api::v1::PodSandboxConfig;
use podcore::claims::runtime_handler;
use podcore::dns::{Resolvers, resolver};
use podcore::observed::SandboxView;
use podcore::plan::Outcome;
use podcore::resources::{cgroup_parent, pod_limits};
use podcore::translate::{SandboxContext, sandbox_config};

use super::resize::PodCgroup;
use super::{Done, Job, gone};
use crate::events::EventType::Warning;
use crate::node::cgroups::Limits;
use crate::pods::observe;
use crate::telemetry::chain;

impl Job {
    pub(super) async fn create_sandbox(self, attempt: u32) -> Done {
        let made = self.try_sandbox(attempt).await;
        match made {
            Ok(sandbox) => Done::Noted {
                outcome: Outcome::SandboxCreated { attempt },
                sandbox: Some(sandbox),
                container: None,
                look: false,
            },
            Err(message) => {
                let told = format!("Failed to create pod sandbox: {message}");
                self.tell(Warning, "FailedCreatePodSandBox", &told, None);
                Done::Noted {
                    outcome: Outcome::SandboxFailed { attempt, message },
                    sandbox: None,
                    container: None,
                    look: true,
                }
            }
        }
    }

    async fn try_sandbox(&self, attempt: u32) -> Result<SandboxView, String> {
        let Self { context, pod, .. } = self;
        // The semaphore is never closed; without a place the start would still be right.
        let _place = context.starts.acquire().await;
        let config = self.config(attempt).await.map_err(|error| {
            format!("Failed to generate sandbox config for pod {:?}: {error}", pod.described())
        })?;
        self.make_cgroup().await?;
        let handler = runtime_handler(pod, &self.materials)?;
        let text = |error: CriError| error.status();
        let id = context.runtime.run_pod_sandbox(config, &handler).await.map_err(text)?;
        context.registry.own(&pod.uid, &id);
        let status = context.runtime.pod_sandbox_status(&id).await.map_err(text)?;

        Ok(observe::sandbox_view(&status))
    }

    async fn config(&self, attempt: u32) -> Result<PodSandboxConfig, String> {
        let users = self.users().await?;
        let around = SandboxContext { users, ..self.context.sandbox_context(&self.pod) };
        self.tell_missing_dns(&around.resolvers);

        sandbox_config(&self.pod, attempt, &around).map_err(|error| error.to_string())
    }

    /// A pod that wants the cluster's DNS gets the node's if the node knows no other.
    fn tell_missing_dns(&self, resolvers: &Resolvers) {
        let pod = &self.pod;
        let (_, is_missing) = resolver(pod, resolvers);
        if is_missing {
            let message = format!(
                "pod: \"{}\". kubelet does not have ClusterDNS IP configured and cannot create Pod \
                 using \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
                pod.described()
            );
            self.tell(Warning, "MissingClusterDNS", &message, None);
        }
    }

    /// The pod's cgroup with the limits of the pod as a whole: made before anything runs in it.
    async fn make_cgroup(&self) -> Result<(), String> {
        let PodCgroup { cgroups, parent, limits } = self.cgroup();
        let made = cgroups.ensure(&parent, limits).await;

        made.map_err(|error| format!("unable to ensure pod container exists: {}", chain(&error)))
    }

    /// The pod's cgroup, and what it is to have.
    pub(super) fn cgroup(&self) -> PodCgroup {
        let Self { context, pod, .. } = self;
        let limits = pod_limits(pod);
        let sizes = context.fields.machine.huge_pages.iter().copied();
        let limits = Limits {
            cpu_shares: u64::try_from(limits.cpu_shares).ok(),
            cpu_quota_us: limits.cpu_quota,
            memory_bytes: limits.memory,
            pids: context.pod_pids_max,
            huge_pages: sizes
                .map(|size| (size, limits.huge_pages.get(&size).copied().unwrap_or(0)))
                .collect(),
        };
        let parent = cgroup_parent(pod, &context.cgroup_root, context.cgroup_driver);

        PodCgroup { cgroups: context.cgroups.clone(), parent, limits }
    }

    pub(super) async fn stop_sandbox(self, id: &str) -> Done {
        let runtime = &self.context.runtime;
        let stopped = runtime.stop_pod_sandbox(id).await;
        match stopped {
            Ok(()) => match runtime.pod_sandbox_status(id).await {
                Ok(status) => Done::Noted {
                    outcome: Outcome::SandboxStopped { id: id.to_owned() },
                    sandbox: Some(observe::sandbox_view(&status)),
                    container: None,
                    look: false,
                },
                Err(error) => gone(id.to_owned(), Err(error)),
            },
            Err(error) => gone(id.to_owned(), Err(error)),
        }
    }
}
