//! The command line of cloudcore.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

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
    Run {
        /// The config file.
        #[arg(long, default_value = "/etc/holdfast/cloudcore.yaml")]
        config: PathBuf,
    },
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
    Check {
        /// The config file.
        #[arg(long, default_value = "/etc/holdfast/cloudcore.yaml")]
        config: PathBuf,
    },
}
