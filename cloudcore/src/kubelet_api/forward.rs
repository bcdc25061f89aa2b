//! Passes a request on to the node over a stream of its link: head, bodies and upgraded bytes as they
//! are, without what proves the caller.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, HeaderName, HeaderValue, PROXY_AUTHORIZATION, UPGRADE,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use proto::ids::NodeName;
use proto::wire::StreamKind;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::Shared;
use super::access::{Ask, Caller};
use crate::hub::{Holder, SessionHandle, Whereabouts};
use crate::telemetry;

pub(super) type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// Which node another replica asks for.
const NODE: HeaderName = HeaderName::from_static("x-holdfast-node");

/// How long the end of a stream may take to be told to its caller.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Paths whose second and third part are namespace and name of a pod.
const POD_PATHS: [&str; 5] = ["containerLogs", "exec", "attach", "portForward", "run"];

/// Who asks, if that is proven.
pub(super) async fn caller(
    shared: &Shared,
    certified: Option<Caller>,
    headers: &HeaderMap,
) -> Option<Caller> {
    match certified {
        Some(caller) => Some(caller),
        None => shared.kept.caller(shared, bearer(headers)?).await,
    }
}

/// What a caller is told that has proved nothing.
pub(super) fn unauthorized() -> Answer {
    refuse(StatusCode::UNAUTHORIZED, "Unauthorized")
}

/// What a caller is told for whom the node has no connection left.
pub(super) fn busy(node: &NodeName) -> Answer {
    let text = format!("too many connections to the kubelet API of node {node}, ask again later");

    closing(refuse(StatusCode::SERVICE_UNAVAILABLE, &text))
}

pub(super) async fn answer(
    shared: &Shared,
    node: &NodeName,
    caller: &Caller,
    request: Request<Incoming>,
) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let ask = Ask { caller, node, method: &method, path: &path };
    match shared.kept.is_allowed(&shared.client, ask).await {
        Ok(true) => {}
        Ok(false) => {
            let text = format!("Forbidden ({ask})");
            return refuse(StatusCode::FORBIDDEN, &text);
        }
        // As a kubelet: nobody was refused, nobody could ask.
        Err(error) => {
            let text = format!("Authorization error ({ask}): {}", telemetry::chain(&error));
            tracing::warn!(text, "a caller's right is not known");
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, &text);
        }
    }

    match shared.sessions.find(node) {
        Whereabouts::Here(session) => to_node(shared, &session, request).await,
        Whereabouts::Elsewhere(holder) => to_peer(shared, node, &holder, request).await,
        Whereabouts::Nowhere { since } => away(shared, node, since),
    }
}

/// What another replica passes on, whose caller has proved there that it may.
pub(super) async fn answer_peer(shared: &Shared, request: Request<Incoming>) -> Answer {
    let node = request.headers().get(&NODE).and_then(|value| value.to_str().ok());
    let Some(node) = node.and_then(|node| NodeName::new(node).ok()) else {
        return refuse(StatusCode::BAD_REQUEST, "no node is named");
    };
    match shared.sessions.find(&node) {
        Whereabouts::Here(session) => to_node(shared, &session, request).await,
        // Who asked has not heard of it yet. A request is passed on once.
        Whereabouts::Elsewhere(Holder { replica, .. }) => {
            let text = format!("the link of node {node} has just moved to {replica}, ask again");
            refuse(StatusCode::BAD_GATEWAY, &text)
        }
        Whereabouts::Nowhere { since } => away(shared, &node, since),
    }
}

async fn to_node(shared: &Shared, session: &SessionHandle, request: Request<Incoming>) -> Answer {
    let node = session.node();
    if let Some((namespace, name)) = pod_of(request.uri().path())
        && !has_pod(shared, node, namespace, name)
    {
        let text = format!("pod {namespace}/{name} is not on node {node}");
        return refuse(StatusCode::NOT_FOUND, &text);
    }
    let stream = match session.open_stream(StreamKind::KUBELET_API).await {
        Ok(stream) => stream,
        Err(error) => return refuse(StatusCode::BAD_GATEWAY, &telemetry::chain(&error)),
    };
    let (headers, over, open) =
        (HeaderMap::new(), CancellationToken::new(), shared.streams.token());
    let way = Way { stream, headers, over, open };

    pass_on(way, request).await.unwrap_or_else(|error| {
        let text = format!("the stream to node {node} broke: {}", telemetry::chain(&error));
        refuse(StatusCode::BAD_GATEWAY, &text)
    })
}

async fn to_peer(
    shared: &Shared,
    node: &NodeName,
    holder: &Holder,
    request: Request<Incoming>,
) -> Answer {
    let failed = |error: &dyn std::error::Error| {
        let (replica, error) = (&holder.replica, telemetry::chain(error));
        tracing::info!(%node, replica, error, "a caller of the kubelet API cannot be passed on");
        let text = format!(
            "node {node} may be away, replica {replica}, which had its link last, does not answer: {error}"
        );
        closing(refuse(StatusCode::BAD_GATEWAY, &text))
    };
    let stream = match shared.peers.dial(holder.peer).await {
        Ok(stream) => stream,
        Err(error) => {
            shared.metrics.forwarded_request(error.word());
            return failed(&error);
        }
    };
    let headers =
        HeaderValue::from_str(node.as_str()).map(|name| HeaderMap::from_iter([(NODE, name)]));
    let (headers, over) = (headers.unwrap_or_default(), holder.over.clone());
    let way = Way { stream, headers, over, open: shared.streams.token() };

    let answer = pass_on(way, request).await;
    shared.metrics.forwarded_request(if answer.is_ok() { "Answered" } else { "Broken" });

    answer.unwrap_or_else(|error| failed(&error))
}

/// The API server shows its users what is said beside this status, and not beside 503.
fn away(shared: &Shared, node: &NodeName, since: Option<Timestamp>) -> Answer {
    let since = since.or_else(|| not_ready_since(&shared.cluster.index().node(node)?.bytes));

    closing(refuse(StatusCode::BAD_GATEWAY, &absence(node, since)))
}

fn absence(node: &NodeName, since: Option<Timestamp>) -> String {
    let since = since.map(|since| format!(" since {since:.0}")).unwrap_or_default();

    format!("node {node} is away{since}, its agent has no link to cloudcore")
}

/// Since when a Node is not Ready, if it is not.
fn not_ready_since(node: &[u8]) -> Option<Timestamp> {
    let node: Value = serde_json::from_slice(node).ok()?;
    let conditions = node["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    let since = ready["lastTransitionTime"].as_str().filter(|_| ready["status"] != "True");

    since?.parse().ok()
}

fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));

    answer
}

/// What proves or names the caller stays here: the node needs to trust nobody but this replica. So does what
/// replicas say to each other.
fn stays(name: &HeaderName) -> bool {
    *name == AUTHORIZATION
        || *name == PROXY_AUTHORIZATION
        || *name == COOKIE
        || *name == NODE
        || name.as_str().starts_with("x-remote-")
        || name.as_str().starts_with("impersonate-")
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// API servers take `A: B` for YAML of a Status, and lose it.
fn refuse(status: StatusCode, text: &str) -> Answer {
    let text = text.replace(": ", ", ");
    let mut answer = Response::new(Either::Right(Full::new(Bytes::from(format!("{text}\n")))));
    *answer.status_mut() = status;

    answer
}

/// Namespace and name of the pod that a path is about.
fn pod_of(path: &str) -> Option<(&str, &str)> {
    let mut parts = path.trim_start_matches('/').split('/');
    let is_pod = parts.next().is_some_and(|first| POD_PATHS.contains(&first));

    if is_pod { Some((parts.next()?, parts.next()?)) } else { None }
}

/// API servers pool connections, and a port may have been another node's.
fn has_pod(shared: &Shared, node: &NodeName, namespace: &str, name: &str) -> bool {
    let index = shared.cluster.index();
    let uids = index.pods_on(node);

    uids.iter()
        .filter_map(|uid| index.pod(uid))
        .any(|pod| pod.namespace == namespace && pod.name == name)
}

/// Where a request goes on.
struct Way<S> {
    stream: S,
    /// What is said beside what the caller says.
    headers: HeaderMap,
    /// Cancelled when nothing good comes from there any more.
    over: CancellationToken,
    /// Kept until the stream has ended.
    open: TaskTrackerToken,
}

async fn pass_on<S>(way: Way<S>, mut request: Request<Incoming>) -> Result<Answer, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Way { stream, headers, over, open } = way;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let is_upgrade = request.headers().contains_key(UPGRADE);
    let caller_side = is_upgrade.then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let staying: Vec<_> = parts.headers.keys().filter(|name| stays(name)).cloned().collect();
    for name in staying {
        parts.headers.remove(name);
    }
    parts.headers.extend(headers);
    let mut onward = Request::new(body);
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = parts.uri;
    *onward.headers_mut() = parts.headers;
    // The connection lives until the answer has been read; it ends with its stream.
    let (ended, going_on) = (over.clone(), open.clone());
    #[expect(clippy::disallowed_methods, reason = "bounded by the connections of callers")]
    tokio::spawn(async move {
        if let Some(Err(error)) = ended.run_until_cancelled(connection.with_upgrades()).await {
            tracing::debug!(%error, "a stream to a node ended");
        }
        drop(going_on);
    });
    let mut answer = sender.send_request(onward).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        answer.headers_mut().remove(CONNECTION);
        return Ok(answer.map(Either::Left));
    }
    let node_side = hyper::upgrade::on(&mut answer);
    if let Some(caller_side) = caller_side {
        #[expect(clippy::disallowed_methods, reason = "bounded by the connections of callers")]
        tokio::spawn(async move {
            if let (Ok(caller), Ok(node)) = (caller_side.await, node_side.await) {
                let (mut caller, mut node) = (TokioIo::new(caller), TokioIo::new(node));
                let both = tokio::io::copy_bidirectional(&mut caller, &mut node);
                // Either side may end it.
                drop(over.run_until_cancelled(both).await);
                // The caller sees an end, and not a connection that breaks.
                drop(timeout(GOODBYE_MAX, caller.shutdown()).await);
            }
            drop(open);
        });
    }
    let (parts, _) = answer.into_parts();

    Ok(Response::from_parts(parts, Either::Right(Full::default())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_found_in_paths() {
        assert_eq!(pod_of("/containerLogs/shop/web/main"), Some(("shop", "web")));
        assert_eq!(pod_of("/exec/shop/web/uid/main"), Some(("shop", "web")));
        assert_eq!(pod_of("/metrics/cadvisor"), None);
        assert_eq!(pod_of("/containerLogs"), None);
    }

    #[test]
    fn who_asks_for_a_node_that_is_away_is_told_since_when() {
        let node = NodeName::new("edge-1").unwrap();
        let is_away = |status: &str| {
            let since = "2026-01-02T03:04:05Z";
            let ready = json!({ "type": "Ready", "status": status, "lastTransitionTime": since });
            let node = json!({ "status": { "conditions": [{ "type": "Other" }, ready] } });
            not_ready_since(node.to_string().as_bytes())
        };
        let since = is_away("Unknown");
        let expected = "node edge-1 is away since 2026-01-02T03:04:05Z, its agent has no link to \
                        cloudcore";
        assert_eq!(absence(&node, since), expected);
        // The node controller has not noticed yet.
        assert_eq!(is_away("True"), None);
        assert!(absence(&node, None).starts_with("node edge-1 is away, "));
    }

    #[test]
    fn what_names_the_caller_stays() {
        for (name, stays) in [
            ("authorization", true),
            ("impersonate-user", true),
            ("x-remote-group", true),
            ("cookie", true),
            ("x-holdfast-node", true),
            ("x-stream-protocol-version", false),
            ("upgrade", false),
            ("sec-websocket-protocol", false),
        ] {
            assert_eq!(self::stays(&HeaderName::from_static(name)), stays, "{name}");
        }
    }
}
