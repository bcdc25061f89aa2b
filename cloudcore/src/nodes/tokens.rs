//! Service account tokens: asked for as the kubelet asks (`TokenRequest`, bound to the pod), for pods
//! of the node only (invariant 12).

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use kube::Client;
use proto::ids::{ObjectKey, Uid};
use proto::object::{ContentHash, Object, Version};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::telemetry;

/// Shortest life the API server grants.
const EXPIRATION_SECONDS_MIN: i64 = 600;

/// What the edge asks for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Wanted {
    #[serde(default)]
    audience: String,
    expiration_seconds: i64,
    service_account: String,
}

/// The pod that a token is for, as the index knows it.
#[derive(Clone, Debug)]
pub(super) struct ForPod {
    pub namespace: String,
    pub name: String,
    pub uid: Uid,
    pub object: Arc<Object>,
}

/// Asks the API server; the reason for people if there is none.
pub(super) async fn request(
    client: &Client,
    pod: &ForPod,
    source: &str,
    wanted: &[u8],
) -> Result<Object, String> {
    let wanted: Wanted =
        serde_json::from_slice(wanted).map_err(|error| format!("not understood: {error}"))?;
    let spec: Value = serde_json::from_slice(&pod.object.bytes).unwrap_or_default();
    let account = spec["spec"]["serviceAccountName"].as_str().unwrap_or("default");
    if account != wanted.service_account {
        return Err(format!("the pod runs as {account}, not as {}", wanted.service_account));
    }
    let audiences: Vec<&str> =
        if wanted.audience.is_empty() { Vec::new() } else { vec![&wanted.audience] };
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": wanted.expiration_seconds.max(EXPIRATION_SECONDS_MIN),
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid.as_str(),
            },
        },
    });
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", pod.namespace);
    let request = Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into_bytes())
        .map_err(|error| error.to_string())?;
    let answer = client
        .request_text(request)
        .await
        .map_err(|error| format!("the API server gives none: {}", telemetry::chain(&error)))?;
    let expires = serde_json::from_str::<Value>(&answer)
        .ok()
        .and_then(|token| {
            let text = token["status"]["expirationTimestamp"].as_str()?.to_owned();
            text.parse::<jiff::Timestamp>().ok()
        })
        .ok_or("the API server's answer has no expiration")?;

    Ok(Object {
        key: ObjectKey::token(&pod.uid, source),
        version: Version {
            uid: pod.uid.clone(),
            epoch: pod.object.version.epoch,
            // Tokens have no revision: a later one expires later.
            revision: u64::try_from(expires.as_second()).unwrap_or_default(),
            hash: ContentHash::of(&[answer.as_bytes()]),
        },
        bytes: Bytes::from(answer),
    })
}
