//! The node agent: runs the pods of one node, with or without the cloud.
//!
//! - [`config`], [`args`], [`exit`], [`telemetry`]: the process and its surroundings.

pub mod args;
pub mod blocking;
pub mod clock;
pub mod config;
pub mod events;
pub mod exit;
pub mod kubelet_api;
pub mod layout;
pub mod node;
pub mod pods;
pub mod signals;
pub mod tasks;
pub mod telemetry;
pub mod volumes;

use std::io;

pub use config::Config;

/// Why the agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The operating system refused something.
    #[error("cannot {attempted}")]
    Os {
        /// What was attempted, on what.
        attempted: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
