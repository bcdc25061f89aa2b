//! Lists and watches one kind, keeping the API server's own bytes.
//!
//! The list is a consistent read (`resourceVersion` unset), paged; the watch goes on from it with
//! bookmarks. When it can no longer (410 Gone, or the API server's word that it expired) the list is
//! read again. An object that is not understood is the receiver's to skip: the watch goes on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::AsyncBufReadExt as _;
use http::Request;
use kube::Client;
use proto::ids::Kind;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Objects in a page of a list: at most 10 MB at once with large ones.
const PAGE_LIMIT: u32 = 500;
/// How long the API server keeps a watch open.
const WATCH_SECONDS: u32 = 240;
/// A kind that never changes gives no line, no bookmark either, until the API server ends the watch:
/// a path that is silent for longer than that is dead.
const SILENCE_MAX: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 30);
/// Delay after an error: doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Longest line of a watch: etcd refuses objects over 1.5 MiB.
const LINE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// What is watched.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// The kind.
    pub kind: Kind,
    /// The collection.
    pub path: &'static str,
    /// `fieldSelector`, already encoded; empty for all.
    pub field_selector: &'static str,
    /// Only `metadata`, as `PartialObjectMetadata`.
    pub metadata_only: bool,
}

/// Every kind the index is fed with.
pub const KINDS: [Watched; 5] = [
    Watched {
        kind: Kind::Pod,
        path: "/api/v1/pods",
        field_selector: "spec.nodeName!%3D",
        metadata_only: false,
    },
    Watched {
        kind: Kind::ConfigMap,
        path: "/api/v1/configmaps",
        field_selector: "",
        metadata_only: true,
    },
    Watched {
        kind: Kind::Secret,
        path: "/api/v1/secrets",
        field_selector: "",
        metadata_only: true,
    },
    Watched {
        kind: Kind::Service,
        path: "/api/v1/services",
        field_selector: "",
        metadata_only: false,
    },
    Watched { kind: Kind::Node, path: "/api/v1/nodes", field_selector: "", metadata_only: false },
];

/// What a watch tells.
#[derive(Debug)]
pub enum Told {
    /// A consistent list took the place of everything told before.
    Listed {
        /// Of what.
        kind: Kind,
        /// Each object's JSON.
        objects: Vec<Bytes>,
        /// Revision of the list.
        revision: u64,
    },
    /// An object appeared or changed.
    Applied(Kind, Bytes),
    /// An object is gone.
    Deleted(Kind, Bytes),
    /// Nothing else happened up to this revision.
    Passed(Kind, u64),
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
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
    #[error("nobody takes what is watched")]
    Closed,
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    #[serde(default)]
    items: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: String,
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

/// Watches for ever; ends only when nobody listens any more.
pub async fn run(client: Client, watched: Watched, told: mpsc::Sender<Told>) {
    let mut delay = RETRY.0;
    let mut from: Option<u64> = None;
    loop {
        match once(&client, watched, &told, &mut from).await {
            Ok(()) => {
                delay = RETRY.0;
                continue;
            }
            Err(WatchError::Closed) => return,
            Err(error @ WatchError::Expired { .. }) => {
                tracing::info!(error = %crate::telemetry::chain(&error), "listing again");
                from = None;
            }
            Err(error) => {
                tracing::warn!(error = %crate::telemetry::chain(&error), "a watch was interrupted");
            }
        }
        sleep(delay).await;
        delay = (delay * 2).min(RETRY.1);
    }
}

/// Lists if there is nothing to go on from, then watches until the API server ends it.
async fn once(
    client: &Client,
    watched: Watched,
    told: &mpsc::Sender<Told>,
    from: &mut Option<u64>,
) -> Result<(), WatchError> {
    let revision = if let Some(revision) = *from {
        revision
    } else {
        let (objects, revision) = list(client, watched).await?;
        let listed = Told::Listed { kind: watched.kind, objects, revision };
        told.send(listed).await.map_err(|_| WatchError::Closed)?;
        *from.insert(revision)
    };

    follow(client, watched, told, revision, from).await
}

async fn list(client: &Client, watched: Watched) -> Result<(Vec<Bytes>, u64), WatchError> {
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
        let raw = page.items.iter().map(|item| Bytes::copy_from_slice(item.get().as_bytes()));
        objects.extend(raw);
        if page.metadata.next.is_empty() {
            let revision = page.metadata.resource_version.parse().unwrap_or_default();
            return Ok((objects, revision));
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

async fn follow(
    client: &Client,
    watched: Watched,
    told: &mpsc::Sender<Told>,
    revision: u64,
    from: &mut Option<u64>,
) -> Result<(), WatchError> {
    let path = watched.path;
    let query = format!(
        "watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}\
         &resourceVersion={revision}&fieldSelector={}",
        watched.field_selector
    );
    let stream = client
        .request_stream(request(watched, &query, "PartialObjectMetadata"))
        .await
        .map_err(|source| {
            if let kube::Error::Api(status) = &source
                && status.code == 410
            {
                return WatchError::Expired { path, message: status.message.clone() };
            }
            WatchError::Request { verb: "watch", path, source }
        })?;
    let mut stream = std::pin::pin!(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = futures_util::AsyncReadExt::take(&mut stream, LINE_BYTES_MAX);
        let read = timeout(SILENCE_MAX, limited.read_until(b'\n', &mut line)).await;
        match read {
            Err(_elapsed) => return Err(WatchError::Silent { path }),
            Ok(Err(source)) => return Err(WatchError::Broken { path, source }),
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(_)) => {}
        }
        let event = understand(watched, &line)?;
        if let Some((event, revision)) = event {
            told.send(event).await.map_err(|_| WatchError::Closed)?;
            *from = Some(revision);
        }
    }
}

/// What a line of the watch says, and up to which revision.
fn understand(watched: Watched, line: &[u8]) -> Result<Option<(Told, u64)>, WatchError> {
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
