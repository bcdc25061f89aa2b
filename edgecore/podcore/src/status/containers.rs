//! The statuses of containers.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as State, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::StatusContext;
use crate::backoff;
use crate::memory::{ContainerMemory, ImageNote, Memory, Termination};
use crate::observed::{ContainerState, ContainerView, Observed};
use crate::pod::{PodView, RestartPolicy};

/// Exit code of a container whose end nobody saw (kubelet).
const UNKNOWN_EXIT_CODE: i32 = 137;

/// Init containers.
pub(super) fn init(
    pod: &PodView,
    memory: &Memory,
    observed: &Observed,
    context: &StatusContext,
    now: Timestamp,
) -> Vec<ContainerStatus> {
    let look = Look { pod, memory, observed, context, now };

    pod.init_containers()
        .iter()
        .map(|container| {
            let mut status = look.status(container, RestartPolicy::OnFailure);
            let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
            status.ready = ended.is_some_and(|ended| ended.exit_code == 0);
            status
        })
        .collect()
}

/// Containers.
pub(super) fn main(
    pod: &PodView,
    memory: &Memory,
    observed: &Observed,
    context: &StatusContext,
    now: Timestamp,
) -> Vec<ContainerStatus> {
    let look = Look { pod, memory, observed, context, now };

    pod.containers().iter().map(|c| look.status(c, RestartPolicy::Always)).collect()
}

struct Look<'a> {
    pod: &'a PodView,
    memory: &'a Memory,
    observed: &'a Observed,
    context: &'a StatusContext,
    now: Timestamp,
}

impl Look<'_> {
    /// `role` is the policy that the role of the container allows at most: an init container that
    /// completed is never restarted.
    fn status(&self, container: &Container, role: RestartPolicy) -> ContainerStatus {
        let none = ContainerMemory::default();
        let kept = self.memory.containers.get(&container.name).unwrap_or(&none);
        let view = self.observed.newest(&container.name);
        let live = view.filter(|view| !matches!(view.state, ContainerState::Exited { .. }));
        let running = view.filter(|view| view.is_running());
        let (state, last) = match (live, &kept.last) {
            (Some(view), last) => (of_live(view), last.as_ref()),
            (None, Some(end)) => self.of_ended(container, kept, end, role),
            (None, None) => (self.waiting_to_start(container), None),
        };
        let previous = last.map(|end| self.terminated(end));
        let (image, image_ref, id) = self.identity(container, view, kept);

        ContainerStatus {
            name: container.name.clone(),
            state: Some(state),
            last_state: Some(previous.unwrap_or_default()),
            ready: running.is_some(),
            restart_count: i32::try_from(kept.attempt.unwrap_or(0)).unwrap_or(i32::MAX),
            image,
            image_id: image_ref,
            container_id: id,
            started: Some(running.is_some()),
            allocated_resources: running
                .and(container.resources.as_ref())
                .and_then(|resources| resources.requests.clone()),
            resources: running.map(|_| container.resources.clone().unwrap_or_default()),
            volume_mounts: volume_mounts(container),
            ..ContainerStatus::default()
        }
    }

    fn identity(
        &self,
        container: &Container,
        view: Option<&ContainerView>,
        kept: &ContainerMemory,
    ) -> (String, String, Option<String>) {
        let id = |id: &str| Some(format!("{}://{id}", self.context.runtime));
        match (view, &kept.last) {
            (Some(view), _) => (view.image.clone(), view.image_ref.clone(), id(&view.id)),
            (None, Some(end)) => (end.image.clone(), end.image_ref.clone(), id(&end.id)),
            (None, None) => (container.image.clone().unwrap_or_default(), String::new(), None),
        }
    }

    /// Ended for good, or waiting for its next start.
    fn of_ended<'a>(
        &self,
        container: &Container,
        kept: &ContainerMemory,
        end: &'a Termination,
        role: RestartPolicy,
    ) -> (State, Option<&'a Termination>) {
        let failure = self.failure(container);
        let stays = self.memory.ended.is_some()
            || self.pod.is_deleted()
            || self.pod.restart_policy() == RestartPolicy::Never
            || (end.exit_code == 0
                && (role == RestartPolicy::OnFailure
                    || self.pod.restart_policy() == RestartPolicy::OnFailure));
        let finished = end.finished_at.unwrap_or(self.now);
        let waits = self.now < backoff::start_at(&kept.backoff, finished, self.now);
        if stays || !(waits || failure.is_some()) {
            return (self.terminated(end), None);
        }
        let state = failure.unwrap_or_else(|| {
            let PodView { name, namespace, uid, .. } = self.pod;
            let message = format!(
                "back-off {}s restarting failed container={} pod={name}_{namespace}({uid})",
                kept.backoff.delay_s, container.name
            );
            waiting("CrashLoopBackOff", Some(message))
        });

        (state, Some(end))
    }

    fn waiting_to_start(&self, container: &Container) -> State {
        if self.memory.ended.is_some() && self.pod.is_deleted() {
            return State {
                terminated: Some(ContainerStateTerminated {
                    exit_code: UNKNOWN_EXIT_CODE,
                    reason: Some("ContainerStatusUnknown".to_owned()),
                    message: Some(
                        "The container could not be located when the pod was terminated".to_owned(),
                    ),
                    ..ContainerStateTerminated::default()
                }),
                ..State::default()
            };
        }
        let is_main = self.pod.containers().iter().any(|c| c.name == container.name);
        let reason = if is_main && !self.pod.init_containers().is_empty() {
            "PodInitializing"
        } else {
            "ContainerCreating"
        };

        self.failure(container).unwrap_or_else(|| waiting(reason, None))
    }

    /// The failure that keeps the container from starting, if there is one.
    fn failure(&self, container: &Container) -> Option<State> {
        let transient = &self.memory.transient;
        if let Some(ImageNote::Failed(failure)) = transient.images.get(&container.name) {
            // After the first try it is the waiting that is told, as the kubelet does.
            let is_waiting = failure.reason == "ErrImagePull" && failure.count > 1;
            let reason = if is_waiting { "ImagePullBackOff" } else { &failure.reason };
            return Some(waiting(reason, Some(failure.message.clone())));
        }
        let failure = transient.start_failures.get(&container.name)?;

        Some(waiting(&failure.reason, Some(failure.message.clone())))
    }

    fn terminated(&self, end: &Termination) -> State {
        State {
            terminated: Some(ContainerStateTerminated {
                container_id: Some(format!("{}://{}", self.context.runtime, end.id)),
                exit_code: end.exit_code,
                reason: (!end.reason.is_empty()).then(|| end.reason.clone()),
                message: (!end.message.is_empty()).then(|| end.message.clone()),
                started_at: end.started_at.map(Time),
                finished_at: end.finished_at.map(Time),
                ..ContainerStateTerminated::default()
            }),
            ..State::default()
        }
    }
}

fn of_live(view: &ContainerView) -> State {
    match &view.state {
        ContainerState::Running { started_at } => State {
            running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
            ..State::default()
        },
        ContainerState::Created | ContainerState::Unknown | ContainerState::Exited { .. } => {
            waiting("ContainerCreating", None)
        }
    }
}

fn waiting(reason: &str, message: Option<String>) -> State {
    State {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..State::default()
    }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts: Vec<_> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only,
            recursive_read_only: (mount.read_only == Some(true)).then(|| "Disabled".to_owned()),
            ..VolumeMountStatus::default()
        })
        .collect();

    (!mounts.is_empty()).then_some(mounts)
}
