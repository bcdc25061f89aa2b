//! A certificate that has expired while the node was away: the node asks for another, with its old key and
//! its ticket, over a connection without a certificate (see [`proto::renewal`]).

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use proto::admission::Ticket;
use proto::codec;
use proto::ids::NodeName;
use proto::renewal::{self, EXPORTER_LABEL, EXPORTER_LEN, Renewal};
use proto::wire::{CertificateRefusal, Frame, Issued};
use tokio_rustls::rustls::{AlertDescription, Error as TlsError};
use tokio_tungstenite::tungstenite::Error as SocketError;

use super::dial::{self, DialError, Stream};
use super::post::{PostError, post};
use super::proxy::Way;
use crate::blocking;
use crate::clock::KnownTime;
use crate::identity::next::NextKey;
use crate::identity::{Identity, IdentityError};

/// From the request to the answer: cloudcore asks the API server twice meanwhile.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// Why there is no other certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The node has nothing to prove itself with.
    #[error("the node has no resume ticket; join it anew")]
    NoTicket,
    /// The identity cannot be used, or the new one not be kept.
    #[error(transparent)]
    Identity(IdentityError),
    /// No connection.
    #[error("cannot ask for another")]
    Dial(#[source] Box<DialError>),
    /// No answer.
    #[error("cannot ask for another")]
    Post(#[source] PostError),
    /// TLS does not give what is signed.
    #[error("TLS gives nothing to sign")]
    Exporter(#[source] TlsError),
    /// It is no cloudcore of this version.
    #[error("the answer is not understood: cloudcore may be too old")]
    Answer,
    /// Cloudcore said no.
    #[error("cloudcore gives no other: {reason}")]
    Refused {
        /// For people.
        reason: String,
        /// When to ask again.
        retry_after: Duration,
    },
}

/// Whether cloudcore says that the certificate has expired. It looks at it when the dial is done here, so a
/// connection that breaks then says the same of one that has expired by `now`, the time since 1970.
pub(super) fn is_expired(error: &DialError, identity: &Identity, now: Duration) -> bool {
    let DialError::Upgrade { source, .. } = error else { return false };
    if matches!(**source, SocketError::Http(_)) {
        return false;
    }
    match alert(source) {
        Some(alert) => alert == AlertDescription::CertificateExpired,
        None => identity.validity.is_some_and(|(_, until)| until < now),
    }
}

/// What the other end's TLS said before it closed the connection.
fn alert(error: &SocketError) -> Option<AlertDescription> {
    let SocketError::Io(error) = error else { return None };
    let said = error.get_ref()?.downcast_ref::<TlsError>()?;

    if let TlsError::AlertReceived(alert) = said { Some(*alert) } else { None }
}

/// Gets another certificate, which is in the folder then.
pub(super) async fn renew(
    node: &NodeName,
    way: &Way,
    dir: &Path,
    identity: &Identity,
    ticket: Option<Ticket>,
    known: &KnownTime,
) -> Result<Identity, RenewalError> {
    let ticket = ticket.ok_or(RenewalError::NoTicket)?;
    let next = NextKey::generate(node).map_err(RenewalError::Identity)?;
    let tls = identity.without_certificate(dir).map_err(RenewalError::Identity)?;
    let stream = dial::connect(way, known.over(&tls)).await;
    let stream = stream.map_err(|error| RenewalError::Dial(Box::new(error)))?;
    let exporter = stream
        .get_ref()
        .1
        .export_keying_material([0; EXPORTER_LEN], EXPORTER_LABEL, None)
        .map_err(RenewalError::Exporter)?;
    let csr = Bytes::copy_from_slice(next.csr());
    let signed = renewal::signed(&exporter, &csr);
    let (signer, folder) = (identity.clone(), dir.to_owned());
    let signature = blocking::run(move || signer.sign(&folder, &signed)).await;
    let signature = signature.map_err(RenewalError::Identity)?.into();
    let certificate = Bytes::copy_from_slice(&identity.certificate);
    let body = Renewal { certificate, csr, ticket, signature }.encode();
    let issued = ask(stream, body).await?;
    let (before, folder) = (identity.clone(), dir.to_owned());
    let now = known.now();
    let kept = blocking::run(move || next.keep(&folder, &before, &issued, now));

    kept.await.map_err(RenewalError::Identity)
}

async fn ask(stream: Stream, body: Bytes) -> Result<Issued, RenewalError> {
    let answer = post(stream, renewal::PATH, "application/protobuf", body, ANSWER_MAX).await;
    let (_status, body) = answer.map_err(RenewalError::Post)?;
    match codec::decode(&body) {
        Ok(Frame::CertificateIssued(issued)) => Ok(issued),
        Ok(Frame::CertificateRefused(CertificateRefusal { reason, retry_after })) => {
            Err(RenewalError::Refused { reason, retry_after })
        }
        Ok(_) | Err(_) => Err(RenewalError::Answer),
    }
}

#[cfg(test)]
mod tests;
