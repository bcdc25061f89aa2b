//! Events of nodes, written as the node made them, about objects of that node only (invariant 12).

use http::Request;
use kube::Client;
use serde_json::Value;

use crate::hub::SessionHandle;
use crate::telemetry;

/// Writes an Event. One that the API server does not take is dropped: events are hints.
pub async fn write(client: &Client, session: &SessionHandle, bytes: &[u8]) {
    let Ok(event) = serde_json::from_slice::<Value>(bytes) else { return };
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
    let component_host = event["source"]["host"].as_str();
    let is_name = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if !session.is_current()
        || !is_name(namespace)
        || component_host != Some(session.node().as_str())
    {
        tracing::debug!(node = %session.node(), "dropping an event that is not the node's");
        return;
    }
    let request = Request::post(format!("/api/v1/namespaces/{namespace}/events"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(bytes.to_vec());
    let sent = match request {
        Ok(request) => client.request::<Value>(request).await,
        Err(error) => Err(kube::Error::HttpError(error)),
    };
    if let Err(error) = sent {
        tracing::debug!(node = %session.node(), error = %telemetry::chain(&error), "an event was not taken");
    }
}
