//! The config file of the agent: parsed, then checked into a type that cannot hold nonsense.
//!
//! The example in `examples/edgecore.yaml` documents every field and is loaded by a test.

mod check;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podcore::shutdown::Periods;
use proto::ids::NodeName;
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;

use crate::link::proxy;
use crate::pods::{image_gc, rotate};

/// Why a config file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read config file {}; give its path with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is not YAML of the expected shape.
    #[error("config file {} is not understood: {reason}; `edgecore config example` prints every field", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what, as the parser says it.
        reason: String,
    },
    /// Values that make no sense.
    #[error("config file {} has {} problem(s): {}", path.display(), problems.len(), join(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong in a config file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which field, for example `taints[0].effect`.
    pub field: String,
    /// The value, what is wrong with it and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

fn join(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The file as written. Nothing outside this module sees it; the fields are documented in
/// `examples/edgecore.yaml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names are those of the file")]
struct File {
    node_name: String,
    cloudcore: String,
    #[serde(default)]
    proxy: Secret,
    #[serde(default = "defaults::proxy_authorities")]
    proxy_authorities: PathBuf,
    #[serde(default = "defaults::identity_dir")]
    identity_dir: PathBuf,
    #[serde(default = "defaults::runtime_endpoint")]
    runtime_endpoint: String,
    #[serde(default = "defaults::root_dir")]
    root_dir: PathBuf,
    #[serde(default = "defaults::pod_logs_dir")]
    pod_logs_dir: PathBuf,
    #[serde(default = "defaults::container_logs_dir")]
    container_logs_dir: PathBuf,
    #[serde(default = "defaults::state_dir")]
    state_dir: PathBuf,
    #[serde(default)]
    static_pod_path: PathBuf,
    #[serde(default = "defaults::cgroup_root")]
    cgroup_root: String,
    #[serde(default = "defaults::auto")]
    cgroup_driver: String,
    #[serde(default, rename = "clusterDNS")]
    cluster_dns: Vec<String>,
    #[serde(default = "defaults::cluster_domain")]
    cluster_domain: String,
    #[serde(default = "defaults::resolv_conf")]
    resolv_conf: PathBuf,
    #[serde(default = "defaults::boot_id_file")]
    boot_id_file: PathBuf,
    #[serde(default = "defaults::auto", rename = "nodeIP")]
    node_ip: String,
    #[serde(default)]
    node_labels: BTreeMap<String, String>,
    #[serde(default)]
    taints: Vec<TaintFile>,
    #[serde(default = "defaults::max_pods")]
    max_pods: u32,
    #[serde(default = "defaults::pod_pids_limit")]
    pod_pids_limit: i64,
    #[serde(default)]
    system_reserved: BTreeMap<String, String>,
    #[serde(default = "defaults::max_parallel_pulls")]
    max_parallel_pulls: u32,
    #[serde(default = "defaults::image_high_percent", rename = "imageGCHighThresholdPercent")]
    image_high_percent: u32,
    #[serde(default = "defaults::image_low_percent", rename = "imageGCLowThresholdPercent")]
    image_low_percent: u32,
    #[serde(default = "defaults::image_age_seconds", rename = "imageMinimumGCAgeSeconds")]
    image_age_seconds: u64,
    #[serde(default = "defaults::container_log_max_size")]
    container_log_max_size: String,
    #[serde(default = "defaults::container_log_max_files")]
    container_log_max_files: i32,
    #[serde(default = "defaults::eviction_hard")]
    eviction_hard: BTreeMap<String, String>,
    #[serde(default)]
    eviction_soft: BTreeMap<String, String>,
    #[serde(default)]
    eviction_soft_grace_period: BTreeMap<String, String>,
    #[serde(default)]
    eviction_minimum_reclaim: BTreeMap<String, String>,
    #[serde(default = "defaults::eviction_transition")]
    eviction_pressure_transition_period: String,
    #[serde(default)]
    eviction_max_pod_grace_period: i64,
    #[serde(default = "defaults::shutdown_grace_seconds")]
    shutdown_grace_seconds: u64,
    #[serde(default = "defaults::control_socket")]
    control_socket: PathBuf,
    #[serde(default = "defaults::system_bus")]
    system_bus: PathBuf,
    #[serde(default)]
    shutdown_grace_period_seconds: u64,
    #[serde(default)]
    shutdown_grace_period_critical_pods_seconds: u64,
    #[serde(default)]
    shutdown_grace_period_by_pod_priority: Vec<PriorityFile>,
    #[serde(default = "defaults::log_level")]
    log_level: String,
}

/// A text that is not shown: it may have a password.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TaintFile {
    key: String,
    #[serde(default)]
    value: String,
    effect: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PriorityFile {
    priority: i32,
    shutdown_grace_period_seconds: u64,
}

/// What the file holds where it says nothing.
mod defaults {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    pub(super) fn eviction_hard() -> BTreeMap<String, String> {
        let text = |(signal, value): (&str, &str)| (signal.to_owned(), value.to_owned());

        podcore::pressure::DEFAULT_HARD.map(text).into()
    }

    pub(super) fn eviction_transition() -> String {
        "5m".to_owned()
    }

    pub(super) fn proxy_authorities() -> PathBuf {
        "/etc/ssl/certs/ca-certificates.crt".into()
    }
    pub(super) fn identity_dir() -> PathBuf {
        "/etc/holdfast".into()
    }
    pub(super) fn runtime_endpoint() -> String {
        "unix:///run/containerd/containerd.sock".into()
    }
    pub(super) fn root_dir() -> PathBuf {
        "/var/lib/kubelet".into()
    }
    pub(super) fn pod_logs_dir() -> PathBuf {
        "/var/log/pods".into()
    }
    pub(super) fn container_logs_dir() -> PathBuf {
        "/var/log/containers".into()
    }
    pub(super) fn state_dir() -> PathBuf {
        "/var/lib/holdfast".into()
    }
    pub(super) fn cgroup_root() -> String {
        "/".into()
    }
    pub(super) fn auto() -> String {
        "auto".into()
    }
    pub(super) fn cluster_domain() -> String {
        "cluster.local".into()
    }
    pub(super) fn resolv_conf() -> PathBuf {
        "/etc/resolv.conf".into()
    }
    pub(super) fn boot_id_file() -> PathBuf {
        "/proc/sys/kernel/random/boot_id".into()
    }
    pub(super) fn max_pods() -> u32 {
        110
    }
    pub(super) fn pod_pids_limit() -> i64 {
        -1
    }
    pub(super) fn max_parallel_pulls() -> u32 {
        2
    }
    pub(super) fn image_high_percent() -> u32 {
        85
    }
    pub(super) fn image_low_percent() -> u32 {
        80
    }
    pub(super) fn image_age_seconds() -> u64 {
        120
    }
    pub(super) fn container_log_max_size() -> String {
        "10Mi".into()
    }
    pub(super) fn container_log_max_files() -> i32 {
        5
    }
    pub(super) fn shutdown_grace_seconds() -> u64 {
        5
    }
    pub(super) fn control_socket() -> PathBuf {
        "/run/holdfast/agent.sock".into()
    }
    pub(super) fn system_bus() -> PathBuf {
        "/run/dbus/system_bus_socket".into()
    }
    pub(super) fn log_level() -> String {
        "info".into()
    }
}

/// Where cloudcore listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudAddress {
    /// A DNS name or IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for CloudAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Who names the cgroups of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Ask the runtime.
    Auto,
    /// Paths, made by us.
    Cgroupfs,
    /// Slices, made by systemd.
    Systemd,
}

/// A taint the Node object is registered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Taint {
    /// Label-like key.
    pub key: String,
    /// May be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// Kept back from what pods may request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// In thousandths of a CPU.
    pub cpu_millis: u64,
    /// In bytes.
    pub memory_bytes: u64,
    /// In bytes.
    pub ephemeral_storage_bytes: u64,
}

/// A checked config. [`Config::load`] is the only way to get one from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this node in Kubernetes.
    pub node: NodeName,
    /// The only address this node dials.
    pub cloudcore: CloudAddress,
    /// What the way there leads through.
    pub proxy: proxy::Choice,
    /// Certificates by which an https:// proxy is known.
    pub proxy_authorities: PathBuf,
    /// Holds the certificates and the key.
    pub identity_dir: PathBuf,
    /// Socket of the container runtime.
    pub runtime_socket: PathBuf,
    /// The kubelet's root directory.
    pub root_dir: PathBuf,
    /// Log files by pod.
    pub pod_logs_dir: PathBuf,
    /// Links to log files by container.
    pub container_logs_dir: PathBuf,
    /// Holds the databases.
    pub state_dir: PathBuf,
    /// Holds manifests of pods that this node runs whatever the cloud says.
    pub static_pod_path: Option<PathBuf>,
    /// Absolute cgroup path under which `kubepods` is made.
    pub cgroup_root: String,
    /// Who names the cgroups.
    pub cgroup_driver: CgroupDriver,
    /// Addresses of the cluster's DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster's names.
    pub cluster_domain: String,
    /// The node's own resolver configuration.
    pub resolv_conf: PathBuf,
    /// Changes with every boot.
    pub boot_id_file: PathBuf,
    /// The node's address; found out if `None`.
    pub node_ip: Option<IpAddr>,
    /// Labels for the Node object.
    pub node_labels: BTreeMap<String, String>,
    /// Taints for the Node object.
    pub taints: Vec<Taint>,
    /// Most pods this node takes.
    pub pods_max: u32,
    /// Most processes of one pod; as many as the machine has if `None`.
    pub pod_pids_max: Option<i64>,
    /// Kept back from pods.
    pub system_reserved: Reserved,
    /// Images pulled at once.
    pub parallel_pulls_max: usize,
    /// When images are removed.
    pub image_policy: image_gc::Policy,
    /// How much of their logs containers keep.
    pub log_policy: rotate::Policy,
    /// When the node is short of something.
    pub eviction: podcore::pressure::Policy,
    /// What tasks get to finish on SIGTERM.
    pub shutdown_grace: Duration,
    /// Socket at which root on this machine reaches the agent.
    pub control_socket: PathBuf,
    /// Socket of the message bus on which logind is.
    pub system_bus: PathBuf,
    /// What pods get to stop when the node goes down; nothing stops none.
    pub shutdown_periods: Periods,
    /// What is logged.
    pub log_level: LevelFilter,
}

impl Config {
    /// A config file that documents every field.
    pub const EXAMPLE: &'static str = include_str!("../examples/edgecore.yaml");

    /// Reads and checks the file at `path`, reporting every problem rather than the first.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;

        Self::parse(path, &text)
    }

    /// Checks the text of a file; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            // Lines of the file are shown with what is wrong in them, and the password of a proxy is in one.
            reason: if text.contains('@') {
                error.without_snippet().to_string()
            } else {
                error.to_string()
            },
        })?;

        check::check(file)
            .map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
    }

    /// A config with the defaults, for the node and the cloud given.
    pub fn with_defaults(node: &str, cloudcore: &str) -> Result<Self, ConfigError> {
        Self::parse(Path::new("defaults"), &minimal_file(node, cloudcore))
    }
}

/// A file with the required fields only, as `edgeadm join` may write it.
fn minimal_file(node: &str, cloudcore: &str) -> String {
    format!("nodeName: {node:?}\ncloudcore: {cloudcore:?}\n")
}

#[cfg(test)]
mod tests;
