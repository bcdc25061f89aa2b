//! Ends the sessions of a replica that stops, so that their nodes do not come to the others all at once.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{SessionHandle, Sessions};

/// Sessions ended at a time: 500 a second, as many as come back after an outage.
const SLICE: usize = 50;
const SLICE_PERIOD: Duration = Duration::from_millis(100);

/// What a node is told to wait; it waits up to as long again. By then the listener is closed, and a Service
/// leads elsewhere.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A session's loop takes what it is told within milliseconds, also when its link is stuck.
const TELL_MAX: Duration = Duration::from_secs(1);

/// Tells every session to end; also those that began meanwhile.
pub(super) async fn run(sessions: &Sessions) {
    let mut told = BTreeSet::new();
    loop {
        let all = sessions.all();
        let name = |session: &SessionHandle| (session.node().clone(), session.generation());
        let left = all.iter().filter(|session| !told.contains(&name(session)));
        let slice: Vec<_> = left.take(SLICE).collect();
        if slice.is_empty() {
            return;
        }
        for session in slice {
            told.insert(name(session));
            // A loop that has ended needs no telling.
            drop(timeout(TELL_MAX, session.drain("cloudcore stops", RETRY_AFTER)).await);
        }
        sleep(SLICE_PERIOD).await;
    }
}
