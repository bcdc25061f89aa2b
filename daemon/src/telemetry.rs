//! What the process says: the log on stderr, answers to commands on stdout.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;

/// How a program speaks: by its name before there is a log, then by the log.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// As on the command line.
    pub name: &'static str,
    /// The crates that say what an operator wants to know in detail. Those of others only warn.
    pub crates: &'static [&'static str],
}

impl Program {
    /// Starts the log: one line an event on stderr, where systemd collects it.
    pub fn start_log(&self, level: LevelFilter) {
        let others = level.min(LevelFilter::WARN);
        let ours = self.crates.iter().map(|name| (*name, level));
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_target(false)
            .with_ansi(false);
        let targets = Targets::new().with_default(others).with_targets(ours);
        let subscriber = tracing_subscriber::registry().with(targets).with(lines);

        // Fails only if a log was started before, which then goes on.
        let _already_started = tracing::subscriber::set_global_default(subscriber);
    }

    /// Says on stderr why the command cannot be done; there is no log yet.
    pub fn refuse(&self, error: &dyn Error, code: u8) -> ExitCode {
        let line = format!("{}: {}\n", self.name, chain(error));
        let _closed = std::io::stderr().lock().write_all(line.as_bytes());

        ExitCode::from(code)
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _infallible = write!(text, ": {error}");
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
