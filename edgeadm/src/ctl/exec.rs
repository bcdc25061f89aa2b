//! `ctl exec`: a command in a container, over the kubelet's WebSocket protocol.

use futures_util::{SinkExt as _, StreamExt as _};
use http::header::HOST;
use http::{HeaderValue, Request, Response};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::error::Error as SocketError;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::terminal::{self, Raw};
use super::{CtlError, container_of, pod_of};
use crate::agent::{Agent, part, query};
use crate::args::ctl::ExecArgs;
use crate::ui;

const PROTOCOL: &str = "sec-websocket-protocol";
/// Those that are spoken, the newer first: it can say that stdin has ended.
const PROTOCOLS: &str = "v5.channel.k8s.io, v4.channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";

/// What a message is for: its first byte.
mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const ERROR: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
    pub(super) const CLOSE: u8 = 255;
}

pub(super) async fn run(args: ExecArgs) -> Result<(), CtlError> {
    let (agent, pod) = pod_of(&args.config.config, &args.namespace.namespace, &args.pod).await?;
    let container = container_of(&pod, args.container.clone())?;
    let failed = |reason: String| CtlError::Exec {
        pod: args.pod.clone(),
        container: container.clone(),
        reason,
    };
    let (socket, answer) =
        open(&agent, &args, &container).await?.map_err(|e| failed(reason(&e)))?;
    let closes = answer.headers().get(PROTOCOL).is_some_and(|protocol| protocol == V5);
    let status = pass(socket, &args, closes).await.map_err(|error| failed(error.to_string()))?;
    match ended(&status) {
        Ended::Well => Ok(()),
        Ended::Code(code) => Err(CtlError::Ended { code }),
        Ended::Failed(message) => Err(failed(message)),
    }
}

type Opened = (WebSocketStream<UnixStream>, Response<Option<Vec<u8>>>);

async fn open(
    agent: &Agent,
    args: &ExecArgs,
    container: &str,
) -> Result<Result<Opened, SocketError>, CtlError> {
    let mut parameters: Vec<_> =
        args.command.iter().map(|word| ("command", word.clone())).collect();
    // A terminal has no stream of its own for errors.
    for (name, flag) in
        [("input", args.stdin), ("output", true), ("error", !args.tty), ("tty", args.tty)]
    {
        if flag {
            parameters.push((name, "1".to_owned()));
        }
    }
    let path = format!(
        "ws://agent/exec/{}/{}/{}{}",
        part(&args.namespace.namespace),
        part(&args.pod),
        part(container),
        query(&parameters)
    );
    let mut request: Request<()> =
        path.into_client_request().expect("paths are made of what is allowed in them");
    request.headers_mut().insert(PROTOCOL, HeaderValue::from_static(PROTOCOLS));
    request.headers_mut().insert(HOST, HeaderValue::from_static("agent"));
    let stream = agent.connect().await?;

    Ok(tokio_tungstenite::client_async(request, stream).await)
}

fn reason(error: &SocketError) -> String {
    let SocketError::Http(answer) = error else { return error.to_string() };
    let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
    let body = body.trim();

    if body.is_empty() {
        format!("it was answered with {}", answer.status())
    } else {
        body.to_owned()
    }
}

/// Passes bytes both ways until the command has ended; answers what was said of its end.
async fn pass(
    mut socket: WebSocketStream<UnixStream>,
    args: &ExecArgs,
    closes: bool,
) -> Result<Value, SocketError> {
    let raw = (args.tty && args.stdin).then(Raw::start).flatten();
    let mut input = args.stdin.then(terminal::input);
    let mut resized = if args.tty { signal(SignalKind::window_change()).ok() } else { None };
    if args.tty {
        resize(&mut socket).await?;
    }
    let mut status = Value::Null;
    loop {
        tokio::select! {
            message = socket.next() => match message {
                None
                | Some(
                    Ok(Message::Close(_))
                    | Err(SocketError::ConnectionClosed | SocketError::AlreadyClosed),
                ) => break,
                Some(Err(_)) if !status.is_null() => break,
                Some(Err(error)) => return Err(error),
                Some(Ok(message)) => {
                    if let Some(said) = take(&message.into_data()) {
                        status = said;
                    }
                }
            },
            piece = next(&mut input) => {
                if let Some(piece) = piece {
                    send(&mut socket, channel::STDIN, &piece).await?;
                    continue;
                }
                input = None;
                if closes {
                    send(&mut socket, channel::CLOSE, &[channel::STDIN]).await?;
                }
            }
            Some(()) = changed(&mut resized) => resize(&mut socket).await?,
        }
    }
    drop(raw);

    Ok(status)
}

async fn next(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => std::future::pending().await,
    }
}

async fn changed(resized: &mut Option<tokio::signal::unix::Signal>) -> Option<()> {
    match resized {
        Some(resized) => resized.recv().await,
        None => std::future::pending().await,
    }
}

async fn send(
    socket: &mut WebSocketStream<UnixStream>,
    channel: u8,
    bytes: &[u8],
) -> Result<(), SocketError> {
    let mut message = vec![channel];
    message.extend_from_slice(bytes);

    socket.send(Message::Binary(message.into())).await
}

async fn resize(socket: &mut WebSocketStream<UnixStream>) -> Result<(), SocketError> {
    let Some((width, height)) = terminal::size() else { return Ok(()) };
    let size = json!({ "Width": width, "Height": height });

    send(socket, channel::RESIZE, size.to_string().as_bytes()).await
}

/// Prints what a message brings; answers what it says of the end.
fn take(message: &[u8]) -> Option<Value> {
    let (channel, bytes) = message.split_first()?;
    match *channel {
        channel::STDOUT => {
            ui::bytes(bytes);
        }
        channel::STDERR => ui::error_bytes(bytes),
        channel::ERROR => return serde_json::from_slice(bytes).ok(),
        _ => {}
    }

    None
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Well,
    Code(u8),
    Failed(String),
}

/// What a `Status` of the API says of the command.
fn ended(status: &Value) -> Ended {
    if status["status"] == "Success" {
        return Ended::Well;
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code = causes
        .filter(|cause| cause["reason"] == "ExitCode")
        .find_map(|cause| cause["message"].as_str()?.parse::<i32>().ok());
    if let Some(code) = code {
        // What does not fit is still no success.
        return Ended::Code(u8::try_from(code).unwrap_or(u8::MAX).max(1));
    }
    let message = status["message"].as_str();

    Ended::Failed(message.unwrap_or("the connection ended before the command").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_command_ended_is_read_as_kubectl_does() {
        assert_eq!(ended(&json!({ "status": "Success" })), Ended::Well);
        let causes = json!([{ "reason": "ExitCode", "message": "3" }]);
        let status = json!({ "status": "Failure", "details": { "causes": causes } });
        assert_eq!(ended(&status), Ended::Code(3));
        let status = json!({ "status": "Failure", "message": "no such file" });
        assert_eq!(ended(&status), Ended::Failed("no such file".to_owned()));
        assert!(matches!(ended(&Value::Null), Ended::Failed(_)));
    }
}
