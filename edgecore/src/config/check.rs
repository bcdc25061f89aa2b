//! From the file as written to a [`Config`], with all problems at once.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use podcore::pressure;
use podcore::quantity::milli;
use podcore::shutdown::{Period, Periods};
use proto::ids::NodeName;
use tracing::level_filters::LevelFilter;

use super::{
    CgroupDriver, CloudAddress, Config, File, PriorityFile, Problem, Reserved, Taint, TaintFile,
};
use crate::link::proxy::{Choice, Proxy};
use crate::pods::{image_gc, rotate};

/// Longest time a stop may take; systemd's own patience is 90 s.
const SHUTDOWN_GRACE_SECONDS_MAX: u64 = 60;
/// Longest that a shutdown may be held up.
const SHUTDOWN_GRACE_PERIOD_SECONDS_MAX: u64 = 3600;
const BY_PRIORITY: &str = "shutdownGracePeriodByPodPriority";
/// More pods than that on one node were never tried.
const PODS_MAX: u32 = 1000;
/// More pulls at once only fight for the link.
const PARALLEL_PULLS_MAX: u32 = 16;
/// Longest path of a Unix socket (`sun_path` without its final zero).
const SOCKET_PATH_LEN_MAX: usize = 107;

/// Collects problems while values are checked.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { field: field.into(), message: message.into() });
    }

    fn absolute(&mut self, field: &str, path: PathBuf) -> PathBuf {
        if !path.is_absolute() {
            self.add(field, format!("{} is not an absolute path", path.display()));
        }

        path
    }

    /// An absolute path that a Unix socket can have.
    fn socket_path(&mut self, field: &str, path: PathBuf) -> PathBuf {
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_LEN_MAX {
            let message = format!(
                "a socket path has at most {SOCKET_PATH_LEN_MAX} bytes, this one {length}; use a \
                 shorter directory or a link"
            );
            self.add(field, message);
        }

        self.absolute(field, path)
    }

    fn within(&mut self, field: &str, value: u64, least: u64, most: u64) -> u64 {
        if value < least || value > most {
            self.add(field, format!("{value} is not between {least} and {most}"));
        }

        value
    }
}

/// Checks every field.
pub(super) fn check(file: File) -> Result<Config, Vec<Problem>> {
    let mut problems = Problems::default();
    let p = &mut problems;
    let image_policy = image_policy(p, &file);
    let log_policy = log_policy(p, &file);
    let eviction = eviction(p, &file);
    let shutdown_periods = shutdown_periods(p, &file);
    let node = match NodeName::new(file.node_name) {
        Ok(node) => Some(node),
        Err(error) => {
            p.add("nodeName", error.to_string());
            None
        }
    };
    let cloudcore = cloud_address(p, &file.cloudcore);
    let runtime_socket = socket(p, &file.runtime_endpoint);
    check_labels(p, &file.node_labels);

    let config = |node, cloudcore, p: &mut Problems| Config {
        node,
        cloudcore,
        proxy: proxy(p, &file.proxy.0),
        proxy_authorities: p.absolute("proxyAuthorities", file.proxy_authorities),
        runtime_socket,
        identity_dir: p.absolute("identityDir", file.identity_dir),
        root_dir: p.absolute("rootDir", file.root_dir),
        pod_logs_dir: p.absolute("podLogsDir", file.pod_logs_dir),
        container_logs_dir: p.absolute("containerLogsDir", file.container_logs_dir),
        state_dir: p.absolute("stateDir", file.state_dir),
        static_pod_path: match file.static_pod_path {
            none if none.as_os_str().is_empty() => None,
            path => Some(p.absolute("staticPodPath", path)),
        },
        cgroup_root: cgroup_root(p, &file.cgroup_root),
        cgroup_driver: cgroup_driver(p, &file.cgroup_driver),
        cluster_dns: cluster_dns(p, &file.cluster_dns),
        cluster_domain: file.cluster_domain,
        resolv_conf: p.absolute("resolvConf", file.resolv_conf),
        boot_id_file: p.absolute("bootIdFile", file.boot_id_file),
        node_ip: node_ip(p, &file.node_ip),
        node_labels: file.node_labels,
        taints: taints(p, file.taints),
        pods_max: {
            p.within("maxPods", file.max_pods.into(), 1, PODS_MAX.into());
            file.max_pods
        },
        pod_pids_max: pod_pids_max(p, file.pod_pids_limit),
        system_reserved: reserved(p, &file.system_reserved),
        parallel_pulls_max: {
            let most = PARALLEL_PULLS_MAX.into();
            p.within("maxParallelPulls", file.max_parallel_pulls.into(), 1, most);
            file.max_parallel_pulls as usize
        },
        image_policy,
        log_policy,
        eviction,
        shutdown_grace: Duration::from_secs(p.within(
            "shutdownGraceSeconds",
            file.shutdown_grace_seconds,
            0,
            SHUTDOWN_GRACE_SECONDS_MAX,
        )),
        control_socket: p.socket_path("controlSocket", file.control_socket),
        system_bus: p.absolute("systemBus", file.system_bus),
        shutdown_periods,
        log_level: log_level(p, &file.log_level),
    };
    // Placeholders let the other fields be checked too when one of these two is wrong.
    let spare_node = || NodeName::new("none").expect("the literal is a node name");
    let spare_cloud = || CloudAddress { host: String::new(), port: 0 };
    let config = config(node.unwrap_or_else(spare_node), cloudcore.unwrap_or_else(spare_cloud), p);

    if problems.0.is_empty() { Ok(config) } else { Err(problems.0) }
}

fn image_policy(p: &mut Problems, file: &File) -> image_gc::Policy {
    let (high, low) = (file.image_high_percent, file.image_low_percent);
    p.within("imageGCHighThresholdPercent", high.into(), 0, 100);
    if low > high {
        let message = format!("{low} is above imageGCHighThresholdPercent, which is {high}");
        p.add("imageGCLowThresholdPercent", message);
    }
    let age_min = Duration::from_secs(file.image_age_seconds);

    image_gc::Policy { high_percent: high, low_percent: low, age_min }
}

fn log_policy(p: &mut Problems, file: &File) -> rotate::Policy {
    let size = &file.container_log_max_size;
    let milli = milli(&Quantity(size.clone())).filter(|milli| milli % 1000 == 0);
    let told = match milli {
        None => Some("is not a number of bytes such as 10Mi, or -1 for no limit"),
        Some(0) => {
            Some("sets every log aside at every look: give a size such as 10Mi, or -1 for no limit")
        }
        Some(_) => None,
    };
    if let Some(told) = told {
        p.add("containerLogMaxSize", format!("{size:?} {told}"));
    }
    let files = file.container_log_max_files;
    if files <= 1 {
        let message =
            format!("{files} is not greater than 1: one file is written, others are kept");
        p.add("containerLogMaxFiles", message);
    }
    let size_max = milli.and_then(|milli| u64::try_from(milli / 1000).ok());

    rotate::Policy { size_max, files_max: usize::try_from(files).unwrap_or_default() }
}

fn pod_pids_max(p: &mut Problems, limit: i64) -> Option<i64> {
    if limit == 0 || limit < -1 {
        let message = format!("{limit} is neither a number of processes nor -1, for no limit");
        p.add("podPidsLimit", message);
    }

    (limit > 0).then_some(limit)
}

fn eviction(p: &mut Problems, file: &File) -> pressure::Policy {
    let texts = pressure::Texts {
        hard: &file.eviction_hard,
        soft: &file.eviction_soft,
        soft_grace: &file.eviction_soft_grace_period,
        min_reclaim: &file.eviction_minimum_reclaim,
        transition: &file.eviction_pressure_transition_period,
        pod_grace_max_s: file.eviction_max_pod_grace_period,
    };
    pressure::parse(&texts).unwrap_or_else(|wrong| {
        for (field, message) in wrong {
            p.add(field, message);
        }
        pressure::Policy::default()
    })
}

fn shutdown_periods(p: &mut Problems, file: &File) -> Periods {
    let all = file.shutdown_grace_period_seconds;
    let critical = file.shutdown_grace_period_critical_pods_seconds;
    p.within("shutdownGracePeriodSeconds", all, 0, SHUTDOWN_GRACE_PERIOD_SECONDS_MAX);
    p.within("shutdownGracePeriodCriticalPodsSeconds", critical, 0, all);
    if file.shutdown_grace_period_by_pod_priority.is_empty() {
        return Periods::Critical { normal_s: all.saturating_sub(critical), critical_s: critical };
    }
    if all > 0 || critical > 0 {
        let message = "cannot be given together with shutdownGracePeriodSeconds or \
                       shutdownGracePeriodCriticalPodsSeconds; keep one of them";
        p.add(BY_PRIORITY, message);
    }

    periods_by_priority(p, &file.shutdown_grace_period_by_pod_priority)
}

fn periods_by_priority(p: &mut Problems, files: &[PriorityFile]) -> Periods {
    let mut periods: Vec<Period> = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let (priority, grace_s) = (file.priority, file.shutdown_grace_period_seconds);
        if periods.iter().any(|other| other.priority == priority) {
            let message = format!("{priority} is there twice; a group is known by its priority");
            p.add(format!("{BY_PRIORITY}[{index}].priority"), message);
        }
        periods.push(Period { priority, grace_s });
    }
    let all = periods.iter().fold(0, |sum: u64, period| sum.saturating_add(period.grace_s));
    if all > SHUTDOWN_GRACE_PERIOD_SECONDS_MAX {
        let most = SHUTDOWN_GRACE_PERIOD_SECONDS_MAX;
        p.add(BY_PRIORITY, format!("all together are {all} seconds, at most {most} are held up"));
    }

    Periods::ByPriority(periods)
}

fn cloud_address(p: &mut Problems, text: &str) -> Option<CloudAddress> {
    let parsed = text.rsplit_once(':').and_then(|(host, port)| {
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let bare_v6 = host.contains(':') && !text.starts_with('[');
        let sound = !host.is_empty() && !bare_v6 && !host.contains(['/', '@', ' ']);
        let port = port.parse().ok().filter(|port| *port != 0)?;
        sound.then(|| CloudAddress { host: host.to_owned(), port })
    });
    if parsed.is_none() {
        p.add(
            "cloudcore",
            format!("{text:?} is not HOST:PORT, for example cloud.example.com:10000"),
        );
    }

    parsed
}

/// The value is not told: it may have a password.
fn proxy(p: &mut Problems, text: &str) -> Choice {
    match text {
        "" => Choice::Environment,
        "none" => Choice::Direct,
        address => match Proxy::parse(address) {
            Ok(proxy) => Choice::Through(proxy),
            Err(wrong) => {
                p.add("proxy", wrong.to_string());
                Choice::Direct
            }
        },
    }
}

fn socket(p: &mut Problems, endpoint: &str) -> PathBuf {
    let path = Path::new(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    if !path.is_absolute() {
        let wanted = "unix:// and an absolute path";
        p.add("runtimeEndpoint", format!("{endpoint:?} is not {wanted}"));
        return path.to_owned();
    }

    p.socket_path("runtimeEndpoint", path.to_owned())
}

fn cgroup_root(p: &mut Problems, text: &str) -> String {
    let sound = text.starts_with('/') && !text.split('/').any(|part| matches!(part, "." | ".."));
    if !sound {
        p.add("cgroupRoot", format!("{text:?} is not an absolute cgroup path without . and .."));
    }
    let trimmed = text.trim_end_matches('/');

    if trimmed.is_empty() { "/".into() } else { trimmed.into() }
}

fn cgroup_driver(p: &mut Problems, text: &str) -> CgroupDriver {
    match text {
        "auto" => CgroupDriver::Auto,
        "cgroupfs" => CgroupDriver::Cgroupfs,
        "systemd" => CgroupDriver::Systemd,
        other => {
            p.add("cgroupDriver", format!("{other:?} is not auto, cgroupfs or systemd"));
            CgroupDriver::Auto
        }
    }
}

fn cluster_dns(p: &mut Problems, texts: &[String]) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => {
                p.add(format!("clusterDNS[{index}]"), format!("{text:?} is not an IP address"));
            }
        }
    }

    addresses
}

fn node_ip(p: &mut Problems, text: &str) -> Option<IpAddr> {
    if text == "auto" {
        return None;
    }
    let address: Option<IpAddr> = text.parse().ok();
    if !address.is_some_and(|ip| !ip.is_loopback() && !ip.is_unspecified()) {
        p.add("nodeIP", format!("{text:?} is neither auto nor a non-loopback IP address"));
    }

    address
}

fn check_labels(p: &mut Problems, labels: &std::collections::BTreeMap<String, String>) {
    for (key, value) in labels {
        if let Some(wrong) = wrong_label_key(key) {
            p.add("nodeLabels", format!("{key:?} {wrong}"));
        }
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if value.len() > 63 || !value.bytes().all(sound) {
            let message = format!("{value:?} is not a label value (at most 63 of A-Za-z0-9-_.)");
            p.add(format!("nodeLabels[{key}]"), message);
        }
    }
}

fn wrong_label_key(key: &str) -> Option<&'static str> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    let name_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let prefix_byte =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let name_fits = !name.is_empty() && name.len() <= 63 && name.bytes().all(name_byte);
    let prefix_fits =
        prefix.is_none_or(|p| !p.is_empty() && p.len() <= 253 && p.bytes().all(prefix_byte));

    (!name_fits || !prefix_fits).then_some("is not a label key ([prefix/]name)")
}

fn taints(p: &mut Problems, files: Vec<TaintFile>) -> Vec<Taint> {
    let mut taints = Vec::new();
    for (index, TaintFile { key, value, effect }) in files.into_iter().enumerate() {
        if let Some(wrong) = wrong_label_key(&key) {
            p.add(format!("taints[{index}].key"), format!("{key:?} {wrong}"));
        }
        if !matches!(effect.as_str(), "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            let wanted = "NoSchedule, PreferNoSchedule or NoExecute";
            p.add(format!("taints[{index}].effect"), format!("{effect:?} is not {wanted}"));
        }
        taints.push(Taint { key, value, effect });
    }

    taints
}

fn reserved(p: &mut Problems, file: &std::collections::BTreeMap<String, String>) -> Reserved {
    let mut reserved = Reserved::default();
    for (name, text) in file {
        let field = format!("systemReserved.{name}");
        let Some(millis) = quantity_millis(text) else {
            p.add(field, format!("{text:?} is not a quantity such as 100m, 0.5 or 128Mi"));
            continue;
        };
        let whole = u64::try_from(millis / 1000).unwrap_or(u64::MAX);
        match name.as_str() {
            "cpu" => reserved.cpu_millis = u64::try_from(millis).unwrap_or(u64::MAX),
            "memory" => reserved.memory_bytes = whole,
            "ephemeral-storage" => reserved.ephemeral_storage_bytes = whole,
            _other => p.add(field, "only cpu, memory and ephemeral-storage can be reserved"),
        }
    }

    reserved
}

/// A Kubernetes quantity in thousandths, for the suffixes people write.
fn quantity_millis(text: &str) -> Option<u128> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 3 {
        return None;
    }
    let fraction: u128 =
        if fraction.is_empty() { 0 } else { format!("{fraction:0<3}").parse().ok()? };
    let millis = whole.parse::<u32>().ok().map(u128::from)? * 1000 + fraction;
    let scaled = match suffix {
        "" => millis,
        "m" => millis / 1000,
        "k" => millis * 1000,
        "M" => millis * 1_000_000,
        "G" => millis * 1_000_000_000,
        "Ki" => millis << 10,
        "Mi" => millis << 20,
        "Gi" => millis << 30,
        "Ti" => millis << 40,
        _unknown => return None,
    };

    Some(scaled)
}

fn log_level(p: &mut Problems, text: &str) -> LevelFilter {
    text.parse().unwrap_or_else(|_| {
        p.add("logLevel", format!("{text:?} is not off, error, warn, info, debug or trace"));
        LevelFilter::INFO
    })
}
