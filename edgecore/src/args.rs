//! The command line of `edgecore`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Where the config file is unless the command line says otherwise.
pub const CONFIG_PATH: &str = "/etc/holdfast/edgecore.yaml";

/// Runs the pods of this node, with or without the cloud.
#[derive(Debug, Parser)]
#[command(name = "edgecore", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `edgecore` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node agent until SIGTERM or SIGINT. Containers outlive it.
    Run {
        /// The config file (YAML).
        #[arg(long, value_name = "FILE", default_value = CONFIG_PATH)]
        config: PathBuf,
    },
    /// Look after config files.
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// What can be done with config files.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a config file that documents every field.
    Example,
    /// Say everything that is wrong with a config file, without running.
    Check {
        /// The config file (YAML).
        #[arg(long, value_name = "FILE", default_value = CONFIG_PATH)]
        config: PathBuf,
    },
}
