//! Passes a request on to the node over a stream of its link: head, bodies and upgraded bytes as they
//! are, without what proves the caller.

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, HeaderName, HeaderValue, PROXY_AUTHORIZATION, UPGRADE,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proto::ids::NodeName;
use proto::wire::StreamKind;

use super::access::{Ask, Caller};
use super::{Absence, Shared, Whose};
use crate::hub::SessionHandle;
use crate::telemetry;

type Answer = Response<Either<Incoming, Full<Bytes>>>;

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
    whose: &Whose,
    caller: &Caller,
    request: Request<Incoming>,
) -> Answer {
    let session = match whose {
        Whose::Connected(session) => session,
        Whose::Away(absence) => return away(absence),
    };
    let (node, path) = (session.node(), request.uri().path().to_owned());
    let ask = Ask { caller, node, method: request.method(), path: &path };
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
    if let Some((namespace, name)) = pod_of(&path)
        && !has_pod(shared, session, namespace, name)
    {
        let text = format!("pod {namespace}/{name} is not on node {node}");
        return refuse(StatusCode::NOT_FOUND, &text);
    }

    match pass_on(session, request).await {
        Ok(answer) => answer,
        Err(reason) => refuse(StatusCode::BAD_GATEWAY, &reason),
    }
}

/// The API server shows its users what is said beside this status, and not beside 503.
fn away(absence: &Absence) -> Answer {
    closing(refuse(StatusCode::BAD_GATEWAY, &absence.to_string()))
}

fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));

    answer
}

/// What proves or names the caller stays here: the node needs to trust nobody but this replica.
fn names_caller(name: &HeaderName) -> bool {
    *name == AUTHORIZATION
        || *name == PROXY_AUTHORIZATION
        || *name == COOKIE
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
fn has_pod(shared: &Shared, session: &SessionHandle, namespace: &str, name: &str) -> bool {
    let index = shared.cluster.index();
    let uids = index.pods_on(session.node());

    uids.iter()
        .filter_map(|uid| index.pod(uid))
        .any(|pod| pod.namespace == namespace && pod.name == name)
}

async fn pass_on(
    session: &SessionHandle,
    mut request: Request<Incoming>,
) -> Result<Answer, String> {
    let stream = session
        .open_stream(StreamKind::KUBELET_API)
        .await
        .map_err(|error| telemetry::chain(&error))?;
    let broken = |error: hyper::Error| format!("the stream to the node broke: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let is_upgrade = request.headers().contains_key(UPGRADE);
    let caller_side = is_upgrade.then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let mut onward = Request::builder().method(parts.method).uri(parts.uri);
    for (name, value) in &parts.headers {
        if !names_caller(name) {
            onward = onward.header(name, value);
        }
    }
    let onward = onward.body(body).map_err(|error| error.to_string())?;
    // The connection lives until the answer has been read; it ends with its stream.
    #[expect(clippy::disallowed_methods, reason = "bounded by the streams of the link")]
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a stream to a node ended");
        }
    });
    let mut answer = sender.send_request(onward).await.map_err(broken)?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        answer.headers_mut().remove(CONNECTION);
        return Ok(answer.map(Either::Left));
    }
    let node_side = hyper::upgrade::on(&mut answer);
    if let Some(caller_side) = caller_side {
        #[expect(clippy::disallowed_methods, reason = "bounded by the streams of the link")]
        tokio::spawn(async move {
            if let (Ok(caller), Ok(node)) = (caller_side.await, node_side.await) {
                let (mut caller, mut node) = (TokioIo::new(caller), TokioIo::new(node));
                // Either side may end it.
                drop(tokio::io::copy_bidirectional(&mut caller, &mut node).await);
            }
        });
    }
    let (parts, _) = answer.into_parts();

    Ok(Response::from_parts(parts, Either::Right(Full::default())))
}

#[cfg(test)]
mod tests {
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
        let mut absence = Absence {
            node: NodeName::new("edge-1").unwrap(),
            since: Some("2026-01-02T03:04:05.678Z".parse().unwrap()),
        };
        assert_eq!(away(&absence).status(), StatusCode::BAD_GATEWAY);
        let expected = "node edge-1 is away since 2026-01-02T03:04:05Z, its agent has no link to \
                        cloudcore";
        assert_eq!(absence.to_string(), expected);
        absence.since = None;
        assert!(absence.to_string().starts_with("node edge-1 is away, "), "{absence}");
    }

    #[test]
    fn what_names_the_caller_stays() {
        for (name, stays) in [
            ("authorization", true),
            ("impersonate-user", true),
            ("x-remote-group", true),
            ("cookie", true),
            ("x-stream-protocol-version", false),
            ("upgrade", false),
            ("sec-websocket-protocol", false),
        ] {
            assert_eq!(names_caller(&HeaderName::from_static(name)), stays, "{name}");
        }
    }
}
