//! The socket and what is answered, on a node without pods or with one that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;

use cri::Runtime;
use proto::ids::{ObjectKey, Uid};
use proto::object::{ContentHash, Object, Version};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use tokio::time::timeout;

use super::*;
use crate::desired::Desired;
use crate::kubelet_api::tests::context;
use crate::kubelet_api::{ContainerRef, ContainerState, Incarnation, PodRef};
use crate::pods::registry::Entry;

/// What is waited for has come by then.
const LIMIT: Duration = Duration::from_secs(30);

fn control() -> Control {
    let runtime = Runtime::new("/run/nobody.sock").unwrap();
    let registry = Registry::default();
    let version = RuntimeVersion { name: "containerd".to_owned(), version: "1.7.2".to_owned() };

    Control {
        api: context(Arc::new(registry.clone()), runtime),
        registry,
        runtime_version: watch::channel(Some(version)).1,
    }
}

/// Status code and body of the answer to one request.
async fn ask(stream: impl AsyncRead + AsyncWrite, request: &str) -> (u16, String) {
    let mut stream = std::pin::pin!(stream);
    let head = format!("{request} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();

    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn door() -> Arc<Door> {
    Arc::new(Door::to(&Arc::new(Semaphore::new(1))))
}

async fn ask_at(control: &Control, request: &str) -> (u16, String) {
    let (caller, server) = tokio::io::duplex(64 * 1024);
    let serving = serve(server, control.clone(), door(), HEAD_MAX);
    let (answer, _served) = tokio::join!(ask(caller, request), serving);

    answer
}

#[tokio::test]
async fn the_socket_is_roots_and_takes_the_place_of_one_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/agent.sock");
    drop(open(&path).unwrap());
    let listener = open(&path).unwrap();
    let found = fs::metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);

    let stop = CancellationToken::new();
    let serving = run(listener, control(), stop.clone());
    let calling = async {
        let stream = UnixStream::connect(&path).await.unwrap();
        assert!(is_root(&stream), "the tests of the agent run as root");
        let answer = ask(stream, "GET /holdfast/v1/status").await;
        stop.cancel();
        answer
    };
    let ((), (code, body)) = tokio::join!(serving, calling);
    let status: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(code, 200);
    assert_eq!(status["node"], "edge-1");
    assert_eq!(status["link"]["state"], "Down");
    assert_eq!(status["link"]["address"], "cloud:10000");
    assert_eq!(status["runtime"]["version"], "1.7.2");
}

/// The socket of an agent, served.
struct Served {
    path: PathBuf,
    _dir: tempfile::TempDir,
    _task: JoinSet<()>,
}

impl Served {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = open(&path).unwrap();
        let mut task = JoinSet::new();
        task.spawn(run(listener, control(), CancellationToken::new()));

        Self { path, _dir: dir, _task: task }
    }

    async fn call(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    /// A connection that goes on after its answer, and the status of that.
    async fn ask_and_stay(&self) -> (UnixStream, String) {
        let mut stream = self.call().await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: agent\r\n\r\n").await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();

        (stream, String::from_utf8_lossy(&status[9..]).into_owned())
    }
}

/// Waits for the end of what comes.
async fn ends(mut stream: UnixStream) -> Vec<u8> {
    let mut said = Vec::new();
    let read = timeout(LIMIT, stream.read_to_end(&mut said)).await.expect("it does not end");
    // An end that is no good one is one, too.
    drop(read);

    said
}

#[tokio::test]
async fn who_asks_nothing_keeps_nobody_out() {
    let served = Served::start();
    let mut silent = VecDeque::new();
    for _ in 0..500 {
        let mut stream = served.call().await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        silent.push_back(stream);
    }
    let (code, _) = ask(served.call().await, "GET /holdfast/v1/status").await;
    assert_eq!(code, 200);
    // All but the last few are gone, and with them what they took.
    while silent.len() > UNASKED_MAX {
        assert_eq!(ends(silent.pop_front().unwrap()).await, b"");
    }
}

#[tokio::test]
async fn who_finds_no_place_is_told_so_and_gets_the_next_one() {
    let served = Served::start();
    let mut staying = Vec::new();
    for _ in 0..CALLERS_MAX {
        let (stream, status) = served.ask_and_stay().await;
        assert_eq!(status, "200");
        staying.push(stream);
    }
    let (code, message) = ask(served.call().await, "GET /healthz").await;
    assert_eq!(code, 503);
    assert!(message.contains("end one of them"), "{message}");

    staying.pop();
    let asking = async { while served.ask_and_stay().await.1 != "200" {} };
    timeout(LIMIT, asking).await.expect("the place is not free");
}

#[tokio::test]
async fn a_head_that_does_not_end_ends_the_connection() {
    let served = Served::start();
    let mut endless = served.call().await;
    endless.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    let (mut reading, mut writing) = endless.split();
    let endless = async { while writing.write_all(b"x: 0123456789abcdef\r\n").await.is_ok() {} };
    timeout(LIMIT, endless).await.expect("it is read without end");
    let mut said = String::new();
    drop(reading.read_to_string(&mut said).await);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431 "), "{said}");

    let (mut slow, server) = tokio::io::duplex(1024);
    slow.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    let serving = serve(server, control(), door(), Duration::from_millis(10));
    assert!(timeout(LIMIT, serving).await.expect("it is waited for without end").is_err());
}

#[tokio::test]
async fn events_and_the_backlog_are_told() {
    let control = control();
    let upstream = &control.api.node.upstream;
    upstream.event(bytes::Bytes::from_static(br#"{"reason":"A"}"#));
    upstream.event(bytes::Bytes::from_static(br#"{"reason":"B"}"#));
    upstream.note_untold(3, 4);
    let (_, events) = ask_at(&control, "GET /holdfast/v1/events").await;
    let events: Value = serde_json::from_str(&events).unwrap();
    assert_eq!(events["items"], json!([{ "reason": "A" }, { "reason": "B" }]));
    let (_, status) = ask_at(&control, "GET /holdfast/v1/status").await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["backlog"], json!({ "reports": 3, "events": 6, "droppedEvents": 0 }));
}

#[tokio::test]
async fn the_kubelet_api_is_there_and_nothing_else() {
    let control = control();
    assert_eq!(ask_at(&control, "GET /healthz").await, (200, "ok".to_owned()));
    assert_eq!(ask_at(&control, "GET /holdfast/v1/nothing").await.0, 404);
    assert_eq!(ask_at(&control, "POST /holdfast/v1/status").await.0, 404);
    assert_eq!(ask_at(&control, "GET /holdfast/v1/pods/a/b/restart").await.0, 404);
}

fn run_pod(control: &Control) -> Uid {
    let (uid, key) = (Uid::new("u1").unwrap(), ObjectKey::pod(&Uid::new("u1").unwrap()));
    let running = |name: &str| ContainerRef {
        name: name.to_owned(),
        tty: false,
        state: ContainerState::Running(Incarnation {
            id: format!("id-{name}"),
            log: "/log".into(),
        }),
        previous: None,
    };
    let waits = ContainerRef {
        state: ContainerState::Waiting { reason: "CrashLoopBackOff".to_owned() },
        ..running("waits")
    };
    let containers =
        vec![running("app"), running("side"), running("setup"), running("debug"), waits];
    let pod = PodRef { uid: uid.clone(), sandbox: None, containers };
    let name = ("shop".to_owned(), "web".to_owned());
    drop(control.registry.add(&uid, key, BTreeMap::new()));
    control.registry.update(&uid, Entry { name, pod: Some(pod), ..Entry::default() });

    uid
}

#[tokio::test]
async fn containers_that_last_are_restarted() {
    let mut control = control();
    let uid = run_pod(&control);
    let spec = json!({ "spec": {
        "containers": [{ "name": "app" }, { "name": "waits" }],
        "initContainers": [{ "name": "setup" }, { "name": "side", "restartPolicy": "Always" }],
    }});
    let bytes = bytes::Bytes::from(spec.to_string());
    let hash = ContentHash::of(&[&bytes]);
    let version = Version { uid: uid.clone(), epoch: 0, revision: 1, hash };
    let object = Object { key: ObjectKey::pod(&uid), version, bytes };
    Arc::get_mut(&mut control.api.node).unwrap().desired = Desired::new(vec![object], Vec::new());

    let path = "POST /holdfast/v1/pods/shop/web/restart";
    let (code, body) = ask_at(&control, path).await;
    assert_eq!((code, body.as_str()), (200, r#"{"containers":["app","side"]}"#));
    let ids = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(control.registry.restarts(&uid), ids(&["id-app", "id-side"]));
    let (code, _) = ask_at(&control, &format!("{path}?container=app")).await;
    assert_eq!((code, control.registry.restarts(&uid)), (200, ids(&["id-app"])));

    for (path, expected) in [
        (format!("{path}?container=debug"), 404),
        (format!("{path}?container=waits"), 409),
        ("POST /holdfast/v1/pods/shop/other/restart".to_owned(), 404),
    ] {
        assert_eq!(ask_at(&control, &path).await.0, expected, "{path}");
    }
}
