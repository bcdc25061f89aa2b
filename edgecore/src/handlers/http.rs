//! GET requests of probes and hooks.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{Answer, OUTPUT_BYTES_MAX, dial, join, shortened, tls};

/// Redirects that are followed (Go's `net/http`).
const REDIRECTS_MAX: usize = 10;
/// Who asks, as the kubelet names itself: by the version of Kubernetes whose words these are.
pub const PROBE: &str = "kube-probe/1.35";
/// The same for hooks.
pub const LIFECYCLE: &str = "kube-lifecycle/1.35";
/// Any kind of answer.
const ANY: HeaderValue = HeaderValue::from_static("*/*");
/// Read buffer of a connection: heads are short.
const BUFFER_BYTES: usize = 16 * 1024;

/// A request, as HTTPGetAction says.
#[derive(Clone, Debug)]
pub struct Get {
    /// TLS, with any certificate.
    pub https: bool,
    /// Name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// In the order of the pod.
    pub headers: Vec<(String, String)>,
    /// Who asks, unless a header says: [`PROBE`] or [`LIFECYCLE`].
    pub agent: &'static str,
}

/// Whether a scheme of HTTPGetAction is HTTPS.
pub fn scheme_is_https(scheme: Option<&str>) -> bool {
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
}

impl Get {
    fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };

        format!("{scheme}://{}{}", join(&self.host, self.port), self.rooted())
    }

    fn rooted(&self) -> String {
        if self.path.starts_with('/') { self.path.clone() } else { format!("/{}", self.path) }
    }

    /// Where a redirect leads, if it stays on the host.
    fn redirected(&self, location: &str) -> Option<Self> {
        let next: Uri = location.parse().ok()?;
        let https = next.scheme_str().map_or(self.https, |scheme| scheme == "https");
        let host = next.host().map_or(self.host.as_str(), |host| host.trim_matches(['[', ']']));
        if host != self.host {
            return None;
        }
        let stays = next.host().is_none();
        let default = if https { 443 } else { 80 };
        let port = next.port_u16().unwrap_or(if stays { self.port } else { default });
        let path = next.path_and_query().map_or("/", |path| path.as_str()).to_owned();

        Some(Self { https, port, path, ..self.clone() })
    }
}

/// Asks, and follows redirects that stay on the host.
pub(super) async fn get(get: &Get, limit: Duration) -> Answer {
    let asked = timeout(limit, follow(get.clone())).await;
    match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => Answer::Failure(format!("Get \"{}\": {error}", get.url())),
        Err(_late) => Answer::Failure(format!(
            "Get \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            get.url()
        )),
    }
}

/// What a server said.
struct Told {
    status: u16,
    location: Option<String>,
    body: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum SendError {
    /// No TLS.
    #[error("http: server gave HTTP response to HTTPS client")]
    Plain,
    /// Something else.
    #[error("{0}")]
    Other(String),
}

impl From<String> for SendError {
    fn from(text: String) -> Self {
        Self::Other(text)
    }
}

/// How a request came to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// As was asked.
    AsAsked,
    /// Without TLS, which the server does not speak.
    WithoutTls,
}

/// Asks once, without TLS if the server speaks none (kubelet: `runHTTPHandler`); whatever the server
/// answers is well.
pub async fn deliver(get: &Get, limit: Duration) -> Result<Delivered, String> {
    let sent = async {
        match send(get).await {
            Ok(_told) => Ok(Delivered::AsAsked),
            Err(SendError::Plain) => {
                let mut plain = Get { https: false, ..get.clone() };
                plain.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
                send(&plain).await.map(|_told| Delivered::WithoutTls)
            }
            Err(error) => Err(error),
        }
    };
    match timeout(limit, sent).await {
        Ok(sent) => sent.map_err(|error| error.to_string()),
        Err(_late) => Err(format!("{}: no answer within {limit:?}", get.url())),
    }
}

async fn follow(mut get: Get) -> Result<Answer, SendError> {
    for _ in 0..=REDIRECTS_MAX {
        let Told { status, location, body } = send(&get).await?;
        let location = location.filter(|_| (300..400).contains(&status));
        if let Some(next) = location.and_then(|to| get.redirected(&to)) {
            get = next;
            continue;
        }

        return Ok(match status {
            200..300 => Answer::Success,
            300..400 => {
                Answer::Warning(format!("Probe terminated redirects, Response body: {body}"))
            }
            code => Answer::Failure(format!("HTTP probe failed with statuscode: {code}")),
        });
    }

    Err(SendError::Other(format!("stopped after {REDIRECTS_MAX} redirects")))
}

async fn send(get: &Get) -> Result<Told, SendError> {
    let stream = dial(&get.host, get.port).await?;
    if !get.https {
        return Ok(exchange(stream, get).await?);
    }
    let connector = tls::connector().map_err(|error| error.to_string())?;
    let name = ServerName::try_from(get.host.clone()).map_err(|error| error.to_string())?;
    let stream = connector.connect(name, stream).await.map_err(|error| {
        if tls::is_no_tls(&error) { SendError::Plain } else { SendError::Other(error.to_string()) }
    })?;

    Ok(exchange(stream, get).await?)
}

async fn exchange<S>(stream: S, get: &Get) -> Result<Told, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let request = request(get)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let talk = async {
        let mut response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let location = response.headers().get(LOCATION);

        Ok(Told {
            status: response.status().as_u16(),
            location: location.and_then(|value| value.to_str().ok()).map(str::to_owned),
            body: body(&mut response).await?,
        })
    };
    let (mut talk, connection) = (pin!(talk), pin!(connection));
    tokio::select! {
        told = &mut talk => told,
        // Closed by the server: what it said before is still to be read.
        _ended = connection => talk.await,
    }
}

fn request(get: &Get) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(get.rooted())
        .body(Empty::new())
        .map_err(|error| format!("cannot ask for {}: {error}", get.path))?;
    *request.headers_mut() = headers(get)?;

    Ok(request)
}

/// Those of the pod, which may replace those that are always sent; an empty one leaves it out.
pub(super) fn headers(get: &Get) -> Result<HeaderMap, String> {
    let value = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
    let mut headers = HeaderMap::new();
    for (name, text) in &get.headers {
        let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is no header's name"))?;
        headers.append(name, value(text)?);
    }
    let host = join(&get.host, get.port);
    for (name, default) in
        [(USER_AGENT, HeaderValue::from_static(get.agent)), (ACCEPT, ANY), (HOST, value(&host)?)]
    {
        match headers.get(&name) {
            None => drop(headers.insert(name, default)),
            Some(own) if own.is_empty() => drop(headers.remove(name)),
            Some(_own) => {}
        }
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));

    Ok(headers)
}

/// The beginning of the body.
async fn body(response: &mut Response<Incoming>) -> Result<String, String> {
    let mut read = Vec::new();
    while read.len() < OUTPUT_BYTES_MAX
        && let Some(frame) = response.frame().await
    {
        let frame = frame.map_err(|error| error.to_string())?;
        read.extend_from_slice(frame.data_ref().map(AsRef::as_ref).unwrap_or_default());
    }

    Ok(shortened(&read))
}
