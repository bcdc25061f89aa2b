//! Dialing over loopback, with authorities made here.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, version};

use super::*;
use crate::telemetry::chain;
use crate::{clock, identity};

/// An authority for tests.
pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let made = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);

        Self { certificate: made.der().clone(), pem: made.pem(), issuer }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        self.sign_until(name, 2200)
    }

    fn sign_until(&self, name: &str, year: i32) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.distinguished_name.push(DnType::CommonName, name);

        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// What a node of this authority dials with.
    pub(crate) fn node(&self) -> identity::Identity {
        self.join(tempfile::tempdir().unwrap().path())
    }

    /// A node of this authority joins: its identity is in the folder.
    pub(crate) fn join(&self, dir: &std::path::Path) -> identity::Identity {
        self.join_until(dir, 2200)
    }

    /// The same, with a certificate that ends with the year before this.
    pub(crate) fn join_until(&self, dir: &std::path::Path, year: i32) -> identity::Identity {
        let (certificate, key) = self.sign_until("edge-1", year);
        identity::write(dir, &self.pem, &certificate.pem(), &key.serialize_pem()).unwrap();

        identity::load(dir, clock::since_1970()).unwrap()
    }

    /// The public key of a certificate: what follows the name of its curve.
    pub(crate) fn key_of(certificate: &[u8]) -> Vec<u8> {
        /// prime256v1, and the head of the bits of an uncompressed point.
        const BEFORE: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00];
        let at = certificate.windows(BEFORE.len()).position(|bytes| bytes == BEFORE).unwrap();

        certificate[at + BEFORE.len()..][..65].to_vec()
    }

    /// The certificate for a request.
    pub(crate) fn issue(&self, csr: &[u8]) -> bytes::Bytes {
        let request = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        let certificate = request.signed_by(&self.issuer).unwrap();

        bytes::Bytes::copy_from_slice(certificate.der())
    }

    /// What a cloudcore of this authority accepts with: only nodes of its own.
    pub(crate) fn server(&self, name: &str) -> TlsAcceptor {
        self.server_with(name, false)
    }

    /// The same, but it takes those who show no certificate.
    pub(crate) fn open_server(&self, name: &str) -> TlsAcceptor {
        self.server_with(name, true)
    }

    fn server_with(&self, name: &str, is_open: bool) -> TlsAcceptor {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let verifier = if is_open { verifier.allow_unauthenticated() } else { verifier };
        let verifier = verifier.build().unwrap();
        let (certificate, key) = self.sign(name);
        let key: PrivateKeyDer<'static> = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone(), self.certificate.clone()], key)
            .unwrap();

        TlsAcceptor::from(Arc::new(config))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Dials a server that answers HTTP with `answer`.
fn check(client: &Authority, server: &Authority, name: &str, answer: &str, expected: &str) {
    let acceptor = server.server(name);
    runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serve = async {
            let (socket, _) = listener.accept().await.unwrap();
            if let Ok(mut stream) = acceptor.accept(socket).await {
                // The client may have gone already.
                drop(stream.write_all(answer.as_bytes()).await);
                drop(stream.shutdown().await);
            }
        };
        let (dialed, ()) = tokio::join!(dial(address.clone(), client.node().tls), serve);
        let said = match dialed {
            Ok(_) => "a link".to_owned(),
            Err((error, after)) => format!("{} {after:?}", chain(&error)),
        };
        let said = said.replace(&address, "ADDRESS");
        assert!(said.contains(expected), "{said}\ndoes not say\n{expected}");
    });
}

#[test]
fn what_is_wrong_is_said_with_its_stage() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let busy = "HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n";
    check(&ours, &theirs, SERVER_NAME, "", "no TLS with ADDRESS: is it the cloudcore");
    check(&ours, &ours, "example.com", "", "no TLS with ADDRESS: is it the cloudcore");
    check(&ours, &ours, SERVER_NAME, busy, "ADDRESS gives no link");
    check(&ours, &ours, SERVER_NAME, busy, "503");
    check(&ours, &ours, SERVER_NAME, busy, "Some(7s)");
}

#[test]
fn a_certificate_that_the_cloud_does_not_take_is_said() {
    // The server's authority is trusted, but the client shows a certificate of another.
    let (ours, theirs) = (Authority::new(), Authority::new());
    let mixed = Authority { pem: ours.pem.clone(), ..theirs };
    check(&mixed, &ours, SERVER_NAME, "", "if it says that it does not take the certificate");
}

#[test]
fn families_take_turns() {
    let check = |given: &[&str], expected: &[&str]| {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(in_turn(parse(given)), parse(expected));
    };
    check(&[], &[]);
    check(&["1.1.1.1:1"], &["1.1.1.1:1"]);
    check(
        &["[::1]:1", "[::2]:1", "1.1.1.1:1", "1.1.1.2:1", "1.1.1.3:1"],
        &["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "1.1.1.3:1"],
    );
    check(&["1.1.1.1:1", "[::1]:1", "1.1.1.2:1"], &["1.1.1.1:1", "[::1]:1", "1.1.1.2:1"]);
}

#[test]
fn a_dead_address_costs_no_more_than_its_head_start() {
    runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive = listener.local_addr().unwrap();
        let refuses = {
            let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
            closed.local_addr().unwrap()
        };
        let socket = first_to_answer(vec![refuses, alive]).await.unwrap();
        assert_eq!(socket.peer_addr().unwrap(), alive);
        assert!(prepared(socket).is_ok());

        let error = first_to_answer(vec![refuses]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = first_to_answer(Vec::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "the name has no address");
    });
}

#[test]
fn a_server_that_says_nothing_is_told_from_one_that_is_not_there() {
    runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let soon = Instant::now() + Duration::from_millis(100);
        let client = Authority::new().node().tls;
        let error = connect_by(soon, &address, client).await.unwrap_err();
        let said = chain(&error);

        assert!(said.starts_with("no TLS with") && said.ends_with("no answer in time"), "{said}");
    });
}
