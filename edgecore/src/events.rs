//! Events: what happened to a pod or the node, as `core/v1 Event` objects in the kubelet's words.

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use crate::clock;
use crate::node::status::rfc3339;

/// Longest message of an Event (`events.k8s.io` limits the note to 1 KiB).
const MESSAGE_BYTES_MAX: usize = 1024;
/// Longest part of an Event's name that comes from its object: a dot and 16 digits follow.
const NAME_BYTES_MAX: usize = proto::ids::NAME_LEN_MAX - 17;
/// Who reports. Tools and users look for the kubelet's name.
const COMPONENT: &str = "kubelet";

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// For the record.
    Normal,
    /// Something is wrong.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    kind: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: String,
    name: String,
    uid: String,
    api_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field_path: Option<String>,
}

impl Subject {
    /// A pod, or the container at `field_path` of it, for example `spec.containers{app}`.
    pub fn pod(namespace: &str, name: &str, uid: &str, field_path: Option<String>) -> Self {
        Self {
            kind: "Pod",
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            api_version: "v1",
            field_path,
        }
    }

    /// The node. Its Events carry its name as UID, as the kubelet's do.
    fn node(name: &str) -> Self {
        Self {
            kind: "Node",
            namespace: String::new(),
            name: name.to_owned(),
            uid: name.to_owned(),
            api_version: "v1",
            field_path: None,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    involved_object: &'a Subject,
    reason: &'a str,
    message: &'a str,
    source: Source<'a>,
    first_timestamp: &'a str,
    last_timestamp: &'a str,
    count: u32,
    r#type: &'static str,
    reporting_component: &'static str,
    reporting_instance: &'a str,
}

#[derive(Serialize)]
struct Metadata<'a> {
    name: String,
    namespace: &'a str,
}

#[derive(Serialize)]
struct Source<'a> {
    component: &'static str,
    host: &'a str,
}

/// One Event as JSON. `now` also makes its name unique.
pub fn event(
    node: &str,
    subject: &Subject,
    r#type: EventType,
    (reason, message): (&str, &str),
    now: Timestamp,
) -> Bytes {
    let time = rfc3339(now);
    // Events about cluster objects live in the default namespace.
    let namespace = if subject.namespace.is_empty() { "default" } else { &subject.namespace };
    let unique = u64::try_from(now.as_nanosecond()).unwrap_or_default();
    let event = Event {
        api_version: "v1",
        kind: "Event",
        metadata: Metadata {
            name: format!("{}.{unique:016x}", cut(&subject.name, NAME_BYTES_MAX)),
            namespace,
        },
        involved_object: subject,
        reason,
        message: cut(message, MESSAGE_BYTES_MAX),
        source: Source { component: COMPONENT, host: node },
        first_timestamp: &time,
        last_timestamp: &time,
        count: 1,
        r#type: r#type.as_str(),
        reporting_component: COMPONENT,
        reporting_instance: node,
    };

    serde_json::to_vec(&event).expect("strings and numbers always serialise").into()
}

/// One Event about the node.
pub fn about_node(node: &str, r#type: EventType, told: (&str, &str)) -> Bytes {
    event(node, &Subject::node(node), r#type, told, clock::now())
}

/// One Event that tells how the node is now (kubelet: `recordNodeStatusEvent`).
pub fn node_status(node: &str, reason: &str) -> Bytes {
    about_node(node, EventType::Normal, (reason, &format!("Node {node} status is now: {reason}")))
}

/// At most `most` bytes of `text`, whole characters.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_what_the_api_server_takes() {
        let pod = Subject::pod("ns", "web", "u1", Some("spec.containers{app}".into()));
        let now = Timestamp::from_nanosecond(1_700_000_000_123_456_789).unwrap();
        let bytes = event("edge-node", &pod, EventType::Warning, ("BackOff", "again"), now);
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();

        assert_eq!(json["metadata"]["name"], "web.17979cfe3d85cd15");
        assert_eq!(json["metadata"]["namespace"], "ns");
        assert_eq!(json["involvedObject"]["fieldPath"], "spec.containers{app}");
        assert_eq!(json["involvedObject"]["apiVersion"], "v1");
        assert_eq!(json["firstTimestamp"], "2023-11-14T22:13:20Z");
        assert_eq!(json["type"], "Warning");
        assert_eq!(json["source"]["component"], "kubelet");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("aéb", 2), "a");
        assert_eq!(cut("aéb", 3), "aé");
        assert_eq!(cut("short", 1024), "short");
    }

    #[test]
    fn events_of_the_node_are_in_the_default_namespace() {
        let now = Timestamp::UNIX_EPOCH;
        let bytes = event("n", &Subject::node("n"), EventType::Normal, ("Starting", ""), now);
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();

        assert_eq!(json["metadata"]["namespace"], "default");
        assert_eq!(json["involvedObject"]["uid"], "n");
    }
}
