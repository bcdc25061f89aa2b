//! Whether cloudcore lives and serves, and what it counts: plain HTTP for probes and Prometheus.
//!
//! It answers before the API server does, and says nothing that is secret. `/livez` is answered by the
//! thread that does everything else. `/readyz` is about this replica alone: once it has served it serves
//! until it drains, so that an API server that is away takes no replica out of the Service.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::crowd::{Crowd, Place, Source};
use crate::hub::Sessions;
use crate::leader::Leadership;
use crate::metrics::{Metrics, Now, Process};
use crate::watch::KINDS;
use crate::{clock, listening};

/// Connections that wait to be accepted: probes and a few scrapers.
const BACKLOG: u32 = 128;

/// A probe is one small request; so is a scrape.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Of a request; ours have 200.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// When there are more, others make room: who holds connections keeps no probe out.
const CONNECTIONS_MAX: usize = 64;

/// Where a replica is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Starting,
    Serving,
    Draining,
}

/// What is told of this process; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    phase: Mutex<Phase>,
    /// Set once edges can connect.
    served: OnceLock<Served>,
    metrics: Metrics,
}

/// What is looked at when somebody asks.
#[derive(Debug)]
struct Served {
    cluster: Cluster,
    sessions: Sessions,
    leadership: Leadership,
}

impl Status {
    /// To be counted in.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Edges can connect from now on; they get what they must hold once everything is listed.
    pub fn serves(&self, cluster: Cluster, sessions: Sessions, leadership: Leadership) {
        // Said once.
        drop(self.0.served.set(Served { cluster, sessions, leadership }));
    }

    /// This replica takes no more edges.
    pub fn drains(&self) {
        *self.phase() = Phase::Draining;
    }

    /// Why this replica does not serve edges, if so.
    fn not_ready(&self) -> Option<String> {
        let mut phase = self.phase();
        match *phase {
            Phase::Serving => None,
            Phase::Draining => Some("this replica stops".to_owned()),
            Phase::Starting => {
                let missing = self.missing();
                if missing.is_none() {
                    *phase = Phase::Serving;
                }

                missing
            }
        }
    }

    fn missing(&self) -> Option<String> {
        let Some(Served { cluster, .. }) = self.0.served.get() else {
            return Some(
                "the API server has not given the authority of the nodes; see the log".to_owned(),
            );
        };
        let index = cluster.index();
        let unlisted: Vec<String> = KINDS
            .iter()
            .filter(|watched| index.passed(watched.kind).revision == 0)
            .map(|watched| format!("{:?}", watched.kind))
            .collect();

        (!unlisted.is_empty()).then(|| format!("not yet listed: {}", unlisted.join(", ")))
    }

    fn now(&self) -> Now {
        let served = self.0.served.get();

        Now {
            at: clock::now(),
            is_ready: self.not_ready().is_none(),
            is_leader: served.is_some_and(|served| served.leadership.is_held()),
            sessions: served.map_or(0, |served| served.sessions.count()),
            expiry_s: served.and_then(|served| served.sessions.earliest_expiry_s()),
            heard: served.map(|served| served.cluster.heard()).unwrap_or_default(),
            process: this_process(),
        }
    }

    fn phase(&self) -> std::sync::MutexGuard<'_, Phase> {
        // A value that is whole whatever panicked beside it.
        self.0.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the kernel says of this process; zeros if it says nothing.
fn this_process() -> Process {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (status, limits) = (read("/proc/self/status"), read("/proc/self/limits"));
    let number_after = |text: &str, name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name));
        rest.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);

    Process {
        resident_bytes: number_after(&status, "VmRSS:") * 1024,
        open_files: u64::try_from(open).unwrap_or(u64::MAX),
        open_files_max: number_after(&limits, "Max open files"),
    }
}

/// Takes the port.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    listening::bind(address, BACKLOG)
}

/// Answers until asked to stop.
pub async fn run(listener: TcpListener, status: Status, stop: CancellationToken) {
    let (mut connections, crowd) = (JoinSet::new(), Crowd::of(CONNECTIONS_MAX));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    let place = crowd.enter(Source::of(peer.ip()));
                    connections.spawn(serve(socket, status.clone(), place));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a probe");
                    // Out of descriptors, most often: let some connections end.
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn serve(socket: TcpStream, status: Status, place: Place) {
    let service = service_fn(|request| {
        let answer = answer(&request, &status);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service);
    tokio::select! {
        ended = timeout(CONNECTION_MAX, connection) => if let Ok(Err(error)) = ended {
            tracing::debug!(%error, "a probe failed");
        },
        () = place.lost() => tracing::debug!("a probe made room for others"),
    }
}

fn answer(request: &Request<Incoming>, status: &Status) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match status.not_ready() {
            None => text(StatusCode::OK, "ok\n".to_owned()),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        "/metrics" => text(StatusCode::OK, status.metrics().text(&status.now())),
        _ => text(StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n".to_owned()),
    }
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);

    answer
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use proto::ids::Kind;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn block_on(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    struct Listening {
        status: Status,
        address: SocketAddr,
        _task: JoinSet<()>,
    }

    impl Listening {
        fn start() -> Self {
            let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let status = Status::default();
            let mut task = JoinSet::new();
            task.spawn(run(listener, status.clone(), CancellationToken::new()));

            Self { status, address, _task: task }
        }

        async fn ask(&self, request: &str) -> String {
            let mut socket = TcpStream::connect(self.address).await.unwrap();
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();

            answer
        }

        async fn get(&self, path: &str) -> (u16, String) {
            let answer = self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            let code = answer.split(' ').nth(1).unwrap().parse().unwrap();

            (code, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
        }
    }

    #[test]
    fn a_replica_is_ready_from_its_first_lists_until_it_drains() {
        block_on(async {
            let served = Listening::start();
            assert_eq!(served.get("/livez").await, (200, "ok\n".to_owned()));
            let (code, reason) = served.get("/readyz").await;
            assert_eq!(code, 503);
            assert!(reason.contains("authority"), "{reason}");

            let cluster = Cluster::new(1);
            served.status.serves(cluster.clone(), Sessions::default(), Leadership::default());
            for watched in &KINDS[1..] {
                cluster.index().pass(watched.kind, 5);
            }
            assert_eq!(served.get("/readyz").await, (503, "not yet listed: Pod\n".to_owned()));
            cluster.index().pass(Kind::Pod, 5);
            assert_eq!(served.get("/readyz").await, (200, "ok\n".to_owned()));

            // Nothing counts as listed any more, as after a restore: that is no reason to send edges away.
            cluster.index().begin_epoch(2);
            assert_eq!(served.get("/readyz").await, (200, "ok\n".to_owned()));

            served.status.drains();
            assert_eq!(served.get("/readyz").await, (503, "this replica stops\n".to_owned()));
            assert_eq!(served.get("/livez").await.0, 200);
        });
    }

    #[test]
    fn only_what_there_is_can_be_read() {
        block_on(async {
            let served = Listening::start();
            let (code, text) = served.get("/metrics").await;
            assert_eq!(code, 200);
            assert!(text.contains("\nholdfast_cloudcore_ready 0\n"), "{text}");
            let resident = text.lines().find(|l| l.starts_with("process_resident_memory_bytes "));
            assert_ne!(resident.unwrap(), "process_resident_memory_bytes 0");
            assert_eq!(served.get("/healthz").await.0, 404);
            let answer = served.ask("POST /readyz HTTP/1.1\r\nContent-Length: 0\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
            let answer = served.ask("what is this\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        });
    }

    #[test]
    fn who_holds_connections_keeps_no_probe_out() {
        block_on(async {
            let served = Listening::start();
            let mut idle = Vec::new();
            for _ in 0..2 * CONNECTIONS_MAX {
                idle.push(TcpStream::connect(served.address).await.unwrap());
            }
            assert_eq!(served.get("/livez").await.0, 200);
            let ended = idle[0].read_u8().await.unwrap_err();
            assert!(
                matches!(
                    ended.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
                ),
                "{ended}"
            );
        });
    }
}
