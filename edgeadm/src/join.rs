//! `edgeadm join`: facts about this machine, a plan that follows from them, then its steps.
//!
//! Nothing is changed before every check has passed. Doing it again gets a new certificate and
//! leaves the configuration as it is; after a join that failed half-way it goes on from there.

pub mod facts;
pub mod journal;
pub mod plan;
mod start;
pub(crate) mod steps;

use std::io;
use std::path::{Path, PathBuf};

use cri::{CriError, EndpointError, Runtime};
use edgecore::config::ConfigError;
use edgecore::identity::IdentityError;
use edgecore::link::proxy::{VariableMalformed, Way};
use edgecore::systemd::SystemdError;
use tokio_rustls::rustls::Error as TlsError;

use self::facts::Facts;
use self::plan::{Network, Plan, PlanError};
use crate::args::join::JoinArgs;
use crate::ask::{self, AskError};
use crate::token::{Malformed, Token};
use crate::{cni, exit, pin, ui};

/// Why a machine did not join. Unless a message says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Started by another user.
    #[error("edgeadm join must run as root: it writes the identity of the node; use sudo")]
    NotRoot,
    /// Not a token.
    #[error(transparent)]
    Token(Malformed),
    /// A file of an earlier join cannot be used.
    #[error("the configuration of an earlier join cannot be used; mend or remove it")]
    Existing(#[source] ConfigError),
    /// The arguments make no sense, or not with what is there.
    #[error(transparent)]
    Plan(PlanError),
    /// A proxy of the environment is none.
    #[error("give --proxy, or correct the environment")]
    Environment(#[source] VariableMalformed),
    /// The runtime's socket cannot be one.
    #[error("--runtime-endpoint")]
    Endpoint(#[source] EndpointError),
    /// No container runtime is there.
    #[error("this machine has no usable container runtime")]
    Runtime(#[source] CriError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] TlsError),
    /// Cloudcore did not let the machine in.
    #[error(transparent)]
    Ask(AskError),
    /// No key or request could be made.
    #[error("cannot make a key and a certificate request")]
    Request(#[source] rcgen::Error),
    /// The answer is not by the authority that was pinned.
    #[error("cloudcore at {0} answered with another authority than its own")]
    Authority(String),
    /// The identity cannot be written, or is not whole.
    #[error(
        "cloudcore let this node in, but its identity cannot be kept; mend that and join again"
    )]
    Identity(#[source] IdentityError),
    /// The configuration, or another file, cannot be written.
    #[error(
        "the identity is written, but {} cannot be; mend that and give the same command again, which \
         goes on from here",
        path.display()
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// systemd does not start the agent.
    #[error(
        "all files are written, but systemd does not start edgecore.service; see journalctl -u \
         edgecore, and give the same command again, which goes on from here"
    )]
    Start(#[source] SystemdError),
    /// The agent runs without the cloud.
    #[error(
        "all files are written and the agent runs, but it is not connected to cloudcore: {0}; see \
         edgeadm status, and edgeadm check for the way to cloudcore"
    )]
    NotConnected(String),
}

impl JoinError {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Ask(error) if error.is_passing() => exit::UNAVAILABLE,
            Self::NotRoot | Self::Ask(AskError::Refused { .. }) => exit::NOT_PERMITTED,
            Self::Runtime(_) | Self::Authority(_) | Self::Start(_) | Self::NotConnected(_) => {
                exit::UNAVAILABLE
            }
            Self::Tls(_) | Self::Request(_) => exit::OS_ERROR,
            Self::Identity(_) | Self::Write { .. } => exit::NOT_WRITTEN,
            Self::Token(_)
            | Self::Existing(_)
            | Self::Plan(_)
            | Self::Environment(_)
            | Self::Endpoint(_)
            | Self::Ask(_) => exit::BAD_CONFIG,
        }
    }
}

/// Joins this machine.
pub async fn run(args: JoinArgs) -> Result<(), JoinError> {
    let token: Token = args.token.parse().map_err(JoinError::Token)?;
    let facts = Facts::read(&args.config_dir).map_err(JoinError::Existing)?;
    if !facts.is_root {
        return Err(JoinError::NotRoot);
    }
    let mut plan = Plan::new(&args, &token, facts).map_err(JoinError::Plan)?;
    plan.network = ask_runtime(&plan).await?;
    let tls = pin::tls(&token).map_err(JoinError::Tls)?;
    // What the environment says of a proxy is in the configuration: the agent has another environment.
    let way = Way::of(&plan.config).map_err(JoinError::Environment)?;
    let connection = ask::connect(&way, tls).await.map_err(JoinError::Ask)?;
    let through = way.proxy.as_ref().map(|proxy| format!(" (through {proxy})"));
    ui::step(&format!(
        "cloudcore at {}{} is the one the token is for",
        way.address,
        through.unwrap_or_default()
    ));
    if args.dry_run {
        ui::answer(&plan.to_string());
        return Ok(());
    }

    steps::take(plan, &token, connection).await
}

/// Whether the runtime can be used, and what it has of a network for pods.
async fn ask_runtime(plan: &Plan) -> Result<Network, JoinError> {
    let socket = plan.config.runtime_socket.to_string_lossy();
    let runtime = Runtime::new(&socket).map_err(JoinError::Endpoint)?;
    let version = runtime.version().await.map_err(JoinError::Runtime)?;
    ui::step(&format!("{} {} answers at {socket}", version.name, version.version));
    let status = runtime.status().await.map_err(JoinError::Runtime)?;
    let conditions = status.status.into_iter().flat_map(|status| status.conditions);
    let is_missing = conditions.into_iter().any(|c| c.r#type == "NetworkReady" && !c.status);
    if !is_missing {
        return Ok(Network::Ready);
    }
    let dir = runtime.cni_dir().await.map_err(JoinError::Runtime)?;
    let dir = dir.unwrap_or_else(|| cni::DIR.to_owned());

    // A configuration that is there and does not work yet is not ours to replace.
    Ok(match (cni::is_configured(Path::new(&dir)), dir.as_str()) {
        (true, _) => Network::Ready,
        (false, cni::DIR) => Network::Default,
        (false, _) => Network::Elsewhere(dir),
    })
}
