//! Gives nodes certificates for their next keys: over the link, or when the old one has expired meanwhile.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use proto::ids::NodeName;
use proto::renewal::{self, Exporter, Renewal};
use proto::wire::{CertificateRefusal, Fingerprint, Issued, Refusal, RefuseCode};
use rcgen::Certificate;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::{SessionHandle, Shared, admission};
use crate::pki::{Authority, Holder, KeyHash, NodeRequest, PkiError};
use crate::telemetry;

/// Between two requests over one session. A certificate lives half a minute at least.
const INTERVAL: Duration = Duration::from_secs(10);

/// When the API server did not answer.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// A request that is wrong is wrong again, and a node that is over finds out by itself.
const REFUSED_RETRY_AFTER: Duration = Duration::from_hours(1);

/// Requests are few; whoever comes later passes soon.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(5);

/// A person has to act.
const LOST_RETRY_AFTER: Duration = Duration::from_mins(1);

/// Whether a session that asked at `last` may ask again.
pub(super) fn is_early(last: Option<Instant>, now: Instant) -> bool {
    last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL)
}

/// The answer to a session that asks too often.
pub(super) fn too_early() -> CertificateRefusal {
    refusal("certificates are given every few seconds only".to_owned(), INTERVAL)
}

/// Gives the node of `session`, which has connected with the key `current`, a certificate for another.
pub(super) async fn over_link(
    shared: &Shared,
    session: &SessionHandle,
    current: &KeyHash,
    csr: &[u8],
) -> Result<Given, CertificateRefusal> {
    let (node, generation) = (session.node(), session.generation());
    let wrong = |error| refusal(telemetry::chain(&error), REFUSED_RETRY_AFTER);
    let request = NodeRequest::parse_der(node, csr).map_err(wrong)?;
    let key = request.key_hash();
    let recorded = admission::give_key(shared, node, generation, current, &key).await;
    match recorded {
        Ok(true) if session.is_current() => {}
        Ok(_) => {
            let reason = "the session that asks is not the node's any more".to_owned();
            return Err(refusal(reason, REFUSED_RETRY_AFTER));
        }
        Err(error) => {
            let error = telemetry::chain(&error);
            return Err(refusal(format!("the record cannot be kept: {error}"), RETRY_AFTER));
        }
    }
    let authority = shared.authority.now();
    let certificate = authority.sign(request, shared.node_life).map_err(wrong)?;
    tracing::info!(%node, generation, "a node has a new certificate");

    Ok(Given { issued: issued(&authority, &certificate), issuer: authority.signer() })
}

/// A certificate, and by whom it is.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) issued: Issued,
    pub(super) issuer: Fingerprint,
}

/// Why who asks for a certificate in the place of one that has expired is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// Too many ask.
    #[error("too many nodes ask for certificates at once; ask again in a few seconds")]
    Busy,
    /// The body cannot be had, or is none of ours.
    #[error("{0}")]
    Body(String),
    /// The old certificate is of no node of this authority.
    #[error(
        "the certificate that has expired is not of a node of this authority; join it by token"
    )]
    Certificate(#[source] PkiError),
    /// It is shown by somebody who does not have its key.
    #[error("the request is not signed with the key of the certificate that has expired")]
    Signature,
    /// Ticket, key or record say no.
    #[error("{}: {}", .refusal.code.as_str(), .refusal.reason)]
    Node {
        /// Which node.
        node: NodeName,
        /// Why.
        refusal: Refusal,
    },
    /// No certificate for such a request.
    #[error(transparent)]
    Request(PkiError),
}

impl Refused {
    /// Status of the answer, and when to ask again.
    pub(super) fn answer(&self) -> (StatusCode, Duration) {
        match self {
            Self::Busy => (StatusCode::TOO_MANY_REQUESTS, BUSY_RETRY_AFTER),
            Self::Body(_) | Self::Request(_) => (StatusCode::BAD_REQUEST, REFUSED_RETRY_AFTER),
            Self::Certificate(_) | Self::Signature => (StatusCode::FORBIDDEN, LOST_RETRY_AFTER),
            Self::Node { refusal, .. } if refusal.code == RefuseCode::NotReady => {
                (StatusCode::SERVICE_UNAVAILABLE, refusal.retry_after)
            }
            Self::Node { refusal, .. } => (StatusCode::FORBIDDEN, refusal.retry_after),
        }
    }
}

/// Gives a node whose certificate has expired another: it proves on this connection that it has the old key,
/// it has the ticket, and it was not revoked.
pub(super) async fn after_expiry(
    shared: &Shared,
    exporter: &Exporter,
    body: &Bytes,
) -> Result<Issued, Refused> {
    let unread = || Refused::Body("the body is no request for a certificate".to_owned());
    let Renewal { certificate, csr, ticket, signature } =
        Renewal::decode(body).ok_or_else(unread)?;
    let certificate = CertificateDer::from(certificate.to_vec());
    let holder = shared.authority.now().once_signed(&certificate).map_err(Refused::Certificate)?;
    let message = renewal::signed(exporter, &csr);
    if !holder.has_signed(&message, &signature) {
        return Err(Refused::Signature);
    }
    let Holder { node, key, .. } = holder;
    let request = NodeRequest::parse_der(&node, &csr).map_err(Refused::Request)?;
    let next = request.key_hash();
    let given = admission::give_key_by_ticket(shared, &node, &ticket, &key, &next).await;
    if let Err(refusal) = given {
        return Err(Refused::Node { node, refusal });
    }
    let authority = shared.authority.now();
    let certificate = authority.sign(request, shared.node_life).map_err(Refused::Request)?;
    tracing::info!(%node, "a node whose certificate had expired has a new one");

    Ok(issued(&authority, &certificate))
}

fn issued(authority: &Authority, certificate: &Certificate) -> Issued {
    Issued {
        certificate: Bytes::copy_from_slice(certificate.der()),
        authorities: authority
            .certificates()
            .iter()
            .map(|der| Bytes::copy_from_slice(der))
            .collect(),
    }
}

/// Keeps in the record that the node holds its ticket, until that is done or the session is over.
pub(super) async fn confirm(shared: &Shared, session: &SessionHandle) {
    let (node, generation) = (session.node(), session.generation());
    let what = "cannot record that the node holds its ticket; trying again";
    until_kept(session, what, || admission::confirm(shared, node, generation)).await;
}

/// Keeps in the record by whom the certificate is that the node holds, until that is done or the session is over.
pub(super) async fn keep_issuer(shared: &Shared, session: &SessionHandle, issuer: Fingerprint) {
    let (node, generation) = (session.node(), session.generation());
    let what = "cannot record of which authority the node's certificate is; trying again";
    until_kept(session, what, || admission::keep_issuer(shared, node, generation, issuer)).await;
}

async fn until_kept<Keep>(session: &SessionHandle, what: &str, keep: impl Fn() -> Keep)
where
    Keep: Future<Output = Result<(), kube::Error>>,
{
    let mut wait = KEEP_RETRY.0;
    while session.is_current() {
        match keep().await {
            Ok(()) => return,
            Err(error) => {
                let error = telemetry::chain(&error);
                tracing::warn!(node = %session.node(), error, what);
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(KEEP_RETRY.1);
    }
}

/// Delay between attempts: doubles from the first to the second.
const KEEP_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

fn refusal(reason: String, retry_after: Duration) -> CertificateRefusal {
    CertificateRefusal { reason, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_session_waits_between_its_requests() {
        let start = clock::now();
        assert!(!is_early(None, start));
        assert!(is_early(Some(start), start + INTERVAL / 2));
        assert!(!is_early(Some(start), start + INTERVAL));
    }
}
