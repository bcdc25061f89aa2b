//! Between replicas: whichever is asked for a node passes the request on to the one that has its link. Both
//! ends prove to be replicas; what comes over this port was authorised by who sent it, and goes no further
//! than to the node.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use super::{HANDSHAKE_MAX, HEAD_BYTES_MAX, Shared, forward};
use crate::clock;
use crate::crowd::{Crowd, Place, Source};
use crate::pki::peers::{PEER_NAME, PeerTls, is_replica};
use crate::pki::{Authority, Current, PkiError};

/// Replicas are near each other: one that does not answer within this has died or hangs.
const DIAL_MAX: Duration = Duration::from_secs(3);

/// Requests of other replicas at once. Each is a caller of theirs.
const CONNECTIONS_MAX: usize = 1_024;

/// Certificates live a year; one is never older than this.
const CERTIFICATE_AGE_MAX: Duration = Duration::from_hours(24 * 30);

/// Why another replica cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// The session's record does not say where it is.
    #[error("it is of a version that takes no requests of others")]
    TooOld,
    /// It cannot be reached.
    #[error("cannot connect to {0}")]
    Connect(SocketAddr, #[source] io::Error),
    /// It does not answer.
    #[error("nothing comes from {0} within {seconds} s", seconds = DIAL_MAX.as_secs())]
    Silent(SocketAddr),
    /// There is no certificate to show.
    #[error("cannot prove to be a replica")]
    Pki(#[source] PkiError),
}

impl PeerError {
    /// What it is counted as.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Connect(..) => "Unreachable",
            Self::Silent(_) => "Silent",
            Self::TooOld | Self::Pki(_) => "Other",
        }
    }
}

/// The way to other replicas, and what proves this one to them.
pub struct Peers {
    authority: Current,
    replica: String,
    tls: Mutex<Option<Made>>,
}

/// TLS, by which authority it is, and since when.
struct Made {
    tls: PeerTls,
    by: Arc<Authority>,
    at: Instant,
}

impl Peers {
    /// That of the replica of this name.
    pub fn new(authority: Current, replica: String) -> Self {
        Self { authority, replica, tls: Mutex::default() }
    }

    /// A connection to the replica that is to be found there.
    pub(super) async fn dial(
        &self,
        peer: Option<SocketAddr>,
    ) -> Result<TlsStream<TcpStream>, PeerError> {
        let address = peer.ok_or(PeerError::TooOld)?;
        let connector = TlsConnector::from(self.tls().map_err(PeerError::Pki)?.client);
        let name = ServerName::try_from(PEER_NAME).expect("the name is one");
        let dialled = timeout(DIAL_MAX, async {
            let socket = TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            connector.connect(name, socket).await
        });

        dialled
            .await
            .map_err(|_elapsed| PeerError::Silent(address))?
            .map_err(|source| PeerError::Connect(address, source))
    }

    fn tls(&self) -> Result<PeerTls, PkiError> {
        // Whole after every statement.
        let mut kept = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        let (by, now) = (self.authority.now(), clock::now());
        let is_fresh = |made: &&Made| {
            let age = now.saturating_duration_since(made.at);
            Arc::ptr_eq(&made.by, &by) && age < CERTIFICATE_AGE_MAX
        };
        if let Some(made) = kept.as_ref().filter(is_fresh) {
            return Ok(made.tls.clone());
        }
        let tls = by.peer_tls(&self.replica)?;
        *kept = Some(Made { tls: tls.clone(), by, at: now });

        Ok(tls)
    }
}

/// Serves other replicas until asked to stop.
pub async fn run(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let crowd = Crowd::default();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    let place = crowd.enter(Source::of(peer.ip()));
                    let (shared, slots) = (Arc::clone(&shared), Arc::clone(&slots));
                    connections.spawn(async move {
                        let Some(stream) = admit(&shared, socket, peer, place).await else { return };
                        let Ok(_slot) = slots.try_acquire() else {
                            tracing::warn!(%peer, "too many requests of other replicas");
                            return;
                        };
                        serve(stream, &shared).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept another replica");
                    // Out of descriptors, most often: let some connections end.
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

type Proven = tokio_rustls::server::TlsStream<TcpStream>;

/// TLS with who proves to be a replica.
async fn admit(
    shared: &Shared,
    socket: TcpStream,
    peer: SocketAddr,
    place: Place,
) -> Option<Proven> {
    let tls = match shared.peers.tls() {
        Ok(tls) => tls,
        Err(error) => {
            tracing::warn!(error = %crate::telemetry::chain(&error), "cannot serve other replicas");
            return None;
        }
    };
    let accepting = timeout(HANDSHAKE_MAX, TlsAcceptor::from(tls.server).accept(socket));
    let stream = tokio::select! {
        accepted = accepting => accepted.ok()?.ok()?,
        () = place.lost() => return None,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    if certificates.and_then(|chain| chain.first()).is_some_and(is_replica) {
        return Some(stream);
    }
    tracing::warn!(%peer, "who calls at the port of replicas is none");

    None
}

async fn serve(stream: Proven, shared: &Shared) {
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(forward::answer_peer(shared, request).await)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a request of another replica failed");
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use hyper::client::conn::http1;
    use tokio_rustls::rustls::{ClientConfig, crypto, version::TLS13};
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::cluster::Cluster;
    use crate::hub::Sessions;
    use crate::hub::tests::api::Api;
    use crate::hub::tests::{node_of, roots_of};
    use crate::kubelet_api::Kept;
    use crate::metrics::Metrics;
    use crate::pki::Authority;

    struct Replica {
        shared: Arc<Shared>,
        address: SocketAddr,
        _api: Api,
        _tasks: JoinSet<()>,
    }

    async fn replica() -> Replica {
        let api = Api::start().await;
        let authority = Authority::load_or_create(api.client.clone(), "holdfast", "c-1").await;
        let authority = Current::new(Arc::new(authority.unwrap()));
        let shared = Arc::new(Shared {
            client: api.client.clone(),
            cluster: Cluster::new(1),
            address: "127.0.0.1".parse().unwrap(),
            sessions: Sessions::default(),
            peers: Peers::new(authority.clone(), "a".to_owned()),
            authority,
            kept: Kept::default(),
            crowd: Crowd::default(),
            metrics: Metrics::default(),
            streams: TaskTracker::new(),
        });
        let listener = crate::kubelet_api::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(run(listener, Arc::clone(&shared), CancellationToken::new()));

        Replica { shared, address, _api: api, _tasks: tasks }
    }

    /// Status and body of what is answered for the node; none if nothing is.
    async fn ask(stream: TlsStream<TcpStream>, node: Option<&str>) -> Option<(u16, String)> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let mut request = Request::get("/healthz");
        if let Some(node) = node {
            request = request.header("x-holdfast-node", node);
        }
        let answer = sender.send_request(request.body(String::new()).unwrap()).await.ok()?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.ok()?.to_bytes();

        Some((status, String::from_utf8_lossy(&body).into_owned()))
    }

    fn block_on(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn replicas_answer_each_other() {
        block_on(async {
            let replica = replica().await;
            let asked = async |node: Option<&str>| {
                let stream = replica.shared.peers.dial(Some(replica.address)).await.unwrap();
                ask(stream, node).await.unwrap()
            };
            let (status, text) = asked(Some("edge-1")).await;
            assert_eq!((status, text.starts_with("node edge-1 is away")), (502, true), "{text}");
            assert_eq!(asked(None).await.0, 400);
            assert_eq!(asked(Some("No Name")).await.0, 400);
        });
    }

    #[test]
    fn who_is_no_replica_is_neither_asked_nor_answered() {
        block_on(async {
            let (ours, others) = (replica().await, replica().await);
            let error = ours.shared.peers.dial(Some(others.address)).await.unwrap_err();
            assert!(matches!(error, PeerError::Connect(..)), "of another authority: {error}");
            assert_eq!(error.word(), "Unreachable");
            let error = ours.shared.peers.dial(None).await.unwrap_err();
            assert!(matches!(error, PeerError::TooOld));

            // A node has a certificate of the same authority.
            let authority = &ours.shared.authority.now();
            let (chain, key) = node_of(authority, "edge-1").chain_and_key();
            let config =
                ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                    .with_protocol_versions(&[&TLS13])
                    .unwrap()
                    .with_root_certificates(roots_of(authority))
                    .with_client_auth_cert(chain, key)
                    .unwrap();
            let socket = TcpStream::connect(ours.address).await.unwrap();
            let name = ServerName::try_from(PEER_NAME).unwrap();
            let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
            assert_eq!(ask(stream, Some("edge-1")).await, None);
        });
    }
}
