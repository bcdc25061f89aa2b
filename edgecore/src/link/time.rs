//! What is known of the time, kept in the store: a machine without a clock battery knows no other when it starts.
//! It is cloudcore's word or what follows from it, never the machine's clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use store::{Store, StoreError, Write};

use crate::clock::KnownTime;
use crate::identity::Identity;
use crate::telemetry::chain;

/// The store's setting with the time in seconds since 1970, and then the id of the join: another cloudcore may
/// have another time.
const SETTING: &str = "link.time";

/// How often it is kept: flash memory wears out.
const KEEP_AGAIN: Duration = Duration::from_hours(24);

/// Learns what was kept, and what the certificate tells: cloudcore has signed it, not before it begins.
pub(super) fn recall(
    known: &KnownTime,
    settings: &BTreeMap<String, Vec<u8>>,
    identity: &Identity,
    now: Instant,
) {
    let kept = settings.get(SETTING).and_then(|value| read(value, &identity.join_id));
    let signed = identity.validity.map(|(from, _)| from);
    for time in kept.into_iter().chain(signed) {
        known.learn(time, now);
    }
}

fn read(value: &[u8], join_id: &[u8]) -> Option<Duration> {
    let (time, owner) = value.split_first_chunk()?;

    (owner == join_id).then(|| Duration::from_secs(u64::from_be_bytes(*time)))
}

/// When the time was kept last.
#[derive(Debug)]
pub(super) struct Keeper {
    kept_at: Instant,
}

impl Keeper {
    pub(super) fn new(now: Instant) -> Self {
        Self { kept_at: now }
    }

    /// Keeps it if that is long ago.
    pub(super) fn keep_if_due(
        &mut self,
        store: &Store,
        known: &KnownTime,
        join_id: &[u8],
        now: Instant,
    ) {
        if !self.is_due(now) {
            return;
        }
        let write = self.keep(known, join_id, now);
        let done = Box::new(|stored: Result<(), StoreError>| {
            if let Err(error) = stored {
                tracing::warn!(error = %chain(&error), "cannot store what is known of the time");
            }
        });
        store.commit(vec![write], done);
    }

    fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.kept_at) >= KEEP_AGAIN
    }

    /// What keeps it for the node that joined then.
    pub(super) fn keep(&mut self, known: &KnownTime, join_id: &[u8], now: Instant) -> Write {
        self.kept_at = now;
        let value = [&known.least(now).as_secs().to_be_bytes(), join_id].concat();

        Write::Setting { name: SETTING.to_owned(), value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::link::dial::tests::Authority;

    #[test]
    fn what_was_known_is_known_again_until_the_node_joins_anew() {
        let now = clock::instant();
        let (known, mut keeper) = (KnownTime::of_build(), Keeper::new(now));
        let later = known.least(now) + 3 * KEEP_AGAIN;
        known.learn(later, now);
        let identity = Authority::new().node();
        let Write::Setting { name, value } = keeper.keep(&known, &identity.join_id, now) else {
            panic!("no setting")
        };
        let settings = BTreeMap::from([(name, value)]);
        let recalled = |identity: &Identity| {
            let known = KnownTime::of_build();
            recall(&known, &settings, identity, now);
            known.least(now)
        };
        assert_eq!(recalled(&identity), later);
        assert!(recalled(&Authority::new().node()) < later);
        // The certificate tells, too.
        let from = later + KEEP_AGAIN;
        let mut signed = identity;
        signed.validity = Some((from, from + KEEP_AGAIN));
        assert_eq!(recalled(&signed), from);
    }

    #[test]
    fn it_is_kept_once_a_day() {
        let start = clock::instant();
        let mut keeper = Keeper::new(start);
        let day = start + KEEP_AGAIN;
        assert!(!keeper.is_due(start) && keeper.is_due(day));
        keeper.keep(&KnownTime::of_build(), b"join", day);
        assert!(!keeper.is_due(day) && keeper.is_due(day + KEEP_AGAIN));
    }
}
