//! `edgecore`, the node agent.
//!
//! Turns arguments into a config, a config into an agent, and an outcome into an exit code. Start
//! reading at [`edgecore::Agent`].

use std::process::ExitCode;

use clap::Parser as _;
use edgecore::args::{Args, Command, ConfigCommand};
use edgecore::signals::Terminate;
use edgecore::{Agent, AgentError, Config, PROGRAM, exit, memory, release, telemetry};

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Config { command: ConfigCommand::Example } => telemetry::print(Config::EXAMPLE),
        Command::Config { command: ConfigCommand::Check { config } } => match Config::load(&config)
        {
            Ok(_) => telemetry::print(&format!("{}: no problem found\n", config.display())),
            Err(error) => PROGRAM.refuse(&error, exit::BAD_CONFIG),
        },
        Command::Run { config } => match Config::load(&config) {
            Ok(config) => start(config),
            Err(error) => PROGRAM.refuse(&error, exit::BAD_CONFIG),
        },
    }
}

fn start(config: Config) -> ExitCode {
    memory::stay_small();
    PROGRAM.start_log(config.log_level);

    match edgecore::runtime().and_then(|runtime| runtime.block_on(run(config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %telemetry::chain(&error), "stopped");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn run(config: Config) -> Result<(), AgentError> {
    let attempted = "listen for signals".to_owned();
    let mut terminate =
        Terminate::listen().map_err(|source| AgentError::Os { attempted, source })?;
    let mut agent = Agent::start(config)?;
    tracing::info!(node = %agent.node(), release = release::TEXT, "running");

    let outcome = tokio::select! {
        signal = terminate.next() => {
            tracing::info!(signal, "draining");
            Ok(())
        }
        fault = agent.failed() => Err(fault),
    };
    let drained = agent.drain().await;

    // A fault matters more than how the drain after it went.
    outcome.and(drained)
}
