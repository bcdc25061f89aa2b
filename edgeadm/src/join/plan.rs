//! What joining will do: derived from arguments and facts, without doing any of it.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use edgecore::Config;
use edgecore::config::ConfigError;
use edgecore::link::proxy::{self, Choice};

use super::facts::{Facts, Systemd, Variables};
use super::journal::Journal;
use crate::args::join::JoinArgs;
use crate::token::Token;
use crate::{cni, unit};

#[cfg(test)]
mod tests;

/// What to do.
#[derive(Debug)]
pub struct Plan {
    /// What the agent will be run with.
    pub config: Config,
    /// Where that is written.
    pub config_path: PathBuf,
    /// The text, unless the file is there already.
    pub config_text: Option<String>,
    /// The identity is there: an earlier join came so far.
    pub has_identity: bool,
    /// How the agent is started.
    pub service: Service,
    /// What pods get their network from.
    pub network: Network,
}

/// How the agent is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// Not by us.
    ByHand,
    /// By systemd.
    Unit {
        /// Its text, unless the unit is there already.
        text: Option<String>,
        /// Start it now.
        start: bool,
    },
}

/// What pods get their network from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// The runtime has one.
    Ready,
    /// Nothing configures one: ours is written.
    Default,
    /// Nothing seems to configure one where the runtime looks, which is not the usual place.
    Elsewhere(String),
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Arguments that make no sense.
    #[error("the arguments make no usable configuration")]
    Arguments(#[source] ConfigError),
    /// An argument that is not of its form.
    #[error("{flag} {given:?} is not of the form {form}")]
    Form {
        /// Of the command line.
        flag: &'static str,
        /// The value.
        given: String,
        /// As it should be.
        form: &'static str,
    },
    /// The folder is relative, but the agent may be started anywhere.
    #[error("--config-dir {} is not an absolute path", .0.display())]
    RelativeDir(PathBuf),
    /// There is more than one runtime.
    #[error("this machine has more than one container runtime: say which with --runtime-endpoint: {}", .0.join(" or "))]
    Runtimes(Vec<String>),
    /// The agent's program is not there.
    #[error("there is no {}, which the agent is started from: install edgecore beside edgeadm, or give --no-start", .0.display())]
    NoProgram(PathBuf),
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
    /// As [`PlanError::Differs`], in what has many values.
    #[error(
        "{} is there and says otherwise than --labels, --taints, --proxy or --set: change it there, and leave \
         them out",
        .0.display()
    )]
    DiffersInMore(PathBuf),
}

impl Plan {
    /// The plan for these arguments on this machine, whose runtime is still to be asked for its network.
    pub fn new(args: &JoinArgs, token: &Token, facts: Facts) -> Result<Self, PlanError> {
        let Facts { config_path, config, host_name, runtimes, systemd, journal, variables, .. } =
            facts;
        if !args.config_dir.is_absolute() {
            return Err(PlanError::RelativeDir(args.config_dir.clone()));
        }
        let asked_name = args.node_name.as_ref();
        let node = match (&config, asked_name) {
            (_, Some(name)) => name.clone(),
            (Some(config), None) => config.node.to_string(),
            (None, None) => host_name,
        };
        let endpoint = match (&args.runtime_endpoint, runtimes.as_slice()) {
            (Some(asked), _) => Some(asked.clone()),
            (None, [_, _, ..]) if config.is_none() => return Err(PlanError::Runtimes(runtimes)),
            (None, [found]) => Some(found.clone()),
            (None, _) => None,
        };
        let text = config_text(&node, endpoint.as_deref(), args)?;
        let asked = parse(&text)?;
        let service = service(args, systemd.as_ref(), &config_path)?;
        let (config, config_text) = match config {
            None => with_proxy(asked, text, &variables)?,
            Some(found) => {
                differs(&found, &asked, args, &config_path)?;
                (found, None)
            }
        };
        let begun = Self::journal(&config, token);

        Ok(Self {
            has_identity: journal.is_some_and(|journal| journal == begun),
            config,
            config_path,
            config_text,
            service,
            network: Network::Ready,
        })
    }

    /// What is kept while it is carried out.
    pub fn journal(config: &Config, token: &Token) -> Journal {
        Journal {
            node: config.node.to_string(),
            cloudcore: config.cloudcore.to_string(),
            token_id: token.id().to_owned(),
        }
    }
}

fn parse(text: &str) -> Result<Config, PlanError> {
    Config::parse(Path::new("of the command line"), text).map_err(PlanError::Arguments)
}

/// With the proxy of the environment, unless a word was said of one: the agent will have another environment.
fn with_proxy(
    asked: Config,
    mut text: String,
    variables: &Variables,
) -> Result<(Config, Option<String>), PlanError> {
    let variable = |name: &str| variables.0.get(name).cloned();
    let found = proxy::text_of_environment(&asked.cloudcore, variable);
    let (Choice::Environment, Some((_, address))) = (&asked.proxy, found) else {
        return Ok((asked, Some(text)));
    };
    let _infallible = writeln!(text, "proxy: {address:?}");

    Ok((parse(&text)?, Some(text)))
}

fn service(
    args: &JoinArgs,
    systemd: Option<&Systemd>,
    config: &Path,
) -> Result<Service, PlanError> {
    let Some(systemd) = systemd else { return Ok(Service::ByHand) };
    let start = !args.no_start;
    let is_there = |text: &Option<String>| {
        text.as_ref().is_some_and(|text| unit::is_of(text, config) && !text.starts_with(unit::MARK))
    };
    // Somebody else's of edgeadm's name hides that of a package.
    let packaged = systemd.unit.is_none() && is_there(&systemd.packaged);
    if is_there(&systemd.unit) || packaged {
        return Ok(Service::Unit { text: None, start });
    }
    if !systemd.has_program {
        let missing = PlanError::NoProgram(systemd.program.clone());
        return if start { Err(missing) } else { Ok(Service::ByHand) };
    }
    let text = unit::text(&systemd.program, config);
    let is_new = systemd.unit.as_ref() != Some(&text);

    Ok(Service::Unit { text: is_new.then_some(text), start })
}

fn differs(found: &Config, asked: &Config, args: &JoinArgs, path: &Path) -> Result<(), PlanError> {
    let socket_of = |config: &Config| config.runtime_socket.display().to_string();
    let is_socket_asked = args.runtime_endpoint.is_some();
    let asked_socket = if is_socket_asked { socket_of(asked) } else { socket_of(found) };
    for (field, flag, found, asked) in [
        ("nodeName", "--node-name", found.node.to_string(), asked.node.to_string()),
        ("cloudcore", "--cloudcore", found.cloudcore.to_string(), asked.cloudcore.to_string()),
        ("runtimeEndpoint", "--runtime-endpoint", socket_of(found), asked_socket),
    ] {
        if found != asked {
            return Err(PlanError::Differs { path: path.to_owned(), field, found, asked, flag });
        }
    }
    let is_empty = args.labels.is_empty() && args.taints.is_empty() && args.set.is_empty();
    let has_more = !is_empty || args.proxy.is_some();
    if has_more && found != asked {
        return Err(PlanError::DiffersInMore(path.to_owned()));
    }

    Ok(())
}

/// What differs from the defaults. A double-quoted string of Rust is one of YAML for everything
/// that a valid value can hold.
fn config_text(node: &str, endpoint: Option<&str>, args: &JoinArgs) -> Result<String, PlanError> {
    let mut lines = vec![
        "# Written by edgeadm join. `edgecore config example` prints every field.".to_owned(),
        format!("nodeName: {node:?}"),
        format!("cloudcore: {:?}", args.cloudcore),
        format!("identityDir: {:?}", args.config_dir),
    ];
    if let Some(endpoint) = endpoint {
        let scheme = if endpoint.starts_with('/') { "unix://" } else { "" };
        lines.push(format!("runtimeEndpoint: {:?}", format!("{scheme}{endpoint}")));
    }
    if let Some(proxy) = &args.proxy {
        lines.push(format!("proxy: {proxy:?}"));
    }
    let form = |flag, given: &str, form| PlanError::Form { flag, given: given.to_owned(), form };
    if !args.labels.is_empty() {
        lines.push("nodeLabels:".to_owned());
    }
    for label in &args.labels {
        let (key, value) =
            label.split_once('=').ok_or_else(|| form("--labels", label, "KEY=VALUE"))?;
        lines.push(format!("  {key:?}: {value:?}"));
    }
    if !args.taints.is_empty() {
        lines.push("taints:".to_owned());
    }
    for taint in &args.taints {
        let parts = taint.rsplit_once(':');
        let (left, effect) =
            parts.ok_or_else(|| form("--taints", taint, "KEY=VALUE:EFFECT or KEY:EFFECT"))?;
        let (key, value) = left.split_once('=').unwrap_or((left, ""));
        lines.push(format!("- {{ key: {key:?}, value: {value:?}, effect: {effect:?} }}"));
    }
    for set in &args.set {
        let parts = set.split_once('=').filter(|_| !set.contains('\n'));
        let (key, value) = parts.ok_or_else(|| form("--set", set, "KEY=VALUE"))?;
        lines.push(format!("{key}: {value}"));
    }
    lines.push(String::new());

    Ok(lines.join("\n"))
}

/// What may be shown of the text of a configuration.
fn without_password(config: &Config, text: &str) -> String {
    let Choice::Through(proxy) = &config.proxy else { return text.to_owned() };
    let line = |line: &str| {
        let is_secret = proxy.has_credentials() && line.starts_with("proxy:");
        if is_secret { format!("proxy: \"{proxy}\" # and credentials") } else { line.to_owned() }
    };

    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { node, cloudcore, identity_dir, .. } = &self.config;
        let dir = identity_dir.display();
        if self.has_identity {
            writeln!(f, "keep the identity of node {node} in {dir}, as an earlier join wrote it")?;
        } else {
            writeln!(f, "ask {cloudcore} for a certificate of node {node}")?;
            writeln!(f, "write its key and certificates to {dir}")?;
        }
        match &self.config_text {
            Some(text) => {
                let text = without_password(&self.config, text.trim_end());
                write!(f, "write {}:\n{text}", self.config_path.display())?;
            }
            None => write!(f, "keep {} as it is", self.config_path.display())?,
        }
        match &self.network {
            Network::Ready => {}
            Network::Default => {
                write!(f, "\nwrite {}: the runtime has no network for pods", cni::FILE)?;
            }
            Network::Elsewhere(dir) => {
                write!(f, "\nleave it to you to put a CNI configuration into {dir}")?;
            }
        }
        match &self.service {
            Service::ByHand => write!(f, "\nleave it to you to start the agent"),
            Service::Unit { text, start } => {
                if text.is_some() {
                    write!(f, "\nwrite {}", unit::FILE)?;
                }
                write!(f, "\nhave {} started with the machine", unit::NAME)?;
                if *start {
                    write!(f, "\nstart it, and wait until it is connected to {cloudcore}")?;
                }
                Ok(())
            }
        }
    }
}
