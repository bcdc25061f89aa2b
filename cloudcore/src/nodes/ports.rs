//! The kubelet ports of all nodes, open at every replica: whichever is asked answers, or passes on what is
//! asked, or says since when the node is away.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::ids::NodeName;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::port::Claims;
use crate::kubelet_api;

/// Between looks at what Nodes there are, if anything has changed.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Cheap to clone.
#[derive(Clone)]
pub struct Ports(Arc<Inner>);

struct Inner {
    api: Arc<kubelet_api::Shared>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    claims: Claims,
    open: BTreeMap<NodeName, Open>,
    serving: JoinSet<()>,
}

struct Open {
    port: u16,
    task: AbortHandle,
}

impl Ports {
    /// None open yet.
    pub fn new(api: Arc<kubelet_api::Shared>) -> Self {
        Self(Arc::new(Inner { api, state: Mutex::default() }))
    }

    /// Where the ports are.
    pub(super) fn address(&self) -> IpAddr {
        self.0.api.address
    }

    /// The node's port, if it is open.
    pub(super) fn get(&self, node: &NodeName) -> Option<u16> {
        self.lock().open.get(node).map(|open| open.port)
    }

    /// Opens the port of a node whose session is here, or another if it has none of its own.
    pub(super) fn open(&self, node: &NodeName) -> Option<u16> {
        let mut state = self.lock();
        let kept = state.open.get(node).map(|open| open.port);
        let is_own = |port: &u16| state.claims.owner(*port).is_none_or(|owner| owner == node);
        if let Some(port) = kept.filter(is_own) {
            return Some(port);
        }
        state.claims.see(self.0.api.cluster.index().all_nodes());
        let own = state.claims.port_of(node);
        let is_open = |port: &u16| state.open.values().any(|open| open.port == *port);
        let free = state.claims.free(node).filter(|port| !is_open(port));
        let found = own.into_iter().chain(free).find_map(|port| Some((port, self.bind(port)?)));
        let (port, listener) = found?;
        self.serve(&mut state, node.clone(), port, listener);

        Some(port)
    }

    /// Opens the ports that nodes have, closes those that they have no more; whether all are open.
    fn look(&self) -> bool {
        let mut state = self.lock();
        while state.serving.try_join_next().is_some() {}
        state.claims.see(self.0.api.cluster.index().all_nodes());
        let State { claims, open, .. } = &*state;
        let sessions = &self.0.api.sessions;
        let is_over = |node: &NodeName, port: u16| match claims.owner(port) {
            Some(owner) => owner != node,
            // One that was just chosen here is not in the Node yet.
            None => sessions.get(node).is_none(),
        };
        let over = open.iter().filter(|(node, open)| is_over(node, open.port));
        let over: Vec<_> = over.map(|(node, _)| node.clone()).collect();
        for node in &over {
            if let Some(open) = state.open.remove(node) {
                open.task.abort();
            }
        }
        let closed = state.claims.all().filter(|(_, node)| !state.open.contains_key(*node));
        let closed: Vec<_> = closed.map(|(port, node)| (port, node.clone())).collect();
        let mut are_open = true;
        for (port, node) in closed {
            match self.bind(port) {
                Some(listener) => self.serve(&mut state, node, port, listener),
                // One that was just closed is free in a moment.
                None => are_open = false,
            }
        }
        drop(state);
        // Who has a session here and lost its port gets another.
        self.0.api.cluster.wake(&over.into_iter().collect());

        are_open
    }

    fn bind(&self, port: u16) -> Option<TcpListener> {
        let address = SocketAddr::new(self.0.api.address, port);
        let bound = kubelet_api::bind(address);

        bound.inspect_err(|error| tracing::debug!(%address, %error, "cannot open a port")).ok()
    }

    fn serve(&self, state: &mut State, node: NodeName, port: u16, listener: TcpListener) {
        let serving = kubelet_api::run(Arc::clone(&self.0.api), node.clone(), listener);
        let task = state.serving.spawn(serving);
        if let Some(before) = state.open.insert(node, Open { port, task }) {
            before.task.abort();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic leaves is looked at again.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps ports as Nodes say, until asked to stop.
pub async fn run(ports: Ports, stop: CancellationToken) {
    let cluster = ports.0.api.cluster.clone();
    loop {
        let are_open = ports.look();
        let next = async {
            if are_open {
                cluster.progress().await;
            }
            sleep(LOOK_PERIOD).await;
        };
        if stop.run_until_cancelled(next).await.is_none() {
            return;
        }
    }
}
