//! The Node object: registered when the node first says how it is, kept current after.

use http::Request;
use kube::Client;
use proto::ids::NodeName;
use proto::wire::Health;
use serde_json::{Value, json};

use super::{PROVIDER_PREFIX, extended, news, port};
use crate::telemetry;

/// How often the status waits for an Event that the API server does not take, some half a minute by the
/// backoff of reports: after that it matters more.
const WAITS_MAX: u32 = 6;

/// Pod loop and runtime must have responded within this.
const RESPONSIVE_MS: u32 = 30_000;

/// The Node's annotation with the edge's own address, which `hostIP` shows.
const NODE_IP_ANNOTATION: &str = "holdfast.dev/node-ip";

/// Labels that every edge node has, besides those of the report.
///
/// The last two keep cloud load balancers and eviction limits from counting on it.
const LABELS: [(&str, &str); 3] = [
    ("node-role.kubernetes.io/edge", ""),
    ("node.kubernetes.io/exclude-disruption", "true"),
    ("node.kubernetes.io/exclude-from-external-load-balancers", "true"),
];

/// Whether the node may be called alive.
pub(super) fn is_responsive(health: &Health) -> bool {
    health.pod_loop_age_ms <= RESPONSIVE_MS && health.runtime_age_ms <= RESPONSIVE_MS
}

fn path(node: &NodeName) -> String {
    format!("/api/v1/nodes/{node}")
}

async fn send(
    client: &Client,
    request: Result<Request<Vec<u8>>, http::Error>,
) -> Result<Value, kube::Error> {
    client.request::<Value>(request.map_err(kube::Error::HttpError)?).await
}

/// Makes the Node object unless it is there; returns it as it is. `before` is what it was like, if it was.
///
/// A cloud-controller-manager deletes NotReady nodes that it does not know unless their provider is
/// another's: hence the provider id.
pub(super) async fn ensure(
    client: &Client,
    node: &NodeName,
    before: Option<Value>,
    report: &Value,
) -> Result<Value, kube::Error> {
    let get = Request::get(path(node)).body(Vec::new());
    match send(client, get).await {
        Ok(object) => return Ok(object),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error),
    }
    let object = registered(node, before, report);
    let create = Request::post("/api/v1/nodes")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(object.to_string().into_bytes());
    tracing::info!(%node, "registering the node");

    send(client, create).await
}

/// The Node to be registered: as it was `before`, if it was deleted, with the labels of the report.
pub(super) fn registered(node: &NodeName, before: Option<Value>, report: &Value) -> Value {
    let is_new = before.is_none();
    let mut object = before.unwrap_or_else(|| {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": node.as_str(), "labels": {} },
            "spec": { "providerID": format!("{PROVIDER_PREFIX}{node}") },
        })
    });
    for (key, value) in report["metadata"]["labels"].as_object().into_iter().flatten() {
        object["metadata"]["labels"][key] = value.clone();
    }
    for (key, value) in LABELS {
        object["metadata"]["labels"][key] = json!(value);
    }
    if is_new && report["spec"]["taints"].is_array() {
        object["spec"]["taints"] = report["spec"]["taints"].clone();
    }

    object
}

/// What of the cloud a node's status names.
#[derive(Clone, Debug)]
pub(super) struct Facing<'a> {
    /// Where API servers find the node's kubelet API.
    pub address: std::net::IpAddr,
    /// The edge's own address.
    pub node_ip: &'a str,
    /// The port of its kubelet API.
    pub port: u16,
    /// How the node is.
    pub health: Option<Health>,
}

/// Whether what a node reports of itself is of the shape that [`status`] needs. Nothing else keeps it from
/// saying what it likes.
pub(super) fn is_well_formed(report: &Value) -> bool {
    let status = &report["status"];
    let is_object_or_none = |field: &str| status[field].is_object() || status[field].is_null();
    let mut conditions = status["conditions"].as_array().into_iter().flatten();

    status.is_object()
        && ["capacity", "allocatable"].into_iter().all(is_object_or_none)
        && conditions.all(Value::is_object)
}

/// The status of a Node that is as `current`, as the node reports it.
pub(super) fn status(report: &Value, current: &Value, facing: &Facing<'_>, now: &str) -> Value {
    let mut status = report["status"].clone();
    extended::add(&mut status, current);
    status["addresses"] = json!([
        { "type": "InternalIP", "address": facing.address }, { "$patch": "replace" },
    ]);
    status["daemonEndpoints"] = json!({ "kubeletEndpoint": { "Port": facing.port } });
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["lastHeartbeatTime"] = json!(now);
        let is_stuck = facing.health.as_ref().is_some_and(|health| !is_responsive(health));
        if is_stuck && condition["type"] == news::READY {
            condition["status"] = json!("False");
            condition["reason"] = json!("AgentNotResponding");
            condition["message"] = json!("pod loop or container runtime did not respond for 30 s");
        }
        date(condition, current, now);
    }

    status
}

/// A condition changes when the node says so, or when it takes back what somebody else has said since.
fn date(condition: &mut Value, current: &Value, now: &str) {
    let r#type = condition["type"].as_str().unwrap_or_default();
    let before = news::condition(&current["status"], r#type);
    let told = condition["lastTransitionTime"].as_str().unwrap_or_default();
    let Some(known) = before["lastTransitionTime"].as_str().filter(|known| told <= *known) else {
        return;
    };
    let since = if before["status"] == condition["status"] { known } else { now };
    condition["lastTransitionTime"] = json!(since);
}

/// Writes it.
pub(super) async fn write_status(
    client: &Client,
    node: &NodeName,
    status: &Value,
    facing: &Facing<'_>,
) -> Result<(), kube::Error> {
    let patch = json!({
        "metadata": { "annotations": {
            NODE_IP_ANNOTATION: facing.node_ip,
            port::ANNOTATION: facing.port.to_string(),
        } },
        "status": status,
    });
    let request = Request::patch(format!("{}/status", path(node)))
        .header(http::header::CONTENT_TYPE, "application/strategic-merge-patch+json")
        .body(patch.to_string().into_bytes());

    send(client, request).await.map(drop)
}

/// Writes Events that have names of their own, each at most once.
///
/// After an error they are to be told again before the status is written, which ends what they follow from.
/// One that is refused for good is left out, and so is any after so many `waits`, which are counted here.
pub(super) async fn tell(
    client: &Client,
    node: &NodeName,
    events: Vec<Value>,
    waits: &mut u32,
) -> Result<(), kube::Error> {
    for event in events {
        let create = Request::post("/api/v1/namespaces/default/events")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(event.to_string().into_bytes());
        let Err(error) = send(client, create).await else { continue };
        match refusal(&error) {
            Refusal::WasWritten => continue,
            Refusal::Passing if *waits < WAITS_MAX => {
                *waits += 1;
                return Err(error);
            }
            Refusal::Passing | Refusal::Final => {}
        }
        let (reason, error) = (&event["reason"], telemetry::chain(&error));
        tracing::warn!(%node, %reason, error, "an event of the node is not written");
    }
    *waits = 0;

    Ok(())
}

/// What it means that an Event is not taken.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// Before the status could be.
    WasWritten,
    /// It would be the same again.
    Final,
    /// The API server is away, or has trouble of its own.
    Passing,
}

fn refusal(error: &kube::Error) -> Refusal {
    let kube::Error::Api(status) = error else { return Refusal::Passing };
    match status.code {
        409 => Refusal::WasWritten,
        // 401: the status would not be taken either.
        400..=499 if !matches!(status.code, 401 | 408 | 429) => Refusal::Final,
        _ => Refusal::Passing,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::hub::tests::api::Api;

    const NOW: &str = "2026-01-01T12:00:00Z";

    /// When Ready changes, and to what, if the node says the first, and the Node says the second.
    fn check(
        told: (&str, &str),
        known: Option<(&str, &str)>,
        health: Health,
        expected: (&str, &str),
    ) {
        let conditions = |(status, since): (&str, &str)| {
            let since = format!("2026-01-01T{since}:00Z");
            json!({ "status": { "conditions": [
                { "type": "Ready", "status": status, "lastTransitionTime": since },
            ] } })
        };
        let current = known.map_or_else(|| json!({}), conditions);
        let (address, node_ip) = (IpAddr::V4(Ipv4Addr::LOCALHOST), "192.0.2.1");
        let facing = Facing { address, node_ip, port: 1, health: Some(health) };
        let written = status(&conditions(told), &current, &facing, NOW);
        let ready = &written["conditions"][0];
        assert_eq!(ready["lastHeartbeatTime"], NOW);
        let written = (&ready["status"], &ready["lastTransitionTime"]);
        let since = format!("2026-01-01T{}:00Z", expected.1);
        assert_eq!(written, (&json!(expected.0), &json!(since)), "{told:?} {known:?}");
    }

    #[test]
    fn a_report_of_another_shape_is_seen() {
        for (report, expected) in [
            (json!({ "status": {} }), true),
            (json!({ "status": { "conditions": [{ "type": 1 }], "capacity": {} } }), true),
            (json!({ "status": { "conditions": "none" } }), true),
            (json!({ "status": { "conditions": [1] } }), false),
            (json!({ "status": { "conditions": [{}, []] } }), false),
            (json!({ "status": { "allocatable": "all" } }), false),
            (json!({ "status": { "capacity": [] } }), false),
            (json!({ "status": "well" }), false),
            (json!({}), false),
            (json!([]), false),
            (json!(1), false),
        ] {
            assert_eq!(is_well_formed(&report), expected, "{report}");
        }
    }

    #[test]
    fn a_condition_changes_when_the_node_says_so_or_takes_back_what_another_said() {
        let well = Health { pod_loop_age_ms: 0, runtime_age_ms: 0, runtime_ok: true };
        check(("True", "08:00"), None, well, ("True", "08:00"));
        check(("True", "08:00"), Some(("True", "08:00")), well, ("True", "08:00"));
        check(("True", "08:00"), Some(("False", "07:00")), well, ("True", "08:00"));
        check(("True", "08:00"), Some(("True", "07:00")), well, ("True", "08:00"));
        check(("True", "08:00"), Some(("Unknown", "09:00")), well, ("True", "12:00"));
        check(("True", "08:00"), Some(("True", "12:00")), well, ("True", "12:00"));
        let stuck = Health { pod_loop_age_ms: RESPONSIVE_MS + 1, ..well };
        check(("True", "08:00"), Some(("True", "08:00")), stuck, ("False", "12:00"));
        check(("True", "08:00"), Some(("False", "11:00")), stuck, ("False", "11:00"));
    }

    #[tokio::test]
    async fn the_status_waits_for_events_that_are_not_taken_just_now() {
        const EVENTS: &str = "/api/v1/namespaces/default/events";
        let (api, node) = (Api::start().await, NodeName::new("edge").unwrap());
        let event = |name: &str| json!({ "metadata": { "name": name } });
        let events = || vec![event("one"), event("two")];
        let mut waits = 0;
        let has = |name: &str| api.has(&format!("{EVENTS}/{name}"));

        api.refuse(EVENTS, 500);
        for _wait in 0..WAITS_MAX {
            tell(&api.client, &node, events(), &mut waits).await.unwrap_err();
        }
        // Not for ever.
        tell(&api.client, &node, events(), &mut waits).await.unwrap();
        assert_eq!(waits, 0);
        // It would be refused again.
        api.refuse(EVENTS, 403);
        tell(&api.client, &node, events(), &mut waits).await.unwrap();
        assert!(waits == 0 && !has("one"));

        api.accept(EVENTS);
        tell(&api.client, &node, vec![event("one")], &mut waits).await.unwrap();
        tell(&api.client, &node, events(), &mut waits).await.unwrap();
        assert!(waits == 0 && has("one") && has("two"));
        let client = api.client.clone();
        drop(api);
        tell(&client, &node, events(), &mut waits).await.unwrap_err();
    }
}
