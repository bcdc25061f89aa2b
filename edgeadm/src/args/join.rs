//! Arguments of `join`.

use std::path::PathBuf;

const EXAMPLE: &str = "\
Run it as root, while containerd or CRI-O runs. For example:
  edgeadm join --cloudcore cloud.example.com:10000 --token hf1.4a5b...
`edgeadm token create --print-join-command` prints the whole line, where kubectl reaches the cluster.";

/// How to join.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct JoinArgs {
    /// Where cloudcore listens for edges.
    #[arg(short = 'e', long, alias = "cloudcore-ipport", value_name = "HOST:PORT")]
    pub cloudcore: String,
    /// As printed by `edgeadm token create`.
    #[arg(short, long, env = "HOLDFAST_JOIN_TOKEN", hide_env_values = true)]
    pub token: String,
    /// Name of this node in Kubernetes [default: the host's name].
    #[arg(short = 'i', long, alias = "edgenode-name", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Socket of the container runtime [default: that of containerd or CRI-O, whichever is there].
    #[arg(short = 'p', long, alias = "remote-runtime-endpoint", value_name = "SOCKET")]
    pub runtime_endpoint: Option<String>,
    /// HTTP proxy on the way to cloudcore, `http://[USER:PASSWORD@]HOST:PORT`, or `none` [default: `HTTPS_PROXY`
    /// of the environment].
    #[arg(long, env = "HOLDFAST_PROXY", hide_env_values = true, value_name = "URL")]
    pub proxy: Option<String>,
    /// Labels for the Node object.
    #[arg(short, long, value_name = "KEY=VALUE,...", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Taints for the Node object.
    #[arg(long, value_name = "KEY=VALUE:EFFECT,...", value_delimiter = ',')]
    pub taints: Vec<String>,
    /// Other keys of the configuration, as YAML; `edgecore config example` prints them all.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Where identity and configuration are written.
    #[arg(long, value_name = "DIR", default_value = "/etc/holdfast")]
    pub config_dir: PathBuf,
    /// Write everything, but leave it to you to start the agent.
    #[arg(long)]
    pub no_start: bool,
    /// Check everything and say what would be done.
    #[arg(long)]
    pub dry_run: bool,
}
