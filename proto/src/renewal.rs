//! How a node whose certificate has expired asks for another: what it sends, and what it signs.
//!
//! It has no certificate to connect with, so it proves on a connection without one that it has the key of
//! the old one: it signs the request together with bytes that only the two ends of this very connection
//! know (RFC 5705, RFC 8446 section 7.5). What is sent is worth nothing on any other connection.

use bytes::Bytes;
use prost::Message as _;

use crate::admission::Ticket;
use crate::codec::CERTIFICATE_BYTES_MAX;
use crate::pb;

/// Where it is asked for, by POST.
pub const PATH: &str = "/v1/renew";

/// What the connection's bytes are exported for.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-holdfast-renewal";

/// How many.
pub const EXPORTER_LEN: usize = 32;

/// Bytes of a connection.
pub type Exporter = [u8; EXPORTER_LEN];

/// Longest request: a certificate, a request for one, a ticket and a signature.
pub const RENEWAL_BYTES_MAX: usize = 2 * CERTIFICATE_BYTES_MAX + 1024;

/// What the node sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The certificate that has expired, DER.
    pub certificate: Bytes,
    /// PKCS #10, DER, signed with the next key.
    pub csr: Bytes,
    /// The node's resume ticket. It stays good.
    pub ticket: Ticket,
    /// Of [`signed`], by the key of the certificate.
    pub signature: Bytes,
}

/// What the old key signs.
pub fn signed(exporter: &Exporter, csr: &[u8]) -> Vec<u8> {
    [b"holdfast renewal 1", exporter.as_slice(), csr].concat()
}

impl Renewal {
    /// The body of the request.
    pub fn encode(&self) -> Bytes {
        let Self { certificate, csr, ticket, signature } = self.clone();
        let ticket = ticket.as_bytes().clone();
        let request =
            pb::RenewalRequest { certificate_der: certificate, csr_der: csr, ticket, signature };

        request.encode_to_vec().into()
    }

    /// Reads the body of a request.
    pub fn decode(body: &Bytes) -> Option<Self> {
        if body.len() > RENEWAL_BYTES_MAX {
            return None;
        }
        let pb::RenewalRequest { certificate_der, csr_der, ticket, signature } =
            pb::RenewalRequest::decode(body.clone()).ok()?;

        Some(Self {
            certificate: certificate_der,
            csr: csr_der,
            ticket: Ticket::new(ticket)?,
            signature,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back_as_written() {
        let renewal = Renewal {
            certificate: Bytes::from_static(b"certificate"),
            csr: Bytes::from_static(b"csr"),
            ticket: Ticket::new(vec![7; 56]).unwrap(),
            signature: Bytes::from_static(b"signature"),
        };
        let body = renewal.encode();
        assert_eq!(Renewal::decode(&body), Some(renewal));
        assert_eq!(Renewal::decode(&body.slice(..body.len() - 1)), None);
        assert_eq!(Renewal::decode(&Bytes::new()), None, "without a ticket");
        assert_eq!(Renewal::decode(&vec![0; RENEWAL_BYTES_MAX + 1].into()), None);
    }
}
