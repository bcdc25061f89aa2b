//! The commands of `edgeadm`.
//!
//! - [`join`]: facts about this machine, then a plan, then its steps. Uses [`pin`] to know
//!   cloudcore by the token before there is any certificate, and [`ask`] to be given one.
//! - [`tokens`]: the cluster's side: join tokens are Secrets; [`token`] is their text form.
//! - [`ui`]: the only place that prints.

pub mod args;
pub mod ask;
pub mod clock;
pub mod exit;
pub mod join;
pub mod pin;
pub mod token;
pub mod tokens;
pub mod ui;

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
}

impl Error {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Os(_) => exit::OS_ERROR,
            Self::Join(error) => error.exit_code(),
            Self::Tokens(error) => error.exit_code(),
        }
    }
}

/// Does what the command line says.
pub fn run(args: Args) -> Result<(), Error> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Os)?;
    runtime.block_on(async {
        match args.command {
            Command::Join(args) => join::run(args).await.map_err(Error::Join),
            Command::Token { command } => {
                tokens::run(command).await.map_err(|e| Error::Tokens(Box::new(e)))
            }
        }
    })
}
