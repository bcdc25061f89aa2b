//! Dials cloudcore: TCP, TLS with the pinned authority, the WebSocket upgrade. Every error says at
//! which stage and what to do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{SplitSink, SplitStream};
use proto::codec::FRAME_BYTES_MAX;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

/// The name in cloudcore's certificate, whatever its address.
pub const SERVER_NAME: &str = "cloudcore.holdfast.internal";

/// Bytes read at once: an idle link holds this much.
const READ_BUFFER_BYTES: usize = 4 * 1024;

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
    /// No name server knows it, nobody listens there, or no route leads there.
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
    /// The peer speaks TLS but gives no link.
    #[error("{address} gives no link")]
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
    let socket = TcpStream::connect(address)
        .await
        .map_err(|source| DialError::Connect { address: address.to_owned(), source })?;
    // Frames are small and each matters now.
    socket
        .set_nodelay(true)
        .map_err(|source| DialError::Connect { address: address.to_owned(), source })?;
    let name = ServerName::try_from(SERVER_NAME).expect("the name is a DNS name");

    TlsConnector::from(tls)
        .connect(name, socket)
        .await
        .map_err(|source| DialError::Tls { address: address.to_owned(), source })
}

/// Opens a link.
pub(super) async fn dial(
    address: String,
    tls: Arc<ClientConfig>,
) -> Result<Connection, (DialError, Option<Duration>)> {
    let stream = connect(&address, tls).await.map_err(|error| (error, None))?;
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
    let (socket, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(config))
        .await
        .map_err(upgrade)?;
    let (sink, stream) = socket.split();

    Ok(Connection { sink, stream, flushed: true })
}

/// `Retry-After` in seconds, if the answer was HTTP and had one.
fn retry_after(error: &SocketError) -> Option<Duration> {
    let SocketError::Http(answer) = error else { return None };
    let value = answer.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?;

    value.parse().ok().map(Duration::from_secs)
}
