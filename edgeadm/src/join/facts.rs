//! What is true of this machine before it joins.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use edgecore::Config;
use edgecore::config::ConfigError;
use edgecore::link::proxy;

use super::journal::{self, Journal};
use crate::unit;

/// Name of the agent's configuration in its folder.
pub const CONFIG_FILE: &str = "edgecore.yaml";

/// Sockets of runtimes, where their packages put them.
const RUNTIMES: [&str; 2] = ["/run/containerd/containerd.sock", "/run/crio/crio.sock"];

/// See the module's documentation.
#[derive(Debug)]
pub struct Facts {
    /// Whether this is root.
    pub is_root: bool,
    /// The host's name in lower case, as the kubelet takes it.
    pub host_name: String,
    /// Where the configuration is, or will be.
    pub config_path: PathBuf,
    /// The configuration, if there is one.
    pub config: Option<Config>,
    /// Runtimes that are there.
    pub runtimes: Vec<String>,
    /// systemd, if it is the first process here.
    pub systemd: Option<Systemd>,
    /// How far an earlier join came that failed.
    pub journal: Option<Journal>,
    /// What the environment says of proxies. A secret.
    pub variables: Variables,
}

/// Variables of the environment about proxies, by name.
#[derive(Clone, Default)]
pub struct Variables(pub BTreeMap<&'static str, String>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Variables {
    fn read() -> Self {
        let names = proxy::VARIABLES.into_iter().chain(proxy::EXEMPT_VARIABLES);

        Self(names.filter_map(|name| Some((name, proxy::variable(name)?))).collect())
    }
}

/// What systemd has of the agent.
#[derive(Clone, Debug, Default)]
pub struct Systemd {
    /// The unit in edgeadm's place.
    pub unit: Option<String>,
    /// The unit of a package.
    pub packaged: Option<String>,
    /// The agent's program.
    pub program: PathBuf,
    /// Whether that is there.
    pub has_program: bool,
}

impl Facts {
    /// Reads them.
    pub fn read(config_dir: &Path) -> Result<Self, ConfigError> {
        let config_path = config_dir.join(CONFIG_FILE);
        let exists = config_path.symlink_metadata().is_ok();
        let config = exists.then(|| Config::load(&config_path)).transpose()?;
        let host_name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        let is_root = rustix::process::geteuid().is_root();
        let runtimes = RUNTIMES.into_iter().filter(|socket| Path::new(socket).exists());
        let systemd = Path::new(unit::SYSTEMD).exists().then(Systemd::read);
        let journal = journal::read(config_dir);

        Ok(Self {
            is_root,
            host_name,
            config_path,
            config,
            runtimes: runtimes.map(str::to_owned).collect(),
            systemd,
            journal,
            variables: Variables::read(),
        })
    }
}

impl Systemd {
    fn read() -> Self {
        let program = program();

        Self {
            unit: fs::read_to_string(unit::FILE).ok(),
            packaged: fs::read_to_string(unit::PACKAGED).ok(),
            has_program: program.exists(),
            program,
        }
    }
}

/// The agent comes with this program.
fn program() -> PathBuf {
    let beside = |own: PathBuf| own.with_file_name("edgecore");

    std::env::current_exe().map_or_else(|_: io::Error| "/usr/bin/edgecore".into(), beside)
}
