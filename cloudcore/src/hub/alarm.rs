//! Tells people that somebody with the certificate of a node was refused a session: an Event of the Node,
//! one a minute at most, repeated ones counted in the first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Request;
use http::header::CONTENT_TYPE;
use kube::Client;
use proto::ids::NodeName;
use proto::wire::{Refusal, RefuseCode};
use serde_json::{Value, json};

use crate::{clock, telemetry};

/// A node that was locked out asks that often, and a thief may ask more often.
const INTERVAL: Duration = Duration::from_mins(1);

/// Nodes remembered: the oldest is forgotten, and its next Event is a new one.
const REMEMBERED_MAX: usize = 256;

/// Where the Events of a Node are, which is in no namespace.
const EVENTS: &str = "/api/v1/namespaces/default/events";

/// What was told of one node, and why it was refused.
#[derive(Clone, Debug)]
struct Told {
    at: Instant,
    /// Name of the Event that counts.
    event: String,
    count: u32,
}

/// What was told.
#[derive(Debug, Default)]
pub struct Alarms(Mutex<BTreeMap<(NodeName, RefuseCode), Told>>);

/// The word for programs; `None` if nobody has to know.
fn reason(code: RefuseCode) -> Option<&'static str> {
    match code {
        RefuseCode::StaleTicket => Some("StolenIdentity"),
        RefuseCode::Revoked => Some("RevokedIdentity"),
        RefuseCode::UnknownNode => Some("UnknownIdentity"),
        RefuseCode::BadProtocol => Some("OtherProtocol"),
        RefuseCode::Superseded | RefuseCode::NotReady => None,
    }
}

impl Alarms {
    /// What to tell of a refusal now, if anything: the name of the Event, and how often it has happened.
    fn due(&self, node: &NodeName, code: RefuseCode, now: Instant) -> Option<(String, u32)> {
        // Plain data that is whole after every statement.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (node.clone(), code);
        if let Some(told) = all.get_mut(&key) {
            if now.saturating_duration_since(told.at) < INTERVAL {
                return None;
            }
            told.at = now;
            told.count = told.count.saturating_add(1);
            return Some((told.event.clone(), told.count));
        }
        if all.len() >= REMEMBERED_MAX
            && let Some(oldest) =
                all.iter().min_by_key(|(_, told)| told.at).map(|(key, _)| key.clone())
        {
            all.remove(&oldest);
        }
        let event = format!("{node}.{:016x}", clock::timestamp().as_nanosecond());
        all.insert(key, Told { at: now, event: event.clone(), count: 1 });

        Some((event, 1))
    }

    /// Tells of a refusal, if that was not done just now.
    pub(super) async fn raise(
        &self,
        client: &Client,
        node: &NodeName,
        refusal: &Refusal,
        peer: IpAddr,
    ) {
        let Some(reason) = reason(refusal.code) else { return };
        let Some((name, count)) = self.due(node, refusal.code, clock::now()) else { return };
        let why = &refusal.reason;
        let message =
            format!("a machine at {peer} with the certificate of this node was refused: {why}");
        let event = event(node, &name, reason, &message, count);
        if let Err(error) = tell(client, &name, &event).await {
            let error = telemetry::chain(&error);
            tracing::warn!(%node, reason, error, "cannot write an event about a node");
        }
    }
}

fn event(node: &NodeName, name: &str, reason: &str, message: &str, count: u32) -> Value {
    let now = clock::timestamp().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();

    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": { "name": name, "namespace": "default" },
        // As a kubelet names its own Node: `kubectl describe` looks for that.
        "involvedObject": {
            "apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": node.as_str(),
        },
        "reason": reason, "message": message, "type": "Warning", "count": count,
        "source": { "component": "cloudcore" },
        "reportingComponent": "cloudcore", "reportingInstance": "cloudcore",
        "firstTimestamp": now, "lastTimestamp": now,
    })
}

/// Counts in the Event that is there, or makes it.
async fn tell(client: &Client, name: &str, event: &Value) -> Result<(), kube::Error> {
    if event["count"] != 1 {
        let again = json!({
            "count": event["count"], "lastTimestamp": event["lastTimestamp"], "message": event["message"],
        });
        let patch = Request::patch(format!("{EVENTS}/{name}"))
            .header(CONTENT_TYPE, "application/merge-patch+json");
        match ask(client, patch, &again).await {
            // Events expire.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            done => return done,
        }
    }

    ask(client, Request::post(EVENTS).header(CONTENT_TYPE, "application/json"), event).await
}

async fn ask(
    client: &Client,
    request: http::request::Builder,
    body: &Value,
) -> Result<(), kube::Error> {
    let request = request.body(body.to_string().into_bytes()).map_err(kube::Error::HttpError)?;

    client.request::<Value>(request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alarm_a_minute_for_each_node_and_reason() {
        let (alarms, start) = (Alarms::default(), clock::now());
        let node = |name: &str| NodeName::new(name).unwrap();
        let due = |name: &str, code, after_s: u64| {
            let due = alarms.due(&node(name), code, start + Duration::from_secs(after_s));
            due.map(|(_, count)| count)
        };
        assert_eq!(due("a", RefuseCode::StaleTicket, 0), Some(1));
        assert_eq!(due("a", RefuseCode::StaleTicket, 59), None);
        assert_eq!(due("b", RefuseCode::StaleTicket, 59), Some(1));
        assert_eq!(due("a", RefuseCode::Revoked, 59), Some(1));
        assert_eq!(due("a", RefuseCode::StaleTicket, 60), Some(2));
        assert_eq!(due("a", RefuseCode::StaleTicket, 61), None);
        for n in 0..2 * REMEMBERED_MAX {
            due(&format!("n{n}"), RefuseCode::StaleTicket, 62);
        }
        assert_eq!(alarms.0.lock().unwrap().len(), REMEMBERED_MAX);
    }

    #[test]
    fn what_happens_in_good_order_is_no_alarm() {
        let alarming = RefuseCode::ALL.into_iter().filter(|code| reason(*code).is_some());
        let expected = [
            RefuseCode::BadProtocol,
            RefuseCode::UnknownNode,
            RefuseCode::StaleTicket,
            RefuseCode::Revoked,
        ];
        assert_eq!(alarming.collect::<Vec<_>>(), expected);
    }
}
