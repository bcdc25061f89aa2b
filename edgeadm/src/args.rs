//! The command line of `edgeadm`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Joins machines to a cluster as edge nodes.
#[derive(Debug, Parser)]
#[command(name = "edgeadm", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `edgeadm` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make this machine an edge node: get its certificate and write its configuration.
    Join(JoinArgs),
    /// Look after the tokens that machines join with (needs access to the cluster).
    Token {
        /// What to do.
        #[command(subcommand)]
        command: TokenCommand,
    },
}

/// How to join.
#[derive(Clone, Debug, clap::Args)]
pub struct JoinArgs {
    /// Where cloudcore listens for edges.
    #[arg(long, value_name = "HOST:PORT")]
    pub cloudcore: String,
    /// As printed by `edgeadm token create`.
    #[arg(long, env = "HOLDFAST_JOIN_TOKEN", hide_env_values = true)]
    pub token: String,
    /// Name of this node in Kubernetes [default: the host's name].
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Socket of the container runtime [default: that of containerd].
    #[arg(long, value_name = "SOCKET")]
    pub runtime_endpoint: Option<String>,
    /// Where identity and configuration are written.
    #[arg(long, value_name = "DIR", default_value = "/etc/holdfast")]
    pub config_dir: PathBuf,
    /// Check everything and say what would be done.
    #[arg(long)]
    pub dry_run: bool,
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it. It is shown only this once.
    Create {
        /// How long it lets machines in, for example 30m, 24h or 7d.
        #[arg(long, default_value = "24h", value_parser = duration)]
        ttl: Duration,
        /// Let only this node in.
        #[arg(long, value_name = "NAME")]
        node_name: Option<String>,
        /// Let only one machine in.
        #[arg(long)]
        single_use: bool,
        /// Which cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// List tokens, without their secrets.
    List {
        /// Which cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Delete a token. Nodes that joined with it stay.
    Delete {
        /// The id, as listed; a whole token is fine too.
        id: String,
        /// Which cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

/// Which cluster, and where in it.
#[derive(Clone, Debug, clap::Args)]
pub struct ClusterArgs {
    /// Kubeconfig file [default: as kubectl finds it].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of cloudcore.
    #[arg(long, default_value = "holdfast")]
    pub namespace: String,
}

/// Longest life of a token: longer ones are forgotten, and found by others.
const TTL_DAYS_MAX: u64 = 365;

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("write a number and s, m, h or d, at most {TTL_DAYS_MAX}d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let total = count.checked_mul(seconds).filter(|total| *total > 0).ok_or_else(wrong)?;

    (total <= TTL_DAYS_MAX * 24 * 60 * 60).then_some(Duration::from_secs(total)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_to_live() {
        for (given, seconds) in [
            ("30s", Some(30)),
            ("30m", Some(1800)),
            ("24h", Some(86_400)),
            ("7d", Some(604_800)),
            ("0h", None),
            ("366d", None),
            ("24", None),
            ("h", None),
            ("-1h", None),
            ("", None),
            ("1é", None),
        ] {
            assert_eq!(duration(given).ok().map(|life| life.as_secs()), seconds, "{given}");
        }
    }
}
