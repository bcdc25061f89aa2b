//! Requests to the API server in the shape tests use them: paths and JSON.

use anyhow::{Context as _, Result};
use kube::Client;
use serde_json::Value;

/// POST of an object to a collection.
pub async fn create(client: &Client, collection: &str, object: &Value) -> Result<Value> {
    let request = http::Request::post(collection)
        .header("Content-Type", "application/json")
        .body(object.to_string().into_bytes())?;

    client.request(request).await.with_context(|| format!("POST {collection}"))
}

/// JSON merge patch of an object or a subresource of it.
pub async fn merge(client: &Client, path: &str, patch: &Value) -> Result<Value> {
    let request = http::Request::patch(path)
        .header("Content-Type", "application/merge-patch+json")
        .body(patch.to_string().into_bytes())?;

    client.request(request).await.with_context(|| format!("PATCH {path}"))
}

/// Strategic merge patch of an object or a subresource of it: lists are merged by their keys.
pub async fn strategic_merge(client: &Client, path: &str, patch: &Value) -> Result<Value> {
    let request = http::Request::patch(path)
        .header("Content-Type", "application/strategic-merge-patch+json")
        .body(patch.to_string().into_bytes())?;

    client.request(request).await.with_context(|| format!("PATCH {path}"))
}

/// DELETE of an object; `grace` in seconds, `None` for the object's own. Gone already is fine.
pub async fn delete(client: &Client, path: &str, grace: Option<u32>) -> Result<()> {
    let query = grace.map(|seconds| format!("?gracePeriodSeconds={seconds}")).unwrap_or_default();
    let request = http::Request::delete(format!("{path}{query}")).body(Vec::new())?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("DELETE {path}")),
    }
}
