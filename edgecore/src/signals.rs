//! The signals that ask the agent to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::AgentError;

/// Waits for SIGTERM or SIGINT.
#[derive(Debug)]
pub struct Terminate {
    term: Signal,
    int: Signal,
}

/// Starts to listen for the signals, so that none is lost from here on.
pub fn terminate() -> Result<Terminate, AgentError> {
    let listen = |kind| {
        signal(kind)
            .map_err(|source| AgentError::Os { attempted: "listen for signals".into(), source })
    };

    Ok(Terminate { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
}

impl Terminate {
    /// The name of the next signal that asks to stop.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}
