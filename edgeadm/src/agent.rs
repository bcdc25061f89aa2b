//! Asks the node's own agent over its control socket. Needs no cloud.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use edgecore::Config;
use edgecore::config::ConfigError;
use http::header::HOST;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::exit;

/// An agent that is there answers at once, also while its machine is busy.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The pods of a full node have a few MiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What an error says of itself.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;

/// Why the agent gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Which agent is not known.
    #[error("this machine is no edge node (join it: edgeadm join), or its configuration is broken")]
    Config(#[source] ConfigError),
    /// Nobody listens.
    #[error(
        "the agent of this node does not run: nobody answers at {}; start it (systemctl start \
         edgecore) and read its log (journalctl -u edgecore); pods go on meanwhile",
        socket.display()
    )]
    Dead {
        /// Its control socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Only root may ask.
    #[error("only root may ask the agent of this node; use sudo")]
    NotRoot,
    /// It listens and says nothing.
    #[error(
        "the agent of this node does not answer at {} within {} s: it hangs, or other commands of \
         edgeadm take all its time; read its log (journalctl -u edgecore)",
        socket.display(),
        ANSWER_MAX.as_secs()
    )]
    Silent {
        /// Its control socket.
        socket: PathBuf,
    },
    /// The connection broke.
    #[error("the connection to the agent of this node broke")]
    Broken(#[source] hyper::Error),
    /// It broke while an answer was read.
    #[error("the answer of the agent of this node broke off")]
    BrokeOff(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It says no.
    #[error("{message}")]
    Refused {
        /// HTTP.
        status: StatusCode,
        /// Why.
        message: String,
    },
    /// It says something else than it should.
    #[error("the agent answers what this edgeadm does not understand: are both of one version?")]
    Unclear(#[source] serde_json::Error),
}

impl AgentError {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => exit::BAD_CONFIG,
            Self::NotRoot => exit::NOT_PERMITTED,
            Self::Refused { status, .. } if status.is_client_error() => exit::FAILED,
            Self::Dead { .. }
            | Self::Silent { .. }
            | Self::Broken(_)
            | Self::BrokeOff(_)
            | Self::Refused { .. }
            | Self::Unclear(_) => exit::UNAVAILABLE,
        }
    }
}

/// The agent of this machine.
#[derive(Clone, Debug)]
pub struct Agent {
    socket: PathBuf,
}

/// An answer that is still being read. The connection goes with it.
#[derive(Debug)]
pub struct Reading {
    answer: Response<Incoming>,
    _connection: JoinSet<hyper::Result<()>>,
}

impl Agent {
    /// The agent with the configuration at `path`.
    pub fn of(path: &Path) -> Result<Self, AgentError> {
        let config = Config::load(path).map_err(AgentError::Config)?;

        Ok(Self::at(&config.control_socket))
    }

    /// The agent that listens at `socket`.
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// A connection of its own, for what is no plain request.
    pub async fn connect(&self) -> Result<UnixStream, AgentError> {
        match timeout(ANSWER_MAX, UnixStream::connect(&self.socket)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(AgentError::NotRoot)
            }
            Ok(Err(source)) => Err(AgentError::Dead { socket: self.socket.clone(), source }),
            Err(_elapsed) => Err(self.silent()),
        }
    }

    /// That it listens and says nothing.
    pub fn silent(&self) -> AgentError {
        AgentError::Silent { socket: self.socket.clone() }
    }

    /// Asks; the answer's body is still to be read. `path` has its query.
    pub async fn ask(&self, method: Method, path: &str) -> Result<Reading, AgentError> {
        let stream = self.connect().await?;
        let asking = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let mut driven = JoinSet::new();
            driven.spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(HOST, "agent")
                .body(Empty::<Bytes>::new())
                .expect("paths are made of what is allowed in them");
            let answer = sender.send_request(request).await?;

            Ok(Reading { answer, _connection: driven })
        };
        let reading = timeout(ANSWER_MAX, asking).await.map_err(|_elapsed| self.silent())?;
        let reading = reading.map_err(AgentError::Broken)?;
        if reading.answer.status().is_success() {
            return Ok(reading);
        }
        let status = reading.answer.status();
        let text = reading.all(REFUSAL_BYTES_MAX).await.unwrap_or_default();
        let message = String::from_utf8_lossy(&text).trim().to_owned();

        Err(AgentError::Refused { status, message })
    }

    /// GET of what is JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AgentError> {
        self.value(Method::GET, path).await
    }

    /// POST without a body, answered by JSON.
    pub async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, AgentError> {
        self.value(Method::POST, path).await
    }

    /// GET of a text.
    pub async fn text(&self, path: &str) -> Result<String, AgentError> {
        let body = self.ask(Method::GET, path).await?.all(ANSWER_BYTES_MAX).await?;

        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    async fn value<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, AgentError> {
        let body = self.ask(method, path).await?.all(ANSWER_BYTES_MAX).await?;

        serde_json::from_slice(&body).map_err(AgentError::Unclear)
    }
}

impl Reading {
    /// The next piece of the body; `None` at its end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, AgentError> {
        while let Some(frame) = self.answer.body_mut().frame().await {
            let frame = frame.map_err(AgentError::Broken)?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }

        Ok(None)
    }

    async fn all(mut self, bytes_max: usize) -> Result<Bytes, AgentError> {
        let body = Limited::new(self.answer.body_mut(), bytes_max).collect().await;

        body.map(http_body_util::Collected::to_bytes).map_err(AgentError::BrokeOff)
    }
}

/// One part of a path: what is no plain letter is escaped.
pub fn part(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _infallible = write!(escaped, "%{byte:02X}");
        }
    }

    escaped
}

/// A query string of these parameters, with its question mark.
pub fn query(parameters: &[(&str, String)]) -> String {
    let pairs: Vec<_> =
        parameters.iter().map(|(name, value)| format!("{name}={}", part(value))).collect();

    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_escaped() {
        assert_eq!(part("a-b.c_d~9"), "a-b.c_d~9");
        assert_eq!(part("a/b c&é"), "a%2Fb%20c%26%C3%A9");
        assert_eq!(query(&[]), "");
        assert_eq!(
            query(&[("command", "sh".to_owned()), ("command", "a=b".to_owned())]),
            "?command=sh&command=a%3Db"
        );
    }

    #[tokio::test]
    async fn an_agent_that_is_dead_is_told_from_one_that_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let agent = Agent::at(&socket);
        let dead = |outcome| matches!(outcome, Err(AgentError::Dead { .. }));
        assert!(dead(agent.get::<serde_json::Value>("/x").await));
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(dead(agent.get::<serde_json::Value>("/x").await));
    }
}
