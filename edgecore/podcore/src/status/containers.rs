//! The statuses of containers.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as State, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, LinuxContainerUser, VolumeMount,
    VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::StatusContext;
use crate::hook;
use crate::memory::{ContainerMemory, Failure, ImageFound, Memory, Termination};
use crate::observed::{ContainerState, ContainerView, Observed};
use crate::plan::{UNKNOWN_END, UNKNOWN_EXIT_CODE, is_followed, termination};
use crate::pod::{PodView, is_sidecar};
use crate::probe;
use crate::resize;
use crate::translate::{container_hash, is_recursive};

/// Most that the termination messages of a pod may hold together, an equal share for each container
/// (kubelet: `MaxPodTerminationMessageLogLength`).
const MESSAGES_BYTES_MAX: usize = 12 * 1024;

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
            // Of one that ended well a kubelet never says that it waits, not even of a sidecar.
            let mut status = look.status(container, Role::Completes);
            if is_sidecar(container) {
                return status;
            }
            let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
            status.ready = ended.is_some_and(|ended| ended.exit_code == 0);
            status
        })
        .collect()
}

/// Ephemeral containers, sorted by name. Nobody asks whether they are ready.
pub(super) fn ephemeral(
    pod: &PodView,
    memory: &Memory,
    observed: &Observed,
    context: &StatusContext,
    now: Timestamp,
) -> Vec<ContainerStatus> {
    let look = Look { pod, memory, observed, context, now };
    let unasked = |status| ContainerStatus { ready: false, started: None, ..status };

    let statuses = pod.ephemeral_containers().iter().map(|c| unasked(look.status(c, Role::Goes)));

    sorted(statuses.collect())
}

/// Containers, sorted by name as the kubelet does.
pub(super) fn main(
    pod: &PodView,
    memory: &Memory,
    observed: &Observed,
    context: &StatusContext,
    now: Timestamp,
) -> Vec<ContainerStatus> {
    let look = Look { pod, memory, observed, context, now };

    sorted(pod.containers().iter().map(|c| look.status(c, Role::Goes)).collect())
}

fn sorted(mut statuses: Vec<ContainerStatus>) -> Vec<ContainerStatus> {
    statuses.sort_by(|a, b| a.name.cmp(&b.name));

    statuses
}

/// What an end without error means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// An init container has done its work.
    Completes,
    /// Its restart policy says.
    Goes,
}

struct Look<'a> {
    pod: &'a PodView,
    memory: &'a Memory,
    observed: &'a Observed,
    context: &'a StatusContext,
    now: Timestamp,
}

impl Look<'_> {
    fn status(&self, container: &Container, role: Role) -> ContainerStatus {
        let none = ContainerMemory::default();
        let kept = self.memory.containers.get(&container.name).unwrap_or(&none);
        let view = self.observed.newest(&container.name);
        let live = view.filter(|view| !matches!(view.state, ContainerState::Exited { .. }));
        let running = view.filter(|view| view.is_running());
        let (state, previous) = match (live, &kept.last) {
            (Some(view), last) => {
                (self.of_live(container, view), last.as_ref().map(|end| self.terminated(end)))
            }
            (None, Some(end)) => self.of_ended(container, kept, end, role),
            (None, None) => (self.waiting_to_start(container), None),
        };
        let was_made = view.is_some() || kept.last.is_some();
        let (image, image_ref, id) = self.identity(container, view, kept);

        ContainerStatus {
            name: container.name.clone(),
            state: Some(state),
            last_state: Some(previous.unwrap_or_default()),
            ready: running.is_some_and(|view| probe::is_ready(container, view, self.memory)),
            restart_count: i32::try_from(kept.attempt.unwrap_or(0)).unwrap_or(i32::MAX),
            image,
            image_id: image_ref,
            container_id: id,
            started: Some(
                running.is_some_and(|view| probe::is_started(container, view, self.memory)),
            ),
            allocated_resources: was_made
                .then(|| container.resources.as_ref()?.requests.clone())
                .flatten(),
            resources: was_made.then(|| match running {
                Some(view) => resize::told(container, view, self.memory),
                None => container.resources.clone().unwrap_or_default(),
            }),
            volume_mounts: volume_mounts(container, self.context.recursive_read_only),
            user: user(view, kept),
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
            (None, Some(end)) if !end.id.is_empty() => {
                (end.image.clone(), end.image_ref.clone(), id(&end.id))
            }
            (None, _) => (container.image.clone().unwrap_or_default(), String::new(), None),
        }
    }

    /// Ended for good, or waiting for its next start.
    fn of_ended(
        &self,
        container: &Container,
        kept: &ContainerMemory,
        end: &Termination,
        role: Role,
    ) -> (State, Option<State>) {
        let failure = self.failure(container);
        let stays = self.memory.ended.is_some()
            || self.pod.is_deleted()
            || role == Role::Completes && end.exit_code == 0
            || !is_followed(self.pod, self.memory, container, end);
        let hash = container_hash(container);
        let before = self.observed.ended_before(&container.name, end.attempt);
        let waits = kept.crash_wait(end, before, &hash, self.now).is_some();
        let failure = failure.filter(|_| !waits);
        if stays || !waits && failure.is_none() {
            return (self.terminated(end), self.end_before(container, end));
        }
        let state = failure.unwrap_or_else(|| {
            let message = format!(
                "back-off {} restarting failed container={} pod={}",
                duration(kept.crash_backoff(end, before, &hash).delay_s),
                container.name,
                self.pod.described()
            );
            waiting("CrashLoopBackOff", Some(message))
        });

        (state, Some(self.terminated(end)))
    }

    /// The end before that one, if the runtime still has it.
    fn end_before(&self, container: &Container, end: &Termination) -> Option<State> {
        let all = self.observed.containers.iter().filter(|c| c.name == container.name);
        let before = all.filter(|c| c.attempt < end.attempt).max_by_key(|c| c.attempt)?;

        Some(self.terminated(&termination(before, 0)?))
    }

    fn of_live(&self, container: &Container, view: &ContainerView) -> State {
        match &view.state {
            ContainerState::Running { .. } if hook::is_pending(container, view, self.memory) => {
                self.not_yet()
            }
            ContainerState::Running { started_at } => State {
                running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
                ..State::default()
            },
            ContainerState::Unknown => unknown_end(),
            ContainerState::Created | ContainerState::Exited { .. } => {
                self.waiting_to_start(container)
            }
        }
    }

    fn waiting_to_start(&self, container: &Container) -> State {
        if self.memory.ended.is_some() && self.pod.is_deleted() && self.counts_as_lost(container) {
            return unknown_end();
        }

        self.failure(container).unwrap_or_else(|| self.not_yet())
    }

    /// The waiting of a container that nothing keeps from starting.
    fn not_yet(&self) -> State {
        let has_init = !self.pod.init_containers().is_empty();

        waiting(if has_init { "PodInitializing" } else { "ContainerCreating" }, None)
    }

    /// Whether a container that never started is told to have ended when the pod was deleted: those
    /// of the pod proper once it was initialized, init containers up to the last that started, the
    /// first in any case (kubelet: `TerminatePod`).
    fn counts_as_lost(&self, container: &Container) -> bool {
        if self.pod.ephemeral_containers().iter().any(|c| c.name == container.name) {
            return false;
        }
        let last = |name: &str| self.memory.containers.get(name).and_then(|k| k.last.as_ref());
        let init = self.pod.init_containers();
        if let Some(at) = init.iter().position(|other| other.name == container.name) {
            return at == 0 || init[at..].iter().any(|later| last(&later.name).is_some());
        }
        let is_initialized = match init.last() {
            None => true,
            Some(init) => last(&init.name).is_some_and(|end| end.exit_code == 0),
        };

        is_initialized || self.pod.containers().iter().any(|c| last(&c.name).is_some())
    }

    /// The failure that keeps the container from starting, if there is one.
    fn failure(&self, container: &Container) -> Option<State> {
        let transient = &self.memory.transient;
        let note = transient.images.get(&container.name);
        let note = note.filter(|note| Some(&note.image) == container.image.as_ref());
        if let Some(ImageFound::Failed { failure, mounted }) = note.map(|note| &note.found) {
            // After the first try it is the waiting that is told, as the kubelet does.
            let Failure { reason, message, count, .. } = failure;
            let image = mounted.as_ref().or(container.image.as_ref()).map_or("", String::as_str);
            return Some(if reason == "ErrImagePull" && *count > 1 {
                let message = format!("Back-off pulling image \"{image}\": {reason}: {message}");
                waiting("ImagePullBackOff", Some(message))
            } else {
                waiting(reason, Some(message.clone()))
            });
        }
        let failure = transient.start_failures.get(&container.name)?;

        Some(waiting(&failure.reason, Some(failure.message.clone())))
    }

    /// What of a termination message is told: all of a pod's together are bounded.
    fn share(&self, message: &str) -> String {
        let most = MESSAGES_BYTES_MAX / self.pod.all_containers().count().max(1);

        message[..message.floor_char_boundary(most)].to_owned()
    }

    fn terminated(&self, end: &Termination) -> State {
        let never = (!end.id.is_empty()).then_some(Timestamp::UNIX_EPOCH);

        State {
            terminated: Some(ContainerStateTerminated {
                container_id: (!end.id.is_empty())
                    .then(|| format!("{}://{}", self.context.runtime, end.id)),
                exit_code: end.exit_code,
                reason: (!end.reason.is_empty()).then(|| end.reason.clone()),
                message: (!end.message.is_empty()).then(|| self.share(&end.message)),
                // What a runtime says of one that never started.
                started_at: end.started_at.or(never).map(Time),
                finished_at: end.finished_at.map(Time),
                ..ContainerStateTerminated::default()
            }),
            ..State::default()
        }
    }
}

/// Seconds as Go writes a duration: `10s`, `1m20s`, `5m0s`.
fn duration(seconds: u32) -> String {
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

/// The end of a container that nobody saw.
fn unknown_end() -> State {
    State {
        terminated: Some(ContainerStateTerminated {
            exit_code: UNKNOWN_EXIT_CODE,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some(UNKNOWN_END.to_owned()),
            ..ContainerStateTerminated::default()
        }),
        ..State::default()
    }
}

fn waiting(reason: &str, message: Option<String>) -> State {
    State {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..State::default()
    }
}

/// Whom it runs as, or ran as when the runtime has it no more.
fn user(view: Option<&ContainerView>, kept: &ContainerMemory) -> Option<ContainerUser> {
    let user = match view {
        Some(view) => view.user.as_ref(),
        None => kept.last.as_ref().and_then(|end| end.user.as_ref()),
    }?;

    Some(ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: (!user.groups.is_empty()).then(|| user.groups.clone()),
        }),
    })
}

fn volume_mounts(container: &Container, can_be_recursive: bool) -> Option<Vec<VolumeMountStatus>> {
    let recursive = |mount: &VolumeMount| {
        let is_recursive = is_recursive(mount, can_be_recursive).unwrap_or(false);
        if is_recursive { "Enabled" } else { "Disabled" }.to_owned()
    };
    let mounts: Vec<_> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only,
            recursive_read_only: (mount.read_only == Some(true)).then(|| recursive(mount)),
            ..VolumeMountStatus::default()
        })
        .collect();

    (!mounts.is_empty()).then_some(mounts)
}
