//! What the process says: the log on stderr, answers to commands on stdout.

use std::error::Error;
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

/// An error and its causes in one line. Some errors of others tell their causes themselves: those are not
/// told again.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        if !text.contains(&told) {
            text.push_str(": ");
            text.push_str(&told);
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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Level(String, #[source] Option<Box<dyn Error + Send + Sync>>);

    #[test]
    fn every_cause_is_told_once() {
        let level = |text: &str, source| Level(text.to_owned(), source);
        let missing = || Box::new(io::Error::other("no such file"));
        let read = level("cannot read a: no such file", Some(missing()));
        let error = level("cannot start", Some(Box::new(read)));
        assert_eq!(chain(&error), "cannot start: cannot read a: no such file");
        let error = level("cannot start", Some(missing()));
        assert_eq!(chain(&error), "cannot start: no such file");
    }
}
