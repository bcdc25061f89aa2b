//! Accepts connections and bounds what has not proved itself: handshakes, time, number.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Shared, routes};
use crate::pki::{self, PkiError};

/// From accept to the end of TLS: three round trips of a bad mobile link.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// From TLS to the whole head of a request.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// Connections that are not yet a session: 10,000 nodes coming back at once pass in turns, and
/// 20 KB each stay below 10 MB. Further ones wait in the kernel's backlog.
const UNPROVEN_MAX: usize = 512;

/// The hub's certificate lives a year, for edges whose clocks are wrong; it is made anew long
/// before it ends.
const CERTIFICATE_AGE_MAX: Duration = Duration::from_hours(24 * 30);

/// Bytes of a request head; ours have 300.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Bytes that the kernel takes before they can be sent, as at the edge.
const UNSENT_BYTES_MAX: u32 = 32 * 1024;

/// Why the hub cannot run.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The port is not to be had.
    #[error(
        "cannot listen on {address} for edges; is another cloudcore running, or is the address not of this machine?"
    )]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The authority cannot be used.
    #[error("cannot serve TLS to edges")]
    Tls(#[source] PkiError),
}

/// Takes the port.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, HubError> {
    TcpListener::bind(address).await.map_err(|source| HubError::Bind { address, source })
}

/// Serves edges until asked to stop; sessions are ended in good order.
pub async fn run(
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: CancellationToken,
) -> Result<(), HubError> {
    let mut acceptor = acceptor_of(&shared)?;
    let mut certificate_old = interval(CERTIFICATE_AGE_MAX);
    certificate_old.tick().await;
    let unproven = Arc::new(Semaphore::new(UNPROVEN_MAX));
    let mut connections = JoinSet::new();
    loop {
        let slot = Arc::clone(&unproven).acquire_owned();
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = certificate_old.tick() => acceptor = acceptor_of(&shared)?,
            Ok(slot) = slot => tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((socket, peer)) => {
                        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
                        connections.spawn(async move {
                            serve(socket, peer, acceptor, shared, slot).await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        // Out of descriptors, most often: let some connections end.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            },
        }
    }
    for session in shared.sessions.all() {
        session.drain("cloudcore stops", Duration::from_secs(1)).await;
    }
    while connections.join_next().await.is_some() {}

    Ok(())
}

fn acceptor_of(shared: &Shared) -> Result<TlsAcceptor, HubError> {
    let tls = shared.authority.link_tls().map_err(HubError::Tls)?;

    Ok(TlsAcceptor::from(Arc::new(tls)))
}

async fn serve(
    socket: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    slot: tokio::sync::OwnedSemaphorePermit,
) {
    // Frames are small and each matters now; the session, not the kernel, decides which is next.
    let prepared = socket
        .set_nodelay(true)
        .and_then(|()| SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX));
    if let Err(error) = prepared {
        tracing::debug!(%peer, %error, "cannot set socket options");
    }
    let stream = match timeout(HANDSHAKE_MAX, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => {
            shared.metrics.handshake("Done");
            stream
        }
        Ok(Err(error)) => {
            shared.metrics.handshake("Failed");
            tracing::info!(%peer, %error, "TLS with a peer failed");
            return;
        }
        Err(_elapsed) => {
            shared.metrics.handshake("TooSlow");
            tracing::info!(%peer, "TLS with a peer took too long");
            return;
        }
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let node = certificates.and_then(|chain| chain.first()).and_then(pki::node_of);
    let upgraded = Arc::new(std::sync::Mutex::new(None));
    let service = service_fn(|request| {
        routes::answer(request, node.clone(), Arc::clone(&shared), Arc::clone(&upgraded))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%peer, %error, "a request failed");
        return;
    }
    let upgrade = upgraded.lock().ok().and_then(|mut slot| slot.take());
    drop(slot);
    if let (Some(upgrade), Some(node)) = (upgrade, node) {
        routes::link(upgrade, node, peer, shared).await;
    }
}
