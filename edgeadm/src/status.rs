//! `edgeadm status`: how this node is, told by its agent, or without it as far as that goes.

mod runtime;
#[cfg(test)]
mod tests;

use edgecore::Config;
use edgecore::config::ConfigError;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::agent::{Agent, AgentError};
use crate::args::node::StatusArgs;
use crate::certificate::{self, Certificate};
use crate::output::{self, Answer, Table, pairs};
use crate::pods::{self, Summary, age};
use crate::{clock, exit, ui, upgrade};

/// Older than this is no sign of life (the agent's own bound of its health).
const SILENT_MS: u32 = 30_000;

/// Why there is no status, or none that is good.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// This machine is no edge node.
    #[error("this machine is no edge node (join it: edgeadm join), or its configuration is broken")]
    Config(#[source] ConfigError),
    /// What is known without the agent was told.
    #[error(transparent)]
    Agent(AgentError),
}

impl StatusError {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => exit::BAD_CONFIG,
            Self::Agent(error) => error.exit_code(),
        }
    }
}

/// What the agent says of itself.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Name of the node.
    pub node: String,
    /// Of the agent.
    pub version: String,
    /// Of its process.
    pub pid: u32,
    /// When it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Memory of its process.
    pub resident_bytes: u64,
    /// To the cloud.
    pub link: Link,
    /// What waits for the cloud.
    pub backlog: Backlog,
    /// The container runtime.
    pub runtime: Runtime,
    /// How long ago the loop of the pods turned.
    pub pod_loop_age_ms: u32,
    /// Of its databases.
    pub store_bytes: u64,
}

/// The link to the cloud.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// `Up` or `Down`.
    pub state: String,
    /// Since when.
    pub since: Timestamp,
    /// Of cloudcore.
    pub address: String,
    /// On the way there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// Why it is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The node holds exactly what the cloud wants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synced: Option<bool>,
}

/// What waits for the cloud.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backlog {
    /// Latest states.
    pub reports: usize,
    /// Events.
    pub events: usize,
    /// Events that were too many.
    pub dropped_events: u64,
}

/// The container runtime.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Its socket.
    pub endpoint: String,
    /// As it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// As it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How long ago it answered.
    pub age_ms: u32,
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<Told>,
    /// Why the agent says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// What became of the last upgrade of the agent, or is to become; nothing if it was good.
    #[serde(skip_serializing_if = "Option::is_none")]
    upgrade: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<Certificate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_problem: Option<String>,
    /// As the agent tells them; without it, as the container runtime does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<Vec<Summary>>,
    #[serde(skip)]
    now: Timestamp,
}

/// Says how this node is. Without the agent what is known is told before the error.
pub async fn run(args: StatusArgs) -> Result<(), StatusError> {
    let config = Config::load(&args.config.config).map_err(StatusError::Config)?;
    let now = clock::now();
    let (certificate, certificate_problem) = match certificate::read(&config.identity_dir) {
        Ok(certificate) => (certificate, None),
        Err(error) => (None, Some(ui::chain(&error))),
    };
    let agent = Agent::at(&config.control_socket);
    let told = ask(&agent).await;
    let (told, pods, error) = match told {
        Ok((told, pods)) => {
            let pods = pods.iter().map(|pod| Summary::of(pod, now)).collect();
            (Some(told), Some(pods), None)
        }
        Err(error) => (None, runtime::pods(&config, now).await.ok(), Some(error)),
    };
    let status = Status {
        node: config.node.to_string(),
        agent: told,
        problem: error.as_ref().map(|error| ui::chain(error)),
        upgrade: upgrade::told(&args.config.config),
        certificate,
        certificate_problem,
        pods,
        now,
    };
    output::show(args.output.output, &status);

    error.map_or(Ok(()), |error| Err(StatusError::Agent(error)))
}

async fn ask(agent: &Agent) -> Result<(Told, Vec<k8s_openapi::api::core::v1::Pod>), AgentError> {
    Ok((agent.get("/holdfast/v1/status").await?, pods::all(agent).await?))
}

impl Status {
    fn since(&self, then: Timestamp) -> String {
        format!("{then} ({})", age(self.now.duration_since(then)))
    }

    fn link(&self, link: &Link) -> String {
        let since = self.since(link.since);
        let through = link.proxy.as_ref().map(|proxy| format!(" through {proxy}"));
        let to = format!("{}{}", link.address, through.unwrap_or_default());
        if link.state == "Up" {
            let synced = if link.synced == Some(true) { "in sync" } else { "not yet in sync" };
            return format!("up since {since}, to {to}, {synced}");
        }

        let reason = link.reason.as_deref().unwrap_or("unknown");
        format!("down since {since}, to {to}: {reason}")
    }

    fn certificate(&self) -> String {
        if let Some(problem) = &self.certificate_problem {
            return format!("unusable: {problem}");
        }
        let Some(certificate) = &self.certificate else { return "unreadable".to_owned() };
        let left = certificate.not_after.parse::<Timestamp>().map(|until| {
            let left = until.duration_since(self.now);
            if left.is_negative() { "past".to_owned() } else { age(left) }
        });
        let problem = certificate.problem.as_ref();
        let problem = problem.map(|problem| format!("; cloudcore will not take it: {problem}"));
        let (until, left) = (&certificate.not_after, left.unwrap_or_default());

        format!("until {until} ({left}){}", problem.unwrap_or_default())
    }
}

fn runtime_text(runtime: &Runtime) -> String {
    let Some(name) = &runtime.name else {
        return format!("has not answered yet at {}", runtime.endpoint);
    };
    let version = runtime.version.as_deref().unwrap_or_default();
    let silent = runtime.age_ms > SILENT_MS;
    let silent = silent.then(|| format!(", silent for {} s", runtime.age_ms / 1000));

    format!("{name} {version} at {}{}", runtime.endpoint, silent.unwrap_or_default())
}

fn backlog(backlog: &Backlog) -> String {
    let Backlog { reports, events, dropped_events } = backlog;
    let dropped = match dropped_events {
        0 => String::new(),
        dropped => format!(", {dropped} events were dropped"),
    };

    format!("{reports} reports and {events} events wait for the cloud{dropped}")
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1024.0 / 1024.0)
}

impl Answer for Status {
    fn text(&self) -> String {
        let mut lines = vec![("Node", self.node.clone())];
        if let Some(agent) = &self.agent {
            let since = agent.started_at.map(|at| format!(", since {}", self.since(at)));
            let (version, pid) = (&agent.version, agent.pid);
            let since = since.unwrap_or_default();
            lines.push(("Agent", format!("{version}, process {pid}{since}")));
            lines.push(("Link", self.link(&agent.link)));
            lines.push(("Backlog", backlog(&agent.backlog)));
            lines.push(("Runtime", runtime_text(&agent.runtime)));
            if agent.pod_loop_age_ms > SILENT_MS {
                let seconds = agent.pod_loop_age_ms / 1000;
                lines.push(("Pod loop", format!("hangs, for {seconds} s")));
            }
            let (memory, store) = (mib(agent.resident_bytes), mib(agent.store_bytes));
            lines.push(("Use", format!("{memory} of memory, {store} of state")));
        } else {
            lines.push(("Agent", "does not answer".to_owned()));
        }
        lines.extend(self.upgrade.clone().map(|told| ("Upgrade", told)));
        lines.push(("Certificate", self.certificate()));
        let lines = pairs(lines);
        match &self.pods {
            None => lines,
            Some(pods) if pods.is_empty() => format!("{lines}\n\nNo pods."),
            Some(pods) => format!("{lines}\n\n{}", table(pods, true)),
        }
    }
}

/// Pods, one a line.
pub fn table(pods: &[Summary], with_namespace: bool) -> String {
    let mut headings = vec!["NAME", "READY", "STATUS", "RESTARTS", "AGE"];
    if with_namespace {
        headings.insert(0, "NAMESPACE");
    }
    let mut table = Table::new(&headings);
    for pod in pods {
        let restarts = pod.restarts.to_string();
        let mut cells = vec![&pod.name, &pod.ready, &pod.status, &restarts, &pod.age];
        if with_namespace {
            cells.insert(0, &pod.namespace);
        }
        table.row(cells);
    }

    table.text()
}
