//! Arguments of the verbs that look at this node.

use super::{ConfigArgs, OutputArgs};

/// What is shown.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    /// How.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Of which agent.
    #[command(flatten)]
    pub config: ConfigArgs,
}
