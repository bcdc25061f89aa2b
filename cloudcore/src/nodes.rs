//! Nodes: one worker a connected node, which sends what the node must hold and writes what it says.

mod away;
mod extended;
mod lease;
mod mirrors;
mod news;
mod object;
mod port;
mod tokens;
mod worker;

use std::net::IpAddr;
use std::sync::Arc;

use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use self::away::Away;
use crate::clock;
use crate::cluster::Cluster;
use crate::evidence::Evidence;
use crate::hub::Connected;
use crate::kubelet_api;
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
    /// Address at which API servers find the kubelet API of every node: this replica's.
    pub advertise_address: IpAddr,
    /// What the kubelet API's ports need.
    pub kubelet_api: Arc<kubelet_api::Shared>,
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
    let mut away = Away::new(Arc::clone(&shared));
    let start = Instant::from_std(clock::now());
    let mut looks = interval_at(start + away::LOOK_PERIOD, away::LOOK_PERIOD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(session) = connected.recv() => {
                away.began(session.session.node());
                workers.spawn(worker::run(Arc::clone(&shared), session));
            }
            Some(ended) = workers.join_next(), if !workers.is_empty() => {
                if let Ok(node) = ended {
                    away.ended(node);
                }
            }
            _ = looks.tick() => away.look(),
        }
    }
    // Sessions are being drained: each worker ends when its session does.
    while workers.join_next().await.is_some() {}
}
