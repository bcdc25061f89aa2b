//! Dials cloudcore: name, TCP, the tunnel of a proxy, TLS with the pinned authority, the WebSocket upgrade.
//! Every error says at which stage, who answered, and what to do.

pub mod blame;
pub mod carrier;
#[cfg(test)]
pub(crate) mod tests;
mod through;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{SplitSink, SplitStream};
use proto::codec::FRAME_BYTES_MAX;
use proto::session::DIAL_MAX;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
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

use self::blame::NoTls;
use self::carrier::Carrier;
use super::expired::RenewalError;
use super::proxy::{ProxyError, Way};
use crate::blocking::resolve;
use crate::identity::der;

/// The name in cloudcore's certificate, whatever its address.
pub const SERVER_NAME: &str = "cloudcore.holdfast.internal";

/// Bytes read at once: an idle link holds this much.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Bytes that the kernel takes before they can be sent: what is urgent waits behind two chunks of a
/// stream at most, and a fast link never runs dry between two wake-ups.
const UNSENT_BYTES_MAX: u32 = 32 * 1024;

/// Payload of one packet, of both ends, so that packets have no more than the 1280 bytes which every way of IPv6
/// carries: many tunnels and mobile networks carry less than 1500, and do not always say so.
const SEGMENT_BYTES_MAX: u32 = 1280 - 40 - 20;

/// Head start of each address before the next is tried too (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// For all stages: a little less than the session's patience, so that it is told which one it was.
const STAGES_MAX: Duration = DIAL_MAX.saturating_sub(Duration::from_millis(500));

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Encrypted, to the right cloudcore.
pub type Stream = TlsStream<Carrier>;

pub(super) type Socket = WebSocketStream<Stream>;

/// A connection that is ready for frames.
#[derive(Debug)]
pub(super) struct Connection {
    /// Where cloudcore answered; unknown behind a proxy.
    pub(super) peer: Option<IpAddr>,
    /// When cloudcore's certificate ends, since 1970.
    pub(super) until: Option<Duration>,
    pub(super) sink: SplitSink<Socket, Message>,
    pub(super) stream: SplitStream<Socket>,
    /// What was given to the sink is with the kernel.
    pub(super) flushed: bool,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody can be asked for its address.
    #[error(
        "no name server answers for {address}: check the nameserver lines of /etc/resolv.conf and the \
         way to them"
    )]
    NoNameServer {
        /// HOST:PORT.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No name server knows it.
    #[error(
        "cannot resolve {address}: check the name, and whether the name servers of this network know it"
    )]
    Resolve {
        /// HOST:PORT.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Name servers say something that cannot be.
    #[error(
        "the name servers of this network say that {address} is {ip}, where no server can be: they filter \
         names, or a captive portal answers for them"
    )]
    Impossible {
        /// HOST:PORT.
        address: String,
        /// What they say.
        ip: IpAddr,
    },
    /// The name led elsewhere when cloudcore last answered.
    #[error(
        "the name servers of this network say that {address} is {now}, and cloudcore last answered at \
         {before}: they are wrong, or it has moved"
    )]
    Moved {
        /// HOST:PORT.
        address: String,
        /// What they say.
        now: IpAddr,
        /// Where it was.
        before: IpAddr,
        /// What came of it.
        #[source]
        source: Box<Self>,
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
    /// The proxy gives no way.
    #[error("no way to {address} through {proxy}")]
    Proxy {
        /// HOST:PORT.
        address: String,
        /// Without credentials.
        proxy: String,
        /// Why.
        #[source]
        source: Box<ProxyError>,
    },
    /// The peer is not our cloudcore, or does not know our authority.
    #[error("no TLS with {address}: {}; {}", problem.found(), problem.remedy())]
    Tls {
        /// HOST:PORT, and what a name stands for.
        address: String,
        /// Who is there instead.
        problem: NoTls,
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

/// Opens TCP, a tunnel if a proxy is on the way, and TLS.
pub async fn connect(way: &Way, tls: Arc<ClientConfig>) -> Result<Stream, DialError> {
    connect_by(Instant::now() + STAGES_MAX, way, tls).await
}

async fn connect_by(by: Instant, way: &Way, tls: Arc<ClientConfig>) -> Result<Stream, DialError> {
    let carrier = open_by(by, way).await?;
    let peer = carrier.peer().filter(|_| way.proxy.is_none());
    let name = ServerName::try_from(SERVER_NAME).expect("the name is a DNS name");
    let connecting = TlsConnector::from(tls).connect(name, carrier).into_fallible();
    let (problem, source) = match timeout_at(by, connecting).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err((source, carrier))) => (NoTls::of(&source, carrier.first()), source),
        Err(_elapsed) => (NoTls::Silent, silent()),
    };
    let address = blame::shown(&way.address, peer);
    let error = DialError::Tls { address, problem, source };

    Err(match peer {
        Some(peer) => moved(&way.address, &[peer], way.known, error),
        None => error,
    })
}

/// Opens TCP, and a tunnel if a proxy is on the way.
pub async fn open(way: &Way) -> Result<Carrier, DialError> {
    open_by(Instant::now() + STAGES_MAX, way).await
}

async fn open_by(by: Instant, way: &Way) -> Result<Carrier, DialError> {
    let Some(proxy) = &way.proxy else {
        return reach(by, &way.address, way.known).await.map(Carrier::from);
    };

    through::open(by, proxy, &way.authorities, &way.address).await.map_err(|source| {
        let address = way.address.clone();
        DialError::Proxy { address, proxy: proxy.to_string(), source: Box::new(source) }
    })
}

/// Opens TCP to HOST:PORT.
async fn reach(by: Instant, address: &str, known: Option<IpAddr>) -> Result<TcpStream, DialError> {
    let resolved = until(by, resolve(address)).await.map_err(|source| {
        let address = address.to_owned();
        if blame::is_no_server(&source) {
            DialError::NoNameServer { address, source }
        } else {
            DialError::Resolve { address, source }
        }
    })?;
    if blame::are_impossible(&resolved) {
        let ip = resolved[0].ip();
        return Err(DialError::Impossible { address: address.to_owned(), ip });
    }
    let ips: Vec<_> = resolved.iter().map(SocketAddr::ip).collect();
    let connected = until(by, first_to_answer(in_turn(resolved))).await.and_then(prepared);

    connected.map_err(|source| {
        let error =
            DialError::Connect { address: blame::shown(address, ips.first().copied()), source };
        moved(address, &ips, known, error)
    })
}

/// Says of an error that the name has led elsewhere before, if it has.
fn moved(address: &str, now: &[IpAddr], known: Option<IpAddr>, error: DialError) -> DialError {
    match (now.first(), known) {
        (Some(first), Some(before)) if !now.contains(&before) => DialError::Moved {
            address: address.to_owned(),
            now: *first,
            before,
            source: Box::new(error),
        },
        _ => error,
    }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// A stage without an answer fails as one that the network has given up.
async fn until<T>(by: Instant, stage: impl Future<Output = io::Result<T>>) -> io::Result<T> {
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
    let mut failed = Vec::new();
    loop {
        let next = left.next();
        if let Some(address) = next {
            attempts.spawn(async move { (address, attempt(address).await) });
        } else if attempts.is_empty() {
            return Err(all_failed(failed));
        }
        let ended = match next {
            Some(_) => timeout(ATTEMPT_DELAY, attempts.join_next()).await.ok().flatten(),
            None => attempts.join_next().await,
        };
        match ended {
            Some(Ok((_, Ok(socket)))) => return Ok(socket),
            Some(Ok((address, Err(error)))) => failed.push((address, error)),
            Some(Err(_)) | None => {}
        }
    }
}

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let _larger_ones_may_pass = SockRef::from(&socket).set_tcp_mss(SEGMENT_BYTES_MAX);

    socket.connect(address).await
}

/// Of several addresses each is told with what became of it: families fail for different reasons.
fn all_failed(mut failed: Vec<(SocketAddr, io::Error)>) -> io::Error {
    let Some((_, last)) = failed.last() else {
        return io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    };
    let kind = last.kind();
    if failed.len() == 1 {
        return failed.remove(0).1;
    }
    let each: Vec<_> =
        failed.iter().map(|(address, error)| format!("{}: {error}", address.ip())).collect();

    io::Error::new(kind, each.join("; "))
}

/// Opens a link.
pub(super) async fn dial(
    way: &Way,
    tls: Arc<ClientConfig>,
) -> Result<Connection, (DialError, Option<Duration>)> {
    let by = Instant::now() + STAGES_MAX;
    let stream = connect_by(by, way, tls).await.map_err(|error| (error, None))?;
    let peer = stream.get_ref().0.peer().filter(|_| way.proxy.is_none());
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let until = shown.and_then(|shown| der::validity(shown)).map(|(_, until)| until);
    let upgrade = |source: SocketError| {
        let retry_after = retry_after(&source);
        let address = way.address.clone();
        (DialError::Upgrade { address, source: Box::new(source) }, retry_after)
    };
    let request = format!("wss://{SERVER_NAME}/v1/link").into_client_request().map_err(upgrade)?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let upgraded = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
    let late = || SocketError::Io(silent());
    let upgraded = timeout_at(by, upgraded).await.unwrap_or_else(|_elapsed| Err(late()));
    let (socket, _) = upgraded.map_err(upgrade)?;
    let (sink, stream) = socket.split();

    Ok(Connection { peer, until, sink, stream, flushed: true })
}

/// `Retry-After` in seconds, if the answer was HTTP and had one.
fn retry_after(error: &SocketError) -> Option<Duration> {
    let SocketError::Http(answer) = error else { return None };
    let value = answer.headers().get(http::header::RETRY_AFTER)?.to_str().ok()?;

    value.parse().ok().map(Duration::from_secs)
}
