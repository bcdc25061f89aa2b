//! The commands of `edgeadm`.
//!
//! - [`init`]: the cluster's side: installs cloudcore by its chart; [`host`] is the only code that starts a
//!   program, which is helm.
//! - [`join`]: facts about this machine, then a plan, then its steps. Uses [`pin`] to know
//!   cloudcore by the token before there is any certificate, and [`ask`] to be given one.
//! - [`status`] and [`ctl`]: this node and its pods, as its [`agent`] tells them over its control socket.
//! - [`check`]: whether a machine is fit to be an edge node, and what to do if not.
//! - [`debug`]: an archive to be given to others.
//! - [`upgrade`]: another version of the agent, which gives way if it does not do as well.
//! - [`reset`]: undoes all of it, but in the cluster.
//! - [`tokens`]: the cluster's side: join tokens are Secrets; [`token`] is their text form.
//! - [`authority`]: the cluster's side: another authority takes the place of the one that is there.
//! - [`text`]: version, completions and manual pages.
//! - [`output`]: answers as tables, JSON and YAML; [`ui`]: the only place that prints.

pub mod agent;
pub mod args;
pub mod ask;
pub mod authority;
pub mod certificate;
pub mod check;
pub mod clock;
pub mod cni;
pub mod ctl;
pub mod debug;
pub mod exit;
pub mod held;
pub mod host;
pub mod init;
#[doc(hidden)]
pub mod inputs;
pub mod join;
pub mod output;
pub mod pin;
pub mod pods;
pub mod process;
pub mod reset;
pub mod status;
pub mod text;
pub mod token;
pub mod tokens;
pub mod ui;
pub mod unit;
pub mod upgrade;

use std::io;

use crate::args::{Args, Command};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The async runtime cannot be started.
    #[error("cannot start the async runtime")]
    Os(#[source] io::Error),
    /// The machine did not join.
    #[error("this machine did not join")]
    Join(#[source] join::JoinError),
    /// Tokens could not be looked after.
    #[error(transparent)]
    Tokens(Box<tokens::TokensError>),
    /// The authority is as it was.
    #[error(transparent)]
    Authority(authority::AuthorityError),
    /// Cloudcore is not in the cluster.
    #[error(transparent)]
    Init(Box<init::InitError>),
    /// There is no status, or the agent is dead.
    #[error(transparent)]
    Status(status::StatusError),
    /// The machine is not what it was.
    #[error(transparent)]
    Reset(reset::ResetError),
    /// The agent is not of the version that was asked for.
    #[error(transparent)]
    Upgrade(upgrade::UpgradeError),
    /// The machine is not fit.
    #[error(transparent)]
    Check(check::CheckError),
    /// There is no archive.
    #[error(transparent)]
    Debug(debug::DebugError),
    /// A command on pods of this node failed.
    #[error(transparent)]
    Ctl(ctl::CtlError),
    /// Manual pages cannot be written.
    #[error("cannot write the manual pages")]
    Man(#[source] io::Error),
}

impl Error {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Os(_) => exit::OS_ERROR,
            Self::Init(error) => error.exit_code(),
            Self::Status(error) => error.exit_code(),
            Self::Reset(error) => error.exit_code(),
            Self::Upgrade(error) => error.exit_code(),
            Self::Check(error) => error.exit_code(),
            Self::Debug(error) => error.exit_code(),
            Self::Ctl(error) => error.exit_code(),
            Self::Man(_) => exit::NOT_WRITTEN,
            Self::Join(error) => error.exit_code(),
            Self::Tokens(error) => error.exit_code(),
            Self::Authority(error) => error.exit_code(),
        }
    }
}

/// Does what the command line says.
pub fn run(args: Args) -> Result<(), Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Os)?;
    let outcome = runtime.block_on(async {
        let tokens = |error| Error::Tokens(Box::new(error));
        match args.command {
            Command::Init(args) => {
                init::run(args).await.map_err(|error| Error::Init(Box::new(error)))
            }
            Command::Join(args) => join::run(args).await.map_err(Error::Join),
            Command::Status(args) => status::run(args).await.map_err(Error::Status),
            Command::Reset(args) => reset::run(args).await.map_err(Error::Reset),
            Command::Upgrade(args) => upgrade::run(args).await.map_err(Error::Upgrade),
            Command::UnitHook { command } => {
                upgrade::by_unit(command).await.map_err(Error::Upgrade)
            }
            Command::Check(args) => check::run(args).await.map_err(Error::Check),
            Command::Ctl { command } => ctl::run(command).await.map_err(Error::Ctl),
            Command::Debug { command } => debug::run(command).await.map_err(Error::Debug),
            Command::Token { command } => tokens::run(command).await.map_err(tokens),
            Command::GetToken(args) => tokens::create(args.into()).await.map_err(tokens),
            Command::Ca { command } => authority::run(command).await.map_err(Error::Authority),
            Command::Version(args) => {
                text::version(&args);
                Ok(())
            }
            Command::Completion(args) => {
                text::completion(&args);
                Ok(())
            }
            Command::Man(args) => text::man(&args).map_err(Error::Man),
        }
    });
    // A file system that hangs is nothing to wait for.
    runtime.shutdown_background();

    outcome
}
