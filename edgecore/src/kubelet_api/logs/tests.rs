//! Logs as a caller of the API reads them, from real files, over a real HTTP connection.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri::Runtime;
use proto::ids::Uid;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::tests::context;
use super::super::{ContainerRef, ContainerState, Incarnation, PodFacts, PodLookup, PodRef, serve};

const LIMIT: Duration = Duration::from_secs(10);
const PATH: &str = "/containerLogs/ns/pod/c";

struct OnePod(Mutex<PodRef>);

impl PodLookup for OnePod {
    fn find(&self, namespace: &str, name: &str) -> Option<PodRef> {
        (namespace == "ns" && name == "pod").then(|| self.0.lock().unwrap().clone())
    }

    fn all(&self) -> Vec<PodFacts> {
        Vec::new()
    }
}

struct World {
    folder: TempDir,
    pod: Arc<OnePod>,
    served: JoinSet<()>,
}

impl World {
    fn new() -> Self {
        let containers = Vec::new();
        let pod = PodRef { uid: Uid::new("u").unwrap(), sandbox: None, containers };
        let pod = Arc::new(OnePod(Mutex::new(pod)));

        Self { folder: tempfile::tempdir().unwrap(), pod, served: JoinSet::new() }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn incarnation(&self, log: &str) -> Incarnation {
        Incarnation { id: "id".to_owned(), log: self.log(log) }
    }

    fn container(&self, state: ContainerState, previous: Option<&str>) {
        let previous = previous.map(|log| self.incarnation(log));
        let container = ContainerRef { name: "c".to_owned(), tty: false, state, previous };
        self.pod.0.lock().unwrap().containers = vec![container];
    }

    fn append(&self, log: &str, lines: &[&str]) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.log(log)).unwrap();
        for line in lines {
            file.write_all(format!("2026-01-02T03:04:05Z stdout F {line}\n").as_bytes()).unwrap();
        }
    }

    /// Asks for `path`; the answer is to be read from the stream. No runtime is there, so that a
    /// running container is taken to run on.
    async fn ask(&mut self, path: &str) -> DuplexStream {
        let (mut caller, server) = tokio::io::duplex(4096);
        let runtime = Runtime::new(self.log("none.sock").to_str().unwrap()).unwrap();
        let context = context(Arc::clone(&self.pod) as _, runtime);
        self.served.spawn(async move {
            // A caller that leaves early is an error of the connection.
            drop(serve(server, context).await);
        });
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        caller.write_all(request.as_bytes()).await.unwrap();

        caller
    }

    /// The status and body of the whole answer.
    async fn get(&mut self, path: &str) -> (u16, String) {
        let mut answer = String::new();
        let mut stream = self.ask(path).await;
        timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = if head.contains("chunked") { unchunked(body) } else { body.to_owned() };

        (status, body)
    }

    async fn check(&mut self, path: &str, status: u16, body: &str) {
        assert_eq!(self.get(path).await, (status, body.to_owned()), "{path}");
    }
}

fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n").unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            return text;
        }
        text.push_str(&rest[..length]);
        body = &rest[length + 2..];
    }
}

/// Reads until `text` has come, and returns all of it.
async fn until(stream: &mut DuplexStream, text: &str) -> String {
    let mut seen = Vec::new();
    let reading = async {
        while !seen.windows(text.len()).any(|part| part == text.as_bytes()) {
            let mut piece = [0; 512];
            let length = stream.read(&mut piece).await.unwrap();
            assert!(length > 0, "the answer ended");
            seen.extend_from_slice(&piece[..length]);
        }
    };
    assert!(timeout(LIMIT, reading).await.is_ok(), "{text} did not come");

    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn a_log_is_read_with_its_options() {
    let mut world = World::new();
    world.append("1.log", &["a", "b", "c"]);
    world.append("0.log", &["old"]);
    world.container(ContainerState::Terminated(world.incarnation("1.log")), Some("0.log"));

    world.check(PATH, 200, "a\nb\nc\n").await;
    world.check(&format!("{PATH}?tailLines=1"), 200, "c\n").await;
    world.check(&format!("{PATH}?tailLines=0"), 200, "").await;
    world.check(&format!("{PATH}?limitBytes=3"), 200, "a\nb").await;
    world.check(&format!("{PATH}?previous=true"), 200, "old\n").await;
    world.check(&format!("{PATH}?sinceSeconds=1"), 200, "").await;
    world.check(&format!("{PATH}?follow=true"), 200, "a\nb\nc\n").await;
}

#[tokio::test]
async fn large_logs_and_long_lines_arrive_whole() {
    let mut world = World::new();
    let long = "x".repeat(100_000);
    let lines: Vec<String> = (0..5000).map(|n| format!("line {n}")).collect();
    world.append("0.log", &[&long]);
    world.append("0.log", &lines.iter().map(String::as_str).collect::<Vec<_>>());
    world.container(ContainerState::Terminated(world.incarnation("0.log")), None);

    let (status, body) = world.get(PATH).await;
    assert_eq!(status, 200);
    assert!(body == format!("{long}\n{}\n", lines.join("\n")), "{} bytes", body.len());
}

#[tokio::test]
async fn refusals_are_the_kubelets() {
    let mut world = World::new();
    world.check("/containerLogs/ns/none/c", 404, r#"pod "none" does not exist"#).await;
    let message = r#"container "c" not found in pod "pod""#;
    world.check(PATH, 404, message).await;
    world.check("/nothing", 404, "404: Page Not Found").await;

    let prefix = r#"container "c" in pod "pod" is waiting to start: "#;
    for (reason, shown) in [
        ("ContainerCreating", "ContainerCreating"),
        ("ErrImagePull", "image can't be pulled"),
        ("ImagePullBackOff", "trying and failing to pull image"),
    ] {
        world.container(ContainerState::Waiting { reason: reason.to_owned() }, None);
        world.check(PATH, 400, &format!("{prefix}{shown}")).await;
    }
    let message = r#"previous terminated container "c" in pod "pod" not found"#;
    world.check(&format!("{PATH}?previous=true"), 400, message).await;
    let message = r#"{"message": "Invalid request."}"#;
    world.check(&format!("{PATH}?tailLines=-1"), 422, message).await;
}

#[tokio::test]
async fn a_crash_looping_container_shows_its_last_log() {
    let mut world = World::new();
    world.append("0.log", &["crash"]);
    let waiting = ContainerState::Waiting { reason: "CrashLoopBackOff".to_owned() };
    world.container(waiting, Some("0.log"));

    world.check(PATH, 200, "crash\n").await;
}

#[tokio::test]
async fn a_followed_log_goes_on_over_rotation_and_ends_with_its_caller() {
    let mut world = World::new();
    world.append("0.log", &["first"]);
    world.container(ContainerState::Running(world.incarnation("0.log")), None);
    let mut stream = world.ask(&format!("{PATH}?follow=true&tailLines=1")).await;
    until(&mut stream, "first").await;
    world.append("0.log", &["second"]);
    until(&mut stream, "second").await;

    fs::rename(world.log("0.log"), world.log("0.log.20260102-030405")).unwrap();
    world.append("0.log.20260102-030405", &["third"]);
    world.append("0.log", &["fourth"]);
    assert!(until(&mut stream, "fourth").await.contains("third"));

    drop(stream);
    assert!(timeout(LIMIT, world.served.join_next()).await.is_ok(), "the server goes on");
}
