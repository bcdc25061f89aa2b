//! Where each node's session is: at this replica, at another one, or nowhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use proto::ids::NodeName;
use tokio_util::sync::CancellationToken;

use super::SessionHandle;
use crate::clock;

/// Another replica, which the record of a node's sessions names.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Its name.
    pub replica: String,
    /// Which session of the node it has.
    pub generation: u64,
    /// Where it takes what others pass on; `None` if it is too old to say.
    pub peer: Option<SocketAddr>,
    /// Cancelled once the record names another session.
    pub over: CancellationToken,
}

/// Where a node's session is, as far as is known.
#[derive(Clone, Debug)]
pub enum Whereabouts {
    /// At this replica.
    Here(SessionHandle),
    /// At another, or it was there last.
    Elsewhere(Holder),
    /// Nowhere.
    Nowhere {
        /// When this replica lost it.
        since: Option<Timestamp>,
    },
}

/// The current sessions of this replica, by node, and what is known of others.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<Known>>);

/// Of as many nodes as have ever joined.
#[derive(Debug, Default)]
struct Known {
    here: BTreeMap<NodeName, SessionHandle>,
    /// Nodes whose record names another replica.
    elsewhere: BTreeMap<NodeName, Holder>,
    /// Nodes that were here, and when their sessions ended.
    lost: BTreeMap<NodeName, Timestamp>,
}

impl Sessions {
    /// The session of a node.
    pub fn get(&self, node: &NodeName) -> Option<SessionHandle> {
        self.lock().here.get(node).cloned()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().here.len()
    }

    /// Every current session.
    pub fn all(&self) -> Vec<SessionHandle> {
        self.lock().here.values().cloned().collect()
    }

    /// When the first certificate of their nodes ends, in seconds since 1970.
    pub fn earliest_expiry_s(&self) -> Option<u64> {
        self.lock().here.values().filter_map(SessionHandle::expiry_s).min()
    }

    /// Where the session of a node is.
    pub fn find(&self, node: &NodeName) -> Whereabouts {
        let known = self.lock();
        if let Some(session) = known.here.get(node) {
            return Whereabouts::Here(session.clone());
        }
        if let Some(holder) = known.elsewhere.get(node) {
            return Whereabouts::Elsewhere(holder.clone());
        }

        Whereabouts::Nowhere { since: known.lost.get(node).copied() }
    }

    /// Whether another replica had the node's last session, as far as is known.
    pub fn is_elsewhere(&self, node: &NodeName) -> bool {
        self.lock().elsewhere.contains_key(node)
    }

    /// Keeps which other replica had the node's last session, if it was another.
    pub(super) fn note(&self, node: &NodeName, holder: Option<Holder>) {
        let mut known = self.lock();
        let before = known.elsewhere.get(node);
        let is_known = before.zip(holder.as_ref()).is_some_and(|(before, holder)| {
            before.generation == holder.generation && before.replica == holder.replica
        });
        if is_known {
            return;
        }
        let before = match holder {
            Some(holder) => known.elsewhere.insert(node.clone(), holder),
            None => known.elsewhere.remove(node),
        };
        if let Some(before) = before {
            before.over.cancel();
        }
    }

    /// Makes `session` the node's; the one before is fenced at once.
    pub(super) fn replace(&self, session: SessionHandle) -> Option<SessionHandle> {
        let mut known = self.lock();
        known.lost.remove(&session.node);
        let before = known.here.insert(session.node.clone(), session);
        if let Some(before) = &before {
            before.fence();
        }

        before
    }

    /// Forgets `session` if it is still the node's.
    pub(super) fn remove(&self, session: &SessionHandle) {
        session.fence();
        let mut known = self.lock();
        let is_it = known
            .here
            .get(&session.node)
            .is_some_and(|other| Arc::ptr_eq(&other.current, &session.current));
        if is_it {
            known.here.remove(&session.node);
            known.lost.insert(session.node.clone(), clock::timestamp());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // The maps are whole whatever panicked beside them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use tokio::sync::mpsc;

    use super::*;
    use crate::hub::{COMMANDS_MAX, Expiry};

    fn session(node: &NodeName, generation: u64) -> SessionHandle {
        let current = Arc::new(AtomicBool::new(true));

        SessionHandle {
            node: node.clone(),
            generation,
            current,
            expiry: Expiry::default(),
            inputs: mpsc::channel(COMMANDS_MAX).0,
        }
    }

    fn holder(replica: &str, generation: u64) -> Holder {
        let (peer, over) = (None, CancellationToken::new());

        Holder { replica: replica.to_owned(), generation, peer, over }
    }

    #[test]
    fn a_node_is_where_its_session_is_or_was_last() {
        let (sessions, node) = (Sessions::default(), NodeName::new("edge-1").unwrap());
        let found = || match sessions.find(&node) {
            Whereabouts::Here(session) => format!("here {}", session.generation()),
            Whereabouts::Elsewhere(holder) => format!("{} {}", holder.replica, holder.generation),
            Whereabouts::Nowhere { since } => format!("nowhere {}", since.is_some()),
        };
        assert_eq!(found(), "nowhere false");
        let (one, two) = (session(&node, 1), session(&node, 2));
        sessions.replace(one.clone());
        sessions.replace(two.clone());
        sessions.remove(&one);
        assert_eq!(found(), "here 2");
        sessions.remove(&two);
        assert_eq!(found(), "nowhere true");

        let (three, four) = (holder("b", 3), holder("c", 4));
        sessions.note(&node, Some(three.clone()));
        sessions.note(&node, Some(holder("b", 3)));
        assert_eq!((found(), three.over.is_cancelled()), ("b 3".to_owned(), false));
        sessions.note(&node, Some(four.clone()));
        assert_eq!((found(), three.over.is_cancelled()), ("c 4".to_owned(), true));
        // The session is known before the record is seen.
        sessions.replace(session(&node, 5));
        assert_eq!(found(), "here 5");
        sessions.note(&node, None);
        assert!(four.over.is_cancelled() && !sessions.is_elsewhere(&node));
    }
}
