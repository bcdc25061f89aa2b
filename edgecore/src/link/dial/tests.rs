//! Dialing over loopback, with authorities made here.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, version};

use super::*;
use crate::link::proxy::Proxy;
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

    /// What it is known by.
    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();

        Arc::new(roots)
    }

    /// A certificate from one new year to another.
    pub(crate) fn between(&self, name: &str, from: i32, until: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();

        params.signed_by(&key, &self.issuer).unwrap().der().clone()
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

    /// The certificate of the authority.
    pub(crate) fn der(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.certificate)
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
        let provider = Arc::new(default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots(), Arc::clone(&provider));
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
        let way = Way::straight(address.clone());
        let (dialed, ()) = tokio::join!(dial(&way, client.node().tls), serve);
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
    let other = "no TLS with ADDRESS: what answers there is not the cloudcore";
    check(&ours, &theirs, SERVER_NAME, "", other);
    check(&ours, &ours, "example.com", "", other);
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
        let error = connect_by(soon, &Way::straight(address), client).await.unwrap_err();
        let said = chain(&error);

        assert!(said.starts_with("no TLS with") && said.ends_with("no answer in time"), "{said}");
    });
}

/// What is said of a peer that answers the first packet with this.
fn said_of(answer: &'static [u8]) -> String {
    runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Way::straight(listener.local_addr().unwrap().to_string());
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _hello = socket.read(&mut [0; 4096]).await.unwrap();
            drop(socket.write_all(answer).await);
        };
        let (connected, ()) = tokio::join!(connect(&way, Authority::new().node().tls), serve);
        chain(&connected.unwrap_err())
    })
}

#[test]
fn a_captive_portal_is_told_from_another_service() {
    let portal = said_of(b"HTTP/1.1 400 Bad Request\r\n\r\n<html>log in</html>");
    assert!(portal.contains("a web server answers there") && portal.contains("portal"), "{portal}");
    let other = said_of(b"SSH-2.0-OpenSSH_9.2\r\n");
    assert!(other.contains("does not speak TLS") && !other.contains("portal"), "{other}");
    let closed = said_of(b"");
    assert!(closed.contains("ends it at once"), "{closed}");
}

#[test]
fn a_name_that_leads_elsewhere_than_before_is_said() {
    let [before, now] = ["192.0.2.1", "10.0.0.1"].map(|ip| ip.parse().unwrap());
    let error = || DialError::Connect { address: "c:1".to_owned(), source: silent() };
    let said = |now: &[IpAddr]| chain(&moved("c:1", now, Some(before), error()));
    assert!(said(&[now]).contains("c:1 is 10.0.0.1, and cloudcore last answered at 192.0.2.1"));
    assert!(said(&[now, before]).starts_with("cannot connect"));
    assert!(chain(&moved("c:1", &[now], None, error())).starts_with("cannot connect"));
}

#[test]
fn packets_are_small_enough_for_every_way() {
    runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connected = attempt(listener.local_addr().unwrap());
        let (connected, accepted) = tokio::join!(connected, listener.accept());
        for socket in [connected.unwrap(), accepted.unwrap().0] {
            let bytes = SockRef::from(&socket).tcp_mss().unwrap();
            assert!(bytes <= SEGMENT_BYTES_MAX, "{bytes}");
        }
    });
}

/// Dials through a proxy that answers with `answer`, and is the cloud at the other end of its tunnel. What came
/// of it, and what the proxy was asked.
fn dial_through(credentials: &str, answer: &'static str) -> (String, String) {
    let ours = Authority::new();
    let acceptor = ours.server(SERVER_NAME);
    let (dialed, asked) = runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://{credentials}{}", listener.local_addr().unwrap());
        let proxy = Some(Proxy::parse(&proxy).unwrap());
        let way = Way { proxy, ..Way::straight("cloud.invalid:10000".to_owned()) };
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                assert!(socket.read_buf(&mut asked).await.unwrap() > 0);
            }
            drop(socket.write_all(answer.as_bytes()).await);
            if let Ok(mut stream) = acceptor.accept(socket).await {
                drop(stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await);
                drop(stream.shutdown().await);
            }
            String::from_utf8(asked).unwrap()
        };
        tokio::join!(dial(&way, ours.node().tls), serve)
    });

    (chain(&dialed.unwrap_err().0), asked)
}

#[test]
fn the_link_goes_through_a_proxy_that_lets_it() {
    let (said, asked) = dial_through("me:word@", "HTTP/1.1 200 Connection established\r\n\r\n");
    assert!(said.contains("cloud.invalid:10000 gives no link") && said.contains("503"), "{said}");
    assert!(asked.starts_with("CONNECT cloud.invalid:10000 HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("\r\nProxy-Authorization: Basic bWU6d29yZA==\r\n"), "{asked}");
}

#[test]
fn what_a_proxy_refuses_is_said_without_the_password() {
    let through = "no way to cloud.invalid:10000 through http://127.0.0.1:";
    for (answer, expected) in [
        ("HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", "check user and password"),
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "refuses with 403"),
        ("HTTP/1.1 200 OK\r\n\r\nhello", "speaks before cloudcore"),
        ("SSH-2.0-x\r\n\r\n", "is no HTTP proxy"),
    ] {
        let (said, _) = dial_through("me:word@", answer);
        assert!(said.starts_with(through) && said.contains(expected), "{said}");
        assert!(!said.contains("word@") && !said.contains("bWU6"), "{said}");
    }
    let (said, _) = dial_through("", "HTTP/1.1 407 No\r\n\r\n");
    assert!(said.contains("wants credentials (407)"), "{said}");
}

#[test]
fn a_proxy_that_is_not_there_is_told_from_a_cloud_that_is_not() {
    runtime().block_on(async {
        let proxy = {
            let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
            closed.local_addr().unwrap().to_string()
        };
        let proxy = Some(Proxy::parse(&proxy).unwrap());
        let way = Way { proxy, ..Way::straight("cloud.invalid:1".to_owned()) };
        let said = chain(&connect(&way, Authority::new().node().tls).await.unwrap_err());
        assert!(said.contains("the proxy is not reached"), "{said}");
    });
}

/// Connects through an encrypted proxy that has a certificate by `authority`, known by those of the file.
fn connect_through(authority: &Authority, authorities: &std::path::Path) -> Result<(), DialError> {
    let ours = Authority::new();
    let (outer, inner) = (authority.open_server("127.0.0.1"), ours.server(SERVER_NAME));
    runtime().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("https://{}", listener.local_addr().unwrap());
        let proxy = Some(Proxy::parse(&proxy).unwrap());
        let way = Way { proxy, ..Way::straight("cloud.invalid:10000".to_owned()) };
        let way = Way { authorities: authorities.to_owned(), ..way };
        let serve = async {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(mut tunnel) = outer.accept(socket).await else { return };
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                assert!(tunnel.read_buf(&mut asked).await.unwrap() > 0);
            }
            tunnel.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            tunnel.flush().await.unwrap();
            drop(inner.accept(tunnel).await.unwrap());
        };
        tokio::select! {
            connected = connect(&way, ours.node().tls) => connected.map(drop),
            () = async { serve.await; std::future::pending().await } => unreachable!(),
        }
    })
}

#[test]
fn a_proxy_may_be_encrypted_and_is_known_by_its_authority() {
    let (theirs, other) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let authorities = dir.path().join("authorities.pem");
    let said = |authorities: &std::path::Path| {
        connect_through(&theirs, authorities).map_err(|error| chain(&error))
    };
    let error = said(&authorities).unwrap_err();
    assert!(error.contains("authorities.pem, by which an https:// proxy is known"), "{error}");
    std::fs::write(&authorities, "nothing").unwrap();
    let error = said(&authorities).unwrap_err();
    assert!(error.contains("it has no certificate"), "{error}");
    std::fs::write(&authorities, &other.pem).unwrap();
    let error = said(&authorities).unwrap_err();
    assert!(error.contains("no TLS with the proxy"), "{error}");
    std::fs::write(&authorities, format!("{}{}", other.pem, theirs.pem)).unwrap();
    said(&authorities).unwrap();
}
