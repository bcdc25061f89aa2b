//! `exec`, `attach` and `portForward`: the runtime is asked for a URL of its streaming server, and
//! then bytes pass between that and the caller. What they mean (SPDY or WebSocket frames) is between
//! the API server and the runtime.

use std::future::{self, Future};
use std::pin::{Pin, pin};
use std::sync::PoisonError;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use cri::{Code, CriError};
use cri_api::v1;
use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::{self, OnUpgrade, Upgraded as UpgradedIo};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::answer::{self, Answer, Refusal};
use super::query::Query;
use super::{ContainerRef, ContainerState, Context, PodRef, ServeError, Upgraded};

/// The streaming server is on this machine.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// For the runtime to answer an upgrade: it looks the container up, no more.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Longest error text of the streaming server that is passed on.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// Buffer for each direction of a relay.
const RELAY_BUFFER_BYTES: usize = 16 * 1024;

/// Read buffer for the head of the streaming server's answer.
const HEAD_BUFFER_BYTES: usize = 16 * 1024;

/// Parameters of exec and attach, as Kubernetes names them on the way to a kubelet.
const STDIN: &str = "input";
const STDOUT: &str = "output";
const STDERR: &str = "error";
const TTY: &str = "tty";
const COMMAND: &str = "command";
const PORT: &str = "port";

#[expect(clippy::struct_excessive_bools, reason = "four independent parameters of a request")]
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// Whether a query names a stream: for [`crate::inputs`].
pub(crate) fn has_streams(query: &Query) -> bool {
    streams(query).is_ok()
}

fn streams(query: &Query) -> Result<Streams, Refusal> {
    let tty = query.is_one(TTY);
    let asked = Streams {
        stdin: query.is_one(STDIN),
        stdout: query.is_one(STDOUT),
        // A terminal has no separate error stream.
        stderr: query.is_one(STDERR) && !tty,
        tty,
    };
    if asked.stdin || asked.stdout || asked.stderr {
        return Ok(asked);
    }

    Err(Refusal::new(
        StatusCode::BAD_REQUEST,
        "you must specify at least 1 of stdin, stdout, stderr",
    ))
}

fn find(
    context: &Context,
    namespace: &str,
    pod: &str,
    uid: Option<&str>,
) -> Result<PodRef, Refusal> {
    let refused = |message: &str| Refusal::new(StatusCode::NOT_FOUND, message);
    let found = context.pods.find(namespace, pod).ok_or_else(|| refused("pod does not exist"))?;
    if uid.is_some_and(|uid| uid != found.uid.as_str()) {
        return Err(refused("pod not found"));
    }

    Ok(found)
}

/// The container of that name with its id, if it runs.
fn running<'a>(pod: &'a PodRef, name: &str) -> Result<(&'a ContainerRef, String), Refusal> {
    let found = pod.containers.iter().find_map(|container| match &container.state {
        ContainerState::Running(current) if container.name == name => {
            Some((container, current.id.clone()))
        }
        ContainerState::Running(_)
        | ContainerState::Terminated(_)
        | ContainerState::Waiting { .. } => None,
    });

    found.ok_or_else(|| {
        let message = format!("container not found ({name:?})");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    })
}

fn refused(error: &CriError) -> Refusal {
    let status = match error.code() {
        Some(Code::NotFound) => StatusCode::NOT_FOUND,
        Some(Code::ResourceExhausted) => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };

    Refusal::new(status, error.to_string())
}

/// The URL that runs the command asked for.
pub(super) async fn exec(
    context: &Context,
    [namespace, pod, container]: [&str; 3],
    uid: Option<&str>,
    query: &Query,
) -> Result<String, Refusal> {
    let Streams { stdin, stdout, stderr, tty } = streams(query)?;
    let pod = find(context, namespace, pod, uid)?;
    let (_, id) = running(&pod, container)?;
    let cmd = query.all(COMMAND);
    let request = v1::ExecRequest { container_id: id, cmd, tty, stdin, stdout, stderr };

    context.runtime.exec(request).await.map_err(|error| refused(&error))
}

/// The URL that attaches to the container's process.
pub(super) async fn attach(
    context: &Context,
    [namespace, pod, container]: [&str; 3],
    uid: Option<&str>,
    query: &Query,
) -> Result<String, Refusal> {
    let Streams { stdin, stdout, stderr, tty: _ } = streams(query)?;
    let pod = find(context, namespace, pod, uid)?;
    let (found, id) = running(&pod, container)?;
    // Whether there is a terminal was settled when the container was created.
    let tty = found.tty;
    let stderr = stderr && !tty;
    let request = v1::AttachRequest { container_id: id, stdin, tty, stdout, stderr };

    context.runtime.attach(request).await.map_err(|error| refused(&error))
}

/// The URL that forwards to ports of the pod. SPDY names the ports later, in its streams.
pub(super) async fn port_forward(
    context: &Context,
    [namespace, pod]: [&str; 2],
    uid: Option<&str>,
    query: &Query,
) -> Result<String, Refusal> {
    let ports: Option<Vec<i32>> = query
        .all(PORT)
        .iter()
        .flat_map(|ports| ports.split(','))
        .map(|port| port.parse::<u16>().ok().filter(|port| *port > 0).map(i32::from))
        .collect();
    let ports = ports.ok_or_else(|| {
        Refusal::new(StatusCode::BAD_REQUEST, "a port must be a number from 1 to 65535")
    })?;
    let found = find(context, namespace, pod, uid)?;
    let sandbox = found.sandbox.ok_or_else(|| {
        let message = format!("pod not found (\"{pod}_{namespace}\")");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    })?;

    context.runtime.port_forward(&sandbox, ports).await.map_err(|error| refused(&error))
}

/// What takes over a connection after the answer.
pub(crate) struct Relay {
    caller: OnUpgrade,
    runtime: UpgradedIo,
}

impl Relay {
    /// Passes bytes both ways until one side is done, as a kubelet does: neither protocol closes one
    /// direction alone, and a caller that is gone must not leave a connection behind.
    pub(super) async fn run(self) -> Result<(), ServeError> {
        let caller = self.caller.await.map_err(ServeError::Connection)?;
        let (from_caller, mut to_caller) = tokio::io::split(TokioIo::new(caller));
        let (from_runtime, mut to_runtime) = tokio::io::split(TokioIo::new(self.runtime));
        let mut from_caller = BufReader::with_capacity(RELAY_BUFFER_BYTES, from_caller);
        let mut from_runtime = BufReader::with_capacity(RELAY_BUFFER_BYTES, from_runtime);
        let ended = tokio::select! {
            ended = tokio::io::copy_buf(&mut from_runtime, &mut to_caller) => ended,
            ended = tokio::io::copy_buf(&mut from_caller, &mut to_runtime) => ended,
        };
        // The last words of the runtime reach the caller before the end of the stream does.
        let closed = to_caller.shutdown().await;
        ended.map_err(ServeError::Relay)?;

        closed.map_err(ServeError::Relay)
    }
}

fn failed(message: String) -> Answer {
    answer::text(StatusCode::INTERNAL_SERVER_ERROR, message)
}

/// Sends the request on to `url`, and answers as that does.
pub(super) async fn relay(
    mut request: Request<Incoming>,
    url: &str,
    upgraded: &Upgraded,
) -> Answer {
    let wants_upgrade = request.headers().get(CONNECTION).is_some_and(|value| {
        value.to_str().is_ok_and(|text| text.to_ascii_lowercase().contains("upgrade"))
    });
    if !wants_upgrade || !request.headers().contains_key(UPGRADE) {
        return failed("Upgrade request required".to_owned());
    }
    let caller = upgrade::on(&mut request);
    let opened = tokio::time::timeout(ANSWER_DEADLINE, open(&request, url)).await;
    match opened.unwrap_or_else(|_| Err("it did not answer in time".to_owned())) {
        Ok(Opened::Stream(headers, runtime)) => {
            let relay = Relay { caller, runtime };
            *upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some(relay);
            let mut answer =
                Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *answer.headers_mut() = headers;
            answer
        }
        Ok(Opened::Refused(status, message)) => answer::text(status, message),
        Err(message) => {
            tracing::warn!(%message, "the runtime's streaming server failed");
            failed(format!("cannot reach the runtime's streaming server: {message}"))
        }
    }
}

enum Opened {
    Stream(http::HeaderMap, UpgradedIo),
    Refused(StatusCode, String),
}

async fn open(request: &Request<Incoming>, url: &str) -> Result<Opened, String> {
    let uri: Uri = url.parse().map_err(|error| format!("{url:?} is no URL: {error}"))?;
    let Some(authority) = uri.authority().filter(|_| uri.scheme_str() == Some("http")) else {
        return Err(format!("{url:?} is not of the form http://HOST:PORT/..."));
    };
    let address = authority.as_str();
    let connected = tokio::time::timeout(DIAL_DEADLINE, TcpStream::connect(address)).await;
    let stream = connected
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(|error| format!("{address}: {error}"))?;
    // Keys are pressed one by one; without this each waits for the acknowledgement of the last.
    stream.set_nodelay(true).map_err(|error| format!("{address}: {error}"))?;

    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BUFFER_BYTES)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(|error| format!("{address}: {error}"))?;
    let mut connection = pin!(connection.with_upgrades());
    let outgoing = outgoing(request, &uri).ok_or_else(|| format!("{url:?} is no URL"))?;
    let mut response = driven(&mut connection, sender.send_request(outgoing))
        .await
        .map_err(|error| format!("{address}: {error}"))?;

    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgraded = upgrade::on(&mut response);
        let stream = driven(&mut connection, upgraded)
            .await
            .map_err(|error| format!("{address}: {error}"))?;
        return Ok(Opened::Stream(response.headers().clone(), stream));
    }
    let status = response.status();
    if status.as_u16() < 400 {
        return Err(format!("invalid upgrade response: status code {}", status.as_u16()));
    }
    let body = Limited::new(response.into_body(), ERROR_BYTES_MAX).collect();
    let text = driven(&mut connection, body).await.map(http_body_util::Collected::to_bytes);
    let text = text.map_err(|error| format!("{address}: {error}"))?;

    Ok(Opened::Refused(status, String::from_utf8_lossy(&text).into_owned()))
}

/// The caller's request, at the runtime's address. Its headers say which protocol is spoken.
fn outgoing(request: &Request<Incoming>, uri: &Uri) -> Option<Request<Empty<Bytes>>> {
    let mut outgoing = Request::new(Empty::new());
    *outgoing.method_mut() = request.method().clone();
    *outgoing.uri_mut() = uri.path_and_query()?.as_str().parse().ok()?;
    *outgoing.headers_mut() = request.headers().clone();
    outgoing.headers_mut().insert(HOST, HeaderValue::from_str(uri.authority()?.as_str()).ok()?);

    Some(outgoing)
}

/// Waits for `wanted` while moving the connection that it needs.
async fn driven<C, F>(connection: &mut Pin<&mut C>, wanted: F) -> F::Output
where
    C: Future<Output = hyper::Result<()>>,
    F: Future,
{
    let mut wanted = pin!(wanted);
    let mut over = false;
    future::poll_fn(|cx| {
        if let Poll::Ready(output) = wanted.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        // How the connection ended shows in what is wanted of it.
        over = over || connection.as_mut().poll(cx).is_ready();
        wanted.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::serve_with;
    use super::*;

    /// Sends `request` to a connection that relays everything to a runtime which answers `answer`,
    /// and then sends back what it gets. Returns what the runtime read first, and the answer.
    async fn exchange(request: &str, answer: &'static str) -> (String, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/exec/token", listener.local_addr().unwrap());
        let runtime = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
            String::from_utf8(head).unwrap()
        };
        let (mut caller, server) = tokio::io::duplex(4096);
        let url = url.as_str();
        let serving = serve_with(server, None, |request, upgraded| async move {
            relay(request, url, &upgraded).await
        });
        let calling = async {
            caller.write_all(request.as_bytes()).await.unwrap();
            let mut text = Vec::new();
            let mut piece = [0; 512];
            let mut said = false;
            while !text.ends_with(b"ping") && !text.ends_with(b"not found") {
                let length = caller.read(&mut piece).await.unwrap();
                if length == 0 {
                    break;
                }
                text.extend_from_slice(&piece[..length]);
                if !said && text.ends_with(b"early ") {
                    caller.write_all(b"ping").await.unwrap();
                    said = true;
                }
            }
            drop(caller);
            String::from_utf8(text).unwrap()
        };
        let (head, _served, text) = tokio::join!(runtime, serving, calling);

        (head, text)
    }

    const REQUEST: &str = "POST /exec/ns/p/c?command=sh&input=1 HTTP/1.1\r\nHost: node\r\n\
        Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\
        X-Stream-Protocol-Version: v3.channel.k8s.io\r\n\r\n";

    #[tokio::test]
    async fn bytes_pass_both_ways_after_the_upgrade() {
        let (head, text) = exchange(
            REQUEST,
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\nearly ",
        )
        .await;

        assert!(head.starts_with("POST /exec/token HTTP/1.1\r\n"), "{head}");
        let head = head.to_ascii_lowercase();
        assert!(head.contains("upgrade: spdy/3.1\r\n") && head.contains("host: 127.0.0.1:"));
        assert_eq!(head.matches("x-stream-protocol-version: ").count(), 2, "{head}");
        let lower = text.to_ascii_lowercase();
        assert!(text.starts_with("HTTP/1.1 101 "), "{text}");
        assert!(lower.contains("x-stream-protocol-version: v4.channel.k8s.io\r\n"), "{text}");
        assert!(text.ends_with("early ping"), "{text}");
    }

    #[tokio::test]
    async fn a_refusal_of_the_runtime_is_passed_on() {
        let (_, text) =
            exchange(REQUEST, "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found").await;

        assert!(text.starts_with("HTTP/1.1 404 "), "{text}");
        assert!(text.contains("not found"), "{text}");
    }

    #[tokio::test]
    async fn a_request_that_is_no_upgrade_is_refused() {
        let (mut caller, server) = tokio::io::duplex(4096);
        let serving = serve_with(server, None, |request, upgraded| async move {
            relay(request, "http://127.0.0.1:1/", &upgraded).await
        });
        let calling = async {
            let request = "POST /exec HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
            caller.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            caller.read_to_string(&mut text).await.unwrap();
            text
        };
        let (_served, text) = tokio::join!(serving, calling);

        assert!(text.starts_with("HTTP/1.1 500 ") && text.contains("Upgrade request required"));
    }

    #[test]
    fn streams_are_as_asked_but_a_terminal_has_no_error_stream() {
        let parse = |query: &str| streams(&Query::parse(query));
        let asked = parse("input=1&output=1&error=1&tty=1").unwrap_or_else(|_| unreachable!());
        assert!(asked.stdin && asked.stdout && asked.tty && !asked.stderr);
        assert!(parse("tty=1&error=1").is_err());
        assert!(parse("output=true").is_err());
    }
}
