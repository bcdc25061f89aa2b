//! The requests about pods, and what their answers mean.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use proto::ids::Uid;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::patch::status_patch;
use super::queue::{Write, Written};
use crate::telemetry;

/// Longest wait for an answer. An API server gives a request up after 60 s, and its hooks after 10 s
/// each unless told otherwise; whoever is slower is asked again.
const ANSWER_MAX: Duration = Duration::from_secs(30);

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

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    uid: String,
    resource_version: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: Meta,
}

/// What the API server said.
struct Answered {
    code: StatusCode,
    retry_after: Option<Duration>,
    body: Bytes,
}

/// Carries out one write. It never hits a successor of the pod: it names the UID.
pub(super) async fn send(client: &Client, path: &PodPath, uid: &Uid, write: &Write) -> Written {
    let request = match write {
        Write::Status(report) => match serde_json::from_slice(report) {
            Ok(report) => patch(path, uid, &report),
            Err(error) => return Written::Refused { reason: error.to_string() },
        },
        Write::Removal => removal(path, uid),
    };
    let answered = match ask(client, request).await {
        Ok(answered) => answered,
        Err(reason) => return Written::Failed { reason, retry_after: None },
    };
    match class_of(answered.code) {
        Class::Done => Written::Done { revision: revision_of(&answered.body) },
        Class::Gone => Written::Gone,
        Class::Conflict => on_conflict(client, path, uid, &answered).await,
        Class::Refused if is_about_uid(&answered.body) => {
            on_conflict(client, path, uid, &answered).await
        }
        Class::Refused => {
            let reason = told(&answered);
            tracing::warn!(%uid, reason, "the API server does not take what a node reports");
            Written::Refused { reason }
        }
        Class::Failed => {
            let reason = told(&answered);
            if matches!(answered.code.as_u16(), 401 | 403) {
                // Nobody else would say it, and only an operator can mend it.
                tracing::warn!(%uid, reason, "cloudcore may not write for a pod");
            }
            Written::Failed { reason, retry_after: answered.retry_after }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Class {
    Done,
    Gone,
    /// The UID is another's, or somebody wrote at the same time too often.
    Conflict,
    Refused,
    Failed,
}

fn class_of(code: StatusCode) -> Class {
    match code.as_u16() {
        200..=299 => Class::Done,
        404 | 410 => Class::Gone,
        409 => Class::Conflict,
        400 | 405 | 413 | 415 | 422 => Class::Refused,
        // 401 and 403 are a configuration that somebody may mend; the rest passes.
        _ => Class::Failed,
    }
}

/// Whether the UID of a patch is refused as a change of it: so it is when a successor took the name while the
/// API server worked on the patch. Otherwise it is a conflict.
fn is_about_uid(body: &[u8]) -> bool {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut causes = status["details"]["causes"].as_array().into_iter().flatten();

    causes.any(|cause| cause["field"] == "metadata.uid")
}

/// A conflict is an end only if the name is another pod's now.
async fn on_conflict(client: &Client, path: &PodPath, uid: &Uid, answered: &Answered) -> Written {
    let get = Request::get(path.object()).body(Body::empty());
    let found = ask(client, get).await;
    let is_gone = found.is_ok_and(|found| {
        let other = || serde_json::from_slice::<Pod>(&found.body).map(|pod| pod.metadata.uid);
        found.code == StatusCode::NOT_FOUND
            || found.code == StatusCode::OK && other().is_ok_and(|other| other != uid.as_str())
    });
    if is_gone {
        Written::Gone
    } else {
        Written::Failed { reason: told(answered), retry_after: None }
    }
}

fn patch(path: &PodPath, uid: &Uid, report: &Value) -> http::Result<Request<Body>> {
    let patch = status_patch(uid.as_str(), report);

    Request::patch(format!("{}/status", path.object()))
        .header(http::header::CONTENT_TYPE, "application/strategic-merge-patch+json")
        .body(Body::from(patch.to_string().into_bytes()))
}

fn removal(path: &PodPath, uid: &Uid) -> http::Result<Request<Body>> {
    let options = json!({
        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
        "preconditions": { "uid": uid.as_str() },
    });

    Request::delete(path.object())
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Body::from(options.to_string().into_bytes()))
}

async fn ask(client: &Client, request: http::Result<Request<Body>>) -> Result<Answered, String> {
    let request = request.map_err(|error| error.to_string())?;
    let answer = async {
        let response = client.send(request).await.map_err(|error| telemetry::chain(&error))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| telemetry::chain(&error))?.to_bytes();
        let wish = head.headers.get(http::header::RETRY_AFTER);
        let seconds = wish.and_then(|value| value.to_str().ok()?.parse().ok());

        Ok(Answered { code: head.status, retry_after: seconds.map(Duration::from_secs), body })
    };

    timeout(ANSWER_MAX, answer)
        .await
        .unwrap_or_else(|_| Err(format!("the API server did not answer within {ANSWER_MAX:?}")))
}

fn revision_of(body: &[u8]) -> u64 {
    let pod: Pod = serde_json::from_slice(body).unwrap_or_default();

    pod.metadata.resource_version.parse().unwrap_or_default()
}

/// What the API server says is wrong.
fn told(answered: &Answered) -> String {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    let message = match serde_json::from_slice::<Status>(&answered.body) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(&answered.body).trim().to_owned(),
    };

    format!("the API server answered {}: {message}", answered.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_a_policy() {
        let check = |codes: &[u16], expected: Class| {
            for code in codes {
                assert_eq!(class_of(StatusCode::from_u16(*code).unwrap()), expected, "{code}");
            }
        };
        check(&[200, 202], Class::Done);
        check(&[404, 410], Class::Gone);
        check(&[409], Class::Conflict);
        check(&[400, 413, 422], Class::Refused);
        check(&[401, 403, 429, 500, 502, 503, 504], Class::Failed);
    }

    #[test]
    fn a_patch_of_a_pod_with_a_successor_is_a_conflict() {
        let invalid = |field: &str| {
            let causes = json!([{ "reason": "FieldValueInvalid", "field": field }]);
            json!({ "code": 422, "details": { "causes": causes } }).to_string()
        };

        assert!(is_about_uid(invalid("metadata.uid").as_bytes()));
        assert!(!is_about_uid(invalid("status.phase").as_bytes()));
        assert!(!is_about_uid(b"no JSON"));
    }
}
