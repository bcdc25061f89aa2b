//! Decides what to write of an Event that a node reports: nothing, a new one, or one more of a series.
//! No socket, no clock.
//!
//! As the kubelet's recorder does (`client-go/tools/record`): a repeated Event is counted in the first
//! one, and an object that causes very many has a few heard. Only what an Event is made of is taken
//! from the node, and only about itself and pods bound to it (invariant 12).

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use proto::ids::NodeName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Series and objects remembered for one node: as many as a node with many troubled pods has at once.
/// The oldest is forgotten; its next Event begins a new series.
pub(super) const REMEMBERED_MAX: usize = 256;

/// Events of one object at once; after that one each [`REFILL`] (client-go: `maxBurst`, `maxQPS`).
const BURST: u32 = 25;

/// See [`BURST`].
const REFILL: Duration = Duration::from_mins(5);

/// Longest message (`events.k8s.io` limits the note to 1 KiB).
const MESSAGE_BYTES_MAX: usize = 1024;

/// Longest reason (`events.k8s.io`).
const REASON_BYTES_MAX: usize = 128;

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
pub(super) struct Subject {
    pub(super) kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    field_path: String,
}

/// An Event as a node reports it; other fields are not taken.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Reported {
    metadata: Metadata,
    pub(super) involved_object: Subject,
    reason: String,
    message: String,
    source: Source,
    last_timestamp: String,
    r#type: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Source {
    component: String,
    host: String,
}

/// Why nothing is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// It names another source.
    #[error("its source is another host")]
    OtherHost,
    /// It is about what is not the node's.
    #[error("it is about an object that is neither the node nor a pod bound to it")]
    NotTheirs,
    /// It is not what a kubelet writes.
    #[error("it is malformed")]
    Malformed,
    /// The object has had too many.
    #[error("there are too many about this object")]
    TooMany,
}

/// What Events of one series have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    subject: Subject,
    component: String,
    r#type: String,
    reason: String,
    message: String,
}

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Write {
    /// To be said with [`Series::written`].
    pub(super) key: Key,
    /// Where the Event lives.
    pub(super) namespace: String,
    /// Name and merge patch of the Event that counts this one, if there is one.
    pub(super) count: Option<(String, Value)>,
    /// The Event, if it is the first or that one is gone.
    pub(super) create: Value,
    /// Its name.
    pub(super) name: String,
    counted: u32,
}

#[derive(Debug)]
struct Bucket {
    tokens: u32,
    since: Instant,
}

/// The Events of one node.
#[derive(Debug, Default)]
pub(super) struct Series {
    /// Name of the Event that counts, and how many it has counted.
    first: BTreeMap<Key, (String, u32)>,
    order: VecDeque<Key>,
    objects: BTreeMap<Subject, Bucket>,
    objects_order: VecDeque<Subject>,
}

impl Series {
    /// What to write of an Event of `node`; `is_bound` tells whether the subject is a pod bound to it.
    pub(super) fn take(
        &mut self,
        node: &NodeName,
        reported: Reported,
        is_bound: impl Fn(&Subject) -> bool,
        now: Instant,
    ) -> Result<Write, Refused> {
        if reported.source.host != node.as_str() {
            return Err(Refused::OtherHost);
        }
        let object = Subject { field_path: String::new(), ..reported.involved_object.clone() };
        // An Event may come after its pod has gone: it was the node's when it was first heard of.
        if !self.objects.contains_key(&object) && !is_theirs(node, &object, is_bound) {
            return Err(Refused::NotTheirs);
        }
        if !is_well_formed(&reported) {
            return Err(Refused::Malformed);
        }
        if !self.may_speak(object, now) {
            return Err(Refused::TooMany);
        }

        Ok(self.write_of(node, reported))
    }

    fn write_of(&self, node: &NodeName, reported: Reported) -> Write {
        let message = &reported.message[..reported.message.floor_char_boundary(MESSAGE_BYTES_MAX)];
        let key = Key {
            subject: reported.involved_object,
            component: reported.source.component,
            r#type: reported.r#type,
            reason: reported.reason,
            message: message.to_owned(),
        };
        let Metadata { name, namespace } = reported.metadata;
        let time = reported.last_timestamp;
        let before = self.first.get(&key);
        let count = before.map(|(first, count)| {
            (first.clone(), json!({ "count": count.saturating_add(1), "lastTimestamp": time }))
        });
        let create = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": { "name": name, "namespace": namespace },
            "involvedObject": key.subject,
            "reason": key.reason, "message": key.message, "type": key.r#type,
            "source": { "component": key.component, "host": node.as_str() },
            "reportingComponent": key.component, "reportingInstance": node.as_str(),
            "firstTimestamp": time, "lastTimestamp": time, "count": 1,
        });
        let counted = before.map_or(0, |(_, count)| *count);

        Write { key, namespace, count, create, name, counted }
    }

    /// The write was carried out; `is_new` if it made an Event.
    pub(super) fn written(&mut self, write: Write, is_new: bool) {
        let Write { key, name, count, counted, .. } = write;
        let first = count.map(|(first, _)| first).filter(|_| !is_new);
        let entry = match first {
            Some(first) => (first, counted.saturating_add(1)),
            None => (name, 1),
        };
        if self.first.insert(key.clone(), entry).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > REMEMBERED_MAX {
            let oldest = self.order.pop_front().expect("there are many");
            self.first.remove(&oldest);
        }
    }

    /// Takes a token of the object.
    fn may_speak(&mut self, object: Subject, now: Instant) -> bool {
        if !self.objects.contains_key(&object) {
            self.objects_order.push_back(object.clone());
            if self.objects_order.len() > REMEMBERED_MAX {
                let oldest = self.objects_order.pop_front().expect("there are many");
                self.objects.remove(&oldest);
            }
        }
        let bucket = self.objects.entry(object).or_insert(Bucket { tokens: BURST, since: now });
        while bucket.tokens < BURST && now.saturating_duration_since(bucket.since) >= REFILL {
            bucket.tokens += 1;
            bucket.since += REFILL;
        }
        if bucket.tokens == BURST {
            bucket.since = now;
        }
        let may = bucket.tokens > 0;
        bucket.tokens = bucket.tokens.saturating_sub(1);

        may
    }
}

fn is_theirs(node: &NodeName, object: &Subject, is_bound: impl Fn(&Subject) -> bool) -> bool {
    if object.api_version != "v1" {
        return false;
    }
    match object.kind.as_str() {
        "Node" => object.name == node.as_str() && object.namespace.is_empty(),
        "Pod" => is_bound(object),
        _ => false,
    }
}

/// An Event lives in the namespace of its object and is named after it, so that nothing of another
/// can be hit.
fn is_well_formed(reported: &Reported) -> bool {
    let Reported { metadata, involved_object: object, reason, r#type, source, .. } = reported;
    let namespace = if object.namespace.is_empty() { "default" } else { &object.namespace };
    // Names of pods may be cut: a dot and a number follow.
    let suffix = metadata.name.rsplit_once('.').filter(|(prefix, suffix)| {
        let is_hex = suffix.bytes().all(|byte| byte.is_ascii_hexdigit());
        !prefix.is_empty() && object.name.starts_with(prefix) && is_hex
    });

    metadata.namespace == namespace
        && suffix.is_some()
        && matches!(r#type.as_str(), "Normal" | "Warning")
        && !reason.is_empty()
        && reason.len() <= REASON_BYTES_MAX
        && source.component.len() <= REASON_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(change: impl Fn(&mut Value)) -> Reported {
        let mut event = json!({
            "metadata": { "name": "web.17979cfe3d85cd15", "namespace": "ns" },
            "involvedObject": {
                "kind": "Pod", "namespace": "ns", "name": "web", "uid": "u1", "apiVersion": "v1",
                "fieldPath": "spec.containers{app}",
            },
            "reason": "BackOff", "message": "again", "type": "Warning",
            "source": { "component": "kubelet", "host": "edge" },
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z",
        });
        change(&mut event);

        serde_json::from_value(event).unwrap()
    }

    fn node() -> NodeName {
        NodeName::new("edge").unwrap()
    }

    /// Pod `ns/web` with UID `u1` is bound to the node.
    fn is_bound(object: &Subject) -> bool {
        (object.namespace.as_str(), object.name.as_str(), object.uid.as_str())
            == ("ns", "web", "u1")
    }

    #[test]
    fn a_node_speaks_of_itself_and_its_pods_only() {
        let check = |change: &dyn Fn(&mut Value), expected: Result<(), Refused>| {
            let reported = reported(change);
            let shown = format!("{reported:?}");
            let taken = Series::default().take(&node(), reported, is_bound, crate::clock::now());
            assert_eq!(taken.map(drop), expected, "{shown}");
        };
        let of_node = |name: &'static str| {
            move |event: &mut Value| {
                event["metadata"] = json!({ "name": format!("{name}.1"), "namespace": "default" });
                event["involvedObject"] =
                    json!({ "kind": "Node", "name": name, "uid": name, "apiVersion": "v1" });
            }
        };
        check(&|_| {}, Ok(()));
        check(&of_node("edge"), Ok(()));
        check(&of_node("other"), Err(Refused::NotTheirs));
        check(&|e| e["source"]["host"] = json!("other"), Err(Refused::OtherHost));
        check(&|e| e["involvedObject"]["uid"] = json!("u2"), Err(Refused::NotTheirs));
        check(&|e| e["involvedObject"]["namespace"] = json!("other"), Err(Refused::NotTheirs));
        check(&|e| e["involvedObject"]["kind"] = json!("Secret"), Err(Refused::NotTheirs));
        check(&|e| e["metadata"]["namespace"] = json!("kube-system"), Err(Refused::Malformed));
        check(&|e| e["metadata"]["name"] = json!("another.1"), Err(Refused::Malformed));
        check(&|e| e["metadata"]["name"] = json!("web./../x"), Err(Refused::Malformed));
        check(&|e| e["type"] = json!("Alarming"), Err(Refused::Malformed));
        check(&|e| e["reason"] = json!("x".repeat(129)), Err(Refused::Malformed));
    }

    #[test]
    fn nothing_but_what_an_event_is_made_of_is_taken() {
        let reported = reported(|event| {
            event["metadata"]["finalizers"] = json!(["example.com/stuck"]);
            event["metadata"]["labels"] = json!({ "a": "b" });
            event["related"] = json!({ "kind": "Secret" });
            event["count"] = json!(1_000_000);
            event["message"] = json!("é".repeat(2000));
        });
        let write =
            Series::default().take(&node(), reported, is_bound, crate::clock::now()).unwrap();

        let metadata = json!({ "name": "web.17979cfe3d85cd15", "namespace": "ns" });
        assert_eq!(write.create["metadata"], metadata);
        assert_eq!(write.create["related"], Value::Null);
        assert_eq!(write.create["count"], 1);
        assert_eq!(write.create["message"].as_str().unwrap().len(), 1024);
        assert_eq!(write.create["involvedObject"]["fieldPath"], "spec.containers{app}");
    }

    #[test]
    fn a_repeated_event_is_counted_in_the_first() {
        let (mut series, now) = (Series::default(), crate::clock::now());
        let mut say = |name: &'static str, reason: &'static str, is_gone: bool| {
            let reported = reported(|event| {
                event["metadata"]["name"] = json!(name);
                event["reason"] = json!(reason);
                event["lastTimestamp"] = json!(name);
            });
            let write = series.take(&node(), reported, is_bound, now).unwrap();
            let count = write.count.clone();
            series.written(write, count.is_none() || is_gone);
            count
        };
        let counted = |name: &str, count: u32, last: &str| {
            Some((name.to_owned(), json!({ "count": count, "lastTimestamp": last })))
        };
        assert_eq!(say("web.1", "BackOff", false), None);
        assert_eq!(say("web.2", "BackOff", false), counted("web.1", 2, "web.2"));
        assert_eq!(say("web.3", "Killing", false), None);
        assert_eq!(say("web.4", "BackOff", true), counted("web.1", 3, "web.4"));
        // The first had expired: the last one is the first of another series.
        assert_eq!(say("web.5", "BackOff", false), counted("web.4", 2, "web.5"));
    }

    #[test]
    fn an_object_with_very_many_events_has_a_few_heard() {
        let (mut series, start) = (Series::default(), crate::clock::now());
        let mut heard = |at: Duration| {
            let taken = series.take(&node(), reported(|_| {}), is_bound, start + at);
            taken.is_ok()
        };
        let now = (0..100).filter(|_| heard(Duration::ZERO)).count();
        assert_eq!(now, 25);
        assert!(!heard(REFILL / 2));
        assert!(heard(REFILL));
        assert!(!heard(REFILL));
    }

    #[test]
    fn the_last_words_about_a_pod_that_has_gone_are_heard_and_memory_is_bounded() {
        let (mut series, now) = (Series::default(), crate::clock::now());
        series.take(&node(), reported(|_| {}), is_bound, now).unwrap();
        assert!(series.take(&node(), reported(|_| {}), |_| false, now).is_ok());
        for i in 0..2 * REMEMBERED_MAX {
            let reported = reported(|event| {
                event["involvedObject"]["uid"] = json!(format!("u{i}"));
            });
            let write = series.take(&node(), reported, |_| true, now).unwrap();
            series.written(write, true);
        }
        assert_eq!(series.first.len(), REMEMBERED_MAX);
        assert_eq!(series.objects.len(), REMEMBERED_MAX);
    }
}
