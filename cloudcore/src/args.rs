//! The command line of cloudcore.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigError, Given};

/// Streams pods of a Kubernetes cluster to edge nodes.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve edges until asked to stop.
    Run(Source),
    /// About the config file.
    Config {
        /// What about it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// About the config file.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a config file with every field and its default.
    Example,
    /// Read a config file and tell every problem.
    Check(Source),
}

/// Where the config is from.
#[derive(Debug, clap::Args)]
pub struct Source {
    /// The config file.
    #[arg(long, default_value = "/etc/holdfast/cloudcore.yaml")]
    pub config: PathBuf,
    /// In the place of the file's advertiseAddress.
    #[arg(long, env = "HOLDFAST_ADVERTISE_ADDRESS")]
    advertise_address: Option<String>,
    /// In the place of the file's replica.
    #[arg(long, env = "HOLDFAST_REPLICA")]
    replica: Option<String>,
}

impl Source {
    /// Reads and checks the config.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let Self { config, advertise_address, replica } = self;
        let given =
            Given { advertise_address: advertise_address.clone(), replica: replica.clone() };

        Config::load(config, &given)
    }
}
