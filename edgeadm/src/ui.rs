//! What `edgeadm` says: answers on stdout, progress and errors on stderr.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the module that prints")]

/// An answer, for people or pipes.
pub fn answer(text: &str) {
    println!("{text}");
}

/// What is being done.
pub fn progress(text: &str) {
    eprintln!("{text}");
}

/// Why a command failed, with its causes.
pub fn error(error: &anyhow::Error) {
    eprintln!("edgeadm: {error:#}");
}
