//! What is true of this machine before it joins.

use std::path::{Path, PathBuf};

use edgecore::Config;
use edgecore::config::ConfigError;

/// Name of the agent's configuration in its folder.
pub const CONFIG_FILE: &str = "edgecore.yaml";

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
}

impl Facts {
    /// Reads them.
    pub fn read(config_dir: &Path) -> Result<Self, ConfigError> {
        let config_path = config_dir.join(CONFIG_FILE);
        let exists = config_path.symlink_metadata().is_ok();
        let config = exists.then(|| Config::load(&config_path)).transpose()?;
        let host_name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
        let is_root = rustix::process::geteuid().is_root();

        Ok(Self { is_root, host_name, config_path, config })
    }
}
