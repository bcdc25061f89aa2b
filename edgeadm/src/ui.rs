//! What `edgeadm` says: answers on stdout, progress and failures on stderr.

use std::error::Error;
use std::io::Write as _;

pub use edgecore::telemetry::chain;

/// An answer, for people and scripts.
pub fn answer(text: &str) {
    // Whoever closed stdout does not want it.
    let _closed = writeln!(std::io::stdout().lock(), "{text}");
}

/// A piece of an answer, as it is. False if nobody wants more.
pub fn bytes(bytes: &[u8]) -> bool {
    let mut stdout = std::io::stdout().lock();

    stdout.write_all(bytes).and_then(|()| stdout.flush()).is_ok()
}

/// What somebody else says on stderr, as it is.
pub fn error_bytes(bytes: &[u8]) {
    let _closed = std::io::stderr().lock().write_all(bytes);
}

/// What is being done.
pub fn step(text: &str) {
    let _closed = writeln!(std::io::stderr().lock(), "{text}");
}

/// Why the command failed.
pub fn fail(error: &dyn Error) {
    let _closed = writeln!(std::io::stderr().lock(), "edgeadm: {}", chain(error));
}
