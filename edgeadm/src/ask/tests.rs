//! Joining over loopback, with authorities made here.

use edgecore::link::dial::SERVER_NAME;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use ring::rand::SystemRandom;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, version};

use super::*;
use crate::token::Token;

/// An authority and a server certificate by it.
struct Site {
    ca: CertificateDer<'static>,
    server: CertificateDer<'static>,
    key: Vec<u8>,
}

fn site(server_name: &str) -> Site {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "test");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new([server_name.to_owned()]).unwrap();
    let server = leaf.signed_by(&key, &issuer).unwrap();

    Site { ca: ca.der().clone(), server: server.der().clone(), key: key.serialize_der() }
}

impl Site {
    fn token(&self) -> Token {
        Token::generate(&self.ca, &SystemRandom::new()).unwrap()
    }

    fn acceptor(&self, chain: Vec<CertificateDer<'static>>) -> TlsAcceptor {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivatePkcs8KeyDer::from(self.key.clone()).into())
            .unwrap();

        TlsAcceptor::from(Arc::new(config))
    }
}

/// Joins with `token` a server that shows `chain` and gives `answer`; what came of it, and what
/// the server was asked.
fn join(
    site: &Site,
    token: &Token,
    chain: Vec<CertificateDer<'static>>,
    answer: &'static str,
) -> (Result<Joined, AskError>, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let acceptor = site.acceptor(chain);
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serve = async {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(socket).await else { return String::new() };
            let mut asked = Vec::new();
            while !asked.ends_with(b"}") {
                if stream.read_buf(&mut asked).await.unwrap_or(0) == 0 {
                    return String::new();
                }
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            String::from_utf8(asked).unwrap()
        };
        let ask = async {
            let way = Way::straight(address);
            let connection = connect(&way, pin::tls(token).unwrap()).await?;
            let text = token.reveal();
            connection.join(&JoinRequest { token: &text, node_name: "edge-1", csr: "csr" }).await
        };
        tokio::join!(ask, serve)
    })
}

const GIVEN: &str =
    "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"certificate\":\"c\",\"ca\":\"a\"}";

#[test]
fn the_cloudcore_of_the_token_is_asked() {
    let site = site(SERVER_NAME);
    let (joined, asked) =
        join(&site, &site.token(), vec![site.server.clone(), site.ca.clone()], GIVEN);

    assert_eq!(joined.unwrap().certificate, "c");
    assert!(asked.starts_with("POST /v1/join HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(r#""nodeName":"edge-1","csr":"csr""#), "{asked}");
}

#[test]
fn another_cloudcore_is_not_even_told_the_token() {
    let (ours, theirs) = (site(SERVER_NAME), site(SERVER_NAME));
    for (chain, what) in [
        (vec![theirs.server.clone(), theirs.ca.clone()], "its own chain"),
        (vec![theirs.server.clone()], "no authority"),
    ] {
        let (joined, asked) = join(&theirs, &ours.token(), chain, GIVEN);
        assert!(matches!(joined, Err(AskError::OtherAuthority { .. })), "{what}: {joined:?}");
        assert_eq!(asked, "", "{what}");
    }
}

#[test]
fn our_authority_shown_with_a_certificate_that_it_did_not_sign_helps_nobody() {
    let (ours, theirs) = (site(SERVER_NAME), site(SERVER_NAME));
    let chain = vec![theirs.server.clone(), ours.ca.clone()];
    let (joined, asked) = join(&theirs, &ours.token(), chain, GIVEN);
    assert!(matches!(joined, Err(AskError::Dial(DialError::Tls { .. }))), "{joined:?}");
    assert_eq!(asked, "");

    let other_name = site("example.com");
    let chain = vec![other_name.server.clone(), other_name.ca.clone()];
    let (joined, _) = join(&other_name, &other_name.token(), chain, GIVEN);
    assert!(matches!(joined, Err(AskError::Dial(DialError::Tls { .. }))), "{joined:?}");
}

#[test]
fn answers() {
    let check = |status: u16, body: &str, expected: Option<Result<&str, &str>>| {
        let status = StatusCode::from_u16(status).unwrap();
        let found = read(status, body.as_bytes()).map(|answer| match answer {
            Ok(joined) => Ok(joined.certificate),
            Err(error) => Err(error.to_string()),
        });
        let expected = expected.map(|e| e.map(str::to_owned).map_err(str::to_owned));
        assert_eq!(found, expected, "{body}");
    };
    check(200, r#"{"certificate":"c","ca":"a"}"#, Some(Ok("c")));
    check(200, "<html>", None);
    check(403, "<html>", None);
    check(
        403,
        r#"{"reason":"TokenExpired","error":"the token expired"}"#,
        Some(Err("cloudcore refused: the token expired (TokenExpired)")),
    );
}
