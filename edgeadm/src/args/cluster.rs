//! Arguments of the verbs that talk to the cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use super::OutputArgs;

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it. It is shown only this once.
    Create(CreateArgs),
    /// List tokens, without their secrets.
    List {
        /// How.
        #[command(flatten)]
        output: OutputArgs,
        /// Which cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Make a token useless. Nodes that joined with it stay.
    #[command(alias = "delete")]
    Revoke {
        /// The id, as listed; a whole token is fine too.
        id: String,
        /// Which cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

/// What can be done with the authority.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Say which authorities are believed, what they sign, and which nodes still need the one that is to go.
    Status {
        /// How.
        #[command(flatten)]
        output: OutputArgs,
        /// Which cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Make another authority and have it sign the certificates of nodes. No node is cut off.
    Start {
        /// How.
        #[command(flatten)]
        output: OutputArgs,
        /// Which cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Remove the authority that signs no certificates of nodes any more, once no node needs it.
    Finish {
        /// Also while nodes need it: they have to join again.
        #[arg(long)]
        force: bool,
        /// How.
        #[command(flatten)]
        output: OutputArgs,
        /// Which cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Have the authority of before sign everything again.
    Abort {
        /// How.
        #[command(flatten)]
        output: OutputArgs,
        /// Which cluster.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

/// Which token.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// How long it lets machines in, for example 30m, 24h or 7d.
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub ttl: Duration,
    /// Let only this node in.
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Let only one machine in.
    #[arg(long)]
    pub single_use: bool,
    /// Print the whole command to run on the machine.
    #[arg(long, alias = "print-join", requires = "cloudcore")]
    pub print_join_command: bool,
    /// Where machines reach cloudcore, for --print-join-command.
    #[arg(long, value_name = "HOST:PORT")]
    pub cloudcore: Option<String>,
    /// How.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// As keadm has it.
#[derive(Debug, clap::Args)]
pub struct GetTokenArgs {
    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

impl From<GetTokenArgs> for CreateArgs {
    fn from(args: GetTokenArgs) -> Self {
        Self {
            ttl: Duration::from_hours(24),
            node_name: None,
            single_use: false,
            print_join_command: false,
            cloudcore: None,
            output: OutputArgs::default(),
            cluster: args.cluster,
        }
    }
}

/// Which cluster, and where in it.
#[derive(Clone, Debug, clap::Args)]
pub struct ClusterArgs {
    /// Kubeconfig file [default: as kubectl finds it].
    #[arg(long, alias = "kube-config", value_name = "FILE")]
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
