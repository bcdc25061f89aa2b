//! The kubelet's HTTP API, served to the cloud over streams of the link.
//!
//! [`serve`] is given one stream, as if it were an accepted connection. Who may call is decided in
//! the cloud, which knows the API server's callers; what arrives here is allowed.
//!
//! Paths, parameters, status codes and messages are those of kubelet 1.35
//! (pkg/kubelet/server/server.go).

pub(crate) mod answer;
mod configz;
mod health;
pub(crate) mod logs;
mod node;
pub(crate) mod node_logs;
mod packed;
pub(crate) mod query;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod upgrade;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cri::Runtime;
use http::{Method, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use podcore::claims::PersistentVolume;
use podcore::probe::{Answers, ProbeKind};
use proto::ids::Uid;
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::node::NodeApi;
use answer::{Answer, refuse};
use query::Query;
pub(crate) use upgrade::Relay;

/// Read buffer of one connection: a request head with a long command line fits, and a node with
/// some dozens of streams stays small.
const CONNECTION_BUFFER_BYTES: usize = 64 * 1024;

/// Finds pods of this node.
pub trait PodLookup: Send + Sync {
    /// The pod of that name, if this node runs it.
    fn find(&self, namespace: &str, name: &str) -> Option<PodRef>;

    /// Every pod that this node runs.
    fn all(&self) -> Vec<PodFacts>;
}

/// What is told of a pod among all others.
#[derive(Clone, Debug)]
pub struct PodFacts {
    /// Its UID.
    pub uid: Uid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The cgroup its containers are put under, as the runtime is told.
    pub cgroup: String,
    /// `status.startTime`.
    pub started_at: Option<Timestamp>,
    /// Its status as last told to the cloud, as JSON; empty if none was.
    pub status: Bytes,
    /// What its probes have answered, by container.
    pub answers: Vec<(String, ProbeKind, Answers)>,
    /// How many of its containers run.
    pub running: usize,
    /// What is set up of its volumes with claims, by their name in the pod.
    pub claimed: Arc<BTreeMap<String, PersistentVolume>>,
}

/// What the API needs to know of a pod.
#[derive(Clone, Debug)]
pub struct PodRef {
    /// Its UID.
    pub uid: Uid,
    /// Its sandbox, while it is ready.
    pub sandbox: Option<String>,
    /// All its containers, init containers too.
    pub containers: Vec<ContainerRef>,
}

/// What the API needs to know of a container.
#[derive(Clone, Debug)]
pub struct ContainerRef {
    /// Its name in the pod.
    pub name: String,
    /// Whether its spec asks for a terminal.
    pub tty: bool,
    /// What it does now.
    pub state: ContainerState,
    /// The incarnation before the one in `state`, if its log may still be there.
    pub previous: Option<Incarnation>,
}

/// What a container does now.
#[derive(Clone, Debug)]
pub enum ContainerState {
    /// It has not started, or waits to be started again.
    Waiting {
        /// As in the container's status: `ContainerCreating`, `CrashLoopBackOff`, ...
        reason: String,
    },
    /// It runs.
    Running(Incarnation),
    /// It has ended.
    Terminated(Incarnation),
}

/// One container of the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// Its id at the runtime, without scheme.
    pub id: String,
    /// Where the runtime writes its log.
    pub log: PathBuf,
}

/// What the handlers work with.
#[derive(Clone)]
pub struct Context {
    /// Finds pods.
    pub pods: Arc<dyn PodLookup>,
    /// Runs commands and tells whether a container still runs.
    pub runtime: Runtime,
    /// Tells of the node as a whole.
    pub node: Arc<NodeApi>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("runtime", &self.runtime).finish_non_exhaustive()
    }
}

/// Why a connection ended before its time. Of interest to nobody but a debugger: the other side
/// sees the same.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The stream broke, or what came was not HTTP.
    #[error("the connection failed")]
    Connection(#[source] hyper::Error),
    /// A relayed stream broke.
    #[error("the stream between client and runtime failed")]
    Relay(#[source] std::io::Error),
}

/// Where a request leaves the relay that takes over the connection after the answer.
pub(crate) type Upgraded = Arc<Mutex<Option<Relay>>>;

/// Serves one connection to its end.
pub async fn serve<S>(stream: S, context: Context) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handle = move |request, upgraded| {
        let context = context.clone();
        async move { route(request, &context, &upgraded).await }
    };

    serve_with(stream, None, handle).await
}

/// Serves one connection, on which every head of a request must have come within `head_max`, if there is one.
pub(crate) async fn serve_with<S, H, F>(
    stream: S,
    head_max: Option<Duration>,
    handle: H,
) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>, Upgraded) -> F,
    F: Future<Output = Answer> + Send,
{
    let upgraded = Upgraded::default();
    let service = service_fn(|request| {
        let answer = handle(request, Arc::clone(&upgraded));
        async { Ok::<_, Infallible>(answer.await) }
    });
    let mut server = http1::Builder::new();
    server.max_buf_size(CONNECTION_BUFFER_BYTES);
    if let Some(head_max) = head_max {
        server.timer(TokioTimer::new()).header_read_timeout(head_max);
    }
    server
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(ServeError::Connection)?;

    let relay = upgraded.lock().unwrap_or_else(PoisonError::into_inner).take();
    match relay {
        Some(relay) => relay.run().await,
        None => Ok(()),
    }
}

/// Answers one request as a kubelet does.
pub(crate) async fn route(
    request: Request<Incoming>,
    context: &Context,
    upgraded: &Upgraded,
) -> Answer {
    let path = request.uri().path().to_owned();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let is_get = *request.method() == Method::GET;
    let streams = is_get || *request.method() == Method::POST;

    let outcome = match parts.as_slice() {
        ["containerLogs", namespace, pod, container] if is_get => {
            return logs::answer(context, [*namespace, *pod, *container], &query).await;
        }
        ["exec", namespace, pod, container] if streams => {
            upgrade::exec(context, [*namespace, *pod, *container], None, &query).await
        }
        ["exec", namespace, pod, uid, container] if streams => {
            upgrade::exec(context, [*namespace, *pod, *container], Some(*uid), &query).await
        }
        ["attach", namespace, pod, container] if streams => {
            upgrade::attach(context, [*namespace, *pod, *container], None, &query).await
        }
        ["attach", namespace, pod, uid, container] if streams => {
            upgrade::attach(context, [*namespace, *pod, *container], Some(*uid), &query).await
        }
        ["portForward", namespace, pod] if streams => {
            upgrade::port_forward(context, [*namespace, *pod], None, &query).await
        }
        ["portForward", namespace, pod, uid] if streams => {
            upgrade::port_forward(context, [*namespace, *pod], Some(*uid), &query).await
        }
        other => {
            let answer = node::answer(context, other, request.method(), &query).await;
            let is_packed = packed::is_taken(request.headers());
            return if is_packed { packed::pack(answer).await } else { answer };
        }
    };
    match outcome {
        Ok(url) => upgrade::relay(request, &url, upgraded).await,
        Err(refusal) => refuse(refusal),
    }
}
