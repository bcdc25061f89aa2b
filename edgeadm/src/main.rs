//! `edgeadm`: makes a machine an edge node, and makes the tokens that this needs.
//!
//! Turns arguments into a command and its outcome into an exit code; see [`edgeadm::run`].

use std::process::ExitCode;

use clap::Parser as _;
use edgeadm::{args::Args, ui};

fn main() -> ExitCode {
    match edgeadm::run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui::fail(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
