//! What is remembered of a pod only until the agent restarts.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::probe::{Answers, Askings, ProbeKind};
use crate::resources::PodLimits;

/// Outcomes of actions, what is under way, and what the user was told. Lost with the process: it is found
/// out, done or told once more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transient {
    /// The last failure to make the sandbox.
    pub sandbox_failure: Option<Failure>,
    /// The last failure to set up volumes.
    pub volumes_failure: Option<Failure>,
    /// The last failure to give running containers other resources.
    pub resize_failure: Option<Failure>,
    /// What a resize gave the cgroup of the pod last.
    pub limits: Option<PodLimits>,
    /// By container name: its image.
    pub images: BTreeMap<String, ImageNote>,
    /// By container name: why its last start failed.
    pub start_failures: BTreeMap<String, Failure>,
    /// Ids of containers in which the kernel has killed something for want of memory.
    pub out_of_memory: BTreeSet<String>,
    /// Which one-time Events were emitted.
    pub told: Vec<String>,
    /// By the id of a container that is being stopped: why, as the user was told.
    pub killing: BTreeMap<String, String>,
    /// The rest of the memory holds something that cannot be found out again, and was not stored yet.
    pub unstored: bool,
    /// The stop that is under way.
    pub stopping: Option<Stopping>,
    /// What the probes are about to ask.
    pub askings: Askings,
    /// What they have answered so far, by container name and kind.
    pub answers: BTreeMap<(String, ProbeKind), Answers>,
    /// What of [`crate::observed::Observed::clock_set_s`] has been taken into account.
    pub clock_set_s: Option<i64>,
}

/// How far the stop of a pod's containers is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopping {
    /// Seconds that the containers have.
    pub grace_s: i64,
    /// The turns of the sidecars, by id.
    pub turns: BTreeMap<String, Turn>,
}

/// The turn of a sidecar to be killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Since when it waits.
    pub since: Timestamp,
    /// For how many seconds it has, if its turn has come.
    pub waited_s: Option<i64>,
}

/// A failure and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Reason in the words of the kubelet, for example `CreateContainerError`.
    pub reason: String,
    /// What happened, to what.
    pub message: String,
    /// When it failed last.
    pub since: Timestamp,
    /// Not before.
    pub retry_at: Timestamp,
    /// How often in a row.
    pub count: u32,
}

/// What is known of the image of a container's next attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageNote {
    /// The image as the spec names it: another one makes the note void.
    pub image: String,
    /// What was found.
    pub found: ImageFound,
}

/// Whether an image is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageFound {
    /// Present, found for `attempt`.
    Ready {
        /// The attempt it was looked up or pulled for.
        attempt: u32,
        /// The reference to create the container by.
        image_ref: String,
    },
    /// It could not be had.
    Failed {
        /// Why, and when to try again.
        failure: Failure,
        /// The image of a volume that is missing, unless it is the container's own.
        mounted: Option<String>,
    },
}
