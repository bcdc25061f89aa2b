//! A socket between an agent and its runtime: every call passes through it, and the agent can be killed
//! before, during or after any of them.
//!
//! Calls are told from each other, never understood: a call is an HTTP/2 request.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2 as client;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Events, which come as long as the connection lasts, are no call that ends.
const STREAMS: [&str; 2] = ["/Subscribe", "/GetContainerEvents"];

/// How often a killed process is looked for.
const DEATH_POLL: Duration = Duration::from_millis(1);

/// When the agent is killed, seen from the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The runtime never hears of the call.
    Before,
    /// This long after the runtime was called; what it does about the loss of its client is its own
    /// decision. If it has answered by then, nobody hears it.
    During(Duration),
    /// The runtime has done it, but nobody hears its answer.
    After,
}

/// What the relay has seen and is to do.
#[derive(Debug, Default)]
struct Watch {
    calls: u64,
    armed: Option<(u64, Moment)>,
    /// The call at which the agent is killed, and whether it is dead.
    struck: Option<(String, bool)>,
}

/// The socket, until dropped.
#[derive(Debug)]
pub struct Relay {
    watch: Arc<Mutex<Watch>>,
    _tasks: JoinSet<()>,
}

type Shared = Arc<Mutex<Watch>>;
type Body = BoxBody<Bytes, hyper::Error>;

fn with<T>(watch: &Shared, change: impl FnOnce(&mut Watch) -> T) -> T {
    change(&mut watch.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Relay {
    /// Listens at `socket` for what is meant for `runtime`.
    pub fn start(socket: &Path, runtime: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket)
            .with_context(|| format!("cannot listen at {}", socket.display()))?;
        let watch = Shared::default();
        let mut tasks = JoinSet::new();
        let (doom, doomed) = mpsc::channel(1);
        tasks.spawn(kill(doomed, Arc::clone(&watch)));
        tasks.spawn(accept(listener, runtime.to_owned(), Arc::clone(&watch), doom));

        Ok(Self { watch, _tasks: tasks })
    }

    /// The agent is killed at its `nth` call from now, counted from 1.
    pub fn arm(&self, nth: u64, moment: Moment) {
        let armed = Watch { armed: Some((nth, moment)), ..Watch::default() };
        with(&self.watch, |watch| *watch = armed);
    }

    /// Whether the agent was killed since this was armed.
    pub fn has_killed(&self) -> bool {
        with(&self.watch, |watch| watch.struck.as_ref().is_some_and(|(_, dead)| *dead))
    }

    /// Lets every call pass. Returns how many there were since this was armed, and the call at which the
    /// agent was killed.
    pub async fn disarm(&self) -> (u64, Option<String>) {
        with(&self.watch, |watch| watch.armed = None);
        while with(&self.watch, |watch| watch.struck.as_ref().is_some_and(|(_, dead)| !dead)) {
            sleep(DEATH_POLL).await;
        }

        with(&self.watch, |watch| (watch.calls, watch.struck.take().map(|(call, _)| call)))
    }
}

async fn accept(listener: UnixListener, runtime: PathBuf, watch: Shared, doom: mpsc::Sender<Pid>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (watch, doom) = (Arc::clone(&watch), doom.clone());
        connections.spawn(connection(stream, runtime.clone(), watch, doom));
    }
}

/// One connection of the agent has one to the runtime, and they end together.
async fn connection(agent: UnixStream, runtime: PathBuf, watch: Shared, doom: mpsc::Sender<Pid>) {
    let Some(pid) = agent.peer_cred().ok().and_then(|peer| peer.pid()).and_then(Pid::from_raw)
    else {
        return;
    };
    let Ok(runtime) = UnixStream::connect(runtime).await else { return };
    let shaken = client::handshake(TokioExecutor::new(), TokioIo::new(runtime)).await;
    let Ok((calls, way)) = shaken else { return };
    let service = service_fn(|request| {
        let (calls, watch, doom) = (calls.clone(), Arc::clone(&watch), doom.clone());
        async move { Ok::<_, Infallible>(pass(request, calls, watch, (doom, pid)).await) }
    });
    let served =
        server::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(agent), service);
    tokio::select! {
        _ended = served => {}
        _ended = way => {}
    }
}

/// Passes one call on, unless the agent is to die at it.
async fn pass(
    request: Request<Incoming>,
    mut calls: client::SendRequest<Incoming>,
    watch: Shared,
    (doom, pid): (mpsc::Sender<Pid>, Pid),
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let moment = with(&watch, |watch| {
        if STREAMS.iter().any(|stream| path.ends_with(stream)) {
            return None;
        }
        watch.calls += 1;
        let (nth, moment) = watch.armed.filter(|(nth, _)| *nth == watch.calls)?;
        watch.struck = Some((format!("call {nth}, {moment:?} {path}"), false));
        Some(moment)
    });
    match moment {
        None => return calls.send_request(request).await.map_or_else(|_| lost(), whole),
        Some(Moment::Before) => {}
        Some(Moment::During(long)) => {
            let answer = timeout(long, calls.send_request(request));
            let _nobody_hears_it = answer.await;
        }
        Some(Moment::After) => {
            if let Ok(answer) = calls.send_request(request).await {
                let _nobody_hears_it = answer.into_body().collect().await;
            }
        }
    }
    let _ended_with_the_test = doom.send(pid).await;

    // The call ends with the connection of who made it.
    std::future::pending().await
}

fn whole(answer: Response<Incoming>) -> Response<Body> {
    answer.map(BodyExt::boxed)
}

/// The runtime has gone.
fn lost() -> Response<Body> {
    let mut answer =
        Response::new(Empty::new().map_err(|never: Infallible| match never {}).boxed());
    *answer.status_mut() = StatusCode::BAD_GATEWAY;

    answer
}

/// Kills who is doomed, and says so once it runs no more. Not left to the call, which ends before that.
async fn kill(mut doomed: mpsc::Receiver<Pid>, watch: Shared) {
    while let Some(pid) = doomed.recv().await {
        let _gone_already = kill_process(pid, Signal::KILL);
        let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
        let lives = || {
            let told = std::fs::read_to_string(&stat).unwrap_or_default();
            let state = told.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            state.is_some_and(|state| state != 'Z' && state != 'X')
        };
        while lives() {
            sleep(DEATH_POLL).await;
        }
        with(&watch, |watch| {
            if let Some((_, dead)) = &mut watch.struck {
                *dead = true;
            }
        });
    }
}
