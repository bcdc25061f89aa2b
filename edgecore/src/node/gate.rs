//! What keeps the node from taking pods in: too little of something, or the end of its work.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podcore::admission::Node;
use tokio::sync::Notify;

/// Closed in part or whole by those who watch the machine, read when a pod comes.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    state: Arc<Mutex<State>>,
    shutdown: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    pressure: Vec<&'static str>,
    shuts_down: bool,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node is short of what these conditions tell.
    pub fn press(&self, conditions: Vec<&'static str>) {
        self.state().pressure = conditions;
    }

    /// The machine is about to go off, or is not after all.
    pub fn shut_down(&self, shuts_down: bool) {
        self.state().shuts_down = shuts_down;
        self.shutdown.notify_one();
    }

    /// Whether the machine is about to go off.
    pub fn shuts_down(&self) -> bool {
        self.state().shuts_down
    }

    /// Waits until that may have changed.
    pub async fn shutdown_changed(&self) {
        self.shutdown.notified().await;
    }

    /// The node with what keeps pods out.
    pub fn apply(&self, node: Node) -> Node {
        let state = self.state();

        Node { pressure: state.pressure.clone(), shuts_down: state.shuts_down, ..node }
    }
}
