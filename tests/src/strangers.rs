//! Strangers at a port: connections that say nothing, stop half-way, or never end.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, SignatureScheme};

/// Where they come from: the machine's own, and no node's.
const FROM: [u8; 4] = [127, 0, 0, 66];

/// Between two tries of one stranger. The machine has other work.
const PAUSE: Duration = Duration::from_millis(20);

/// A connection is tried this long, and then the next one.
const PATIENCE: Duration = Duration::from_secs(20);

/// First bytes of a TLS handshake of which no more comes (RFC 8446, section 5.1).
const HALF_HELLO: [u8; 9] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC];

/// A port.
#[derive(Clone, Copy, Debug)]
pub enum Port {
    /// Speaks TLS.
    Tls(SocketAddr),
    /// Speaks HTTP as it is.
    Plain(SocketAddr),
}

impl Port {
    fn address(self) -> SocketAddr {
        match self {
            Self::Tls(address) | Self::Plain(address) => address,
        }
    }
}

/// What a stranger does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Begins TLS and stops.
    HalfHandshake,
    /// Sends what is no TLS, for ever.
    Noise,
    /// Sends header fields for ever.
    EndlessHead,
    /// Sends a body for ever, in chunks.
    EndlessBody,
    /// Says that 4 GiB come, and sends a byte a second.
    SlowBody,
    /// Asks for what anybody may ask, one request after the other.
    Questions,
}

impl Manner {
    /// Whether there is no TLS, also where there should be.
    fn is_before_tls(self) -> bool {
        matches!(self, Self::HalfHandshake | Self::Noise)
    }
}

const MANNERS: [Manner; 6] = [
    Manner::HalfHandshake,
    Manner::Noise,
    Manner::EndlessHead,
    Manner::EndlessBody,
    Manner::SlowBody,
    Manner::Questions,
];

/// Strangers at work, until dropped.
#[derive(Debug)]
pub struct Strangers {
    opened: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Strangers {
    /// Sends some of every manner to each port, and a crowd that holds `idle` silent connections.
    pub fn start(ports: &[Port], idle: usize) -> Self {
        let (mut tasks, opened) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for &port in ports {
            tasks.spawn(crowd(port, idle / ports.len(), Arc::clone(&opened)));
            for manner in MANNERS {
                tasks.spawn(async move {
                    loop {
                        // Being cut off is what they must expect.
                        drop(timeout(PATIENCE, visit(port, manner)).await);
                        sleep(PAUSE).await;
                    }
                });
            }
        }

        Self { opened, _tasks: tasks }
    }

    /// Silent connections that were made so far.
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

async fn connect(port: Port) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((FROM, 0).into())?;

    socket.connect(port.address()).await
}

/// Holds as many connections as it may, and makes new ones for the oldest.
async fn crowd(port: Port, len: usize, opened: Arc<AtomicUsize>) {
    let mut held = VecDeque::with_capacity(len);
    loop {
        if let Ok(connection) = connect(port).await {
            held.push_back(connection);
            opened.fetch_add(1, Ordering::Relaxed);
        }
        if held.len() > len {
            held.pop_front();
            sleep(PAUSE).await;
        }
    }
}

async fn visit(port: Port, manner: Manner) -> Result<()> {
    let plain = connect(port).await?;
    if matches!(port, Port::Plain(_)) || manner.is_before_tls() {
        return behave(plain, manner).await;
    }

    behave(trusting(plain).await?, manner).await
}

async fn behave<S>(mut stream: S, manner: Manner) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match manner {
        Manner::HalfHandshake => {
            stream.write_all(&HALF_HELLO).await?;
            stream.read_to_end(&mut Vec::new()).await?;
            Ok(())
        }
        Manner::Noise => loop {
            stream.write_all(&[0xFF; 4096]).await?;
        },
        Manner::EndlessHead => {
            repeat(stream, "GET /healthz HTTP/1.1\r\nHost: x\r\n", "X-More: and more\r\n", None)
                .await
        }
        Manner::EndlessBody => {
            let head = "POST /v1/join HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
            repeat(stream, head, &chunk, None).await
        }
        Manner::SlowBody => {
            let head = "POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 4294967295\r\n\r\n";
            repeat(stream, head, "x", Some(Duration::from_secs(1))).await
        }
        Manner::Questions => loop {
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await?;
            stream.flush().await?;
            ensure!(stream.read(&mut [0; 4096]).await? > 0, "the end");
            sleep(PAUSE).await;
        },
    }
}

/// Sends a head and then `part` for ever.
async fn repeat<S>(mut stream: S, head: &str, part: &str, pause: Option<Duration>) -> Result<()>
where
    S: AsyncWrite + Unpin,
{
    stream.write_all(head.as_bytes()).await?;
    loop {
        stream.write_all(part.as_bytes()).await?;
        stream.flush().await?;
        if let Some(pause) = pause {
            sleep(pause).await;
        }
    }
}

/// TLS with whoever answers.
async fn trusting(plain: TcpStream) -> Result<TlsStream<TcpStream>> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    let name = ServerName::try_from("stranger.invalid")?;

    Ok(TlsConnector::from(Arc::new(config)).connect(name, plain).await?)
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
