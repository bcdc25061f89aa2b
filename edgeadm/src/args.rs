//! The command line of `edgeadm`, a module for each group of verbs.

pub mod check;
pub mod cluster;
pub mod ctl;
pub mod debug;
pub mod init;
pub mod join;
pub mod node;
pub mod reset;
pub mod text;
pub mod upgrade;

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};

use self::check::CheckArgs;
use self::cluster::{CaCommand, GetTokenArgs, TokenCommand};
use self::ctl::CtlCommand;
use self::debug::DebugCommand;
use self::init::InitArgs;
use self::join::JoinArgs;
use self::node::StatusArgs;
use self::reset::ResetArgs;
use self::text::{CompletionArgs, ManArgs, VersionArgs};
use self::upgrade::{HookCommand, UpgradeArgs};

/// What leads to a node, in its order.
const STEPS: &str = "\
Where kubectl reaches the cluster:
  edgeadm init     installs cloudcore, where all nodes connect, and prints how machines join
  edgeadm token create --print-join-command --cloudcore HOST:PORT
                   prints that again, with another token
On the machine, as root, with containerd or CRI-O running:
  edgeadm check --cloudcore HOST:PORT --token TOKEN
                   says what is missing, and changes nothing
  edgeadm join --cloudcore HOST:PORT --token TOKEN
                   makes it a node and starts its agent
  edgeadm status   says how it is from then on";

/// Makes machines edge nodes of a Kubernetes cluster, and looks after them.
#[derive(Debug, Parser)]
#[command(name = "edgeadm", version, arg_required_else_help = true, after_help = STEPS)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `edgeadm` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install or upgrade cloudcore in the cluster, and print how machines join.
    Init(InitArgs),
    /// Look after the tokens that machines join with (needs access to the cluster).
    Token {
        /// What to do.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Make a token for one day and print it: `token create` without options.
    #[command(name = "gettoken")]
    GetToken(GetTokenArgs),
    /// Replace the authority that nodes and cloudcore are believed by (needs access to the cluster).
    Ca {
        /// What to do.
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Look at all that an edge node needs, and say what to do about what is wrong.
    Check(CheckArgs),
    /// Make this machine an edge node: get its certificate and write its configuration.
    Join(JoinArgs),
    /// Say how this node is: link, pods, what waits for the cloud. Needs no cloud.
    Status(StatusArgs),
    /// Look at the pods of this node and work in them, with or without the cloud.
    Ctl {
        /// What to do.
        #[command(subcommand)]
        command: CtlCommand,
    },
    /// Run another version of the agent; one that does not do as well gives way by itself.
    Upgrade(UpgradeArgs),
    /// Collect what helps others to help.
    Debug {
        /// What to do.
        #[command(subcommand)]
        command: DebugCommand,
    },
    /// Make this machine what it was before it joined. The cluster is not told.
    Reset(ResetArgs),
    /// Print the version of this program.
    Version(VersionArgs),
    /// Print what a shell needs to complete command lines of edgeadm.
    Completion(CompletionArgs),
    /// Write the manual pages to a folder.
    #[command(hide = true)]
    Man(ManArgs),
    /// What the agent's unit calls.
    #[command(hide = true)]
    UnitHook {
        /// When.
        #[command(subcommand)]
        command: HookCommand,
    },
}

impl Args {
    /// The command line as clap has it, for completions and manual pages.
    pub fn definition() -> clap::Command {
        Self::command()
    }
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

/// For every verb that answers with more than a word.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct OutputArgs {
    /// How the answer is printed.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
}

/// Which agent of this machine.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigArgs {
    /// Configuration of the node's agent.
    #[arg(long, value_name = "FILE", default_value = edgecore::args::CONFIG_PATH)]
    pub config: PathBuf,
}
