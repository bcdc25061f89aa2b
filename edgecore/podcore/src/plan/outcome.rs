//! What became of an action, and how it enters the memory.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::backoff;
use crate::claims::PersistentVolume;
use crate::hook::{self, Hooked};
use crate::memory::{Failure, ImageFound, ImageNote, Memory};
use crate::probe::ProbeKind;
use crate::resize::{Actual, Resources};
use crate::resources::PodLimits;

/// The result of an [`super::Action`]. Successes that show in the next look need no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The sandbox was made.
    SandboxCreated {
        /// Its attempt.
        attempt: u32,
    },
    /// It could not be made.
    SandboxFailed {
        /// The attempt that was used up.
        attempt: u32,
        /// What happened.
        message: String,
    },
    /// It was stopped, and its network given back.
    SandboxStopped {
        /// Its id.
        id: String,
    },
    /// The volumes are in place.
    VolumesReady {
        /// Those with claims, by their name in the pod.
        claimed: BTreeMap<String, PersistentVolume>,
    },
    /// They could not be set up.
    VolumesFailed {
        /// Which, and what happened.
        message: String,
    },
    /// The image is there.
    ImageReady {
        /// Container name.
        container: String,
        /// The image as the spec names it.
        image: String,
        /// The attempt that it is for.
        attempt: u32,
        /// The reference to create the container by.
        image_ref: String,
    },
    /// It is not to be had.
    ImageFailed {
        /// Container name.
        container: String,
        /// The image as the spec names it.
        image: String,
        /// The image of a volume that is missing, unless it is the container's own.
        mounted: Option<String>,
        /// `ErrImagePull`, `ErrImageNeverPull` or `InvalidImageName`.
        reason: String,
        /// What happened.
        message: String,
    },
    /// The container runs (or has ended already).
    ContainerStarted {
        /// Container name.
        container: String,
        /// Its attempt.
        attempt: u32,
        /// The image that it runs, as the spec names it.
        image: String,
        /// What it was given.
        resources: Resources,
    },
    /// Running containers and the cgroup of their pod have other resources.
    Resized {
        /// Name, attempt and what it has.
        containers: Vec<(String, u32, Resources)>,
        /// Of the pod's cgroup.
        limits: PodLimits,
    },
    /// They could not be given them.
    ResizeFailed {
        /// What happened.
        message: String,
    },
    /// The hook before a stop has run, or its time was over.
    PreStopped {
        /// Id of the instance.
        id: String,
        /// How many seconds it took.
        took_s: i64,
    },
    /// The hook after a start has run.
    Hooked {
        /// Container name.
        container: String,
        /// The attempt that started.
        attempt: u32,
        /// What went wrong.
        failure: Option<String>,
    },
    /// A probe was answered, or could not be asked.
    Probed {
        /// Container name.
        container: String,
        /// Id of the instance.
        id: String,
        /// Which probe.
        kind: ProbeKind,
        /// The question.
        number: u32,
        /// Whether it passed; `None` if it could not be asked.
        passed: Option<bool>,
    },
    /// It could not be created or started.
    StartFailed {
        /// Container name.
        container: String,
        /// The attempt that was used up: a container of that number may exist.
        attempt: u32,
        /// `CreateContainerConfigError`, `CreateContainerError` or `RunContainerError`.
        reason: String,
        /// What happened.
        message: String,
    },
}

/// The failure before, if it was of the same image.
fn failed_before<'a>(
    note: &'a ImageNote,
    image: &str,
    mounted: Option<&String>,
) -> Option<&'a Failure> {
    match &note.found {
        ImageFound::Failed { failure, mounted: of }
            if note.image == image && of.as_ref() == mounted =>
        {
            Some(failure)
        }
        ImageFound::Failed { .. } | ImageFound::Ready { .. } => None,
    }
}

impl Memory {
    /// Takes in what became of an action.
    pub fn note(&mut self, outcome: Outcome, now: Timestamp) {
        match outcome {
            Outcome::SandboxCreated { attempt } => {
                self.sandbox_attempt = self.sandbox_attempt.max(Some(attempt));
                self.transient.sandbox_failure = None;
            }
            Outcome::SandboxFailed { attempt, message } => {
                self.sandbox_attempt = self.sandbox_attempt.max(Some(attempt));
                let before = self.transient.sandbox_failure.as_ref();
                let failure = backoff::failure(before, "FailedCreatePodSandBox", message, now);
                self.transient.sandbox_failure = Some(failure);
            }
            Outcome::SandboxStopped { id } => {
                self.stopped_sandboxes.insert(id);
            }
            Outcome::VolumesReady { claimed } => {
                (self.transient.volumes_failure, self.claimed) = (None, claimed);
            }
            Outcome::VolumesFailed { message } => {
                let before = self.transient.volumes_failure.as_ref();
                let failure = backoff::failure(before, "FailedMount", message, now);
                self.transient.volumes_failure = Some(failure);
            }
            Outcome::ImageReady { container, image, attempt, image_ref } => {
                let found = ImageFound::Ready { attempt, image_ref };
                self.transient.images.insert(container, ImageNote { image, found });
            }
            Outcome::ImageFailed { container, image, mounted, reason, message } => {
                let kept = self.transient.images.get(&container);
                let before = kept.and_then(|note| failed_before(note, &image, mounted.as_ref()));
                let failure = backoff::pull_failure(before, &reason, message, now);
                let found = ImageFound::Failed { failure, mounted };
                self.transient.images.insert(container, ImageNote { image, found });
            }
            Outcome::ContainerStarted { container, attempt, image, resources } => {
                let kept = self.container(&container);
                kept.attempt = kept.attempt.max(Some(attempt));
                kept.actual = Some(Actual { attempt, image, resources });
                self.transient.start_failures.remove(&container);
            }
            Outcome::Resized { containers, limits } => self.resized(containers, limits),
            Outcome::ResizeFailed { message } => {
                let before = self.transient.resize_failure.as_ref();
                let failure = backoff::failure(before, "Error", message, now);
                self.transient.resize_failure = Some(failure);
            }
            Outcome::PreStopped { id, took_s } => {
                self.pre_stopped.insert(id, took_s);
                self.transient.unstored = true;
            }
            Outcome::Hooked { container, attempt, failure } => {
                let failed = failure.is_some();
                self.container(&container).hooked = Some(Hooked { attempt, failed });
                if let Some(message) = failure {
                    self.start_failed(container, hook::FAILED, message, now);
                }
            }
            Outcome::Probed { container, id, kind, number, passed } => {
                self.answered(&(container, kind), &id, number, passed);
            }
            Outcome::StartFailed { container, attempt: _, reason, message } => {
                self.start_failed(container, &reason, message, now);
            }
        }
    }

    fn resized(&mut self, containers: Vec<(String, u32, Resources)>, limits: PodLimits) {
        for (container, attempt, resources) in containers {
            let kept = self.container(&container);
            let image = kept.actual.take().map(|before| before.image).unwrap_or_default();
            kept.actual = Some(Actual { attempt, image, resources });
        }
        self.transient.limits = Some(limits);
        self.transient.resize_failure = None;
    }

    fn start_failed(&mut self, container: String, reason: &str, message: String, now: Timestamp) {
        let before = self.transient.start_failures.get(&container);
        let failure = backoff::failure(before, reason, message, now);
        self.transient.start_failures.insert(container, failure);
    }
}
