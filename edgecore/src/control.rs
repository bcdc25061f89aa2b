//! The control socket: what root on this machine asks the agent itself, whether or not the cloud is in
//! reach. `edgeadm status` and `edgeadm ctl` do.
//!
//! HTTP on a Unix socket: the kubelet API as the cloud gets it, and below `/holdfast/v1/` what only
//! this agent has: `status`, `objects`, `events`, and `pods/NAMESPACE/NAME/restart`.

mod restart;
mod status;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use cri::RuntimeVersion;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::kubelet_api::answer::{self, Answer, Refusal, refuse};
use crate::kubelet_api::query::Query;
use crate::kubelet_api::{self, Upgraded};
use crate::pods::registry::Registry;

/// Callers at once: a person has a few terminals. More wait until one is done.
const CALLERS_MAX: usize = 16;

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
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept(), if serving.len() < CALLERS_MAX => match accepted {
                Ok((stream, _)) if is_root(&stream) => {
                    let control = control.clone();
                    serving.spawn(async move {
                        if let Err(error) = serve(stream, control).await {
                            tracing::debug!(%error, "a request at the control socket failed");
                        }
                    });
                }
                Ok(_) => tracing::warn!("somebody but root called at the control socket"),
                Err(error) => {
                    // Most likely too many open files: others have to be done first.
                    tracing::warn!(%error, "cannot take a call at the control socket");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
            Some(_) = serving.join_next(), if !serving.is_empty() => {}
        }
    }
}

fn is_root(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|caller| caller.uid() == ROOT)
}

/// Serves one caller to the end.
async fn serve<S>(stream: S, control: Control) -> Result<(), kubelet_api::ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handle = move |request, upgraded| {
        let control = control.clone();
        async move { route(request, &control, &upgraded).await }
    };

    kubelet_api::serve_with(stream, handle).await
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
