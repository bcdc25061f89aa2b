//! Telling the cloud what the edge holds, piece by piece.

use std::collections::btree_map;

use crate::digest::HeldSet;
use crate::ids::ObjectKey;
use crate::object::Version;
use crate::wire::Frame;

/// Entries in one frame: about 30 KiB, so that a pong waits behind little.
const ENTRIES_PER_FRAME: usize = 256;

/// Names may be long: a frame ends here too, well below [`crate::codec::SMALL_FRAME_BYTES_MAX`].
const NAME_BYTES_PER_FRAME: usize = 40 * 1024;

/// A listing under way. A newer request replaces it.
#[derive(Debug, Default)]
pub(super) struct Listing {
    request: u32,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    /// The shell was asked for the set.
    Asked,
    Sending(btree_map::IntoIter<ObjectKey, Version>),
}

impl Listing {
    pub(super) fn start(&mut self, request: u32) {
        *self = Self { request, state: State::Asked };
    }

    pub(super) fn answer(&mut self, held: HeldSet) {
        if matches!(self.state, State::Asked) {
            self.state = State::Sending(held.objects.into_iter());
        }
    }

    pub(super) fn poll_send(&mut self) -> Option<Frame> {
        let State::Sending(rest) = &mut self.state else { return None };
        let mut entries = Vec::with_capacity(rest.len().min(ENTRIES_PER_FRAME));
        let mut name_bytes = 0;
        while entries.len() < ENTRIES_PER_FRAME && name_bytes < NAME_BYTES_PER_FRAME {
            let Some((key, version)) = rest.next() else { break };
            // Hash, numbers and tags are at most 60 bytes beside the names.
            name_bytes += key.id().len() + version.uid.as_str().len() + 60;
            entries.push((key, version));
        }
        let last = rest.len() == 0;
        if last {
            self.state = State::Idle;
        }

        Some(Frame::Held { request: self.request, entries, last })
    }
}
