//! What keeps the node from taking pods in: too little of something, or the end of its work.

use std::sync::{Arc, Mutex, PoisonError};

use podcore::admission::Node;
use tokio::sync::watch;

/// Closed in part or whole by those who watch the machine, read when a pod comes.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    pressure: Arc<Mutex<Vec<&'static str>>>,
    shuts_down: watch::Sender<bool>,
}

impl Gate {
    /// The node is short of what these conditions tell.
    pub fn press(&self, conditions: Vec<&'static str>) {
        *self.pressure.lock().unwrap_or_else(PoisonError::into_inner) = conditions;
    }

    /// The machine is about to go off, or is not after all.
    pub fn shut_down(&self, shuts_down: bool) {
        self.shuts_down.send_replace(shuts_down);
    }

    /// Whether the machine is about to go off.
    pub fn shuts_down(&self) -> bool {
        *self.shuts_down.borrow()
    }

    /// Tells when that changes.
    pub fn shutdown(&self) -> watch::Receiver<bool> {
        self.shuts_down.subscribe()
    }

    /// The node with what keeps pods out.
    pub fn apply(&self, node: Node) -> Node {
        let pressure = self.pressure.lock().unwrap_or_else(PoisonError::into_inner).clone();

        Node { pressure, shuts_down: self.shuts_down(), ..node }
    }
}
