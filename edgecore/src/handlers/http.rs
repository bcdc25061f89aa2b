//! GET requests of probes and hooks.

use std::error::Error as _;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, LOCATION, TRAILER,
    TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use podcore::url::{Url, UrlError, is_absolute};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{Answer, OUTPUT_BYTES_MAX, dial, shortened, tls};

/// Requests that one may become by redirects (kubelet: `RedirectChecker`).
const REQUESTS_MAX: usize = 10;
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
    /// Path and query, as the pod says.
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
    /// Where it goes.
    pub fn url(&self) -> Url {
        Url::of(self.https, &self.host, self.port, &self.path)
    }
}

/// Asks, and follows redirects that stay on the host.
pub(super) async fn get(get: &Get, limit: Duration) -> Answer {
    let mut url = get.url();
    let told = timeout(limit, follow(get, &mut url)).await.unwrap_or(Err(GetError::Late));
    match told {
        Ok(Told { status: 200..300, .. }) => Answer::Success,
        Ok(Told { status: 300..400, body, .. }) => {
            Answer::Warning(format!("Probe terminated redirects, Response body: {body}"))
        }
        Ok(Told { status, .. }) => {
            Answer::Failure(format!("HTTP probe failed with statuscode: {status}"))
        }
        Err(why) => Answer::Failure(format!("Get \"{url}\": {why}")),
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
enum GetError {
    #[error("http: server gave HTTP response to HTTPS client")]
    NoTls,
    #[error("context deadline exceeded (Client.Timeout exceeded while awaiting headers)")]
    Late,
    #[error("stopped after {REQUESTS_MAX} redirects")]
    Round,
    #[error(transparent)]
    Redirect(#[from] UrlError),
    #[error("{0}")]
    Other(String),
}

impl From<String> for GetError {
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

/// Asks, without TLS if the server speaks none (kubelet: `runHTTPHandler`); whatever the server answers is
/// well.
pub async fn deliver(get: &Get, limit: Duration) -> Result<Delivered, String> {
    let mut url = get.url();
    let sent = async {
        match follow(get, &mut url).await {
            Ok(_told) => Ok(Delivered::AsAsked),
            Err(GetError::NoTls) => {
                let mut plain = get.clone();
                plain.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
                url = Url { https: false, ..get.url() };
                follow(&plain, &mut url).await.map(|_told| Delivered::WithoutTls)
            }
            Err(error) => Err(error),
        }
    };
    let sent = timeout(limit, sent).await.unwrap_or(Err(GetError::Late));

    sent.map_err(|why| format!("Get \"{url}\": {why}"))
}

/// Asks at the URL, and where redirects lead from there as long as they stay on the host; the URL is then
/// the last one.
async fn follow(get: &Get, url: &mut Url) -> Result<Told, GetError> {
    let mut keeps_host = true;
    for _ in 0..REQUESTS_MAX {
        let told = send(get, url, keeps_host).await?;
        let redirects = matches!(told.status, 301..=303 | 307 | 308);
        let location = told.location.as_ref().filter(|to| redirects && !to.is_empty());
        let Some(location) = location else { return Ok(told) };
        let Some(next) = url.redirected(location)? else { return Ok(told) };
        keeps_host = keeps_host && !is_absolute(location);
        *url = next;
    }

    Err(GetError::Round)
}

async fn send(get: &Get, url: &Url, keeps_host: bool) -> Result<Told, GetError> {
    let request = request(get, url, keeps_host)?;
    let stream = dial(&url.host, url.port()).await?;
    if !url.https {
        return Ok(exchange(stream, request).await?);
    }
    let connector = tls::connector().map_err(|error| error.to_string())?;
    let name = ServerName::try_from(url.host.clone()).map_err(|error| error.to_string())?;
    let stream = connector.connect(name, stream).await.map_err(|error| {
        if tls::is_no_tls(&error) { GetError::NoTls } else { GetError::Other(error.to_string()) }
    })?;

    Ok(exchange(stream, request).await?)
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Told, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
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
            location: location.map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned()),
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

fn request(get: &Get, url: &Url, keeps_host: bool) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(&url.target)
        .body(Empty::new())
        .map_err(|error| format!("cannot ask for {}: {error}", url.target))?;
    *request.headers_mut() = headers(get, &url.authority(), keeps_host)?;

    Ok(request)
}

/// Those of the pod, which may replace those that are always sent. An empty one leaves it out, but for the
/// host's name. `keeps_host`: the pod may name the host.
pub(super) fn headers(get: &Get, host: &str, keeps_host: bool) -> Result<HeaderMap, String> {
    let value = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
    let mut headers = HeaderMap::new();
    for (name, text) in &get.headers {
        let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is no header's name"))?;
        headers.append(name, value(text)?);
    }
    for of_a_body in [CONTENT_LENGTH, TRANSFER_ENCODING, TRAILER] {
        headers.remove(of_a_body);
    }
    for (name, default) in [(USER_AGENT, HeaderValue::from_static(get.agent)), (ACCEPT, ANY)] {
        match headers.get(&name) {
            None => drop(headers.insert(name, default)),
            Some(own) if own.is_empty() => drop(headers.remove(name)),
            Some(_own) => {}
        }
    }
    let named = headers.get(HOST).filter(|named| keeps_host && !named.is_empty()).cloned();
    headers.insert(HOST, named.map_or_else(|| value(host), Ok)?);
    headers.insert(CONNECTION, HeaderValue::from_static("close"));

    Ok(headers)
}

/// Whether a server closed its connection without the last word of TLS: many do, and Go takes it as the end.
fn ends_without_goodbye(error: &hyper::Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());

    source.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// The beginning of the body.
async fn body(response: &mut Response<Incoming>) -> Result<String, String> {
    let mut read = Vec::new();
    while read.len() < OUTPUT_BYTES_MAX
        && let Some(frame) = response.frame().await
    {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) if ends_without_goodbye(&error) => break,
            Err(error) => return Err(error.to_string()),
        };
        read.extend_from_slice(frame.data_ref().map(AsRef::as_ref).unwrap_or_default());
    }

    Ok(shortened(&read))
}
