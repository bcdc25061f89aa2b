//! Why a pod's task should look again. Reasons coalesce: an event only says where to look.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// What to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasons {
    /// The pod, or something it references, changed or was deleted.
    pub desired: bool,
    /// The runtime holds something else than the task believes.
    pub observe: bool,
    /// Something that the status names changed, for example the node's address.
    pub report: bool,
    /// Containers or sandboxes whose process ended. At most as many as the pod has.
    pub exited: BTreeSet<String>,
    /// Containers in which the kernel killed something for want of memory. As many.
    pub out_of_memory: BTreeSet<String>,
}

impl Reasons {
    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The inbox of one pod's task.
#[derive(Debug, Default)]
pub struct Wake {
    reasons: Mutex<Reasons>,
    notify: Notify,
}

impl Wake {
    /// Adds a reason.
    pub fn because(&self, add: impl FnOnce(&mut Reasons)) {
        add(&mut self.reasons.lock().unwrap_or_else(PoisonError::into_inner));
        self.notify.notify_one();
    }

    /// Whether no reason has come.
    pub fn is_quiet(&self) -> bool {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Takes the reasons that have come, without waiting.
    pub fn take(&self) -> Reasons {
        std::mem::take(&mut self.reasons.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until there is a reason and takes all of them.
    pub async fn wait(&self) -> Reasons {
        loop {
            let reasons = self.take();
            if !reasons.is_empty() {
                return reasons;
            }
            self.notify.notified().await;
        }
    }
}
