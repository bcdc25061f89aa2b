//! When the node is short of something: thresholds as the kubelet's configuration writes them, and what
//! observations of memory, disks and process numbers come to (`pkg/kubelet/eviction`).

mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub use self::parse::{DEFAULT_HARD, Texts, Wrong, parse};
use crate::usage::Memory;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Memory that programs can still have. First: it is what is freed first.
    MemoryAvailable,
    /// Memory that pods can still have of what they may have in all.
    AllocatableMemoryAvailable,
    /// Space on the file system of volumes and logs.
    NodeFsAvailable,
    /// Inodes there.
    NodeFsInodesFree,
    /// Space on the file system of images and writable layers.
    ImageFsAvailable,
    /// Inodes there.
    ImageFsInodesFree,
    /// Process numbers.
    PidAvailable,
}

impl Signal {
    /// Every signal, in the order in which they are dealt with.
    pub const ALL: [Self; 7] = [
        Self::MemoryAvailable,
        Self::AllocatableMemoryAvailable,
        Self::NodeFsAvailable,
        Self::NodeFsInodesFree,
        Self::ImageFsAvailable,
        Self::ImageFsInodesFree,
        Self::PidAvailable,
    ];

    /// The name in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::AllocatableMemoryAvailable => "allocatableMemory.available",
            Self::NodeFsAvailable => "nodefs.available",
            Self::NodeFsInodesFree => "nodefs.inodesFree",
            Self::ImageFsAvailable => "imagefs.available",
            Self::ImageFsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// The condition of the node that tells of it.
    pub fn condition(self) -> &'static str {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => "MemoryPressure",
            Self::PidAvailable => "PIDPressure",
            Self::NodeFsAvailable
            | Self::NodeFsInodesFree
            | Self::ImageFsAvailable
            | Self::ImageFsInodesFree => "DiskPressure",
        }
    }

    /// What the node is short of, in the kubelet's words.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => "memory",
            Self::NodeFsAvailable | Self::ImageFsAvailable => "ephemeral-storage",
            Self::NodeFsInodesFree | Self::ImageFsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// Whether it is about a disk.
    pub fn is_disk(self) -> bool {
        self.condition() == "DiskPressure"
    }
}

/// An amount, or a share of all there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// So many bytes, inodes or numbers.
    Absolute(u64),
    /// In thousandths of a percent.
    Share(u32),
}

const WHOLE: u32 = 100_000;
const MEBI: u64 = 1024 * 1024;

impl Amount {
    /// The amount, of `capacity`.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Absolute(amount) => amount,
            Self::Share(share) => {
                let amount = u128::from(capacity) * u128::from(share) / u128::from(WHOLE);
                u64::try_from(amount).unwrap_or(u64::MAX)
            }
        }
    }
}

/// As a configuration has it.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absolute(amount) if *amount > 0 && amount.is_multiple_of(MEBI) => {
                write!(f, "{}Mi", amount / MEBI)
            }
            Self::Absolute(amount) => write!(f, "{amount}"),
            Self::Share(share) => write!(f, "{}%", f64::from(*share) / 1000.0),
        }
    }
}

/// Below what something must be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// What is watched.
    pub signal: Signal,
    /// Less than that is too little.
    pub value: Amount,
    /// For how long it must have been too little; `None` for at once.
    pub grace: Option<Duration>,
    /// How much more than `value` must be freed.
    pub min_reclaim: Option<Amount>,
}

impl Threshold {
    /// Whether pods end at once, with hardly any grace.
    pub fn is_hard(&self) -> bool {
        self.grace.is_none_or(|grace| grace.is_zero())
    }

    fn is_met(&self, seen: Seen, with_reclaim: bool) -> bool {
        let more =
            self.min_reclaim.filter(|_| with_reclaim).map_or(0, |more| more.of(seen.capacity));

        seen.available < self.value.of(seen.capacity).saturating_add(more)
    }
}

/// What is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The thresholds.
    pub thresholds: Vec<Threshold>,
    /// For how long a condition is told after it was last seen.
    pub transition: Duration,
    /// Most seconds that the containers of a pod get to stop when a soft threshold is met.
    pub pod_grace_max_s: i64,
}

impl Policy {
    /// What of `capacity` is kept from pods, so that requests alone do not meet a hard threshold
    /// (kubelet: `hardEvictionReservation`).
    pub fn kept(&self, signal: Signal, capacity: u64) -> u64 {
        let mut hard = self.thresholds.iter().filter(|t| t.signal == signal && t.is_hard());

        hard.next().map_or(0, |threshold| threshold.value.of(capacity))
    }
}

/// What there is of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Free.
    pub available: u64,
    /// All there is.
    pub capacity: u64,
}

impl Seen {
    /// What a cgroup uses of so much memory: file pages that nobody has read for a while count as free
    /// (kubelet: `cadvisorInfoToCPUandMemoryStats`).
    pub fn of_memory(memory: &Memory, most: u64) -> Self {
        Self { available: most.saturating_sub(memory.working_set), capacity: most }
    }
}

/// What could be read.
pub type Observations = BTreeMap<Signal, Seen>;

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Conditions of the node, in order.
    pub conditions: Vec<&'static str>,
    /// Thresholds that pods go for, the most urgent first.
    pub due: Vec<Threshold>,
}

/// Remembers since when what is short. Times are since any moment, of a clock that is not set.
#[derive(Debug, Default)]
pub struct Watch {
    /// By place in the policy: since when it has been met without a break.
    since: BTreeMap<usize, Duration>,
    /// Those that were due, until as much is freed as must be.
    due: Vec<usize>,
    /// By condition: when it was last seen.
    conditions: BTreeMap<&'static str, Duration>,
}

impl Watch {
    /// Takes in what was seen (kubelet: `synchronize`).
    pub fn observe(&mut self, policy: &Policy, seen: &Observations, now: Duration) -> Verdict {
        let is_met = |at: usize, with_reclaim: bool| {
            let threshold = policy.thresholds.get(at)?;
            Some(threshold.is_met(*seen.get(&threshold.signal)?, with_reclaim))
        };
        let met = (0..policy.thresholds.len()).filter(|at| {
            is_met(*at, false) == Some(true)
                || self.due.contains(at) && is_met(*at, true) == Some(true)
        });
        let since = met.map(|at| (at, self.since.get(&at).copied().unwrap_or(now)));
        self.since = since.collect();
        for at in self.since.keys() {
            self.conditions.insert(policy.thresholds[*at].signal.condition(), now);
        }
        self.conditions.retain(|_, last| {
            let age = now.saturating_sub(*last);
            age.is_zero() || age < policy.transition
        });
        let is_due = |(at, since): &(&usize, &Duration)| {
            let grace = policy.thresholds[**at].grace.unwrap_or_default();
            now.saturating_sub(**since) >= grace
        };
        self.due = self.since.iter().filter(is_due).map(|(at, _)| *at).collect();
        let mut due: Vec<_> = self.due.iter().map(|at| policy.thresholds[*at]).collect();
        due.sort_by_key(|threshold| threshold.signal);

        Verdict { conditions: self.conditions.keys().copied().collect(), due }
    }
}

/// Whether, now, as much is free as must be for every threshold to be met no more.
pub fn is_relieved(policy: &Policy, seen: &Observations) -> bool {
    !policy.thresholds.iter().any(|threshold| {
        seen.get(&threshold.signal).is_some_and(|seen| threshold.is_met(*seen, true))
    })
}
