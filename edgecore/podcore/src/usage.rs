//! What the node, its pods and their containers use: from the kernel's files to numbers ([`cgroup`],
//! [`network`]), and from numbers to what the kubelet tells: its JSON ([`summary`]) and the text of
//! Prometheus ([`resource`], [`cadvisor`], [`probes`], [`volumes`]). [`rates`] remembers an earlier look.

pub mod cadvisor;
pub mod cgroup;
pub mod network;
pub mod probes;
pub mod rates;
pub mod resource;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod text;
pub mod volumes;

use jiff::Timestamp;
use serde::Serialize;

/// What a cgroup has used and may use; what the kernel does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Bytes and requests by block device.
    pub io: Vec<Io>,
    /// Processes and threads.
    pub tasks: Option<u64>,
}

/// CPU time of a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// All of it, in nanoseconds.
    pub total_ns: u64,
    /// In user mode.
    pub user_ns: u64,
    /// In the kernel.
    pub system_ns: u64,
    /// Periods of the quota so far.
    pub periods: u64,
    /// Those in which it had to wait.
    pub throttled_periods: u64,
    /// For how long.
    pub throttled_ns: u64,
    /// Relative weight in the unit of cgroup v1.
    pub shares: u64,
    /// Microseconds a period; `None` without a limit.
    pub quota_us: Option<u64>,
    /// Length of a period.
    pub period_us: u64,
    /// Thousand-millionths of a CPU just now; `None` if it was looked at once only.
    pub nano_cores: Option<u64>,
}

/// Memory of a cgroup, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub usage: u64,
    /// The most there ever was; `None` where the kernel does not keep it.
    pub max_usage: Option<u64>,
    /// Without file pages that have not been used for a while: what counts for eviction.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// File pages.
    pub cache: u64,
    /// Mapped files.
    pub mapped_file: u64,
    /// In swap.
    pub swap: u64,
    /// How often the limit was hit.
    pub fail_count: u64,
    /// Page faults.
    pub faults: u64,
    /// Page faults that had to read.
    pub major_faults: u64,
    /// How often the kernel killed something in it because memory was short.
    pub oom_kills: u64,
    /// Most it may have; `None` without a limit.
    pub limit: Option<u64>,
    /// Most it may have in swap; `None` without a limit.
    pub swap_limit: Option<u64>,
}

/// Reads and writes of one block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// `MAJOR:MINOR`, or a path once somebody has looked it up.
    pub device: String,
    /// Bytes.
    pub read_bytes: u64,
    /// Bytes.
    pub written_bytes: u64,
    /// Requests.
    pub reads: u64,
    /// Requests.
    pub writes: u64,
}

/// One network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name in its namespace.
    pub name: String,
    /// What came in.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
}

/// One direction of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that may still be written.
    pub available_bytes: u64,
    /// Bytes.
    pub capacity_bytes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Bytes and inodes that something takes of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes.
    pub bytes: u64,
    /// Inodes; `None` if nobody counts.
    pub inodes: Option<u64>,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// When.
    pub at: Timestamp,
    /// The machine.
    pub node: NodeUsage,
    /// Its pods.
    pub pods: Vec<PodUsage>,
}

/// The machine as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeUsage {
    /// Name of the node.
    pub name: String,
    /// When it booted.
    pub started_at: Option<Timestamp>,
    /// Of everything.
    pub usage: Usage,
    /// The cgroup of all pods together, as a path from the root.
    pub pods_cgroup: String,
    /// What they use.
    pub pods: Usage,
    /// This agent.
    pub agent: Process,
    /// Its interfaces.
    pub network: Vec<Interface>,
    /// The file system with volumes and logs.
    pub disk: Option<Disk>,
    /// The file system with images and containers' layers, and what images take of it.
    pub image_disk: Option<(Disk, Taken)>,
    /// Processes the kernel allows.
    pub pids_max: u64,
    /// Processes there are.
    pub pids: Option<u64>,
    /// What it is.
    pub machine: Machine,
}

/// What the machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Logical CPUs.
    pub cpus: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Bytes.
    pub swap_bytes: u64,
    /// Changes with every boot.
    pub boot_id: String,
    /// Stays.
    pub machine_id: String,
    /// Of the hardware.
    pub system_uuid: String,
    /// `uname -r`.
    pub kernel: String,
    /// The distribution.
    pub os_image: String,
}

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// Bytes in memory.
    pub resident_bytes: u64,
    /// Bytes of address space.
    pub virtual_bytes: u64,
    /// Open files.
    pub open_files: u64,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// Page faults.
    pub faults: u64,
    /// Page faults that had to read.
    pub major_faults: u64,
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Its cgroup, as a path from the root.
    pub cgroup: String,
    /// `status.startTime`.
    pub started_at: Option<Timestamp>,
    /// All of it.
    pub usage: Usage,
    /// Its interfaces; `None` if they are the node's.
    pub network: Option<Vec<Interface>>,
    /// The sandbox's own process, if the runtime makes one.
    pub sandbox: Option<ContainerUsage>,
    /// Those that run.
    pub containers: Vec<ContainerUsage>,
    /// Those that are measured.
    pub volumes: Vec<VolumeUsage>,
    /// Its /etc/hosts, if that was made.
    pub hosts: Option<Taken>,
}

/// A volume of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Name in the pod.
    pub name: String,
    /// Its claim.
    pub claim: Option<PvcRef>,
    /// The file system it is on.
    pub disk: Disk,
    /// What it takes of that.
    pub taken: Taken,
    /// That counts as the pod's.
    pub is_ephemeral: bool,
}

/// A claim that a volume leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PvcRef {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// One container that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Name in the pod.
    pub name: String,
    /// Id at the runtime.
    pub id: String,
    /// Its cgroup, as a path from the root.
    pub cgroup: String,
    /// Its image.
    pub image: String,
    /// When it was made.
    pub started_at: Option<Timestamp>,
    /// What it uses.
    pub usage: Usage,
    /// What it has written to its own layer.
    pub layer: Option<Taken>,
    /// What its log files take.
    pub logs: Taken,
}
