//! What joining will do: derived from arguments and facts, without doing any of it.

use std::fmt;
use std::path::{Path, PathBuf};

use edgecore::Config;
use edgecore::config::ConfigError;

use super::facts::Facts;
use crate::args::JoinArgs;

/// What to do.
#[derive(Debug)]
pub struct Plan {
    /// What the agent will be run with.
    pub config: Config,
    /// Where that is written.
    pub config_path: PathBuf,
    /// The text, unless the file is there already.
    pub config_text: Option<String>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Arguments that make no sense.
    #[error("the arguments make no usable configuration")]
    Arguments(#[source] ConfigError),
    /// The folder is relative, but the agent may be started anywhere.
    #[error("--config-dir {} is not an absolute path", .0.display())]
    RelativeDir(PathBuf),
    /// The machine was joined otherwise before.
    #[error(
        "{} has {field} {found}, not {asked}: give {flag} {found}, or remove the file to join \
         this machine otherwise",
        path.display()
    )]
    Differs {
        /// The file.
        path: PathBuf,
        /// In it.
        field: &'static str,
        /// In it.
        found: String,
        /// By the command line.
        asked: String,
        /// Of the command line.
        flag: &'static str,
    },
}

impl Plan {
    /// The plan for these arguments on this machine.
    pub fn new(args: &JoinArgs, facts: Facts) -> Result<Self, PlanError> {
        let Facts { config_path, config, host_name, .. } = facts;
        if !args.config_dir.is_absolute() {
            return Err(PlanError::RelativeDir(args.config_dir.clone()));
        }
        let asked_name = args.node_name.as_ref();
        let node = match (&config, asked_name) {
            (_, Some(name)) => name.clone(),
            (Some(config), None) => config.node.to_string(),
            (None, None) => host_name,
        };
        let text = config_text(&node, args);
        let asked = Config::parse(Path::new("of the command line"), &text);
        let asked = asked.map_err(PlanError::Arguments)?;
        let Some(found) = config else {
            return Ok(Self { config: asked, config_path, config_text: Some(text) });
        };
        differs(&found, &asked, args.runtime_endpoint.is_some(), &config_path)?;

        Ok(Self { config: found, config_path, config_text: None })
    }
}

fn differs(found: &Config, asked: &Config, socket: bool, path: &Path) -> Result<(), PlanError> {
    let socket_of = |config: &Config| config.runtime_socket.display().to_string();
    let asked_socket = if socket { socket_of(asked) } else { socket_of(found) };
    for (field, flag, found, asked) in [
        ("nodeName", "--node-name", found.node.to_string(), asked.node.to_string()),
        ("cloudcore", "--cloudcore", found.cloudcore.to_string(), asked.cloudcore.to_string()),
        ("runtimeEndpoint", "--runtime-endpoint", socket_of(found), asked_socket),
    ] {
        if found != asked {
            return Err(PlanError::Differs { path: path.to_owned(), field, found, asked, flag });
        }
    }

    Ok(())
}

/// What differs from the defaults. A double-quoted string of Rust is one of YAML for everything
/// that a valid value can hold.
fn config_text(node: &str, args: &JoinArgs) -> String {
    let mut lines = vec![
        "# Written by edgeadm join. `edgecore config example` prints every field.".to_owned(),
        format!("nodeName: {node:?}"),
        format!("cloudcore: {:?}", args.cloudcore),
        format!("identityDir: {:?}", args.config_dir),
    ];
    if let Some(endpoint) = &args.runtime_endpoint {
        let scheme = if endpoint.starts_with('/') { "unix://" } else { "" };
        lines.push(format!("runtimeEndpoint: {:?}", format!("{scheme}{endpoint}")));
    }
    lines.push(String::new());

    lines.join("\n")
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { node, cloudcore, identity_dir, .. } = &self.config;
        writeln!(f, "ask {cloudcore} for a certificate of node {node}")?;
        writeln!(f, "write ca.crt, node.crt and node.key to {}", identity_dir.display())?;
        match &self.config_text {
            Some(text) => write!(f, "write {}:\n{}", self.config_path.display(), text.trim_end()),
            None => write!(f, "keep {} as it is", self.config_path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(node: Option<&str>, cloudcore: &str, endpoint: Option<&str>) -> JoinArgs {
        JoinArgs {
            cloudcore: cloudcore.to_owned(),
            token: String::new(),
            node_name: node.map(str::to_owned),
            runtime_endpoint: endpoint.map(str::to_owned),
            config_dir: "/etc/holdfast".into(),
            dry_run: false,
        }
    }

    fn facts(config: Option<&str>) -> Facts {
        let parse = |text| Config::parse(Path::new("test"), text).unwrap();

        Facts {
            is_root: true,
            host_name: "host-1".to_owned(),
            config_path: "/etc/holdfast/edgecore.yaml".into(),
            config: config.map(parse),
        }
    }

    fn check(args: &JoinArgs, config: Option<&str>, expected: Result<&str, &str>) {
        match (Plan::new(args, facts(config)), expected) {
            (Ok(plan), Ok(expected)) => {
                let plan = plan.to_string();
                assert!(plan.contains(expected), "{plan}");
            }
            (Err(error), Err(expected)) => {
                let error = crate::ui::chain(&error);
                assert!(error.contains(expected), "{error}");
            }
            (found, expected) => panic!("{found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn plans() {
        let there = "nodeName: edge-1\ncloudcore: c:1\n";
        check(&args(None, "c:1", None), None, Ok("a certificate of node host-1"));
        check(&args(Some("edge-1"), "c:1", None), None, Ok("nodeName: \"edge-1\""));
        check(
            &args(None, "c:1", Some("/run/crio.sock")),
            None,
            Ok("runtimeEndpoint: \"unix:///run/crio.sock\""),
        );
        check(&args(None, "c:1", None), Some(there), Ok("keep /etc/holdfast/edgecore.yaml"));
        check(&args(None, "c:2", None), Some(there), Err("give --cloudcore c:1, or remove"));
        check(&args(Some("b"), "c:1", None), Some(there), Err("has nodeName edge-1, not b"));
        check(&args(None, "c:1", Some("/x")), Some(there), Err("has runtimeEndpoint"));
        check(&args(Some("A b"), "c:1", None), None, Err("nodeName"));
        check(&args(None, "nowhere", None), None, Err("cloudcore"));
    }
}
