//! `edgeadm check`: looks at everything an edge node needs, and says what to do about what is wrong.
//! Works before a machine has joined and after, and changes nothing.

mod disk;
pub(crate) mod machine;
pub(crate) mod network;
mod runtime;

use edgecore::Config;
use serde::Serialize;

use crate::args::check::CheckArgs;
use crate::output::{self, Answer, Table};
use crate::token::{Malformed, Token};
use crate::{exit, ui};

/// Stands in for what a configuration says, on a machine that has none.
const NOWHERE: &str = "nowhere.invalid:1";

/// Why the machine is not fit to be an edge node, or cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Not a token.
    #[error(transparent)]
    Token(Malformed),
    /// Not an address or a socket.
    #[error("the arguments make no sense")]
    Arguments(#[source] edgecore::config::ConfigError),
    /// Something is wrong.
    #[error("{0} of the checks failed")]
    Failed(usize),
}

impl CheckError {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Token(_) | Self::Arguments(_) => exit::BAD_CONFIG,
            Self::Failed(_) => exit::FAILED,
        }
    }
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not for everything.
    Warn,
    /// Pods will not run, or the cloud is not reached.
    Fail,
}

/// What was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it is.
    pub found: String,
    /// Whether that is good.
    pub verdict: Verdict,
    /// What to do, if it is not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, found: found.into(), verdict: Verdict::Ok, remedy: String::new() }
    }

    fn warn(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, found: found.into(), verdict: Verdict::Warn, remedy: remedy.into() }
    }

    fn fail(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, found: found.into(), verdict: Verdict::Fail, remedy: remedy.into() }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn failures(&self) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count()
    }
}

impl Answer for Report {
    fn text(&self) -> String {
        let mut table = Table::new(&["CHECK", "VERDICT", "FOUND"]);
        for finding in &self.findings {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            table.row([finding.what, verdict, &finding.found]);
        }
        let remedies = self.findings.iter().filter(|finding| !finding.remedy.is_empty());
        let remedies: Vec<_> =
            remedies.map(|finding| format!("{}: {}", finding.what, finding.remedy)).collect();
        if remedies.is_empty() {
            return table.text();
        }

        format!("{}\n\nWhat to do:\n{}", table.text(), remedies.join("\n"))
    }
}

/// Looks at everything.
pub async fn run(args: CheckArgs) -> Result<(), CheckError> {
    let token = args.token.as_deref().map(str::parse::<Token>).transpose();
    let token = token.map_err(CheckError::Token)?;
    let loaded = Config::load(&args.config.config);
    let joined = configuration(&loaded);
    let config = config(&args, loaded)?;
    let mut report = Report { findings: vec![joined] };
    report.findings.extend(findings(&config, token.as_ref()).await);
    output::show(args.output.output, &report);

    match report.failures() {
        0 => Ok(()),
        failures => Err(CheckError::Failed(failures)),
    }
}

/// What is found on the machine of a node with this configuration.
pub async fn findings(config: &Config, token: Option<&Token>) -> Vec<Finding> {
    let mut findings = vec![user()];
    findings.extend(runtime::look(config).await);
    findings.extend(machine::look(config));
    findings.extend(disk::look(config));
    if config.cloudcore.to_string() == NOWHERE {
        let how = "give --cloudcore HOST:PORT, and --token to look further than the first packet";
        findings.push(Finding::warn("cloudcore", "not looked for: nobody said where it is", how));
    } else {
        findings.extend(network::look(config, token).await);
    }

    findings
}

fn configuration(loaded: &Result<Config, edgecore::config::ConfigError>) -> Finding {
    use edgecore::config::ConfigError::Read;
    match loaded {
        Ok(config) => Finding::ok("configuration", format!("node {} has joined", config.node)),
        Err(Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Finding::ok("configuration", "this machine has not joined yet")
        }
        Err(error) => Finding::fail(
            "configuration",
            ui::chain(error),
            "mend the file, or remove it and join this machine anew",
        ),
    }
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::ok("user", "root");
    }

    Finding::warn("user", "not root: the runtime and the disks may not be seen", "use sudo")
}

/// What was loaded, or defaults; with what the command line says instead.
fn config(
    args: &CheckArgs,
    loaded: Result<Config, edgecore::config::ConfigError>,
) -> Result<Config, CheckError> {
    let address = args.cloudcore.as_deref();
    let endpoint = args.runtime_endpoint.as_deref();
    let text = |address: &str| {
        let line = |key: &str, value: Option<&str>| {
            value.map(|value| format!("{key}: {value:?}\n")).unwrap_or_default()
        };
        let more = line("runtimeEndpoint", endpoint) + &line("proxy", args.proxy.as_deref());
        format!("nodeName: check\ncloudcore: {address:?}\n{more}")
    };
    let said = Config::parse("of the command line".as_ref(), &text(address.unwrap_or(NOWHERE)));
    let said = said.map_err(CheckError::Arguments)?;
    let Ok(mut config) = loaded else { return Ok(said) };
    if address.is_some() {
        config.cloudcore = said.cloudcore;
    }
    if args.proxy.is_some() {
        config.proxy = said.proxy;
    }
    if endpoint.is_some() {
        config.runtime_socket = said.runtime_socket;
    }

    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_stand_below_what_was_found() {
        let findings = vec![
            Finding::ok("user", "root"),
            Finding::warn("memory", "200 MiB", "add some"),
            Finding::fail("runtime", "none", "install containerd"),
        ];
        let report = Report { findings };
        let expected = "\
CHECK     VERDICT   FOUND
user      ok        root
memory    warn      200 MiB
runtime   FAIL      none

What to do:
memory: add some
runtime: install containerd";
        assert_eq!(report.text(), expected);
        assert_eq!(report.failures(), 1);
    }
}
