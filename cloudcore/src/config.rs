//! The config file of cloudcore: parsed, then checked into a type that cannot hold nonsense.
//!
//! The example in `examples/cloudcore.yaml` documents every field and is loaded by a test.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tracing::level_filters::LevelFilter;

/// The node controller gives up on a node after 40 s (older ones) without a renewal.
const LEASE_RENEW_SECONDS_MAX: u64 = 30;

/// A load balancer that needs longer to notice is none.
const DRAIN_SECONDS_MAX: u64 = 300;

/// A node renews its certificate at two thirds, and needs a few tries on a bad day.
const NODE_CERTIFICATE_SECONDS_MIN: u64 = 30;

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
    #[error("config file {} is not understood: {reason}; `cloudcore config example` prints every field", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what, as the parser says it.
        reason: String,
    },
    /// Values that make no sense.
    #[error("config file {} has {} problem(s): {}", path.display(), problems.len(), problems.join("; "))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All of them, each with its field.
        problems: Vec<String>,
    },
}

/// The file as written; documented in `examples/cloudcore.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    #[serde(default)]
    kubeconfig: PathBuf,
    #[serde(default = "defaults::listen")]
    listen: String,
    #[serde(default = "defaults::status_listen")]
    status_listen: String,
    #[serde(default = "defaults::peer_listen")]
    peer_listen: String,
    #[serde(default)]
    advertise_address: String,
    #[serde(default = "defaults::namespace")]
    namespace: String,
    #[serde(default)]
    replica: String,
    #[serde(default = "defaults::toleration")]
    default_toleration_seconds: i64,
    #[serde(default = "defaults::lease")]
    node_lease_renew_seconds: u64,
    #[serde(default = "defaults::drain")]
    drain_seconds: u64,
    #[serde(default = "defaults::node_certificate")]
    node_certificate_seconds: u64,
    #[serde(default = "defaults::log_level")]
    log_level: String,
}

/// What is known only where a replica runs, as a pod does by its environment.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// See [`Config::advertise_address`].
    pub advertise_address: Option<String>,
    /// See [`Config::replica`].
    pub replica: Option<String>,
}

impl File {
    /// A variable that is there but empty gives nothing.
    fn take(&mut self, given: &Given) {
        for (field, value) in [
            (&mut self.advertise_address, &given.advertise_address),
            (&mut self.replica, &given.replica),
        ] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                field.clone_from(value);
            }
        }
    }
}

mod defaults {
    pub(super) fn listen() -> String {
        "[::]:10000".to_owned()
    }
    pub(super) fn status_listen() -> String {
        "[::]:10001".to_owned()
    }
    pub(super) fn peer_listen() -> String {
        "[::]:10002".to_owned()
    }
    pub(super) fn namespace() -> String {
        "holdfast".to_owned()
    }
    pub(super) fn toleration() -> i64 {
        300
    }
    pub(super) fn lease() -> u64 {
        20
    }
    pub(super) fn drain() -> u64 {
        10
    }
    pub(super) fn node_certificate() -> u64 {
        30 * 24 * 60 * 60
    }
    pub(super) fn log_level() -> String {
        "info".to_owned()
    }
}

/// A checked config.
#[derive(Clone, Debug)]
pub struct Config {
    /// `None` for the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// Where edges connect.
    pub listen: SocketAddr,
    /// Where probes and Prometheus ask.
    pub status_listen: SocketAddr,
    /// Where other replicas pass on what is asked of nodes; the port of the advertised address.
    pub peer_listen: SocketAddr,
    /// Where API servers reach the kubelet API.
    pub advertise_address: IpAddr,
    /// Of our own Secrets and Leases.
    pub namespace: String,
    /// Name of this replica.
    pub replica: String,
    /// The API server's default for NoExecute tolerations, in seconds.
    pub default_toleration_seconds: i64,
    /// Between renewals of a node's Lease.
    pub node_lease_renewal: Duration,
    /// From the signal to stop until edges are sent elsewhere.
    pub drain: Duration,
    /// How long a node's certificate lives.
    pub node_certificate_life: Duration,
    /// What is logged.
    pub log_level: LevelFilter,
}

impl Config {
    /// Every field, with its meaning and default.
    pub const EXAMPLE: &str = include_str!("../examples/cloudcore.yaml");

    /// Reads and checks a file, telling every problem rather than the first. What is in `given`
    /// counts more than what is in the file.
    pub fn load(path: &Path, given: &Given) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;

        Self::parse(path, &text, given)
    }

    /// As [`Self::load`], of the text of a file; `path` is for messages.
    pub fn parse(path: &Path, text: &str, given: &Given) -> Result<Self, ConfigError> {
        let mut file: File = serde_saphyr::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        file.take(given);

        check(file).map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
    }
}

fn check(file: File) -> Result<Config, Vec<String>> {
    let mut problems = Vec::new();
    let listen = file.listen.parse().map_err(|_| {
        problems.push(format!("listen: {:?} is not ADDRESS:PORT", file.listen));
    });
    let status_listen = file.status_listen.parse().map_err(|_| {
        problems.push(format!("statusListen: {:?} is not ADDRESS:PORT", file.status_listen));
    });
    let peer_listen = file.peer_listen.parse().map_err(|_| {
        problems.push(format!("peerListen: {:?} is not ADDRESS:PORT", file.peer_listen));
    });
    let advertise = advertised(&file.advertise_address).map_err(|problem| problems.push(problem));
    let log_level = file.log_level.parse().map_err(|_| {
        problems.push(format!(
            "logLevel: {:?} is not one of off, error, warn, info, debug, trace",
            file.log_level
        ));
    });
    if file.default_toleration_seconds < 0 {
        problems.push("defaultTolerationSeconds: must not be negative".to_owned());
    }
    if !(1..=LEASE_RENEW_SECONDS_MAX).contains(&file.node_lease_renew_seconds) {
        problems.push(format!(
            "nodeLeaseRenewSeconds: {} is not within 1 and {LEASE_RENEW_SECONDS_MAX}",
            file.node_lease_renew_seconds
        ));
    }
    if file.drain_seconds > DRAIN_SECONDS_MAX {
        problems.push(format!(
            "drainSeconds: {} is not within 0 and {DRAIN_SECONDS_MAX}",
            file.drain_seconds
        ));
    }
    if file.node_certificate_seconds < NODE_CERTIFICATE_SECONDS_MIN {
        problems.push(format!(
            "nodeCertificateSeconds: {} is less than {NODE_CERTIFICATE_SECONDS_MIN}",
            file.node_certificate_seconds
        ));
    }
    if file.namespace.is_empty() {
        problems.push("namespace: must not be empty".to_owned());
    }
    let (
        Ok(listen),
        Ok(status_listen),
        Ok(peer_listen),
        Ok(advertise_address),
        Ok(log_level),
        true,
    ) = (listen, status_listen, peer_listen, advertise, log_level, problems.is_empty())
    else {
        return Err(problems);
    };
    let replica = if file.replica.is_empty() { host_name() } else { file.replica };

    Ok(Config {
        kubeconfig: (!file.kubeconfig.as_os_str().is_empty()).then_some(file.kubeconfig),
        listen,
        status_listen,
        peer_listen,
        advertise_address,
        namespace: file.namespace,
        replica,
        default_toleration_seconds: file.default_toleration_seconds,
        node_lease_renewal: Duration::from_secs(file.node_lease_renew_seconds),
        drain: Duration::from_secs(file.drain_seconds),
        node_certificate_life: Duration::from_secs(file.node_certificate_seconds),
        log_level,
    })
}

fn advertised(text: &str) -> Result<IpAddr, String> {
    if text.is_empty() {
        return Err("advertiseAddress: must be given, here or in the environment as \
            HOLDFAST_ADVERTISE_ADDRESS"
            .to_owned());
    }
    let address: IpAddr =
        text.parse().map_err(|_| format!("advertiseAddress: {text:?} is not an IP address"))?;
    if address.is_loopback() || address.is_unspecified() {
        return Err(format!(
            "advertiseAddress: API servers refuse {text}; give an address of this machine that they reach"
        ));
    }

    Ok(address)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();

    if name.is_empty() { "cloudcore".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_loads() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cloudcore.yaml");
        let config = Config::load(&path, &Given::default()).unwrap();

        assert_eq!(config.listen.port(), 10000);
        assert_eq!(config.status_listen.port(), 10001);
        assert_eq!(config.peer_listen.port(), 10002);
        assert_eq!(config.default_toleration_seconds, 300);
    }

    #[test]
    fn every_problem_is_told_with_its_field() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        let text = "advertiseAddress: 127.0.0.1\nlisten: here\nstatusListen: there\npeerListen: far\nlogLevel: loud\n";
        std::fs::write(&path, text).unwrap();
        let error = Config::load(&path, &Given::default()).unwrap_err().to_string();
        for field in [
            "listen: \"here\"",
            "statusListen: \"there\"",
            "peerListen: \"far\"",
            "advertiseAddress: API servers refuse 127.0.0.1",
            "logLevel: \"loud\"",
        ] {
            assert!(error.contains(field), "{error}");
        }
        std::fs::write(&path, "advertiseAddress: 192.0.2.1\nfrobnicate: 1\n").unwrap();
        let error = Config::load(&path, &Given::default()).unwrap_err().to_string();
        assert!(error.contains("frobnicate"), "{error}");
    }

    #[test]
    fn what_only_the_pod_knows_counts_more_than_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.yaml");
        let load = |text: &str, address: Option<&str>, replica: Option<&str>| {
            std::fs::write(&path, text).unwrap();
            let given = Given {
                advertise_address: address.map(str::to_owned),
                replica: replica.map(str::to_owned),
            };
            Config::load(&path, &given)
                .map(|config| (config.advertise_address.to_string(), config.replica))
                .map_err(|error| error.to_string())
        };
        let file = "advertiseAddress: 192.0.2.1\nreplica: a\n";
        let of = |address: &str, replica: &str| Ok((address.to_owned(), replica.to_owned()));
        assert_eq!(load(file, None, None), of("192.0.2.1", "a"));
        assert_eq!(load(file, Some("192.0.2.2"), Some("b")), of("192.0.2.2", "b"));
        assert_eq!(load(file, Some(""), Some("")), of("192.0.2.1", "a"));
        assert_eq!(load("{}", Some("2001:db8::1"), Some("b")), of("2001:db8::1", "b"));
        let error = load("replica: a\n", None, None).unwrap_err();
        assert!(error.contains("HOLDFAST_ADVERTISE_ADDRESS"), "{error}");
    }
}
