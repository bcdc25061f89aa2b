//! The kubelet API of every node: a TLS port a node, so that API servers need no flag.
//!
//! Callers are authenticated and authorised here, as a kubelet does ([`access`]); then the request goes
//! to the node unparsed, over a stream of its link ([`forward`]), through the replica that has the link
//! if it is another ([`peers`]). With the link down, callers are told at once since when the node is away.

mod access;
mod forward;
mod kept;
mod peers;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::Client;
use proto::ids::NodeName;
use proto::stream::STREAMS_MAX;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

pub use self::access::AccessError;
pub use self::kept::Kept;
pub use self::peers::{Peers, run as serve_peers};
use crate::cluster::Cluster;
use crate::crowd::{Crowd, Place, Source};
use crate::hub::Sessions;
use crate::metrics::Metrics;
use crate::pki::Current;
use crate::{listening, telemetry};

/// Lowest port given to a node.
pub const PORT_MIN: u16 = 20_000;
/// Highest port given to a node.
pub const PORT_MAX: u16 = 29_999;

const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// From one request of a connection to the head of the next: as long as a kubelet's, so that those who
/// scrape every half minute need no handshake each time.
const HEAD_MAX: Duration = Duration::from_secs(90);
/// `kubectl exec` puts the command into the head.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Connections of proven callers to one node's port: an API server pools a few, and each stream may take
/// one.
const CONNECTIONS_MAX: usize = 2 * STREAMS_MAX;

/// Connections that wait to be accepted, at each port.
const BACKLOG: u32 = 1_024;

/// What every port needs.
pub struct Shared {
    /// Signs the serving certificate.
    pub authority: Current,
    /// For reviews of tokens and access.
    pub client: Client,
    /// Tells which pods a node has.
    pub cluster: Cluster,
    /// This replica's address.
    pub address: IpAddr,
    /// Where nodes' sessions are.
    pub sessions: Sessions,
    /// The way to other replicas.
    pub peers: Peers,
    /// What all ports share.
    pub kept: Kept,
    /// Before all ports: callers that have not proved who they are.
    pub crowd: Crowd,
    /// Counts what is asked.
    pub metrics: Metrics,
    /// Those that are open, to nodes and to other replicas.
    pub streams: TaskTracker,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Takes a port.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    listening::bind(address, BACKLOG)
}

/// Serves a node's port until it is dropped.
pub async fn run(shared: Arc<Shared>, node: NodeName, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => {
                let (socket, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%node, %error, "cannot accept a caller of the kubelet API");
                        // Out of descriptors, most often: let some connections end.
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let place = shared.crowd.enter(Source::of(peer.ip()));
                let lost = place.lost();
                let door = Arc::new(Door::new(place, Arc::clone(&slots)));
                let serving = serve(Arc::clone(&shared), node.clone(), socket, door);
                connections.spawn(async move {
                    tokio::select! {
                        () = serving => {}
                        () = lost => tracing::debug!(%peer, "a caller made room for others"),
                    }
                });
            }
        }
    }
}

/// Where a connection stands: in the crowd, or among those of proven callers.
struct Door {
    standing: Mutex<Standing>,
    slots: Arc<Semaphore>,
}

enum Standing {
    Unproven(#[expect(dead_code, reason = "kept until it is given back")] Place),
    Proven(#[expect(dead_code, reason = "kept as long as the connection")] OwnedSemaphorePermit),
}

impl Door {
    fn new(place: Place, slots: Arc<Semaphore>) -> Self {
        Self { standing: Mutex::new(Standing::Unproven(place)), slots }
    }

    /// Lets in a connection whose caller has proved who it is, if there is room.
    fn let_in(&self) -> bool {
        // Whole after every statement.
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*standing, Standing::Unproven(_)) {
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else { return false };
            *standing = Standing::Proven(slot);
        }

        true
    }
}

async fn serve(shared: Arc<Shared>, node: NodeName, socket: TcpStream, door: Arc<Door>) {
    let tls = match shared.kept.tls(&shared).await {
        Ok(tls) => tls,
        Err(error) => {
            tracing::warn!(%node, error = %telemetry::chain(&error), "cannot serve the kubelet API of the node");
            return;
        }
    };
    let accepting = TlsAcceptor::from(tls).accept(socket);
    let Ok(Ok(stream)) = timeout(HANDSHAKE_MAX, accepting).await else { return };
    let certificates = stream.get_ref().1.peer_certificates();
    let certified = certificates.and_then(|chain| chain.first()).and_then(access::caller_of);
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, node, door) = (Arc::clone(&shared), node.clone(), Arc::clone(&door));
        let certified = certified.clone();
        async move {
            let answer = match forward::caller(&shared, certified, request.headers()).await {
                None => forward::unauthorized(),
                Some(_) if !door.let_in() => forward::busy(&node),
                Some(caller) => forward::answer(&shared, &node, &caller, request).await,
            };
            shared.metrics.kubelet_request(answer.status());
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a request to the kubelet API failed");
    }
}
