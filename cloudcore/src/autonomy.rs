//! Keeps pods from being evicted merely because their node is away.
//!
//! The API server gives every pod two NoExecute tolerations of 300 s; when those end the pod is deleted.
//! Here the limit is taken away, from the pod as it is in the API, when its node's session is lost or
//! the pod has been Ready and unchanged for a while. Level-triggered: admission puts the limit back on updates, and
//! the next sweep removes it again. A limit of another value is the user's, and stays.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Request;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use proto::ids::{NodeName, Uid};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::hub::Sessions;
use crate::leader::Leadership;
use crate::nodes::PROVIDER_PREFIX;
use crate::{clock, telemetry};

/// Between sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);

/// Pods patched in one sweep: a whole site that goes away is done in minutes at most, and the API
/// server hardly notices.
const PATCHES_MAX: usize = 50;

/// Longest wait for one patch: a webhook that does not answer must not keep others from protection.
const PATCH_MAX: Duration = Duration::from_secs(5);

/// Between tries of a pod whose patch was not taken: doubled each time.
const RETRY: (SignedDuration, SignedDuration) =
    (SignedDuration::from_secs(2), SignedDuration::from_mins(2));

/// After a start, nodes have this long to come back before they count as lost.
const START_GRACE: SignedDuration = SignedDuration::from_secs(30);

/// A pod is protected once it was Ready and unchanged for this long, or for half its toleration.
const SETTLED: SignedDuration = SignedDuration::from_mins(2);

/// Label of a pod or node that wants to be evicted as usual, with value `false`.
const LABEL: &str = "holdfast.dev/autonomy";

/// The taints that the node controller puts on nodes that are away.
const TAINTS: [&str; 2] = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"];

/// What a decision depends on besides the pod.
#[derive(Clone, Copy, Debug)]
struct Situation {
    /// The node has no session.
    is_lost: bool,
    /// The API server's default, in seconds.
    default_seconds: i64,
    now: Timestamp,
}

/// The JSON patch that takes the default limits away; `None` if there is nothing to do now.
fn decide(pod: &Value, situation: Situation) -> Option<Value> {
    let metadata = &pod["metadata"];
    if metadata["deletionTimestamp"].is_string() || metadata["labels"][LABEL] == "false" {
        return None;
    }
    let wait = SETTLED.min(SignedDuration::from_secs(situation.default_seconds) / 2);
    let rests = |since: Option<Timestamp>| since.is_none_or(|at| situation.now - wait >= at);
    let ready_since = ready_since(pod);
    let is_settled = ready_since.is_some() && rests(ready_since) && rests(changed_at(pod));
    if !(situation.is_lost || is_settled) {
        return None;
    }
    let tolerations = pod["spec"]["tolerations"].as_array()?;
    let limited = tolerations.iter().enumerate().filter(|(_, toleration)| {
        TAINTS.iter().any(|taint| toleration["key"] == *taint)
            && toleration["effect"] == "NoExecute"
            && toleration["tolerationSeconds"] == situation.default_seconds
    });
    let mut patch =
        vec![json!({ "op": "test", "path": "/metadata/uid", "value": metadata["uid"] })];
    for (at, toleration) in limited {
        let path = format!("/spec/tolerations/{at}");
        patch.push(json!({ "op": "test", "path": path, "value": toleration }));
        patch.push(json!({ "op": "remove", "path": format!("{path}/tolerationSeconds") }));
    }

    (patch.len() > 1).then_some(Value::Array(patch))
}

/// Since when a pod or node is Ready, if it is.
fn ready_since(object: &Value) -> Option<Timestamp> {
    let conditions = object["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|c| c["type"] == "Ready" && c["status"] == "True")?;

    ready["lastTransitionTime"].as_str()?.parse().ok()
}

/// When anything but its status was changed last, as the API server keeps it: who changes a pod again and
/// again counts its generations, which a change of ours would raise.
fn changed_at(pod: &Value) -> Option<Timestamp> {
    let entries = pod["metadata"]["managedFields"].as_array()?;
    let of_spec = entries.iter().filter(|entry| entry["subresource"].as_str().is_none());

    of_spec.filter_map(|entry| entry["time"].as_str()?.parse().ok()).max()
}

/// Whether the Node object is one of ours and wants autonomy.
fn is_ours(node: &Value) -> bool {
    let provider = node["spec"]["providerID"].as_str().unwrap_or_default();

    provider.starts_with(PROVIDER_PREFIX) && node["metadata"]["labels"][LABEL] != "false"
}

/// What autonomy works with.
pub struct Shared {
    /// Shows nodes and pods.
    pub cluster: Cluster,
    /// Shows which nodes are connected.
    pub sessions: Sessions,
    /// For the pods.
    pub client: Client,
    /// The API server's default, in seconds.
    pub default_seconds: i64,
    /// One replica does it.
    pub leadership: Leadership,
}

/// Sweeps until asked to stop.
pub async fn run(shared: Shared, stop: CancellationToken) {
    let Shared { cluster, sessions, client, default_seconds, leadership } = shared;
    let started = clock::timestamp();
    let mut refused: BTreeMap<Uid, Refusal> = BTreeMap::new();
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if !leadership.is_held() {
            continue;
        }
        let now = clock::timestamp();
        let has_settled = now - START_GRACE >= started;
        let mut left = PATCHES_MAX;
        for (node, is_ready) in our_nodes(&cluster) {
            // The session of another replica is seen here only by what it makes of the Node.
            let may_be_elsewhere = is_ready && sessions.is_elsewhere(&node);
            let is_lost = has_settled && sessions.get(&node).is_none() && !may_be_elsewhere;
            let situation = Situation { is_lost, default_seconds, now };
            for Wanted { uid, path, patch } in patches(&cluster, &node, situation) {
                if left == 0 || refused.get(&uid).is_some_and(|refusal| now < refusal.again_at) {
                    continue;
                }
                left -= 1;
                match send(&client, &path, &patch).await {
                    Ok(()) => drop(refused.remove(&uid)),
                    Err(error) => {
                        let refusal = Refusal::after(refused.get(&uid), now);
                        refusal.tell(&path, &error);
                        refused.insert(uid, refusal);
                    }
                }
            }
        }
        refused.retain(|uid, _| cluster.index().pod(uid).is_some());
    }
}

/// Names of our nodes that want autonomy, and whether they are Ready.
fn our_nodes(cluster: &Cluster) -> Vec<(NodeName, bool)> {
    let index = cluster.index();
    let ours = index.all_nodes().filter_map(|(name, object)| {
        let node: Value = serde_json::from_slice(&object.bytes).ok()?;
        is_ours(&node).then(|| (name.clone(), ready_since(&node).is_some()))
    });

    ours.collect()
}

/// A pod that is not protected yet.
struct Wanted {
    uid: Uid,
    path: String,
    patch: Value,
}

/// A pod whose patch the API server did not take: it makes way for others.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    wait: SignedDuration,
    again_at: Timestamp,
}

impl Refusal {
    fn after(before: Option<&Self>, now: Timestamp) -> Self {
        let wait = before.map_or(RETRY.0, |before| (before.wait * 2).min(RETRY.1));

        Self { wait, again_at: now + wait }
    }

    /// The first may be a change that came between, which the next sweep sees.
    fn tell(&self, path: &str, error: &str) {
        if self.wait == RETRY.0 * 2 {
            tracing::warn!(path, error, "cannot protect a pod from eviction");
        } else {
            tracing::debug!(path, error, "cannot protect a pod from eviction yet");
        }
    }
}

fn patches(cluster: &Cluster, node: &NodeName, situation: Situation) -> Vec<Wanted> {
    let index = cluster.index();
    let uids = index.pods_on(node);
    let patches = uids.iter().filter_map(|uid| {
        let pod = index.pod(uid)?;
        let parsed: Value = serde_json::from_slice(&pod.object.bytes).ok()?;
        let patch = decide(&parsed, situation)?;
        let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name);

        Some(Wanted { uid: uid.clone(), path, patch })
    });

    patches.collect()
}

async fn send(client: &Client, path: &str, patch: &Value) -> Result<(), String> {
    let request = Request::patch(path)
        .header(http::header::CONTENT_TYPE, "application/json-patch+json")
        .body(patch.to_string().into_bytes())
        .map_err(|error| telemetry::chain(&error))?;
    match timeout(PATCH_MAX, client.request::<Value>(request)).await {
        Ok(Ok(_)) => {
            tracing::info!(path, "protected a pod from eviction");
            Ok(())
        }
        Ok(Err(error)) => Err(telemetry::chain(&error)),
        Err(_late) => Err(format!("no answer within {PATCH_MAX:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: &Value, is_lost: bool, age_s: i64, expected: &[&str]) {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let since = now - SignedDuration::from_secs(age_s);
        let mut pod = json!({
            "metadata": { "uid": "u-1", "labels": {}, "managedFields": [] },
            "spec": { "tolerations": [
                { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
                { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30 },
                { "key": "dedicated", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
            ] },
            "status": { "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": since.to_string() }] },
        });
        for (pointer, value) in change.as_object().into_iter().flatten() {
            *pod.pointer_mut(pointer).unwrap() = value.clone();
        }
        let decided = decide(&pod, Situation { is_lost, default_seconds: 300, now });
        let removed: Vec<String> = decided
            .iter()
            .flat_map(|patch| patch.as_array().unwrap())
            .filter(|op| op["op"] == "remove")
            .map(|op| op["path"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(removed, expected, "{change}, lost {is_lost}, ready for {age_s} s");
    }

    const PROTECTED: &[&str] = &["/spec/tolerations/0/tolerationSeconds"];

    #[test]
    fn only_the_default_limit_of_the_node_taints_goes() {
        check(&json!({}), false, 121, PROTECTED);
        check(&json!({}), false, 119, &[]);
        check(&json!({}), true, 1, PROTECTED);
        let changed = |at: &str, of: Option<&str>| {
            let entry = json!({ "time": format!("2026-01-01T00:{at}Z"), "subresource": of });
            json!({ "/metadata/managedFields": [entry] })
        };
        check(&changed("57:00", None), false, 500, PROTECTED);
        check(&changed("59:00", None), false, 500, &[]);
        check(&changed("59:00", None), true, 500, PROTECTED);
        check(&changed("59:00", Some("status")), false, 500, PROTECTED);
        check(&json!({ "/metadata/labels": { "holdfast.dev/autonomy": "false" } }), true, 500, &[]);
        check(&json!({ "/spec/tolerations/0/tolerationSeconds": 60 }), true, 500, &[]);
        check(&json!({ "/status/conditions/0/status": "False" }), false, 500, &[]);
        check(&json!({ "/status/conditions/0/status": "False" }), true, 500, PROTECTED);
    }
}
