//! Arguments of `debug`.

use std::path::PathBuf;

use clap::Subcommand;

use super::ConfigArgs;

/// What helps to find out what is wrong.
#[derive(Debug, Subcommand)]
pub enum DebugCommand {
    /// Write all that helps others to help into one archive, without keys, tokens and secret values.
    Collect(CollectArgs),
}

/// What is collected, and where to.
#[derive(Clone, Debug, clap::Args)]
pub struct CollectArgs {
    /// The archive, a .tar.gz [default: one with the node's name and the time, here].
    #[arg(short, long, value_name = "FILE")]
    pub output_path: Option<PathBuf>,
    /// Log of the agent, of which the last MiB is taken; where systemd keeps it, first write it to a
    /// file: journalctl -u edgecore >FILE.
    #[arg(short, long, value_name = "FILE")]
    pub log_path: Option<PathBuf>,
    /// Of which agent.
    #[command(flatten)]
    pub config: ConfigArgs,
}
