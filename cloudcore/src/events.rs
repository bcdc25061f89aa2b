//! Events of a node, one after the other: `series` decides what of them is written.

mod series;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use http::Request;
use kube::Client;
use proto::ids::{NodeName, Uid};
use proto::wire::Seq;
use serde_json::Value;
use tokio::task::JoinSet;

use self::series::{Reported, Series, Subject, Write};
use crate::cluster::Cluster;
use crate::hub::SessionHandle;
use crate::{clock, pods, telemetry};

/// Statuses go first: an Event is written when the node has said nothing of its pods for this long. Twenty
/// pods that start together are sixty Events, and the API server has the statuses to take.
const REST: Duration = Duration::from_millis(300);

/// After this Events wait no longer, until there have been none for as long: a node says a few at once and then
/// waits for answers, and would have to drop what it cannot say.
const PATIENCE: Duration = Duration::from_secs(3);

/// Writes the Events of the node of one session.
pub struct Writer {
    cluster: Cluster,
    client: Client,
    session: SessionHandle,
    series: Series,
    /// Bounded by what a session may leave unanswered.
    waiting: VecDeque<Waiting>,
    patience: Patience,
    /// At most one: the next may be of the same series.
    under_way: JoinSet<Ended>,
}

#[derive(Debug)]
struct Waiting {
    seq: Seq,
    event: serde_json::Result<Reported>,
    /// It was about a pod of the node when it came: the last of a pod may be written when that is gone.
    was_bound: bool,
}

/// A write that has ended.
#[derive(Debug)]
pub struct Ended {
    seq: Seq,
    write: Write,
    /// Whether it made an Event; `None` if it failed.
    made: Option<bool>,
}

/// What would be written of an Event of a node with this pod: for [`crate::inputs`].
pub(crate) fn written_of(node: &NodeName, bytes: &[u8], pod: &str) -> Option<Value> {
    let reported = serde_json::from_slice(bytes).ok()?;
    let is_bound = |subject: &Subject| subject.uid == pod;
    let write = Series::default().take(node, reported, is_bound, clock::now()).ok()?;

    Some(write.create)
}

impl Writer {
    /// A writer for the node of `session`.
    pub fn new(cluster: Cluster, client: Client, session: SessionHandle) -> Self {
        Self {
            cluster,
            client,
            session,
            series: Series::default(),
            waiting: VecDeque::new(),
            patience: Patience::default(),
            under_way: JoinSet::new(),
        }
    }

    /// The node says an Event. It waits for its turn, and for [`Self::go_on`].
    pub fn take(&mut self, seq: Seq, bytes: &[u8]) {
        let event = serde_json::from_slice(bytes);
        let was_bound = event.as_ref().is_ok_and(|event: &Reported| {
            is_bound(&self.cluster, self.session.node(), &event.involved_object)
        });
        self.patience.begin(clock::now());
        self.waiting.push_back(Waiting { seq, event, was_bound });
    }

    /// When the next write may start, if one waits for that; `heard` is when the node last spoke of a pod.
    pub fn due(&self, heard: Instant) -> Option<Instant> {
        let is_one_due = !self.waiting.is_empty() && self.under_way.is_empty();

        self.patience.end(heard).filter(|_| is_one_due)
    }

    /// Resolves when a write has ended; never if none is under way. May be dropped and called again.
    pub async fn ended(&mut self) -> Option<Ended> {
        match self.under_way.join_next().await {
            Some(ended) => ended.ok(),
            None => std::future::pending().await,
        }
    }

    /// Takes the end of a write.
    pub async fn done(&mut self, ended: Option<Ended>) {
        let Some(Ended { seq, write, made }) = ended else { return };
        if let Some(is_new) = made {
            self.series.written(write, is_new);
        }
        self.answer(seq).await;
    }

    async fn answer(&mut self, seq: Seq) {
        if self.waiting.is_empty() {
            self.patience.rest(clock::now());
        }
        self.session.event_done(seq).await;
    }

    /// Starts the next write, if none is under way. To be called when pods of the node are known, and
    /// the write is [due](Self::due).
    pub async fn go_on(&mut self) {
        while self.under_way.is_empty()
            && let Some(Waiting { seq, event, was_bound, .. }) = self.waiting.pop_front()
        {
            match self.decide(event, was_bound) {
                Ok(write) => {
                    let (client, session) = (self.client.clone(), self.session.clone());
                    self.under_way.spawn(async move {
                        let made = send(&client, &session, &write).await;
                        Ended { seq, write, made }
                    });
                }
                Err(reason) => {
                    let node = self.session.node();
                    tracing::debug!(%node, reason, "an event of a node is not written");
                    self.answer(seq).await;
                }
            }
        }
    }

    fn decide(
        &mut self,
        event: serde_json::Result<Reported>,
        was_bound: bool,
    ) -> Result<Write, String> {
        let event = event.map_err(|error| error.to_string())?;
        let (cluster, node) = (&self.cluster, self.session.node());
        let is_theirs = |object: &Subject| was_bound || is_bound(cluster, node, object);

        self.series
            .take(node, event, is_theirs, clock::now())
            .map_err(|refused| refused.to_string())
    }
}

/// How long Events have waited for a node to say nothing of its pods.
#[derive(Debug, Default)]
struct Patience {
    /// Since when some wait or are written.
    since: Option<Instant>,
    /// When the last of them was written, if that took too long.
    rested: Option<Instant>,
}

impl Patience {
    /// One waits.
    fn begin(&mut self, now: Instant) {
        let rested = self.rested.take();
        if rested.is_some_and(|rested| now.saturating_duration_since(rested) >= PATIENCE) {
            self.since = None;
        }
        self.since.get_or_insert(now);
    }

    /// None waits any more.
    fn rest(&mut self, now: Instant) {
        if self.since.is_some_and(|since| now.saturating_duration_since(since) < PATIENCE) {
            self.since = None;
        } else {
            self.rested = Some(now);
        }
    }

    /// Until when they wait at most, if the node last spoke of a pod when it was `heard`.
    fn end(&self, heard: Instant) -> Option<Instant> {
        self.since.map(|since| (heard + REST).min(since + PATIENCE))
    }
}

/// Whether it is a pod that is bound to the node.
fn is_bound(cluster: &Cluster, node: &NodeName, object: &Subject) -> bool {
    let uid = Uid::new(object.uid.clone()).ok();
    let found = uid.and_then(|uid| pods::find(cluster, node, &uid));

    found.is_some_and(|(path, _)| path.namespace == object.namespace && path.name == object.name)
}

/// Carries a write out; whether it made an Event. One that the API server does not take is dropped:
/// events are hints.
async fn send(client: &Client, session: &SessionHandle, write: &Write) -> Option<bool> {
    if !session.is_current() {
        return None;
    }
    let events = format!("/api/v1/namespaces/{}/events", write.namespace);
    if let Some((name, patch)) = &write.count {
        let request = Request::patch(format!("{events}/{name}"))
            .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
            .body(patch.to_string().into_bytes());
        match ask(client, request).await {
            Ok(()) => return Some(false),
            // Events expire: the series begins anew.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return told(session, &error),
        }
    }
    let request = Request::post(events)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(write.create.to_string().into_bytes());
    match ask(client, request).await {
        Ok(()) => Some(true),
        Err(error) => told(session, &error),
    }
}

async fn ask(client: &Client, request: http::Result<Request<Vec<u8>>>) -> Result<(), kube::Error> {
    client.request::<Value>(request.map_err(kube::Error::HttpError)?).await.map(drop)
}

fn told(session: &SessionHandle, error: &kube::Error) -> Option<bool> {
    let (node, text) = (session.node(), telemetry::chain(error));
    if is_forbidden(error) {
        // Not the event's fault, and nothing else would tell.
        tracing::warn!(%node, error = text, "cannot write events");
    } else {
        tracing::debug!(%node, error = text, "an event was not taken");
    }

    None
}

/// Whether cloudcore may not write Events. A namespace that is being deleted takes none of anybody.
fn is_forbidden(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let mut causes = status.details.iter().flat_map(|details| &details.causes);

    matches!(status.code, 401 | 403) && !causes.any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use proto::session::{EVENTS_IN_FLIGHT_MAX, EVENTS_MAX};
    use serde_json::json;

    use super::*;

    #[test]
    fn events_wait_for_a_rest_and_not_for_ever() {
        let start = clock::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut patience = Patience::default();
        let mut check = |begun: u64, heard: u64, expected: u64, rested: u64| {
            patience.begin(at(begun));
            let end = patience.end(at(heard)).unwrap();
            assert_eq!(end.duration_since(start), Duration::from_millis(expected), "at {begun} ms");
            patience.rest(at(rested));
        };
        // A rest.
        check(0, 100, 400, 500);
        check(1_000, 1_000, 1_300, 1_400);
        // None: one more comes as soon as these are written, and does not wait again.
        check(10_000, 15_000, 13_000, 13_100);
        check(13_200, 15_000, 13_000, 14_000);
        check(16_999, 17_000, 13_000, 17_000);
        // A pause between: it does.
        check(20_000, 25_000, 23_000, 23_100);
    }

    /// What a node says at once, and what it keeps while it waits, are bounded: pods that start and fail
    /// all the time must not make it drop any.
    #[test]
    fn a_node_that_never_rests_gets_rid_of_its_events() {
        let mut now = clock::now();
        let (start, mut patience) = (now, Patience::default());
        for _ in 0..EVENTS_MAX / EVENTS_IN_FLIGHT_MAX {
            patience.begin(now);
            let heard = now + PATIENCE;
            now = now.max(patience.end(heard).unwrap()) + Duration::from_millis(50);
            patience.rest(now);
        }
        assert!(now.duration_since(start) < 2 * PATIENCE);
    }

    #[test]
    fn only_what_an_operator_can_mend_is_a_warning() {
        let check = |code: u16, cause: &str, expected: bool| {
            let status = json!({
                "code": code, "message": "m", "reason": "Forbidden",
                "details": { "causes": [{ "reason": cause }] },
            });
            let error = kube::Error::Api(serde_json::from_value(status).unwrap());
            assert_eq!(is_forbidden(&error), expected, "{error}");
        };
        check(403, "", true);
        check(401, "", true);
        check(403, "NamespaceTerminating", false);
        check(409, "", false);
    }
}
