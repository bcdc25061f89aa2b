//! Keys, tickets and certificates: who is the node, who is refused, and who gets another certificate.

use proto::renewal::{self, EXPORTER_LABEL, EXPORTER_LEN, Renewal};
use proto::wire::{CertificateRefusal, Fingerprint, IdentityHeld, Issued};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use tokio_rustls::rustls::pki_types::CertificateSigningRequestDer;

use super::*;

/// What the API server has, once it is `enough`.
async fn until<T>(what: &str, look: impl Fn() -> T, enough: impl Fn(&T) -> bool) -> T {
    soon(what, async {
        loop {
            let found = look();
            if enough(&found) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

impl Hub {
    fn annotation(&self, name: &str) -> String {
        let record = self.api.get(RECORD).unwrap_or_default();

        record["metadata"]["annotations"][name].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn a_key_alone_opens_nothing_once_the_node_holds_its_ticket_and_people_are_told() {
    block_on(async {
        let mut hub = Hub::start().await;
        let who = hub.node("edge-1");
        hub.keep_record(false);
        let mut link = hub.link(&who, "edge-1", None).await;
        let ticket = link.welcomed().await.ticket;
        let session = soon("a session", hub.connected.recv()).await.unwrap().session;
        link.send(&Frame::TicketHeld).await;
        let shown = || hub.annotation("holdfast.dev/ticket-shown");
        until("the record", shown, |shown| shown == "1").await;

        for _ in 0..2 {
            let mut thief = hub.link(&who, "edge-1", None).await;
            assert_eq!(thief.refused().await, RefuseCode::StaleTicket);
        }
        assert!(session.is_current());
        let told = || hub.api.under("/api/v1/namespaces/default/events/edge-1.");
        let told = until("an event", told, |told| !told.is_empty()).await;
        assert_eq!(told[0]["reason"], "StolenIdentity");
        assert_eq!(told[0]["involvedObject"]["kind"], "Node");
        let message = told[0]["message"].as_str().unwrap();
        assert!(message.starts_with("a machine at 127.0.0.1 with the certificate"), "{message}");

        // The node itself has what the thief lacks.
        hub.link(&who, "edge-1", Some(ticket)).await.welcomed().await;
    });
}

#[test]
fn an_agent_of_another_protocol_is_refused_counted_and_told_of() {
    block_on(async {
        let hub = Hub::start().await;
        let who = hub.node("edge-1");
        hub.keep_record(false);
        let other = PROTOCOL_VERSION + 1;
        let mut link = hub.link_speaking(other, &who, "edge-1", None).await;
        assert_eq!(link.refused().await, RefuseCode::BadProtocol);
        let told = || hub.api.under("/api/v1/namespaces/default/events/edge-1.");
        let told = until("an event", told, |told| !told.is_empty()).await;
        assert_eq!(told[0]["reason"], "OtherProtocol");
        let message = told[0]["message"].as_str().unwrap();
        let both =
            format!("the edge speaks protocol version {other}, this cloud {PROTOCOL_VERSION}");
        assert!(message.ends_with(&both), "{message}");
        let counted = "holdfast_cloudcore_admissions_total{result=\"BadProtocol\"} 1";
        let metrics = hub.shared.metrics.text(&crate::metrics::tests::now());
        assert!(metrics.contains(counted), "{metrics}");
    });
}

#[test]
fn who_has_no_ticket_must_have_the_key_that_joined() {
    block_on(async {
        let hub = Hub::start().await;
        let (who, other) = (hub.node("edge-1"), hub.node("edge-1"));
        hub.keep_record(false);
        hub.keep_key(&who);
        assert_eq!(hub.link(&other, "edge-1", None).await.refused().await, RefuseCode::StaleTicket);
        hub.link(&who, "edge-1", None).await.welcomed().await;
    });
}

impl Link {
    async fn certificate(&mut self) -> Result<Issued, CertificateRefusal> {
        loop {
            match self.next().await {
                Some(Frame::CertificateIssued(issued)) => return Ok(issued),
                Some(Frame::CertificateRefused(refusal)) => return Err(refusal),
                Some(Frame::Ping { .. } | Frame::ListHeld { .. }) => {}
                other => panic!("no answer: {other:?}"),
            }
        }
    }
}

fn csr_der(node: &str) -> (Bytes, String) {
    let (csr, key) = request_of("system:nodes", &format!("system:node:{node}"));
    let csr = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).unwrap();

    (csr.to_vec().into(), key)
}

fn pem_of(certificate: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);

    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

#[test]
fn certificates_are_renewed_over_the_link() {
    block_on(async {
        let mut hub = Hub::start().await;
        let who = hub.node("edge-1");
        hub.keep_record(false);
        let mut link = hub.link(&who, "edge-1", None).await;
        let ticket = link.welcomed().await.ticket;
        let (csr, key) = csr_der("edge-1");
        link.send(&Frame::CertificateWanted { csr: csr.clone() }).await;
        let issued = link.certificate().await.unwrap();
        assert_eq!(issued.authorities, [hub.authority.certificates()[0].to_vec()]);
        // Too soon for another, and the session is none the worse for it.
        link.send(&Frame::CertificateWanted { csr }).await;
        assert!(link.certificate().await.unwrap_err().reason.contains("every few seconds"));
        assert!(soon("a session", hub.connected.recv()).await.unwrap().session.is_current());

        // Until the node has connected with it, the old one is its key, too.
        let keys = || hub.annotation("holdfast.dev/joined-key").split(',').count();
        assert_eq!(keys(), 2);
        let mut link = hub.link(&who, "edge-1", Some(ticket)).await;
        let ticket = link.welcomed().await.ticket;
        assert_eq!(keys(), 2);
        let renewed = Who { certificate: pem_of(&issued.certificate), key };
        hub.link(&renewed, "edge-1", Some(ticket)).await.welcomed().await;
        assert_eq!(keys(), 1);

        // Nobody gets one of another node.
        let mut link = hub.link(&renewed, "edge-1", None).await;
        assert_eq!(link.refused().await, RefuseCode::StaleTicket);
    });
}

#[test]
fn a_session_gets_no_certificate_of_another_node_and_none_once_it_is_over() {
    block_on(async {
        for (node, revoked, expected) in
            [("edge-2", false, "its subject must be"), ("edge-1", true, "not the node's any more")]
        {
            let hub = Hub::start().await;
            let who = hub.node("edge-1");
            hub.keep_record(false);
            let mut link = hub.link(&who, "edge-1", None).await;
            link.welcomed().await;
            if revoked {
                let mut record = hub.api.get(RECORD).unwrap();
                record["metadata"]["annotations"]["holdfast.dev/revoked"] = json!("true");
                hub.api.put(RECORD, record);
            }
            link.send(&Frame::CertificateWanted { csr: csr_der(node).0 }).await;
            let refusal = link.certificate().await.unwrap_err();
            assert!(refusal.reason.contains(expected), "{}", refusal.reason);
        }
    });
}

/// A node whose certificate is over.
async fn expired(authority: &Authority, node: &str) -> Who {
    let (csr, key) = request_of("system:nodes", &format!("system:node:{node}"));
    let request = NodeRequest::parse(&NodeName::new(node).unwrap(), &csr).unwrap();
    let certificate = authority.sign(request, Duration::ZERO).unwrap().pem();
    // It counts in whole seconds, and is good in its last one.
    let second = || crate::clock::timestamp().as_second();
    let last = second();
    until("the end of the certificate", second, |now| *now > last).await;

    Who { certificate, key }
}

fn sign(key: &str, message: &[u8]) -> Bytes {
    let random = SystemRandom::new();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let key = EcdsaKeyPair::from_pkcs8(algorithm, key.secret_der(), &random).unwrap();

    Bytes::copy_from_slice(key.sign(&random, message).unwrap().as_ref())
}

/// A connection without a certificate, on which one is asked for.
struct Ask(TlsStream<TcpStream>);

impl Ask {
    async fn of(hub: &Hub) -> Self {
        Self(hub.dial(None).await.unwrap())
    }

    /// What a node sends on this connection.
    fn renewal(&self, who: &Who, ticket: Ticket, csr: &Bytes) -> Renewal {
        let tls = self.0.get_ref().1;
        let exporter = tls.export_keying_material([0; EXPORTER_LEN], EXPORTER_LABEL, None).unwrap();
        let signature = sign(&who.key, &renewal::signed(&exporter, csr));
        let certificate = Bytes::copy_from_slice(&der(&who.certificate));

        Renewal { certificate, csr: csr.clone(), ticket, signature }
    }

    async fn answer(mut self, body: &[u8]) -> Result<Issued, CertificateRefusal> {
        let (path, len) = (renewal::PATH, body.len());
        let head = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length:";
        self.0.write_all(format!("POST {path} {head} {len}\r\n\r\n").as_bytes()).await.unwrap();
        self.0.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        drop(soon("the end", self.0.read_to_end(&mut answer)).await);
        let at = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        let frame = codec::decode(&answer.split_off(at).into()).unwrap();
        if let Frame::CertificateIssued(issued) = frame {
            return Ok(issued);
        }
        let Frame::CertificateRefused(refusal) = frame else { panic!("no answer: {frame:?}") };

        Err(refusal)
    }
}

async fn renew(hub: &Hub, who: &Who, ticket: &Ticket, csr: &Bytes) -> Result<Issued, String> {
    let ask = Ask::of(hub).await;
    let body = ask.renewal(who, ticket.clone(), csr).encode();

    ask.answer(&body).await.map_err(|refusal| refusal.reason)
}

impl Hub {
    /// The ticket of a session of edge-1, which has joined.
    async fn ticket(&self) -> Ticket {
        self.keep_record(false);
        let mut link = self.link(&self.node("edge-1"), "edge-1", None).await;

        link.welcomed().await.ticket
    }

    /// Keeps that this is who has joined.
    fn keep_key(&self, who: &Who) {
        let key = crate::pki::holder_of(&der(&who.certificate)).unwrap().key;
        let mut record = self.api.get(RECORD).unwrap();
        record["metadata"]["annotations"]["holdfast.dev/joined-key"] = json!(key.as_str());
        self.api.put(RECORD, record);
    }
}

/// T11.
#[test]
fn a_node_whose_certificate_has_expired_gets_another_by_its_key_and_ticket() {
    block_on(async {
        let hub = Hub::start().await;
        let (ticket, who) = (hub.ticket().await, expired(&hub.authority, "edge-1").await);
        hub.keep_key(&who);
        // No link with the old one, and the node is told why: with TLS 1.3 that comes behind the handshake.
        let told = match hub.dial(Some(&who)).await {
            Ok(mut stream) => {
                drop(stream.write_all(b"GET /v1/link HTTP/1.1\r\n").await);
                soon("a refusal", stream.read(&mut [0; 1])).await.unwrap_err()
            }
            Err(error) => error,
        };
        assert!(told.to_string().contains("CertificateExpired"), "{told}");

        let (csr, key) = csr_der("edge-1");
        let issued = renew(&hub, &who, &ticket, &csr).await.unwrap();
        let renewed = Who { certificate: pem_of(&issued.certificate), key };
        hub.link(&renewed, "edge-1", Some(ticket.clone())).await.welcomed().await;
    });
}

#[test]
fn nobody_else_gets_a_certificate_for_an_expired_one() {
    block_on(async {
        let hub = Hub::start().await;
        let (ticket, who) = (hub.ticket().await, expired(&hub.authority, "edge-1").await);
        hub.keep_key(&who);
        let csr = csr_der("edge-1").0;
        let check = |refused: String, expected: &str| {
            assert!(refused.contains(expected), "{refused} does not say {expected}");
        };
        // Another key than that of the certificate.
        let other = Who { certificate: who.certificate.clone(), key: csr_der("edge-1").1 };
        check(renew(&hub, &other, &ticket, &csr).await.unwrap_err(), "not signed with the key");
        // A copy of what the node sent, on another connection.
        let body = Ask::of(&hub).await.renewal(&who, ticket.clone(), &csr).encode();
        let replayed = Ask::of(&hub).await.answer(&body).await.unwrap_err();
        check(replayed.reason, "not signed with the key");
        // Of another authority, and of another node.
        let elsewhere = Hub::start().await;
        let foreign = expired(&elsewhere.authority, "edge-1").await;
        check(renew(&hub, &foreign, &ticket, &csr).await.unwrap_err(), "not of a node of this");
        let neighbour = expired(&hub.authority, "edge-2").await;
        check(renew(&hub, &neighbour, &ticket, &csr).await.unwrap_err(), "its subject must be");
        // Without its ticket.
        let made_up = Ticket::new(vec![1; 56]).unwrap();
        check(renew(&hub, &who, &made_up, &csr).await.unwrap_err(), "stale ticket");
        let told = || hub.api.under("/api/v1/namespaces/default/events/edge-1.");
        until("an event", told, |told| !told.is_empty()).await;
        // Nonsense.
        let refused = Ask::of(&hub).await.answer(b"null").await.unwrap_err();
        check(refused.reason, "no request for a certificate");
        // Revoked.
        let mut record = hub.api.get(RECORD).unwrap();
        record["metadata"]["annotations"]["holdfast.dev/revoked"] = json!("true");
        hub.api.put(RECORD, record);
        check(renew(&hub, &who, &ticket, &csr).await.unwrap_err(), "revoked");
    });
}

/// Another authority in the Secret counts without a restart, and what is connected stays.
#[test]
fn another_authority_counts_for_new_connections() {
    block_on(async {
        const CA: &str = "/api/v1/namespaces/holdfast/secrets/holdfast-ca";
        let (mut hub, elsewhere) = (Hub::start().await, Hub::start().await);
        let before = hub.node("edge-1");
        hub.keep_record(false);
        let mut link = hub.link(&before, "edge-1", None).await;
        link.welcomed().await;
        let session = soon("a session", hub.connected.recv()).await.unwrap().session;
        let read = || hub.shared.authority.read(&hub.api.client, "holdfast");
        assert!(!read().await.unwrap(), "it is the same");

        // Theirs signs, and ours is still believed.
        let mut secret = elsewhere.api.get(CA).unwrap();
        let text = format!("{}{}", elsewhere.authority.ca_pem(), hub.authority.ca_pem());
        let text = base64::engine::general_purpose::STANDARD.encode(text);
        secret["data"]["ca.crt"] = json!(text);
        hub.api.put(CA, secret.clone());
        assert!(read().await.unwrap());
        let ours = Arc::clone(&hub.authority);
        hub.authority = Arc::clone(&elsewhere.authority);
        assert!(hub.exchange(None, b"GET /healthz HTTP/1.0\r\n\r\n").await.ends_with("ok"));
        hub.link(&before, "edge-2", None).await.refused().await;
        assert!(session.is_current());

        // A key that is not of the first certificate is no authority, and changes nothing.
        secret["data"]["ca.crt"] = hub.api.get(CA).unwrap()["data"]["ca.key"].clone();
        hub.api.put(CA, secret);
        let read = || hub.shared.authority.read(&hub.api.client, "holdfast");
        read().await.unwrap_err();
        assert_ne!(hub.shared.authority.now().ca_pem(), ours.ca_pem());
    });
}

/// While one authority takes the other's place, a node is told to renew, gets both with its next certificate, and
/// what is recorded is what it has stored.
#[test]
fn a_node_is_told_of_the_next_authority_and_is_recorded_once_it_has_its_certificate() {
    block_on(async {
        const CA: &str = "/api/v1/namespaces/holdfast/secrets/holdfast-ca";
        const BY: &str = "holdfast.dev/authority";
        let (hub, elsewhere) = (Hub::start().await, Hub::start().await);
        let (old, new) = (hub.authority.signer(), elsewhere.authority.signer());
        let who = hub.node("edge-1");
        hub.keep_record(false);
        let mut link = hub.link(&who, "edge-1", None).await;
        let ticket = link.welcomed().await.ticket;
        assert_eq!(hub.annotation(BY), old.to_string());

        let mut secret = hub.api.get(CA).unwrap();
        let text = format!("{}{}", hub.authority.ca_pem(), elsewhere.authority.ca_pem());
        let text = base64::engine::general_purpose::STANDARD.encode(text);
        secret["data"]["ca.crt"] = json!(text);
        secret["data"]["next.key"] = elsewhere.api.get(CA).unwrap()["data"]["ca.key"].clone();
        hub.api.put(CA, secret);
        assert!(hub.shared.authority.read(&hub.api.client, "holdfast").await.unwrap());
        link.until_outdated().await;
        let (csr, key) = csr_der("edge-1");
        link.send(&Frame::CertificateWanted { csr }).await;
        let issued = link.certificate().await.unwrap();
        let authorities: Vec<_> =
            issued.authorities.iter().map(|der| Fingerprint::of(der)).collect();
        assert_eq!(authorities, [old, new]);
        assert_eq!(hub.annotation(BY), old.to_string(), "the node may never have it");
        let certificate = Fingerprint::of(&issued.certificate);
        link.send(&Frame::IdentityHeld(IdentityHeld { certificate, authorities })).await;
        until("the record", || hub.annotation(BY), |by| *by == new.to_string()).await;

        // Either certificate opens a link, and what is connected with counts.
        let renewed = Who { certificate: pem_of(&issued.certificate), key };
        let mut link = hub.link(&who, "edge-1", Some(ticket)).await;
        let ticket = link.welcomed().await.ticket;
        assert_eq!(hub.annotation(BY), old.to_string());
        link.until_outdated().await;
        hub.link(&renewed, "edge-1", Some(ticket)).await.welcomed().await;
        assert_eq!(hub.annotation(BY), new.to_string());
    });
}

impl Link {
    async fn until_outdated(&mut self) {
        loop {
            match self.next().await {
                Some(Frame::CertificateOutdated) => return,
                Some(Frame::Ping { .. } | Frame::ListHeld { .. }) => {}
                other => panic!("it is not told: {other:?}"),
            }
        }
    }
}
