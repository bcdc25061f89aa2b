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
use proto::codec;
use proto::renewal::{Exporter, PATH as RENEWAL_PATH, RENEWAL_BYTES_MAX};
use proto::wire::{CertificateRefusal, Frame};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::joining::{self, JoinError};
use super::outdated::Known;
use super::{Shared, renewal, session};
use crate::crowd::Source;
use crate::pki::Holder;
use crate::{clock, telemetry};

/// A token, a name and a certificate request have 2 KiB.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// From the head to the end of the body: a bad mobile link. Slower ones give their place back.
const BODY_MAX: Duration = Duration::from_secs(10);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// By its certificate, if it has shown one.
    pub(super) holder: Option<Holder>,
    /// What only the two ends of this connection know.
    pub(super) exporter: Exporter,
    pub(super) address: SocketAddr,
}

impl Peer {
    fn source(&self) -> Source {
        Source::of(self.address.ip())
    }
}

type Answer = Response<Full<Bytes>>;
type Upgrades = Arc<Mutex<Option<OnUpgrade>>>;

pub(super) async fn answer(
    request: Request<Incoming>,
    peer: Peer,
    shared: Arc<Shared>,
    upgraded: Upgrades,
) -> Result<Answer, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET, "/healthz") => text(StatusCode::OK, "ok"),
        (&Method::POST, "/v1/join") => join(request, &peer, &shared).await,
        (&Method::POST, RENEWAL_PATH) => renew(request, &peer, &shared).await,
        (&Method::GET, "/v1/link") if peer.holder.is_none() => text(
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

async fn body_of(request: Request<Incoming>, max: usize) -> Result<Bytes, String> {
    let body = Limited::new(request.into_body(), max).collect();
    match timeout(BODY_MAX, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(format!("the body cannot be read: {error}")),
        Err(_elapsed) => Err("the body did not come in time".to_owned()),
    }
}

async fn join(request: Request<Incoming>, peer: &Peer, shared: &Shared) -> Answer {
    let joined = async {
        if !shared.joins.try_take(peer.source(), clock::now()) {
            return Err(JoinError::Busy);
        }
        let body = body_of(request, BODY_BYTES_MAX).await.map_err(JoinError::Body)?;
        joining::join(shared, &body).await
    };
    match joined.await {
        Ok(joined) => {
            shared.metrics.join(None);
            json(StatusCode::OK, &serde_json::json!(joined))
        }
        Err(error) => {
            shared.metrics.join(Some(error.reason()));
            let text = telemetry::chain(&error);
            tracing::warn!(error = %text, "a machine was refused to join");
            refuse(error.status(), error.reason(), &text)
        }
    }
}

/// Gives a node whose certificate has expired another.
async fn renew(request: Request<Incoming>, peer: &Peer, shared: &Shared) -> Answer {
    let renewed = async {
        if !shared.renewals.try_take(peer.source(), clock::now()) {
            return Err(renewal::Refused::Busy);
        }
        let body = body_of(request, RENEWAL_BYTES_MAX).await.map_err(renewal::Refused::Body)?;
        renewal::after_expiry(shared, &peer.exporter, &body).await
    };
    let (status, frame) = match renewed.await {
        Ok(issued) => (StatusCode::OK, Frame::CertificateIssued(issued)),
        Err(refused) => {
            let reason = telemetry::chain(&refused);
            tracing::warn!(peer = %peer.address, reason, "a node with an expired certificate was refused another");
            if let renewal::Refused::Node { node, refusal } = &refused {
                let address = peer.address.ip();
                shared.alarms.raise(&shared.client, node, refusal, address).await;
            }
            let (status, retry_after) = refused.answer();
            (status, Frame::CertificateRefused(CertificateRefusal { reason, retry_after }))
        }
    };
    let mut answer = Response::new(Full::new(codec::encode(&frame)));
    *answer.status_mut() = status;

    answer
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

pub(super) async fn link(upgrade: OnUpgrade, known: Known, peer: SocketAddr, shared: Arc<Shared>) {
    match upgrade.await {
        Ok(stream) => session::run(stream, known, peer, shared).await,
        Err(error) => {
            tracing::info!(node = %known.holder.node, %peer, %error, "the upgrade to a link failed");
        }
    }
}
