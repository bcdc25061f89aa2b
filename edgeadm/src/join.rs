//! `edgeadm join`: facts about this machine, a plan that follows from them, then its steps.
//!
//! Nothing is changed before every check has passed. Doing it again gets a new certificate and
//! leaves the configuration as it is.

pub mod facts;
pub mod plan;
mod steps;

use std::io;
use std::path::PathBuf;

use cri::{CriError, EndpointError, Runtime};
use edgecore::config::ConfigError;
use edgecore::identity::IdentityError;
use tokio_rustls::rustls::Error as TlsError;

use self::facts::Facts;
use self::plan::{Plan, PlanError};
use crate::args::JoinArgs;
use crate::ask::{self, AskError};
use crate::token::{Token, TokenMalformed};
use crate::{exit, pin, ui};

/// Why a machine did not join. Unless a message says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Started by another user.
    #[error("edgeadm join must run as root: it writes the identity of the node; use sudo")]
    NotRoot,
    /// Not a token.
    #[error(transparent)]
    Token(TokenMalformed),
    /// A file of an earlier join cannot be used.
    #[error("the configuration of an earlier join cannot be used; mend or remove it")]
    Existing(#[source] ConfigError),
    /// The arguments make no sense, or not with what is there.
    #[error(transparent)]
    Plan(PlanError),
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
    /// The configuration cannot be written.
    #[error("the identity is written, but {} cannot be; mend that and join again", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl JoinError {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Ask(error) if error.is_passing() => exit::UNAVAILABLE,
            Self::NotRoot | Self::Ask(AskError::Refused { .. }) => exit::NOT_PERMITTED,
            Self::Runtime(_) | Self::Authority(_) => exit::UNAVAILABLE,
            Self::Tls(_) | Self::Request(_) => exit::OS_ERROR,
            Self::Identity(_) | Self::Write { .. } => exit::NOT_WRITTEN,
            Self::Token(_)
            | Self::Existing(_)
            | Self::Plan(_)
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
    let plan = Plan::new(&args, facts).map_err(JoinError::Plan)?;
    check_runtime(&plan).await?;
    let tls = pin::tls(&token).map_err(JoinError::Tls)?;
    let address = plan.config.cloudcore.to_string();
    let connection = ask::connect(&address, tls).await.map_err(JoinError::Ask)?;
    ui::step(&format!("cloudcore at {address} is the one the token is for"));
    if args.dry_run {
        ui::answer(&plan.to_string());
        return Ok(());
    }

    steps::take(plan, &token, connection).await
}

async fn check_runtime(plan: &Plan) -> Result<(), JoinError> {
    let socket = plan.config.runtime_socket.to_string_lossy();
    let runtime = Runtime::new(&socket).map_err(JoinError::Endpoint)?;
    let version = runtime.version().await.map_err(JoinError::Runtime)?;
    ui::step(&format!("{} {} answers at {socket}", version.name, version.version));

    Ok(())
}
