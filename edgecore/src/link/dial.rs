//! Dials cloudcore: name, TCP, TLS with the pinned authority, the WebSocket upgrade. Every error
//! says at which stage and what to do.

#[cfg(test)]
pub(super) mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{SplitSink, SplitStream};
use proto::codec::FRAME_BYTES_MAX;
use proto::session::DIAL_MAX;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::expired::RenewalError;
use crate::blocking::resolve;

/// The name in cloudcore's certificate, whatever its address.
pub const SERVER_NAME: &str = "cloudcore.holdfast.internal";

/// Bytes read at once: an idle link holds this much.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Bytes that the kernel takes before they can be sent: what is urgent waits behind two chunks of a
/// stream at most, and a fast link never runs dry between two wake-ups.
const UNSENT_BYTES_MAX: u32 = 32 * 1024;

/// Head start of each address before the next is tried too (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// For all stages: a little less than the session's patience, so that it is told which one it was.
const STAGES_MAX: Duration = DIAL_MAX.saturating_sub(Duration::from_millis(500));

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

pub(super) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// A connection that is ready for frames.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sink: SplitSink<Socket, Message>,
    pub(super) stream: SplitStream<Socket>,
    /// What was given to the sink is with the kernel.
    pub(super) flushed: bool,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No name server knows it, or none answers.
    #[error("cannot resolve {address}: check the name and the name servers of this node")]
    Resolve {
        /// HOST:PORT.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody listens there, or no route leads there.
    #[error("cannot connect to {address}: check the address, the route and firewalls")]
    Connect {
        /// HOST:PORT.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The peer is not our cloudcore, or does not know our authority.
    #[error("no TLS with {address}: is it the cloudcore that this node joined?")]
    Tls {
        /// HOST:PORT.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificate had expired.
    #[error("the certificate of this node had expired, and it has another now")]
    Renewed,
    /// The certificate has expired.
    #[error("the certificate of this node has expired, and cloudcore at {address} gave no other")]
    Expired {
        /// HOST:PORT.
        address: String,
        /// Why not.
        #[source]
        source: Box<RenewalError>,
    },
    /// The peer speaks TLS but gives no link: a certificate that has expired or is unknown to it
    /// shows here, for in TLS 1.3 the client is done before the server has looked at it.
    #[error(
        "{address} gives no link; if it says that it does not take the certificate, join this \
         node anew"
    )]
    Upgrade {
        /// HOST:PORT.
        address: String,
        /// Why.
        #[source]
        source: Box<SocketError>,
    },
}

/// Opens TCP and TLS.
pub async fn connect(
    address: &str,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, DialError> {
    connect_by(Instant::now() + STAGES_MAX, address, tls).await
}

async fn connect_by(
    by: Instant,
    address: &str,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let resolved = until(by, resolve(address))
        .await
        .map_err(|source| DialError::Resolve { address: address.to_owned(), source })?;
    let socket = until(by, first_to_answer(in_turn(resolved)))
        .await
        .and_then(prepared)
        .map_err(|source| DialError::Connect { address: address.to_owned(), source })?;
    let name = ServerName::try_from(SERVER_NAME).expect("the name is a DNS name");

    until(by, TlsConnector::from(tls).connect(name, socket))
        .await
        .map_err(|source| DialError::Tls { address: address.to_owned(), source })
}

/// A stage without an answer fails as one that the network has given up.
async fn until<T>(by: Instant, stage: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let silent = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");

    timeout_at(by, stage).await.unwrap_or_else(|_elapsed| Err(silent()))
}

/// Frames are small and each matters now; the session, not the kernel, decides which is next.
fn prepared(socket: TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;

    Ok(socket)
}

/// The two families in turn, in the resolver's order otherwise, so that a family without a route
/// costs one head start.
fn in_turn(resolved: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = resolved.first().is_some_and(SocketAddr::is_ipv6);
    let (first, other): (Vec<_>, Vec<_>) =
        resolved.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut other) = (first.into_iter(), other.into_iter());
    let mut ordered = Vec::new();
    loop {
        let pair = [first.next(), other.next()];
        if pair == [None, None] || ordered.len() >= ADDRESSES_MAX {
            return ordered;
        }
        ordered.extend(pair.into_iter().flatten());
    }
}

/// Connects to all addresses, each after a head start of those before or when they have failed;
/// the first connection wins.
async fn first_to_answer(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut left = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let next = left.next();
        if let Some(address) = next {
            attempts.spawn(TcpStream::connect(address));
        } else if attempts.is_empty() {
            return Err(last);
        }
        let ended = match next {
            Some(_) => timeout(ATTEMPT_DELAY, attempts.join_next()).await.ok().flatten(),
            None => attempts.join_next().await,
        };
        match ended {
            Some(Ok(Ok(socket))) => return Ok(socket),
            Some(Ok(Err(error))) => last = error,
            Some(Err(_)) | None => {}
        }
    }
}

/// Opens a link.
pub(super) async fn dial(
    address: String,
    tls: Arc<ClientConfig>,
) -> Result<Connection, (DialError, Option<Duration>)> {
    let by = Instant::now() + STAGES_MAX;
    let stream = connect_by(by, &address, tls).await.map_err(|error| (error, None))?;
    let upgrade = |source: SocketError| {
        let retry_after = retry_after(&source);
        (DialError::Upgrade { address: address.clone(), source: Box::new(source) }, retry_after)
    };
    let request = format!("wss://{SERVER_NAME}/v1/link").into_client_request().map_err(upgrade)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let upgraded = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
    let silent = || SocketError::Io(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
    let upgraded = timeout_at(by, upgraded).await.unwrap_or_else(|_elapsed| Err(silent()));
    let (socket, _) = upgraded.map_err(upgrade)?;
    let (sink, stream) = socket.split();

    Ok(Connection { sink, stream, flushed: true })
}

/// `Retry-After` in seconds, if the answer was HTTP and had one.
fn retry_after(error: &SocketError) -> Option<Duration> {
    let SocketError::Http(answer) = error else { return None };
    let value = answer.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?;

    value.parse().ok().map(Duration::from_secs)
}
