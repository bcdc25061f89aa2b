//! Machines of which only the link is real: they get their certificates by token, as others do, and open links.
//! Each asks from an address of its own, because how often one may ask is limited.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use proto::ids::NodeName;
use rcgen::{CertificateParams, CertificateSigningRequest, DnType, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::{WebSocketStream, client_async};

/// The name in cloudcore's certificate.
pub const SERVER_NAME: &str = "cloudcore.holdfast.internal";

/// As long as an agent's: dialling has three stages of three seconds.
const DIAL_MAX: Duration = Duration::from_secs(9);

/// A link.
pub type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// All together may ask ten times a second.
const AGAIN: Duration = Duration::from_millis(500);

/// The authority that nodes trust.
pub async fn roots(client: &Client) -> Result<RootCertStore> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "holdfast");
    let data = secrets.get("holdfast-ca").await?.data.unwrap_or_default();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&data.get("ca.crt").context("no ca.crt")?.0) {
        roots.add(certificate?)?;
    }

    Ok(roots)
}

/// A request for a certificate with this subject.
pub fn request(group: &str, name: &str, key: &KeyPair) -> Result<CertificateSigningRequest> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.distinguished_name.push(DnType::CommonName, name);

    Ok(params.serialize_request(key)?)
}

/// Joins the node and answers the TLS with which it opens links.
pub async fn join(
    from: Ipv4Addr,
    node: &NodeName,
    (cloudcore, token): (SocketAddr, &str),
    roots: &RootCertStore,
) -> Result<Arc<ClientConfig>> {
    let key = KeyPair::generate()?;
    let csr = request("system:nodes", &format!("system:node:{node}"), &key)?.pem()?;
    let body = json!({ "token": token, "nodeName": node.as_str(), "csr": csr }).to_string();
    let certificate = loop {
        let (status, answer) = post(from, cloudcore, roots, ("/v1/join", body.as_bytes())).await?;
        if status == 429 {
            sleep(AGAIN).await;
            continue;
        }
        ensure!(status == 200, "{node} may not join: {answer}");
        break answer["certificate"].as_str().context("no certificate")?.to_owned();
    };

    with_certificate(CertificateDer::from_pem_slice(certificate.as_bytes())?, &key, roots)
}

/// TLS that shows a certificate.
pub fn with_certificate(
    certificate: CertificateDer<'static>,
    key: &KeyPair,
    roots: &RootCertStore,
) -> Result<Arc<ClientConfig>> {
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;

    Ok(Arc::new(tls(roots)?.with_client_auth_cert(vec![certificate], key)?))
}

type Tls = tokio_rustls::rustls::ConfigBuilder<
    ClientConfig,
    tokio_rustls::rustls::client::WantsClientCert,
>;

fn tls(roots: &RootCertStore) -> Result<Tls> {
    Ok(ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots.clone()))
}

/// Opens a link.
pub async fn open(address: SocketAddr, tls: Arc<ClientConfig>) -> Result<Socket> {
    let dialed = async {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(SERVER_NAME)?;
        let stream = TlsConnector::from(tls).connect(name, socket).await?;
        let (socket, _) = client_async(format!("wss://{SERVER_NAME}/v1/link"), stream).await?;
        Ok(socket)
    };

    timeout(DIAL_MAX, dialed).await.context("too slow")?
}

/// What cloudcore answers who shows no certificate.
pub async fn post(
    from: Ipv4Addr,
    cloudcore: SocketAddr,
    roots: &RootCertStore,
    (path, body): (&str, &[u8]),
) -> Result<(u16, Value)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let socket = socket.connect(cloudcore).await?;
    let connector = TlsConnector::from(Arc::new(tls(roots)?.with_no_client_auth()));
    let mut stream = connector.connect(ServerName::try_from(SERVER_NAME)?, socket).await?;
    let len = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    let mut answer = Vec::new();
    // The end may come without a goodbye of TLS.
    drop(stream.read_to_end(&mut answer).await);
    // What is no text is no answer of JSON either.
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.get(9..12).context("no status")?.parse()?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;

    Ok((status, serde_json::from_str(body).unwrap_or_default()))
}
