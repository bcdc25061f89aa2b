//! Gives nodes of a fleet their certificates, by token as machines get them. Each asks from an address of
//! its own, because how often one may ask is limited.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use proto::ids::NodeName;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::edge::SERVER_NAME;

/// All together may ask ten times a second.
const AGAIN: Duration = Duration::from_millis(500);

/// The authority that nodes trust.
pub(super) async fn roots(client: &Client) -> Result<RootCertStore> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "holdfast");
    let data = secrets.get("holdfast-ca").await?.data.unwrap_or_default();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&data.get("ca.crt").context("no ca.crt")?.0) {
        roots.add(certificate?)?;
    }

    Ok(roots)
}

/// Joins the node and answers the TLS with which it opens links.
pub(super) async fn join(
    number: usize,
    node: &NodeName,
    (cloudcore, token): (SocketAddr, &str),
    roots: &RootCertStore,
) -> Result<Arc<ClientConfig>> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    let csr = params.serialize_request(&key)?.pem()?;
    let body = json!({ "token": token, "nodeName": node.as_str(), "csr": csr }).to_string();
    let certificate = loop {
        let (status, answer) = post(number, cloudcore, roots, &body).await?;
        if status == 429 {
            sleep(AGAIN).await;
            continue;
        }
        ensure!(status == 200, "{node} may not join: {answer}");
        break answer["certificate"].as_str().context("no certificate")?.to_owned();
    };
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
    let tls = tls(roots)?.with_client_auth_cert(chain, key)?;

    Ok(Arc::new(tls))
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

async fn post(
    number: usize,
    cloudcore: SocketAddr,
    roots: &RootCertStore,
    body: &str,
) -> Result<(u16, Value)> {
    let socket = TcpSocket::new_v4()?;
    let low = u8::try_from(number % 250)? + 1;
    let from = Ipv4Addr::new(127, 1, u8::try_from(number / 250)?, low);
    socket.bind(SocketAddr::from((from, 0)))?;
    let socket = socket.connect(cloudcore).await?;
    let connector = TlsConnector::from(Arc::new(tls(roots)?.with_no_client_auth()));
    let mut stream = connector.connect(ServerName::try_from(SERVER_NAME)?, socket).await?;
    let len = body.len();
    let request = format!(
        "POST /v1/join HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // The end may come without a goodbye of TLS.
    drop(stream.read_to_end(&mut answer).await);
    let answer = String::from_utf8(answer)?;
    let status = answer.get(9..12).context("no status")?.parse()?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;

    Ok((status, serde_json::from_str(body).unwrap_or_default()))
}
