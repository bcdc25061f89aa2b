//! Arguments of `ctl`, in kubectl's words.

use clap::Subcommand;

use super::{ConfigArgs, OutputArgs};

/// What can be done with the pods of this node.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// List pods, Events or the node.
    Get(GetArgs),
    /// Say everything about one pod or the node.
    Describe(DescribeArgs),
    /// Print the log of a container.
    Logs(LogsArgs),
    /// Run a command in a container.
    Exec(ExecArgs),
    /// Stop containers of a pod and start them anew, with hooks and grace.
    Restart(RestartArgs),
}

/// Kinds of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Pods of this node.
    #[value(name = "pods", aliases = ["pod", "po"])]
    Pods,
    /// What happened on this node lately.
    #[value(name = "events", aliases = ["event", "ev"])]
    Events,
    /// This node.
    #[value(name = "nodes", aliases = ["node", "no"])]
    Nodes,
}

/// Where pods are looked for.
#[derive(Clone, Debug, clap::Args)]
pub struct NamespaceArgs {
    /// Namespace of the pod.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

/// What is listed.
#[derive(Clone, Debug, clap::Args)]
pub struct GetArgs {
    /// What.
    #[arg(value_enum)]
    pub kind: Kind,
    /// Only that one.
    pub name: Option<String>,
    /// Where.
    #[command(flatten)]
    pub namespace: NamespaceArgs,
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Only pods with these labels, for example app=web,tier!=test.
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// How.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Of which agent.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// What is described.
#[derive(Clone, Debug, clap::Args)]
pub struct DescribeArgs {
    /// What.
    #[arg(value_enum)]
    pub kind: Kind,
    /// Which pod.
    pub name: Option<String>,
    /// Where.
    #[command(flatten)]
    pub namespace: NamespaceArgs,
    /// Of which agent.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Which log, and how much of it.
#[derive(Clone, Debug, clap::Args)]
pub struct LogsArgs {
    /// The pod.
    pub pod: String,
    /// The container; the pod's first unless given.
    #[arg(short, long)]
    pub container: Option<String>,
    /// Where.
    #[command(flatten)]
    pub namespace: NamespaceArgs,
    /// Go on with what is written from now on.
    #[arg(short, long)]
    pub follow: bool,
    /// Of the incarnation before.
    #[arg(short, long)]
    pub previous: bool,
    /// Only that many lines of the end; -1 for all.
    #[arg(long, value_name = "LINES", default_value_t = -1, allow_negative_numbers = true)]
    pub tail: i64,
    /// Only what is younger than that many seconds.
    #[arg(long, value_name = "SECONDS", alias = "since-second")]
    pub since_seconds: Option<u64>,
    /// Only what was written since then (RFC 3339).
    #[arg(long, value_name = "TIME")]
    pub since_time: Option<String>,
    /// With the time of each line.
    #[arg(long)]
    pub timestamps: bool,
    /// At most that many bytes.
    #[arg(long, value_name = "BYTES")]
    pub limit_bytes: Option<u64>,
    /// Of which agent.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// What is run where.
#[derive(Clone, Debug, clap::Args)]
pub struct ExecArgs {
    /// The pod.
    pub pod: String,
    /// The command and its arguments, after --.
    #[arg(last = true, required = true, num_args = 1.., value_name = "COMMAND")]
    pub command: Vec<String>,
    /// The container; the pod's first unless given.
    #[arg(short, long)]
    pub container: Option<String>,
    /// Where.
    #[command(flatten)]
    pub namespace: NamespaceArgs,
    /// Pass stdin to the command.
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// The command has a terminal.
    #[arg(short, long)]
    pub tty: bool,
    /// Of which agent.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// What can be restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Restartable {
    /// A pod's containers.
    #[value(name = "pod", aliases = ["pods", "po"])]
    Pod,
}

/// What is restarted.
#[derive(Clone, Debug, clap::Args)]
pub struct RestartArgs {
    /// What.
    #[arg(value_enum)]
    pub kind: Restartable,
    /// Which pod.
    pub name: String,
    /// Only this container.
    #[arg(short, long)]
    pub container: Option<String>,
    /// Where.
    #[command(flatten)]
    pub namespace: NamespaceArgs,
    /// How.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Of which agent.
    #[command(flatten)]
    pub config: ConfigArgs,
}
