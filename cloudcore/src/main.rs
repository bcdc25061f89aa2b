//! `cloudcore`, the cloud side.
//!
//! Turns arguments into a config, a config into a running cloud, and an outcome into an exit code.
//! Start reading at [`cloudcore::Cloud`].

use std::process::ExitCode;

use clap::Parser as _;
use cloudcore::args::{Args, Command, ConfigCommand};
use cloudcore::signals::Terminate;
use cloudcore::{Cloud, CloudError, Config, PROGRAM, exit, telemetry};

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Config { command: ConfigCommand::Example } => telemetry::print(Config::EXAMPLE),
        Command::Config { command: ConfigCommand::Check(source) } => match source.load() {
            Ok(_) => telemetry::print(&format!("{}: no problem found\n", source.config.display())),
            Err(error) => PROGRAM.refuse(&error, exit::BAD_CONFIG),
        },
        Command::Run(source) => match source.load() {
            Ok(config) => start(config),
            Err(error) => PROGRAM.refuse(&error, exit::BAD_CONFIG),
        },
    }
}

fn start(config: Config) -> ExitCode {
    PROGRAM.start_log(config.log_level);

    match cloudcore::runtime().and_then(|runtime| runtime.block_on(run(config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %telemetry::chain(&error), "stopped");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(config: Config) -> Result<(), CloudError> {
    let mut terminate = Terminate::listen()
        .map_err(|source| CloudError::Os { attempted: "listen for signals", source })?;
    let mut cloud = tokio::select! {
        // The API server may be away for as long as it likes.
        _signal = terminate.next() => return Ok(()),
        started = Cloud::start(config) => started?,
    };
    tracing::info!("running");

    tokio::select! {
        signal = terminate.next() => {
            tracing::info!(signal, "draining");
            cloud.drain(terminate.next()).await;
            Ok(())
        }
        fault = cloud.failed() => {
            cloud.stop().await;
            Err(fault)
        }
    }
}
