//! What `edgeadm` says: answers on stdout, progress and failures on stderr.

use std::error::Error;
use std::io::Write as _;

/// An answer, for people and scripts.
pub fn answer(text: &str) {
    // Whoever closed stdout does not want it.
    let _closed = writeln!(std::io::stdout().lock(), "{text}");
}

/// What is being done.
pub fn step(text: &str) {
    let _closed = writeln!(std::io::stderr().lock(), "{text}");
}

/// Why the command failed.
pub fn fail(error: &dyn Error) {
    let _closed = writeln!(std::io::stderr().lock(), "edgeadm: {}", chain(error));
}

/// The texts of an error and its causes.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }

    text
}
