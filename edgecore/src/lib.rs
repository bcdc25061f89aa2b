//! The node agent: runs the pods of one node, with or without the cloud.
//!
//! [`Agent`] starts these tasks, each with the token that asks it to stop:
//!
//! - `node` ([`node::monitor`]): watches runtime and machine, reports the Node, tells the link's pings
//!   how healthy the node is.
//! - `addresses` ([`link::addresses`]): sees when the way to the outside changes.
//! - `link` ([`link::shell`]): keeps the session with the cloud; `kubelet-api` ([`kubelet_api`]) serves
//!   the streams that the cloud opens on it.
//! - `control` ([`control`]): serves root on this machine, at a socket.
//! - `desired` ([`desired`]): commits what the link delivers to the store, then shows it.
//! - `static-pods` ([`static_pods`]): reads pods from the node's own files.
//! - `pods` ([`pods`]): one task a pod; observes the runtime, asks podcore for a plan, acts, reports.
//!
//! Channels: deliveries (link to desired, answered when durable), desired's set of changed keys and
//! the runtime's events (to pods), [`link::Upstream`] (reports by key and Events, to the link), and
//! watches of the link's state, the node's addresses and its health.

pub mod agent;
pub mod args;
pub mod blocking;
pub mod clock;
pub mod config;
pub mod control;
pub mod dbus;
pub mod desired;
pub mod events;
pub mod exit;
pub mod handlers;
pub mod identity;
#[doc(hidden)]
pub mod inputs;
pub mod kubelet_api;
pub mod layout;
pub mod link;
pub mod memory;
pub mod node;
pub mod pods;
pub mod release;
pub mod static_pods;
pub mod systemd;
pub mod volumes;

pub use agent::{Agent, AgentError};
pub use config::Config;
pub use daemon::{retry, signals, tasks, telemetry};

/// How the agent speaks.
pub const PROGRAM: telemetry::Program = telemetry::Program {
    name: "edgecore",
    crates: &["edgecore", "podcore", "proto", "store", "cri", "daemon"],
};

/// The runtime of the process: one thread, and few more for files.
pub fn runtime() -> Result<tokio::runtime::Runtime, AgentError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(blocking::BLOCKING_THREADS_MAX)
        .thread_keep_alive(blocking::BLOCKING_THREAD_KEEP_ALIVE)
        .build()
        .map_err(|source| AgentError::Os { attempted: "start the async runtime".into(), source })
}
