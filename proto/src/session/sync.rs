//! Bringing an edge to exactly what the cloud wants, once for each session.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::digest::{HELD_OBJECTS_MAX, Summary, summarise};
use crate::ids::{ObjectKey, Uid};
use crate::object::{Object, Version};
use crate::outbox::Desired;
use crate::session::ProtocolError;

type Wanted = BTreeMap<ObjectKey, Arc<Object>>;

#[derive(Debug)]
pub(super) enum Sync {
    /// Not asked for yet.
    Idle,
    /// The edge was asked for its list, under this number.
    Listing { request: u32, wanted: Wanted, held: BTreeMap<ObjectKey, Version> },
    /// What differs is in the outbox; these are held, not wanted, and not yet confirmed as gone.
    Settling { unconfirmed: BTreeSet<ObjectKey> },
    /// Said.
    Synced,
}

/// What a listing shows.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) puts: Vec<Arc<Object>>,
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

        Self::Listing { request, wanted, held: BTreeMap::new() }
    }

    /// A change while the edge lists: what is wanted at the end counts.
    pub(super) fn change(&mut self, desired: &Desired) {
        match self {
            Self::Listing { wanted, .. } => match desired {
                Desired::Put(object) => {
                    wanted.insert(object.key.clone(), Arc::clone(object));
                }
                Desired::Delete { key, uid, .. } => forget(wanted, key, uid),
            },
            Self::Settling { unconfirmed } => {
                unconfirmed.remove(desired.key());
            }
            Self::Idle | Self::Synced => {}
        }
    }

    /// The shell found the object to exist after all.
    pub(super) fn still_wanted(&mut self, key: &ObjectKey) {
        match self {
            Self::Settling { unconfirmed } => {
                unconfirmed.remove(key);
            }
            Self::Idle | Self::Listing { .. } | Self::Synced => {}
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
        let Self::Listing { request, wanted, held } = self else { return Ok(None) };
        if *request != number {
            return Ok(None);
        }
        held.extend(entries);
        if held.len() > HELD_OBJECTS_MAX {
            return Err(ProtocolError::TooManyHeld);
        }
        if !last {
            return Ok(None);
        }
        let (wanted, held) = (std::mem::take(wanted), std::mem::take(held));
        let difference = diff(wanted, held);
        let unconfirmed = difference.unwanted.iter().map(|(key, _)| key.clone()).collect();
        *self = Self::Settling { unconfirmed };

        Ok(Some(difference))
    }

    /// Whether only the outbox keeps the edge from being in sync.
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Self::Settling { unconfirmed } => unconfirmed.is_empty(),
            Self::Idle | Self::Listing { .. } | Self::Synced => false,
        }
    }
}

fn forget(wanted: &mut Wanted, key: &ObjectKey, uid: &Uid) {
    if wanted.get(key).is_some_and(|object| object.version.uid == *uid) {
        wanted.remove(key);
    }
}

fn diff(wanted: Wanted, mut held: BTreeMap<ObjectKey, Version>) -> Difference {
    let mut difference = Difference::default();
    for (key, object) in wanted {
        let same = held.remove(&key).is_some_and(|held| {
            (&held.uid, held.hash) == (&object.version.uid, object.version.hash)
        });
        if !same {
            difference.puts.push(object);
        }
    }
    difference.unwanted = held.into_iter().collect();

    difference
}
