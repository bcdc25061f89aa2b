//! The control socket: what root on this machine asks the agent itself, whether or not the cloud is in
//! reach. `edgeadm status` and `edgeadm ctl` do.
//!
//! HTTP on a Unix socket: the kubelet API as the cloud gets it, and below `/holdfast/v1/` what only
//! this agent has: `status`, `objects`, `events`, and `pods/NAMESPACE/NAME/restart`.

mod restart;
mod status;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use cri::RuntimeVersion;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet, yield_now};
use tokio_util::sync::CancellationToken;

use crate::kubelet_api::answer::{self, Answer, Refusal, refuse};
use crate::kubelet_api::query::Query;
use crate::kubelet_api::{self, Upgraded};
use crate::pods::registry::Registry;

/// Callers that have asked something, at once: a person has a few terminals. More are told to come again.
const CALLERS_MAX: usize = 16;

/// Callers that have asked nothing yet. When there are more, the first of them makes room: who wants an answer
/// asks at once.
const UNASKED_MAX: usize = 16;

/// From connecting, or from an answer, until all of the next request's head is there.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// After a call that could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// The only user that may call.
const ROOT: u32 = 0;

/// What callers are answered from.
#[derive(Clone, Debug)]
pub struct Control {
    /// For the kubelet API.
    pub api: kubelet_api::Context,
    /// Takes requests to start containers anew.
    pub registry: Registry,
    /// Which runtime answers, once one does.
    pub runtime_version: watch::Receiver<Option<RuntimeVersion>>,
}

/// Opens the socket, in place of one that an earlier agent left. Nobody but root can open it at any
/// moment.
pub fn open(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    }
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;

    Ok(listener)
}

/// Serves callers until asked to stop.
pub async fn run(listener: UnixListener, control: Control, stop: CancellationToken) {
    let mut callers = Callers::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if is_root(&stream) => callers.take(stream, &control).await,
                Ok(_) => tracing::warn!("somebody but root called at the control socket"),
                Err(error) => {
                    // Most likely too many open files: others have to be done first.
                    tracing::warn!(%error, "cannot take a call at the control socket");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
            Some(_) = callers.serving.join_next(), if !callers.serving.is_empty() => {}
        }
    }
}

/// Everybody who is connected.
struct Callers {
    serving: JoinSet<()>,
    /// Places of those who have asked something.
    places: Arc<Semaphore>,
    /// Who had asked nothing when the last one came, in their order.
    unasked: VecDeque<(Weak<Door>, AbortHandle)>,
}

impl Callers {
    fn new() -> Self {
        let (serving, unasked) = (JoinSet::new(), VecDeque::new());

        Self { serving, places: Arc::new(Semaphore::new(CALLERS_MAX)), unasked }
    }

    async fn take(&mut self, stream: UnixStream, control: &Control) {
        let waits = |door: &Weak<Door>| door.upgrade().is_some_and(|door| !door.is_passed());
        self.unasked.retain(|(door, _)| waits(door));
        if self.unasked.len() >= UNASKED_MAX
            && let Some((_, longest)) = self.unasked.pop_front()
        {
            tracing::debug!("a caller at the control socket made room for others");
            longest.abort();
            // So that it is gone before the next one comes.
            yield_now().await;
        }
        let door = Arc::new(Door::to(&self.places));
        let waiting = Arc::downgrade(&door);
        let control = control.clone();
        let serving = self.serving.spawn(async move {
            if let Err(error) = serve(stream, control, door, HEAD_MAX).await {
                tracing::debug!(%error, "a request at the control socket failed");
            }
        });
        self.unasked.push_back((waiting, serving));
    }
}

/// Gives a caller its place, from the first request to the end of the connection.
#[derive(Debug)]
struct Door {
    places: Arc<Semaphore>,
    place: OnceLock<OwnedSemaphorePermit>,
}

impl Door {
    fn to(places: &Arc<Semaphore>) -> Self {
        Self { places: Arc::clone(places), place: OnceLock::new() }
    }

    fn is_passed(&self) -> bool {
        self.place.get().is_some()
    }

    /// Whether the caller has a place, now if not before.
    fn pass(&self) -> bool {
        let take = || Arc::clone(&self.places).try_acquire_owned();

        self.is_passed() || take().is_ok_and(|place| self.place.set(place).is_ok())
    }
}

fn is_root(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|caller| caller.uid() == ROOT)
}

/// Serves one caller to the end.
async fn serve<S>(
    stream: S,
    control: Control,
    door: Arc<Door>,
    head_max: Duration,
) -> Result<(), kubelet_api::ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handle = move |request, upgraded| {
        let (control, has_place) = (control.clone(), door.pass());
        async move { if has_place { route(request, &control, &upgraded).await } else { busy() } }
    };

    kubelet_api::serve_with(stream, Some(head_max), handle).await
}

/// What a caller is told when others have all places.
fn busy() -> Answer {
    let message = format!(
        "{CALLERS_MAX} callers have all places at the control socket: end one of them, such as \
         edgeadm ctl logs -f or exec, or try again"
    );
    let mut answer = refuse(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, message));
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));

    answer
}

async fn route(request: Request<Incoming>, control: &Control, upgraded: &Upgraded) -> Answer {
    let path = request.uri().path().to_owned();
    let Some(path) = path.strip_prefix("/holdfast/v1/") else {
        return kubelet_api::route(request, &control.api, upgraded).await;
    };
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let parts: Vec<&str> = path.split('/').collect();
    let told = match (request.method(), parts.as_slice()) {
        (&Method::GET, ["status"]) => Ok(json(status::of(control).await)),
        (&Method::GET, ["objects"]) => Ok(json(objects(control))),
        (&Method::GET, ["events"]) => Ok(json(events(control))),
        (&Method::POST, ["pods", namespace, name, "restart"]) => {
            restart::pod(control, namespace, name, query.first("container"))
                .map(|restarting| json(restarting.json()))
        }
        _ => Err(Refusal::not_found()),
    };

    told.unwrap_or_else(refuse)
}

fn json(body: Vec<u8>) -> Answer {
    let mut answer = answer::bytes(StatusCode::OK, body.into());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));

    answer
}

/// What the cloud wants here, without contents and hashes: those of a short secret would tell it.
fn objects(control: &Control) -> Vec<u8> {
    let held = control.api.node.desired.held();
    let objects: Vec<_> = held
        .iter()
        .map(|(key, version)| {
            serde_json::json!({
                "object": key.to_string(),
                "uid": version.uid.as_str(),
                "epoch": version.epoch,
                "revision": version.revision,
            })
        })
        .collect();

    serde_json::Value::from(objects).to_string().into_bytes()
}

/// The newest Events of this agent, as a list of the API.
fn events(control: &Control) -> Vec<u8> {
    let events = control.api.node.upstream.recent();
    let mut list = br#"{"kind":"EventList","apiVersion":"v1","metadata":{},"items":["#.to_vec();
    list.extend(events.join(b",".as_slice()));
    list.extend_from_slice(b"]}");

    list
}
