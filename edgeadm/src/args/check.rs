//! Arguments of `check`.

use super::{ConfigArgs, OutputArgs};

/// What is looked at.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    /// Where cloudcore listens for edges [default: that of the configuration].
    #[arg(short = 'e', long, alias = "cloudcore-ipport", value_name = "HOST:PORT")]
    pub cloudcore: Option<String>,
    /// Know cloudcore by this token; a node that has joined knows it by its identity.
    #[arg(short, long, env = "HOLDFAST_JOIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// HTTP proxy on the way to cloudcore, `http://[USER:PASSWORD@]HOST:PORT`, or `none` [default: that of the
    /// configuration, else `HTTPS_PROXY` of the environment].
    #[arg(long, env = "HOLDFAST_PROXY", hide_env_values = true, value_name = "URL")]
    pub proxy: Option<String>,
    /// Socket of the container runtime [default: that of the configuration, else of containerd].
    #[arg(short = 'p', long, alias = "remote-runtime-endpoint", value_name = "SOCKET")]
    pub runtime_endpoint: Option<String>,
    /// How.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Of which agent.
    #[command(flatten)]
    pub config: ConfigArgs,
}
