//! Accepts connections and bounds what has not proved itself: handshakes, time, number.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use proto::renewal::{EXPORTER_LABEL, EXPORTER_LEN};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::outdated::Known;
use super::routes::{self, Peer};
use super::{Shared, drain};
use crate::crowd::{Crowd, Place, Source};
use crate::listening;
use crate::pki::PkiError;

/// From accept to the end of TLS: three round trips of a bad mobile link.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long a peer that was refused may take to hear it, and how much of what it says is passed over.
const LET_HEAR_MAX: Duration = Duration::from_secs(2);
const UNREAD_BYTES_MAX: usize = 64 * 1024;

/// From TLS to the whole head of a request.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// From accept to a link or to the last answer, whatever is asked: joining waits for the API server.
const UNPROVEN_MAX: Duration = Duration::from_mins(1);

/// Connections that the kernel has made and that are not accepted yet: what comes within a second of work
/// on something else. Linux gives no more than net.core.somaxconn, 4096.
const BACKLOG: u32 = 4_096;

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
pub fn bind(address: SocketAddr) -> Result<TcpListener, HubError> {
    listening::bind(address, BACKLOG).map_err(|source| HubError::Bind { address, source })
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
    let mut authority = shared.authority.changes();
    let crowd = Crowd::default();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = certificate_old.tick() => acceptor = acceptor_of(&shared)?,
            Ok(()) = authority.changed() => acceptor = acceptor_of(&shared)?,
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    let peer = listening::plain(peer);
                    let place = crowd.enter(Source::of(peer.ip()));
                    let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
                    connections.spawn(serve(socket, peer, acceptor, shared, place, stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of descriptors, most often: let some connections end.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    // From now on nodes find others.
    drop(listener);
    drain::run(&shared.sessions).await;
    while connections.join_next().await.is_some() {}

    Ok(())
}

fn acceptor_of(shared: &Shared) -> Result<TlsAcceptor, HubError> {
    let tls = shared.authority.now().link_tls().map_err(HubError::Tls)?;

    Ok(TlsAcceptor::from(Arc::new(tls)))
}

/// Waits until a peer that was refused has gone. It has been told why, and would not hear it if what it has sent
/// meanwhile were left unread: the kernel then resets the connection.
async fn let_hear(mut socket: TcpStream) {
    let mut unread = [0; 1024];
    let heard = async {
        socket.shutdown().await?;
        for _ in 0..UNREAD_BYTES_MAX / unread.len() {
            if socket.read(&mut unread).await? == 0 {
                break;
            }
        }
        Ok::<_, io::Error>(())
    };
    drop(timeout(LET_HEAR_MAX, heard).await);
}

/// A connection until its end, or until somebody else needs its place more.
async fn serve(
    socket: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    place: Place,
    stop: CancellationToken,
) {
    let proven = tokio::select! {
        proven = timeout(UNPROVEN_MAX, prove(socket, peer, acceptor, &shared)) => proven,
        () = place.lost() => {
            tracing::debug!(%peer, "a connection made room for others");
            return;
        }
        () = stop.cancelled() => return,
    };
    drop(place);
    match proven {
        Ok(Some((upgrade, known))) => routes::link(upgrade, known, peer, shared).await,
        Ok(None) => {}
        Err(_elapsed) => tracing::info!(%peer, "a connection is no link after a minute"),
    }
}

/// TLS, and what is asked over it; a link to be, if it was that and a node asked.
async fn prove(
    socket: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    shared: &Arc<Shared>,
) -> Option<(OnUpgrade, Known)> {
    // Frames are small and each matters now; the session, not the kernel, decides which is next.
    let prepared = socket
        .set_nodelay(true)
        .and_then(|()| SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT_BYTES_MAX));
    if let Err(error) = prepared {
        tracing::debug!(%peer, %error, "cannot set socket options");
    }
    let accepted = timeout(HANDSHAKE_MAX, acceptor.accept(socket).into_fallible()).await;
    let stream = match accepted {
        Ok(Ok(stream)) => {
            shared.metrics.handshake("Done");
            stream
        }
        Ok(Err((error, socket))) => {
            shared.metrics.handshake("Failed");
            tracing::info!(%peer, %error, "TLS with a peer failed");
            let_hear(socket).await;
            return None;
        }
        Err(_elapsed) => {
            shared.metrics.handshake("TooSlow");
            tracing::info!(%peer, "TLS with a peer took too long");
            return None;
        }
    };
    let exported = [0; EXPORTER_LEN];
    let tls = stream.get_ref().1;
    let exporter = tls.export_keying_material(exported, EXPORTER_LABEL, None).ok()?;
    let certificates = tls.peer_certificates();
    let shown = certificates.and_then(|chain| chain.first());
    let known = shown.and_then(|shown| Known::new(shown, &shared.authority.now()));
    let upgraded = Arc::new(std::sync::Mutex::new(None));
    let holder = known.as_ref().map(|known| known.holder.clone());
    let who = Peer { holder, exporter, address: peer };
    let service = service_fn(|request| {
        routes::answer(request, who.clone(), Arc::clone(shared), Arc::clone(&upgraded))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%peer, %error, "a request failed");
        return None;
    }
    let upgrade = upgraded.lock().ok().and_then(|mut slot| slot.take());

    Some((upgrade?, known?))
}
