//! What the runtime and the node say now about one pod. Holds nothing that is not true at this moment.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::abilities::Abilities;
use crate::admission::Refusal;
use crate::memory::Memory;
use crate::resize::Room;

/// The runtime's reason for the end of a container that ran out of memory.
const OUT_OF_MEMORY: &str = "OOMKilled";

/// One look at a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Every sandbox of the pod, found by its UID label.
    pub sandboxes: Vec<SandboxView>,
    /// Every container of the pod.
    pub containers: Vec<ContainerView>,
    /// Whether the volumes, /etc/hosts and termination files are in place.
    pub volumes: VolumesState,
    /// What the pod needs and the node does not hold (not what is optional).
    pub missing: Vec<Missing>,
    /// What machine and runtime can do.
    pub abilities: Arc<Abilities>,
    /// What the node has for the pod if it asks for other than it is granted; `None` if nobody counts.
    pub room: Option<Room>,
    /// Whether the node takes the pod in; of no account once it has.
    pub admission: Admission,
    /// Why the node ends the pod, if it does.
    pub eviction: Option<Eviction>,
    /// By how many seconds the wall clock was set, all in all, since the agent started: what it
    /// moved beyond the time that passed.
    pub clock_set_s: i64,
    /// The node goes down and it is the pod's turn to stop: seconds that it has at most.
    pub shutdown_s: Option<i64>,
    /// Containers, by their id in the runtime, that somebody at the node wants started anew.
    pub restarts: BTreeSet<String>,
}

/// Whether the node takes a pod in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// It does.
    #[default]
    Granted,
    /// It is not known yet: something else must happen first.
    Pending,
    /// It does not.
    Refused(Refusal),
}

/// The end of a pod that the node, or a more important pod, needs the resources of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// `status.reason`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
    /// Message of the condition `DisruptionTarget`, if there is to be one.
    pub disruption: Option<String>,
    /// Seconds that its containers have, if not those of the pod.
    pub grace_s: Option<i64>,
}

/// What keeps a pod from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A ConfigMap or Secret, for example `for volume "v" : configmap "web" not found`.
    Object(String),
    /// A claim of a volume that cannot be used.
    Claim {
        /// Name of the volume in the pod.
        volume: String,
        /// In the kubelet's words.
        why: String,
    },
    /// A service account's token, which comes a moment after its pod.
    Token {
        /// The service account.
        of: String,
    },
}

/// The state of the pod's directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VolumesState {
    /// Not set up since the agent started, or torn down in part.
    #[default]
    Unknown,
    /// Everything is mounted and written.
    Ready,
    /// It was, and something in it has changed since.
    Stale,
    /// Nothing of the pod is left in the file system.
    Gone,
}

/// A sandbox as CRI tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxView {
    /// Id in the runtime.
    pub id: String,
    /// `metadata.attempt`.
    pub attempt: u32,
    /// SANDBOX_READY.
    pub ready: bool,
    /// Addresses, the primary first; empty for host network.
    pub ips: Vec<String>,
}

/// A container as CRI tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    /// Id in the runtime.
    pub id: String,
    /// Container name of the pod spec.
    pub name: String,
    /// `metadata.attempt`: the restart count.
    pub attempt: u32,
    /// The sandbox it is in.
    pub sandbox_id: String,
    /// What it does.
    pub state: ContainerState,
    /// The image it was created from, as the spec named it.
    pub image: String,
    /// The resolved image.
    pub image_ref: String,
    /// The label/annotation `io.kubernetes.container.hash`, where there is one.
    pub spec_hash: Option<String>,
    /// Whom it runs as, from runtimes that tell.
    pub user: Option<UserView>,
}

/// Whom a container runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserView {
    /// User.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// All other groups.
    pub groups: Vec<i64>,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// Ended.
    Exited {
        /// When it started; `None` if it never did.
        started_at: Option<Timestamp>,
        /// When it ended.
        finished_at: Option<Timestamp>,
        /// Exit code.
        exit_code: i32,
        /// The runtime's reason, for example `OOMKilled`.
        reason: String,
        /// The termination message that the shell read, else the runtime's message.
        message: String,
    },
    /// The runtime does not know.
    Unknown,
}

impl ContainerView {
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }

    /// Whether it runs as far as is known: it must be stopped before it is over.
    pub fn may_run(&self) -> bool {
        match self.state {
            ContainerState::Running { .. } | ContainerState::Unknown => true,
            ContainerState::Created | ContainerState::Exited { .. } => false,
        }
    }
}

impl Observed {
    /// Takes in what the runtime says of a container. One of unknown sandbox is in the one that is known.
    ///
    /// A start that was given up, because the agent that asked for it died in the middle of it, is none.
    pub fn put_container(&mut self, mut view: ContainerView, memory: &Memory) {
        if memory.is_given_up(&view) {
            view.state = ContainerState::Created;
        }
        if let ContainerState::Exited { reason, .. } = &mut view.state
            && memory.transient.out_of_memory.contains(&view.id)
        {
            OUT_OF_MEMORY.clone_into(reason);
        }
        match self.containers.iter_mut().find(|known| known.id == view.id) {
            Some(known) => {
                if view.sandbox_id.is_empty() {
                    view.sandbox_id = std::mem::take(&mut known.sandbox_id);
                }
                *known = view;
            }
            None => self.containers.push(view),
        }
    }

    /// The kernel has killed something in a container for want of memory: told before or after the end of
    /// the container, and by the runtime's status only some time later.
    pub fn ran_out_of_memory(&mut self, id: &str, memory: &mut Memory) {
        memory.transient.out_of_memory.insert(id.to_owned());
        if let Some(view) = self.containers.iter().find(|view| view.id == id).cloned() {
            self.put_container(view, memory);
        }
    }

    /// A container or sandbox is gone, and with a sandbox what was in it.
    pub fn drop_id(&mut self, id: &str, memory: &mut Memory) {
        self.sandboxes.retain(|sandbox| sandbox.id != id);
        self.containers.retain(|view| {
            let is_gone = view.id == id || view.sandbox_id == id;
            if is_gone {
                memory.transient.out_of_memory.remove(&view.id);
            }
            !is_gone
        });
    }

    /// The newest sandbox that works.
    pub fn sandbox(&self) -> Option<&SandboxView> {
        self.sandboxes.iter().filter(|sandbox| sandbox.ready).max_by_key(|s| s.attempt)
    }

    /// The newest instance of a container, in whichever sandbox.
    pub fn newest(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().filter(|c| c.name == name).max_by_key(|c| c.attempt)
    }

    /// When the newest of the attempts before that one ended.
    pub fn ended_before(&self, name: &str, attempt: u32) -> Option<Timestamp> {
        let ended = |view: &ContainerView| {
            let ContainerState::Exited { finished_at, .. } = view.state else { return None };
            finished_at
        };
        let earlier = self.containers.iter().filter(|c| c.name == name && c.attempt < attempt);

        earlier.max_by_key(|c| c.attempt).and_then(ended)
    }

    /// The newest instance of a container in that sandbox.
    pub fn newest_in(&self, sandbox: &str, name: &str) -> Option<&ContainerView> {
        self.containers
            .iter()
            .filter(|c| c.name == name && c.sandbox_id == sandbox)
            .max_by_key(|c| c.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff;
    use crate::memory::Termination;

    fn failed(reason: &str, started_at: Option<Timestamp>, message: &str) -> ContainerView {
        ContainerView {
            id: "c1".to_owned(),
            name: "a".to_owned(),
            attempt: 0,
            sandbox_id: "s1".to_owned(),
            state: ContainerState::Exited {
                started_at,
                finished_at: None,
                exit_code: 128,
                reason: reason.to_owned(),
                message: message.to_owned(),
            },
            image: String::new(),
            image_ref: String::new(),
            spec_hash: None,
            user: None,
        }
    }

    #[test]
    fn a_start_that_nobody_heard_the_end_of_is_none() {
        let mut told = Memory::default();
        let now = Timestamp::UNIX_EPOCH;
        let failure = backoff::failure(None, "RunContainerError", String::new(), now);
        told.transient.start_failures.insert("a".to_owned(), failure);
        let mut known = Memory::default();
        let end = crate::plan::termination(&failed("StartError", None, "killed"), 0).unwrap();
        known.container("a").last = Some(end.clone());
        let mut other = Memory::default();
        other.container("a").last = Some(Termination { id: "c0".to_owned(), ..end });
        for (memory, view, is_none) in [
            (&Memory::default(), failed("StartError", None, "signal: killed"), true),
            (&other, failed("StartError", None, "signal: killed"), true),
            (&told, failed("StartError", None, "no such file"), false),
            (&known, failed("StartError", None, "no such file"), false),
            (&told, failed("StartError", None, "shim task: context canceled"), true),
            (&Memory::default(), failed("StartError", Some(now), "context canceled"), false),
            (&Memory::default(), failed("Error", None, "context canceled"), false),
        ] {
            let mut observed = Observed::default();
            observed.put_container(view.clone(), memory);
            let state = if is_none { ContainerState::Created } else { view.state };
            assert_eq!(observed.containers[0].state, state);
        }
    }
    #[test]
    fn a_container_ran_out_of_memory_whenever_that_is_told() {
        let reason = |observed: &Observed| {
            let end = crate::plan::termination(&observed.containers[0], 0);
            end.map(|end| end.reason).unwrap_or_default()
        };
        let view = failed("Error", Some(Timestamp::UNIX_EPOCH), "");
        for is_told_first in [true, false] {
            let (mut observed, mut memory) = (Observed::default(), Memory::default());
            if is_told_first {
                observed.ran_out_of_memory("c1", &mut memory);
            }
            observed.put_container(view.clone(), &memory);
            if !is_told_first {
                observed.ran_out_of_memory("c1", &mut memory);
            }
            assert_eq!(reason(&observed), "OOMKilled");
            // Also when all is listed again.
            observed.containers.clear();
            observed.put_container(view.clone(), &memory);
            assert_eq!(reason(&observed), "OOMKilled");
            observed.drop_id("s1", &mut memory);
            assert!(observed.containers.is_empty() && memory == Memory::default());
        }
    }
}
