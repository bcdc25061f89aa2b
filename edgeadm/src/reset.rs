//! `edgeadm reset`: makes this machine what it was before it joined. Touches only what is this node's,
//! and asks nobody but the machine: the cluster is not told.
//!
//! Every step is taken, whatever became of those before; what failed is told at the end, and a second
//! run does what is left. The configuration says what is this node's, so it goes last, and only when
//! nothing failed.

mod agent;
mod files;
mod ours;
mod pods;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal as _, stdin};
use std::path::{Path, PathBuf};

use edgecore::Config;
use edgecore::config::ConfigError;
use serde::Serialize;

use self::ours::Ours;
use crate::args::reset::ResetArgs;
use crate::output::{self, Answer, Table};
use crate::{exit, ui, upgrade};

/// Why the machine is not what it was.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// Started by another user.
    #[error("edgeadm reset must run as root; use sudo")]
    NotRoot,
    /// What is this node's is not known.
    #[error("cannot tell what is this node's; mend its configuration and reset again")]
    Config(#[source] ConfigError),
    /// Nobody said that it is meant.
    #[error(
        "nothing was done: this stops and removes all pods of this node; say that with --force"
    )]
    NotMeant,
    /// Steps failed.
    #[error("{0} of the steps failed; mend what they say and reset again, which does what is left")]
    Failed(usize),
}

impl ResetError {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotRoot => exit::NOT_PERMITTED,
            Self::Config(_) | Self::NotMeant => exit::BAD_CONFIG,
            Self::Failed(_) => exit::FAILED,
        }
    }
}

/// What became of a step: what was done, or why it was not.
type Outcome = Result<String, String>;

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    /// `done`, `failed`, `skipped` or `planned`.
    result: &'static str,
    detail: String,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    steps: Vec<Step>,
    #[serde(skip)]
    note: String,
}

impl Answer for Report {
    fn text(&self) -> String {
        let mut table = Table::new(&["STEP", "RESULT", "DETAIL"]);
        for step in &self.steps {
            table.row([step.name, step.result, &step.detail]);
        }
        let table =
            if self.steps.is_empty() { String::new() } else { format!("{}\n", table.text()) };

        format!("{table}{}", self.note)
    }
}

impl Report {
    fn note(&mut self, step: &'static str, outcome: Outcome) {
        let (result, detail) = match outcome {
            Ok(detail) => ("done", detail),
            Err(detail) => ("failed", detail),
        };
        ui::step(&format!("{step}: {result}, {detail}"));
        self.steps.push(Step { name: step, result, detail });
    }

    fn skip(&mut self, step: &'static str, why: &str) {
        self.steps.push(Step { name: step, result: "skipped", detail: why.to_owned() });
    }

    fn failures(&self) -> usize {
        self.steps.iter().filter(|step| step.result == "failed").count()
    }
}

/// Undoes what `join` and the agent did.
pub async fn run(args: ResetArgs) -> Result<(), ResetError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ResetError::NotRoot);
    }
    let path = args.config.config;
    let config = match Config::load(&path) {
        Ok(config) => config,
        Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let note = format!("This machine is no edge node: there is no {}.", path.display());
            output::show(args.output.output, &Report { node: None, steps: Vec::new(), note });
            return Ok(());
        }
        Err(error) => return Err(ResetError::Config(error)),
    };
    if args.dry_run {
        output::show(args.output.output, &planned(&config, &path, args.keep_containers));
        return Ok(());
    }
    if !args.force && !is_meant(&config) {
        return Err(ResetError::NotMeant);
    }
    let mut report = take(&config, &path, args.keep_containers).await;
    let failures = report.failures();
    report.note = note(&config, failures);
    output::show(args.output.output, &report);

    if failures == 0 { Ok(()) } else { Err(ResetError::Failed(failures)) }
}

fn is_meant(config: &Config) -> bool {
    if !stdin().is_terminal() {
        return false;
    }
    ui::step(&format!(
        "This stops and removes all pods of node {} here. Go on? [y/N]",
        config.node
    ));
    let mut line = String::new();
    let read = stdin().read_line(&mut line);

    read.is_ok() && matches!(line.trim(), "y" | "Y" | "yes")
}

fn note(config: &Config, failures: usize) -> String {
    let node = &config.node;
    if failures > 0 {
        return format!("The configuration of node {node} is kept: it says what is left.");
    }

    format!(
        "This machine is no edge node any more. The cluster was not told; to remove the node there:\n  \
         kubectl annotate lease -n holdfast {node} holdfast.dev/revoked=true\n  \
         kubectl delete node {node}"
    )
}

fn planned(config: &Config, path: &Path, keep: bool) -> Report {
    let shown = |path: &Path| path.display().to_string();
    let mut steps = vec![("agent", "stop it, and do not start it again".to_owned())];
    if !keep {
        steps.extend([
            ("pods", format!("stop and remove those that the runtime has of node {}", config.node)),
            (
                "volumes",
                format!("unmount and remove what is below {}/pods", shown(&config.root_dir)),
            ),
            ("logs", format!("remove those of its pods from {}", shown(&config.pod_logs_dir))),
            ("cgroups", format!("remove kubepods below {}", config.cgroup_root)),
        ]);
    }
    steps.extend([
        ("network", "remove what edgeadm join wrote for CNI, unless it was changed".to_owned()),
        ("state", format!("remove the databases from {}", shown(&config.state_dir))),
        ("identity", format!("remove key and certificates from {}", shown(&config.identity_dir))),
        ("unit", "remove the systemd unit that edgeadm wrote".to_owned()),
        ("configuration", format!("remove {}", shown(path))),
    ]);
    let step = |(name, detail)| Step { name, result: "planned", detail };

    Report {
        node: Some(config.node.to_string()),
        steps: steps.into_iter().map(step).collect(),
        note: "Nothing was done.".to_owned(),
    }
}

/// Takes every step.
async fn take(config: &Config, path: &Path, keep: bool) -> Report {
    let mut report =
        Report { node: Some(config.node.to_string()), steps: Vec::new(), note: String::new() };
    report.note("agent", agent::stop(config, path).await);
    if keep {
        for step in ["pods", "volumes", "logs", "cgroups"] {
            report.skip(step, "asked to keep the containers");
        }
    } else {
        let mut ours = Ours::in_files(config);
        report.note("pods", pods::remove(config, &mut ours).await);
        report.note("volumes", files::volumes(config).await);
        report.note("logs", files::logs(config, &ours).await);
        report.note("cgroups", pods::cgroups(config, &ours).await);
    }
    report.note("network", files::network());
    report.note("state", files::state(config));
    report.note("identity", files::identity(config));
    report.note("unit", agent::remove_unit(config, path).await);
    if report.failures() > 0 {
        report.skip("configuration", "it says what is left to do");
    } else {
        let mut left = upgrade::leftovers(path);
        left.push(PathBuf::from(path));
        report.note("configuration", files::remove(&left));
    }

    report
}
