//! Ends the sessions of a replica that stops, so that their nodes do not come to the others all at once. Those
//! with open streams, of `kubectl exec` or `logs -f`, end last: a stream cannot move with its node.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{SessionHandle, Sessions};
use crate::clock;

/// Sessions ended at a time: 500 a second, as many as come back after an outage.
const SLICE: usize = 50;
const SLICE_PERIOD: Duration = Duration::from_millis(100);

/// What a node is told to wait; it waits up to as long again. By then the listener is closed, and a Service
/// leads elsewhere.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A session's loop takes what it is told within milliseconds, also when its link is stuck.
const TELL_MAX: Duration = Duration::from_secs(1);

/// How long streams may go on. It is in the grace that the hub has.
pub(crate) const STREAMS_MAX: Duration = Duration::from_secs(15);

/// Tells every session to end; also those that began meanwhile.
pub(super) async fn run(sessions: &Sessions) {
    let (mut told, until) = (BTreeSet::new(), clock::now() + STREAMS_MAX);
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
            drop(timeout(TELL_MAX, session.drain("cloudcore stops", RETRY_AFTER, until)).await);
        }
        sleep(SLICE_PERIOD).await;
    }
}
