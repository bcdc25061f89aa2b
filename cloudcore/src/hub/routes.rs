//! What edges may ask: to join, to open the link, whether cloudcore lives.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use proto::ids::NodeName;
use serde::Deserialize;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::joining::{self, JoinError};
use super::{Shared, admission, session};
use crate::crowd::Source;
use crate::pki::NodeRequest;
use crate::{clock, telemetry};

/// A token, a name and a certificate request have 2 KiB.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// From the head to the end of the body: a bad mobile link. Slower ones give their place back.
const BODY_MAX: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RenewRequest {
    csr: String,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    /// Proven by its certificate.
    pub node: Option<NodeName>,
    /// From where.
    pub source: Source,
}

type Answer = Response<Full<Bytes>>;
type Upgrades = Arc<Mutex<Option<OnUpgrade>>>;

pub(super) async fn answer(
    request: Request<Incoming>,
    Asker { node, source }: Asker,
    shared: Arc<Shared>,
    upgraded: Upgrades,
) -> Result<Answer, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") => text(StatusCode::OK, "ok"),
        (&Method::POST, "/v1/join") => join(request, source, &shared).await,
        (&Method::POST, "/v1/renew") => renew(request, node, &shared).await,
        (&Method::GET, "/v1/link") if node.is_none() => text(
            StatusCode::UNAUTHORIZED,
            "the link needs the certificate of a node; join it by token: edgeadm join",
        ),
        (&Method::GET, "/v1/link") => upgrade(request, &upgraded),
        _ => text(StatusCode::NOT_FOUND, "no such route"),
    })
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *answer.status_mut() = status;

    answer
}

fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())));
    *answer.status_mut() = status;

    answer
}

fn refuse(status: StatusCode, reason: &str, error: &str) -> Answer {
    json(status, &serde_json::json!({ "reason": reason, "error": error }))
}

async fn body_of(request: Request<Incoming>) -> Result<Bytes, String> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    match timeout(BODY_MAX, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(format!("the body cannot be read: {error}")),
        Err(_elapsed) => Err("the body did not come in time".to_owned()),
    }
}

async fn join(request: Request<Incoming>, source: Source, shared: &Shared) -> Answer {
    let joined = async {
        if !shared.joins.try_take(source, clock::now()) {
            return Err(JoinError::Busy);
        }
        let body = body_of(request).await.map_err(JoinError::Body)?;
        joining::join(shared, &body).await
    };
    match joined.await {
        Ok(certificate) => {
            shared.metrics.join(None);
            certified(shared, &certificate)
        }
        Err(error) => {
            shared.metrics.join(Some(error.reason()));
            let text = telemetry::chain(&error);
            tracing::warn!(error = %text, "a machine was refused to join");
            refuse(error.status(), error.reason(), &text)
        }
    }
}

fn certified(shared: &Shared, certificate: &str) -> Answer {
    let ca = shared.authority.ca_pem();

    json(StatusCode::OK, &serde_json::json!({ "certificate": certificate, "ca": ca }))
}

/// Gives a node that proves itself a certificate of the same name. That alone opens no link: the
/// resume ticket must be right, too.
async fn renew(request: Request<Incoming>, node: Option<NodeName>, shared: &Shared) -> Answer {
    let bad = |error: &str| refuse(StatusCode::BAD_REQUEST, "BadRequest", error);
    let Some(node) = node else {
        let error = "renewing needs the certificate of a node; join it by token: edgeadm join";
        return refuse(StatusCode::UNAUTHORIZED, "NoCertificate", error);
    };
    let body = match body_of(request).await {
        Ok(body) => body,
        Err(error) => return bad(&error),
    };
    let asked: RenewRequest = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return bad(&format!("the body is not understood: {error}")),
    };
    match admission::may_renew(shared, &node).await {
        Ok(true) => {}
        Ok(false) => {
            let error = "the node has not joined or was revoked; join it by token: edgeadm join";
            return refuse(StatusCode::FORBIDDEN, "Revoked", error);
        }
        Err(error) => {
            let error = format!("the session record cannot be read: {}", telemetry::chain(&error));
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "NotReady", &error);
        }
    }
    let signed = NodeRequest::parse(&node, &asked.csr).and_then(|new| shared.authority.sign(new));
    match signed {
        Ok(certificate) => {
            tracing::info!(%node, "a node renewed its certificate");
            certified(shared, &certificate)
        }
        Err(error) => bad(&telemetry::chain(&error)),
    }
}

/// The server's half of the WebSocket handshake (RFC 6455, section 4.2).
fn upgrade(mut request: Request<Incoming>, upgraded: &Upgrades) -> Answer {
    let headers = request.headers();
    let is_websocket = headers
        .get(UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|value| value == "13");
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY).filter(|_| is_websocket) else {
        return text(StatusCode::UPGRADE_REQUIRED, "the link is a WebSocket, version 13");
    };
    let accept = derive_accept_key(key.as_bytes());
    if let Ok(mut slot) = upgraded.lock() {
        *slot = Some(hyper::upgrade::on(&mut request));
    }
    let answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(UPGRADE, "websocket")
        .header(CONNECTION, "Upgrade")
        .header(SEC_WEBSOCKET_ACCEPT, accept)
        .body(Full::default());

    answer.unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, "cannot answer"))
}

pub(super) async fn link(
    upgrade: OnUpgrade,
    node: NodeName,
    peer: SocketAddr,
    shared: Arc<Shared>,
) {
    match upgrade.await {
        Ok(stream) => session::run(stream, node, peer, shared).await,
        Err(error) => tracing::info!(%node, %peer, %error, "the upgrade to a link failed"),
    }
}
