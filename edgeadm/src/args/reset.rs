//! Arguments of `reset`.

use super::{ConfigArgs, OutputArgs};

/// What is undone.
#[derive(Clone, Debug, clap::Args)]
pub struct ResetArgs {
    /// Do not ask first.
    #[arg(short, long, visible_alias = "yes")]
    pub force: bool,
    /// Leave pods, their volumes and their logs as they are.
    #[arg(long)]
    pub keep_containers: bool,
    /// Say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// How.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Of which agent.
    #[command(flatten)]
    pub config: ConfigArgs,
}
