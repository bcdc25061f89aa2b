//! The requests of a watch and what their answers say.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use kube::Client;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{PAGE_LIMIT, SILENCE_MAX, Told, WATCH_SECONDS, Watched};
use crate::evidence::Doubt;

#[derive(Debug, thiserror::Error)]
pub(super) enum WatchError {
    #[error("cannot {verb} {path}")]
    Request {
        verb: &'static str,
        path: &'static str,
        #[source]
        source: kube::Error,
    },
    #[error("the answer to {path} is not understood")]
    Json {
        path: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("the list of {path} has resource version {version:?}, which is not a number")]
    Revision { path: &'static str, version: String },
    #[error("the watch of {path} broke off")]
    Broken {
        path: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("nothing was heard of {path} for {} s", SILENCE_MAX.as_secs())]
    Silent { path: &'static str },
    #[error("the watch of {path} is too old to go on: {message}")]
    Expired { path: &'static str, message: String },
    #[error("it is not certain what {path} is of")]
    Doubt {
        path: &'static str,
        #[source]
        source: Box<Doubt>,
    },
    #[error("{path} is to be listed")]
    Ordered { path: &'static str },
    #[error("nobody takes what is watched")]
    Closed,
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    /// Null if there are none and only metadata was asked for.
    #[serde(default)]
    items: Option<Vec<Box<RawValue>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: String,
}

impl PageMetadata {
    fn revision(&self, path: &'static str) -> Result<u64, WatchError> {
        let version = &self.resource_version;

        version.parse().map_err(|_| WatchError::Revision { path, version: version.clone() })
    }
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Versioned {
    metadata: PageMetadata,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

/// The revision that the kind has come to, by a consistent read.
pub(super) async fn newest(client: &Client, watched: Watched) -> Result<u64, WatchError> {
    let path = watched.path;
    let query = format!("limit=1&fieldSelector={}", watched.field_selector);
    let request = request(watched, &query, "PartialObjectMetadataList");
    let text = client.request_text(request).await.map_err(|source| WatchError::Request {
        verb: "list",
        path,
        source,
    })?;
    let page: Page =
        serde_json::from_str(&text).map_err(|source| WatchError::Json { path, source })?;

    page.metadata.revision(path)
}

pub(super) async fn list(
    client: &Client,
    watched: Watched,
) -> Result<(Vec<Bytes>, u64), WatchError> {
    let path = watched.path;
    let (mut objects, mut next) = (Vec::new(), String::new());
    loop {
        let mut query = format!("limit={PAGE_LIMIT}&fieldSelector={}", watched.field_selector);
        if !next.is_empty() {
            query.push_str("&continue=");
            query.push_str(&next);
        }
        let request = request(watched, &query, "PartialObjectMetadataList");
        let text = client.request_text(request).await.map_err(|source| WatchError::Request {
            verb: "list",
            path,
            source,
        })?;
        let page: Page =
            serde_json::from_str(&text).map_err(|source| WatchError::Json { path, source })?;
        let raw =
            page.items.iter().flatten().map(|item| Bytes::copy_from_slice(item.get().as_bytes()));
        objects.extend(raw);
        if page.metadata.next.is_empty() {
            return Ok((objects, page.metadata.revision(path)?));
        }
        next = page.metadata.next;
    }
}

fn request(watched: Watched, query: &str, metadata_kind: &str) -> Request<Vec<u8>> {
    let accept = if watched.metadata_only {
        format!("application/json;as={metadata_kind};g=meta.k8s.io;v=v1")
    } else {
        "application/json".to_owned()
    };
    let request = Request::get(format!("{}?{query}", watched.path))
        .header(http::header::ACCEPT, accept)
        .body(Vec::new());

    request.expect("paths and queries are ours, continue tokens are URL-safe base64")
}

pub(super) async fn follow(
    client: &Client,
    watched: Watched,
    revision: u64,
) -> Result<impl futures_util::AsyncBufRead + use<>, WatchError> {
    let path = watched.path;
    let query = format!(
        "watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}\
         &resourceVersion={revision}&fieldSelector={}",
        watched.field_selector
    );
    let asked = client.request_stream(request(watched, &query, "PartialObjectMetadata"));

    asked.await.map_err(|source| {
        if let kube::Error::Api(status) = &source
            && status.code == 410
        {
            return WatchError::Expired { path, message: status.message.clone() };
        }
        WatchError::Request { verb: "watch", path, source }
    })
}

/// What a line of the watch says, and up to which revision.
pub(super) fn understand(watched: Watched, line: &[u8]) -> Result<Option<(Told, u64)>, WatchError> {
    let (path, kind) = (watched.path, watched.kind);
    let json = |source| WatchError::Json { path, source };
    let line: Line<'_> = serde_json::from_slice(line).map_err(json)?;
    if line.kind == "ERROR" {
        let status: Status = serde_json::from_str(line.object.get()).map_err(json)?;
        let message = format!("{} ({})", status.message, status.code);
        return Err(WatchError::Expired { path, message });
    }
    let object: Versioned = serde_json::from_str(line.object.get()).map_err(json)?;
    let Ok(revision) = object.metadata.resource_version.parse() else { return Ok(None) };
    let bytes = Bytes::copy_from_slice(line.object.get().as_bytes());
    let event = match line.kind {
        "ADDED" | "MODIFIED" => Told::Applied(kind, bytes),
        "DELETED" => Told::Deleted(kind, bytes),
        "BOOKMARK" => Told::Passed(kind, revision),
        _ => return Ok(None),
    };

    Ok(Some((event, revision)))
}

/// A GET of one object's own bytes; `None` if there is none.
pub async fn get(client: &Client, path: &str) -> Result<Option<Bytes>, Arc<kube::Error>> {
    let request = Request::get(path)
        .body(Vec::new())
        .map_err(|error| Arc::new(kube::Error::HttpError(error)))?;
    match client.request_text(request).await {
        Ok(text) => Ok(Some(Bytes::from(text))),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(Arc::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::KINDS;

    fn check(line: &str, expected: &str) {
        let shown = match understand(KINDS[0], line.as_bytes()) {
            Ok(Some((Told::Applied(..), revision))) => format!("applied {revision}"),
            Ok(Some((Told::Deleted(..), revision))) => format!("deleted {revision}"),
            Ok(Some((Told::Passed(..), revision))) => format!("passed {revision}"),
            Ok(Some((Told::Listed { .. }, _))) => "listed".to_owned(),
            Ok(None) => "nothing".to_owned(),
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(shown, expected, "{line}");
    }

    #[test]
    fn pages_of_a_list() {
        for (items, expected) in [("[{},{}]", 2), ("[]", 0), ("null", 0)] {
            let page = format!(r#"{{"metadata":{{"resourceVersion":"7"}},"items":{items}}}"#);
            let page: Page = serde_json::from_str(&page).unwrap();
            assert_eq!(page.items.iter().flatten().count(), expected, "{items}");
        }
    }

    #[test]
    fn lines_of_a_watch() {
        let object = r#"{"metadata":{"name":"a","resourceVersion":"7"}}"#;
        check(&format!(r#"{{"type":"ADDED","object":{object}}}"#), "applied 7");
        check(&format!(r#"{{"type":"DELETED","object":{object}}}"#), "deleted 7");
        check(&format!(r#"{{"type":"BOOKMARK","object":{object}}}"#), "passed 7");
        check(&format!(r#"{{"type":"NEWKIND","object":{object}}}"#), "nothing");
        check(
            r#"{"type":"ERROR","object":{"code":410,"message":"too old"}}"#,
            "error: the watch of /api/v1/pods is too old to go on: too old (410)",
        );
        check("null", "error: the answer to /api/v1/pods is not understood");
    }
}
