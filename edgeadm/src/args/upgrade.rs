//! Arguments of `upgrade`, and of what the agent's unit calls for it.

use std::path::PathBuf;

use clap::Subcommand;

use super::{ConfigArgs, OutputArgs};

/// To which version.
#[derive(Clone, Debug, clap::Args)]
pub struct UpgradeArgs {
    /// The program of the other version: the file edgecore, as it is in its package.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Refuse the file unless it has this SHA-256.
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,
    /// Check everything and say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// How.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Of which agent.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// When it is called.
#[derive(Debug, Subcommand)]
pub enum HookCommand {
    /// Take the steps of an upgrade that have to be taken before the agent starts.
    Before(ConfigArgs),
    /// Judge the agent that has started, if it is on trial.
    After(ConfigArgs),
}
