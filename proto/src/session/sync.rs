//! Bringing an edge to exactly what the cloud wants, once for each session and after each list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::digest::{HELD_OBJECTS_MAX, Summary, summarise};
use crate::ids::{Kind, ObjectKey};
use crate::object::{Object, Version};
use crate::outbox::Desired;
use crate::session::ProtocolError;

#[derive(Debug)]
pub(super) enum Sync {
    /// Not asked for yet: nothing is sent down.
    Idle,
    /// The edge is to list what it holds. It is asked when nothing is under way, and nothing is
    /// sent before it has answered: the list shows exactly what it holds.
    Listing(Box<Listing>),
    /// What differs is in the outbox; these are held, not wanted, and not yet confirmed as gone.
    Settling { unconfirmed: BTreeSet<ObjectKey> },
    /// Said.
    Synced,
}

#[derive(Debug)]
pub(super) struct Listing {
    request: u32,
    asked: bool,
    wanted: BTreeMap<ObjectKey, Arc<Object>>,
    /// Deletes that came meanwhile.
    gone: BTreeMap<ObjectKey, Desired>,
    held: BTreeMap<ObjectKey, Version>,
}

/// What a list shows.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) changes: Vec<Desired>,
    pub(super) unwanted: Vec<(ObjectKey, Version)>,
}

impl Sync {
    /// The edge holds everything, or will once the outbox is empty.
    pub(super) fn settled() -> Self {
        Self::Settling { unconfirmed: BTreeSet::new() }
    }

    /// Whether the edge already holds exactly `wanted`.
    pub(super) fn agrees(wanted: &[Arc<Object>], held: &Summary) -> bool {
        let wanted = summarise(wanted.iter().map(|object| (&object.key, &object.version)));

        (wanted.digest, wanted.count) == (held.digest, held.count)
    }

    pub(super) fn list(request: u32, wanted: Vec<Arc<Object>>) -> Self {
        let wanted = wanted.into_iter().map(|object| (object.key.clone(), object)).collect();
        let (gone, held) = (BTreeMap::new(), BTreeMap::new());

        Self::Listing(Box::new(Listing { request, asked: false, wanted, gone, held }))
    }

    /// The number to ask for a list with, once.
    pub(super) fn poll_request(&mut self) -> Option<u32> {
        match self {
            Self::Listing(listing) if !listing.asked => {
                listing.asked = true;
                Some(listing.request)
            }
            Self::Idle | Self::Listing(_) | Self::Settling { .. } | Self::Synced => None,
        }
    }

    /// Takes note of a change; gives it back if it is to be sent now.
    pub(super) fn change(&mut self, desired: Desired) -> Option<Desired> {
        match self {
            Self::Idle => None,
            Self::Listing(listing) => {
                listing.change(desired);
                None
            }
            Self::Settling { unconfirmed } => {
                unconfirmed.remove(desired.key());
                Some(desired)
            }
            Self::Synced => Some(desired),
        }
    }

    /// The shell found the object to exist after all.
    pub(super) fn still_wanted(&mut self, key: &ObjectKey) {
        match self {
            Self::Settling { unconfirmed } => {
                unconfirmed.remove(key);
            }
            Self::Idle | Self::Listing(_) | Self::Synced => {}
        }
    }

    /// Takes a part of the list; the difference when it is complete. Parts of a list that was
    /// asked for earlier are ignored.
    pub(super) fn receive(
        &mut self,
        number: u32,
        entries: Vec<(ObjectKey, Version)>,
        last: bool,
    ) -> Result<Option<Difference>, ProtocolError> {
        let Self::Listing(listing) = self else { return Ok(None) };
        if listing.request != number {
            return Ok(None);
        }
        listing.held.extend(entries);
        if listing.held.len() > HELD_OBJECTS_MAX {
            return Err(ProtocolError::TooManyHeld);
        }
        if !last {
            return Ok(None);
        }
        let difference = listing.diff();
        let unconfirmed = difference.unwanted.iter().map(|(key, _)| key.clone()).collect();
        *self = Self::Settling { unconfirmed };

        Ok(Some(difference))
    }

    /// Whether only the outbox keeps the edge from being in sync.
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Self::Settling { unconfirmed } => unconfirmed.is_empty(),
            Self::Idle | Self::Listing(_) | Self::Synced => false,
        }
    }
}

impl Listing {
    fn change(&mut self, desired: Desired) {
        match &desired {
            Desired::Put(object) => {
                self.gone.remove(&object.key);
                self.wanted.insert(object.key.clone(), Arc::clone(object));
            }
            Desired::Delete { key, uid, .. } => {
                if self.wanted.get(key).is_none_or(|object| object.version.uid == *uid) {
                    self.wanted.remove(key);
                    self.gone.insert(key.clone(), desired);
                }
            }
        }
    }

    fn diff(&mut self) -> Difference {
        let mut difference = Difference::default();
        let mut held = std::mem::take(&mut self.held);
        // What pods reference goes before the pods.
        let (pods, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.wanted)
            .into_iter()
            .partition(|(key, _)| key.kind() == Kind::Pod);
        for (key, object) in others.into_iter().chain(pods) {
            let same = held.remove(&key).is_some_and(|held| {
                (&held.uid, held.hash) == (&object.version.uid, object.version.hash)
            });
            if !same {
                difference.changes.push(Desired::Put(object));
            }
        }
        for (key, version) in held {
            match self.gone.remove(&key) {
                Some(Desired::Delete { key, uid, gone_at }) if uid == version.uid => {
                    difference.changes.push(Desired::Delete { key, uid, gone_at });
                }
                Some(_) | None => difference.unwanted.push((key, version)),
            }
        }

        difference
    }
}
