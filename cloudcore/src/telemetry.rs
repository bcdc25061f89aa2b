//! What the process says: the log on stderr, answers to commands on stdout.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;

/// The crates that say what an operator wants to know in detail. Those of others only warn.
const OURS: [&str; 3] = ["cloudcore", "index", "proto"];

/// Says each failed request as an error; whoever asked says what it means.
const REPEATS: &str = "kube_client::client::builder";

/// Starts the log: one line an event on stderr, where systemd collects it.
pub fn init(level: LevelFilter) {
    let others = level.min(LevelFilter::WARN);
    let ours = OURS.map(|name| (name, level));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false);
    let targets = Targets::new()
        .with_default(others)
        .with_targets(ours)
        .with_target(REPEATS, LevelFilter::OFF);
    let subscriber = tracing_subscriber::registry().with(targets).with(lines);

    // Fails only if a log was started before, which then goes on.
    let _already_started = tracing::subscriber::set_global_default(subscriber);
}

/// An error and its causes in one line, without those that the error before has told already.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            let _infallible = write!(text, ": {told}");
        }
        cause = error.source();
    }

    text
}

/// Writes an answer to stdout.
pub fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_closed) => ExitCode::FAILURE,
    }
}

/// Says on stderr why the command cannot be done; there is no log yet.
pub fn refuse(error: &dyn Error, code: u8) -> ExitCode {
    let line = format!("cloudcore: {}\n", chain(error));
    let _closed = std::io::stderr().lock().write_all(line.as_bytes());

    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{told}")]
    struct Link {
        told: &'static str,
        source: Option<Box<Self>>,
    }

    fn check(links: &[&'static str], expected: &str) {
        let error =
            links.iter().rev().fold(None, |source, told| Some(Box::new(Link { told, source })));

        assert_eq!(chain(&*error.unwrap()), expected);
    }

    #[test]
    fn every_cause_is_told_once() {
        check(&["cannot list pods"], "cannot list pods");
        check(&["cannot list pods", "refused"], "cannot list pods: refused");
        check(
            &["cannot list pods", "ServiceError: connect", "connect", "refused"],
            "cannot list pods: ServiceError: connect: refused",
        );
    }
}
