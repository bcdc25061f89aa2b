//! Arguments of the verbs that only print what the program knows of itself.

use std::path::PathBuf;

use super::OutputArgs;

/// How the version is printed.
#[derive(Clone, Debug, clap::Args)]
pub struct VersionArgs {
    /// How.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// For which shell.
#[derive(Clone, Debug, clap::Args)]
pub struct CompletionArgs {
    /// Which shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Where to.
#[derive(Clone, Debug, clap::Args)]
pub struct ManArgs {
    /// The folder.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}
