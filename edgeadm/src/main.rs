//! `edgeadm`, the tool of cluster operators and field engineers. Each command is a module; all that is
//! printed goes through [`edgeadm::ui`].

use std::process::ExitCode;

use clap::Parser as _;
use edgeadm::cli::{Args, Command, TokenCommand};
use edgeadm::{join, token, ui};

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(async {
            match args.command {
                Command::Join(args) => join::run(args).await,
                Command::Token { command: TokenCommand::Create(args) } => token::create(args).await,
                Command::Token { command: TokenCommand::List(args) } => token::list(args).await,
                Command::Token { command: TokenCommand::Delete(args) } => token::delete(args).await,
            }
        }),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui::error(&error);
            ExitCode::FAILURE
        }
    }
}
