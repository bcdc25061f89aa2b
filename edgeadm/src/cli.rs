//! The command line of `edgeadm`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Joins edge nodes to a Kubernetes cluster and looks after them.
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
    /// Make this machine an edge node of the cluster.
    Join(JoinArgs),
    /// Manage the tokens by which nodes join.
    Token {
        /// What about them.
        #[command(subcommand)]
        command: TokenCommand,
    },
}

/// Arguments of `join`.
#[derive(Clone, Debug, clap::Args)]
pub struct JoinArgs {
    /// Where cloudcore listens for edges.
    #[arg(long, value_name = "HOST:PORT")]
    pub cloudcore: String,
    /// A token of `edgeadm token create`.
    #[arg(long, env = "HOLDFAST_JOIN_TOKEN", hide_env_values = true)]
    pub token: String,
    /// Name of the node; the host name unless given.
    #[arg(long)]
    pub node_name: Option<String>,
    /// Socket of the container runtime.
    #[arg(long, default_value = "unix:///run/containerd/containerd.sock")]
    pub runtime_endpoint: String,
    /// Where identity and configuration go.
    #[arg(long, default_value = "/etc/holdfast")]
    pub config_dir: PathBuf,
    /// Print what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Commands about tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it.
    Create(CreateArgs),
    /// List tokens, without their secrets.
    List(ClusterArgs),
    /// Delete a token.
    Delete(DeleteArgs),
}

/// Which cluster.
#[derive(Clone, Debug, clap::Args)]
pub struct ClusterArgs {
    /// Kubeconfig of the cluster.
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of cloudcore.
    #[arg(long, default_value = "holdfast")]
    pub namespace: String,
}

/// Arguments of `token create`.
#[derive(Clone, Debug, clap::Args)]
pub struct CreateArgs {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Hours until the token expires.
    #[arg(long, default_value_t = 24)]
    pub ttl_hours: u32,
    /// The only node that may join by it.
    #[arg(long)]
    pub node_name: Option<String>,
    /// It is used up by the first node that joins.
    #[arg(long)]
    pub single_use: bool,
}

/// Arguments of `token delete`.
#[derive(Clone, Debug, clap::Args)]
pub struct DeleteArgs {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// The third part of the token.
    pub id: String,
}
