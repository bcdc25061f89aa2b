//! Arguments of `init`.

use std::path::PathBuf;

use super::OutputArgs;
use super::cluster::ClusterArgs;

/// What is installed, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct InitArgs {
    /// Values of the chart, as helm takes them; those given before are kept.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Files with values of the chart.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub values: Vec<PathBuf>,
    /// Where machines reach cloudcore [default: what its Service says].
    #[arg(short = 'e', long, value_name = "HOST:PORT")]
    pub cloudcore: Option<String>,
    /// Keep DaemonSets off edge nodes that would run there; their pods are replaced by that.
    #[arg(long)]
    pub patch_daemonsets: bool,
    /// Take back what --patch-daemonsets did, and do nothing else.
    #[arg(long, conflicts_with_all = ["set", "values", "cloudcore", "patch_daemonsets"])]
    pub unpatch_daemonsets: bool,
    /// Check everything and say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// How.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}
