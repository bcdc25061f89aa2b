//! Keeps the statuses that one node reported, and writes them.

use std::collections::BTreeMap;

use http::Request;
use kube::Client;
use proto::ids::Uid;
use proto::wire::Outcome;
use serde_json::{Value, json};

use super::patch::{says, status_patch};
use crate::hub::SessionHandle;
use crate::telemetry;

/// The statuses that a node reported, by pod.
#[derive(Debug, Default)]
pub struct Statuses {
    reported: BTreeMap<Uid, Value>,
}

/// Where a pod is in the API.
#[derive(Clone, Debug)]
pub struct PodPath {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl PodPath {
    fn object(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.name)
    }
}

impl Statuses {
    /// Keeps what was reported.
    pub fn keep(&mut self, uid: Uid, status: Value) {
        self.reported.insert(uid, status);
    }

    /// Forgets pods that are no longer there.
    pub fn retain(&mut self, is_there: impl Fn(&Uid) -> bool) {
        self.reported.retain(|uid, _| is_there(uid));
    }

    /// The reported status, if `current`, the API server's object, does not say it.
    pub fn to_assert(&self, uid: &Uid, current: &Value) -> Option<Value> {
        let reported = self.reported.get(uid)?;

        (!says(&current["status"], reported)).then(|| reported.clone())
    }

    /// The last reported status.
    pub fn get(&self, uid: &Uid) -> Option<&Value> {
        self.reported.get(uid)
    }
}

/// Writes a status. `Done` also if the pod is gone or another has its name.
pub async fn write(
    client: &Client,
    session: &SessionHandle,
    path: &PodPath,
    uid: &Uid,
    status: &Value,
) -> Outcome {
    if !session.is_current() {
        return Outcome::Retry { reason: "a newer session writes for this node".to_owned() };
    }
    let patch = status_patch(uid.as_str(), status);
    let request = Request::patch(format!("{}/status", path.object()))
        .header(http::header::CONTENT_TYPE, "application/strategic-merge-patch+json")
        .body(patch.to_string().into_bytes());
    match send(client, request).await {
        Ok(_) => Outcome::Done,
        Err(error) => outcome_of(&error),
    }
}

/// Removes a terminating pod of which the node has nothing left.
pub async fn remove(
    client: &Client,
    session: &SessionHandle,
    path: &PodPath,
    uid: &Uid,
) -> Outcome {
    if !session.is_current() {
        return Outcome::Retry { reason: "a newer session writes for this node".to_owned() };
    }
    let options = json!({
        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
        "preconditions": { "uid": uid.as_str() },
    });
    let request = Request::delete(path.object())
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(options.to_string().into_bytes());
    match send(client, request).await {
        Ok(_) => Outcome::Done,
        Err(error) => outcome_of(&error),
    }
}

async fn send(
    client: &Client,
    request: Result<Request<Vec<u8>>, http::Error>,
) -> Result<Value, kube::Error> {
    client.request::<Value>(request.map_err(kube::Error::HttpError)?).await
}

/// Gone or replaced is as good as done; what the API server calls wrong stays wrong; the rest passes.
fn outcome_of(error: &kube::Error) -> Outcome {
    let reason = telemetry::chain(error);
    let code = if let kube::Error::Api(status) = error { status.code } else { 0 };
    match code {
        404 | 409 => Outcome::Done,
        400 | 422 => {
            tracing::warn!(reason, "the API server does not take what a node reports");
            Outcome::Refused { reason }
        }
        _ => Outcome::Retry { reason },
    }
}
