//! Asks a container something, as its probes and lifecycle hooks say: a command in it, a request by
//! HTTP, a connection, or gRPC's health protocol. Words and rules are the kubelet's (`pkg/probe`,
//! `pkg/kubelet/prober/prober.go`).

mod grpc;
mod http;
mod tls;

use std::time::Duration;

use cri::{Code, Runtime};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use self::http::{Delivered, Get, LIFECYCLE, PROBE, deliver, scheme_is_https};

/// Longest part of an answer that is told (kubelet: `maxRespBodyLength`).
const OUTPUT_BYTES_MAX: usize = 10 * 1024;

/// What is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// A command in the container, by its id in the runtime.
    Exec {
        /// Container id.
        id: String,
        /// Program and arguments.
        command: Vec<String>,
    },
    /// GET.
    Http(Get),
    /// Whether there is a listener.
    Tcp {
        /// Name or address.
        host: String,
        /// Its port.
        port: u16,
    },
    /// gRPC's `grpc.health.v1.Health/Check`.
    Grpc {
        /// Address.
        host: String,
        /// Its port.
        port: u16,
        /// The service that is asked for.
        service: String,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Well.
    Success,
    /// Well, but the user should know.
    Warning(String),
    /// Not well.
    Failure(String),
    /// It could not be asked: says nothing about the container.
    Unknown(String),
}

/// Asks; takes no longer than `limit` (for a command: than the runtime needs to end it then).
pub async fn ask(runtime: &Runtime, question: &Question, limit: Duration) -> Answer {
    match question {
        Question::Exec { id, command } => exec(runtime, id, command, limit).await,
        Question::Http(get) => http::get(get, limit).await,
        Question::Tcp { host, port } => match timeout(limit, dial(host, *port)).await {
            Ok(Ok(_connection)) => Answer::Success,
            Ok(Err(text)) => Answer::Failure(text),
            Err(_late) => Answer::Failure(format!("dial tcp {}: i/o timeout", join(host, *port))),
        },
        Question::Grpc { host, port, service } => grpc::check(host, *port, service, limit).await,
    }
}

async fn exec(runtime: &Runtime, id: &str, command: &[String], limit: Duration) -> Answer {
    match runtime.exec_sync(id, command.to_vec(), limit).await {
        Ok(response) if response.exit_code == 0 => Answer::Success,
        Ok(response) => {
            let output = [response.stdout, response.stderr].concat();
            Answer::Failure(shortened(&output))
        }
        Err(error) if error.code() == Some(Code::DeadlineExceeded) => {
            let command = command.join(" ");
            Answer::Failure(format!("command timed out: \"{command}\" timed out after {limit:?}"))
        }
        Err(error) => Answer::Unknown(error.status()),
    }
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let address = join(host, port);
    let resolved = crate::blocking::resolve(&address).await;
    let dialled = match resolved {
        Ok(addresses) => TcpStream::connect(&*addresses).await,
        Err(error) => Err(error),
    };

    dialled.map_err(|error| format!("dial tcp {address}: connect: {}", reason(&error)))
}

/// The error as C libraries word it, without its number.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string().to_lowercase();

    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Host and port as in a URL.
fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn shortened(bytes: &[u8]) -> String {
    let kept = bytes.get(..OUTPUT_BYTES_MAX).unwrap_or(bytes);

    String::from_utf8_lossy(kept).into_owned()
}

#[cfg(test)]
mod tests;
