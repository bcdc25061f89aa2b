//! Nodes: one worker a connected node, which sends what the node must hold and writes what it says.

mod extended;
mod lease;
mod mirrors;
mod news;
mod object;
mod port;
mod ports;
mod tokens;
pub(crate) mod told;
mod worker;

use std::sync::Arc;

use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::ports::{Ports, run as keep_ports};
use crate::cluster::Cluster;
use crate::evidence::Evidence;
use crate::hub::Connected;
use crate::registration::Registrations;

/// `spec.providerID` of an edge node begins with this; the node's name follows.
pub const PROVIDER_PREFIX: &str = "holdfast://";

/// What every worker needs.
pub struct Shared {
    /// What is known of the API server's objects.
    pub cluster: Cluster,
    /// Whether what the API server says counts.
    pub evidence: Evidence,
    /// What Nodes were like before they were deleted.
    pub registrations: Registrations,
    /// For writes and GETs; watches have a client of their own.
    pub client: Client,
    /// Where API servers find the kubelet API of every node: at this replica.
    pub ports: Ports,
    /// Between renewals of a Lease.
    pub lease_renewal: std::time::Duration,
}

/// Gives every session its worker, until asked to stop.
pub async fn run(
    shared: Arc<Shared>,
    mut connected: mpsc::Receiver<Connected>,
    stop: CancellationToken,
) {
    let mut workers = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(session) = connected.recv() => {
                workers.spawn(worker::run(Arc::clone(&shared), session));
            }
            Some(_) = workers.join_next(), if !workers.is_empty() => {}
        }
    }
    // Sessions are being drained: each worker ends when its session does.
    while workers.join_next().await.is_some() {}
}
