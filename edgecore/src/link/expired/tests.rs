//! A certificate that has expired, against a cloud made here.

use std::sync::Arc;

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::clock;
use crate::identity::load;
use crate::link::dial::SERVER_NAME;
use crate::link::dial::tests::Authority;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// What a dial with a certificate that is good until the end of the year before this fails with.
fn dialed(year: i32, server: &Authority, client: &Authority) -> (DialError, Identity) {
    let dir = tempfile::tempdir().unwrap();
    let identity = client.join_until(dir.path(), year);
    let acceptor = server.server(SERVER_NAME);
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serve = async {
            let (socket, _) = listener.accept().await.unwrap();
            if let Err((_, mut socket)) = acceptor.accept(socket).into_fallible().await {
                // As cloudcore does, so that the refusal is heard.
                drop(socket.shutdown().await);
                while socket.read(&mut [0; 1024]).await.is_ok_and(|len| len > 0) {}
            }
        };
        let way = Way::straight(address);
        let (dialed, ()) = tokio::join!(dial::dial(&way, Arc::clone(&identity.tls)), serve);

        (dialed.map(drop).unwrap_err().0, identity)
    })
}

#[test]
fn only_a_certificate_that_has_expired_is_renewed() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (error, identity) = dialed(2001, &ours, &ours);
    assert!(is_expired(&error, &identity, clock::since_1970()), "{error:?}");
    assert!(identity.has_expired());
    let (error, identity) = dialed(2200, &ours, &ours);
    assert!(!is_expired(&error, &identity, clock::since_1970()), "{error:?}");
    let (error, identity) = dialed(2200, &theirs, &ours);
    assert!(!is_expired(&error, &identity, clock::since_1970()), "{error:?}");
}

/// The head and body of a request.
async fn request(stream: &mut tokio_rustls::server::TlsStream<TcpStream>) -> (String, Bytes) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let len = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let mut body = vec![0; len.parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();

    (head, body.into())
}

/// Answers one request, which must be signed for this connection by the key of its certificate.
async fn serve(
    listener: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
    answer: impl Fn(&Renewal) -> Frame,
) {
    let (socket, _) = listener.accept().await.unwrap();
    let mut stream = acceptor.accept(socket).await.unwrap();
    assert!(stream.get_ref().1.peer_certificates().is_none(), "it shows a certificate");
    let (head, body) = request(&mut stream).await;
    assert!(head.starts_with("post /v1/renew "), "{head}");
    let renewal = Renewal::decode(&body).unwrap();
    let tls = stream.get_ref().1;
    let exporter = tls.export_keying_material([0; EXPORTER_LEN], EXPORTER_LABEL, None).unwrap();
    let message = renewal::signed(&exporter, &renewal.csr);
    let key = Authority::key_of(&renewal.certificate);
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key);
    key.verify(&message, &renewal.signature).unwrap();
    let body = codec::encode(&answer(&renewal));
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    stream.shutdown().await.unwrap();
}

fn node() -> NodeName {
    NodeName::new("edge-1").unwrap()
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();

    (listener, address)
}

/// Asks a cloud that answers with what it makes of the request.
fn asked(
    authority: &Authority,
    identity: &Identity,
    dir: &Path,
    ticket: Option<Ticket>,
    answer: impl Fn(&Renewal) -> Frame,
) -> Result<Identity, RenewalError> {
    let acceptor = authority.open_server(SERVER_NAME);
    block_on(async {
        let (listener, address) = listen().await;
        let (node, way) = (node(), Way::straight(address));
        let known = KnownTime::of_build();
        let renewed = renew(&node, &way, dir, identity, ticket, &known);
        tokio::select! {
            renewed = renewed => renewed,
            () = async { serve(listener, acceptor, answer).await; std::future::pending().await } => unreachable!(),
        }
    })
}

#[test]
fn another_certificate_is_had_by_the_old_key_and_the_ticket() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    let identity = authority.join_until(dir.path(), 2001);
    let ticket = Ticket::new(b"ticket".to_vec()).unwrap();
    let read = || load(dir.path(), clock::since_1970()).unwrap();

    let refuse = |_: &Renewal| {
        let (reason, retry_after) = ("revoked".to_owned(), Duration::from_mins(1));
        Frame::CertificateRefused(CertificateRefusal { reason, retry_after })
    };
    let refused = asked(&authority, &identity, dir.path(), Some(ticket.clone()), refuse);
    assert!(matches!(refused, Err(RenewalError::Refused { .. })), "{refused:?}");
    let nonsense =
        asked(&authority, &identity, dir.path(), Some(ticket.clone()), |_| Frame::Synced);
    assert!(matches!(nonsense, Err(RenewalError::Answer)), "{nonsense:?}");
    let without = asked(&authority, &identity, dir.path(), None, refuse);
    assert!(matches!(without, Err(RenewalError::NoTicket)), "{without:?}");
    assert!(read().has_expired());

    let issue = |renewal: &Renewal| {
        assert_eq!(renewal.ticket, ticket);
        let certificate = authority.issue(&renewal.csr);
        Frame::CertificateIssued(Issued { certificate, authorities: Vec::new() })
    };
    let renewed = asked(&authority, &identity, dir.path(), Some(ticket.clone()), issue).unwrap();
    assert_eq!(renewed.join_id, identity.join_id);
    assert!(renewed.problem.is_none(), "{:?}", renewed.problem);
    assert_eq!(read().certificate, renewed.certificate);
}
