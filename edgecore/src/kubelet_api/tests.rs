//! What is told of the node, without a runtime.

use std::sync::Arc;

use cri::Runtime;
use proto::ids::{ObjectKey, Uid};
use proto::object::{ContentHash, Object, Version};
use proto::wire::Health;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::*;
use crate::config::Config;
use crate::desired::Desired;
use crate::layout::Layout;
use crate::link::{LinkState, Upstream};
use crate::node::cgroups::Cgroups;
use crate::node::facts::Facts;
use crate::node::usage::{Place, Usages};

/// What handlers work with, for these pods on a node of which nothing is known.
pub(crate) fn context(pods: Arc<dyn PodLookup>, runtime: Runtime) -> Context {
    let config = Config::with_defaults("edge-1", "cloud:10000").unwrap();
    let layout = Layout {
        root: config.root_dir.clone(),
        pod_logs: config.pod_logs_dir.clone(),
        container_logs: config.container_logs_dir.clone(),
    };
    let place = Place::new(&config, &layout, &Cgroups::default(), &Facts::default());
    let down = LinkState::Down { since: Timestamp::UNIX_EPOCH, reason: String::new() };
    let node = NodeApi {
        usages: Usages::new(place, runtime.clone(), Arc::clone(&pods)),
        config,
        desired: Desired::default(),
        link: watch::channel(down).1,
        health: watch::channel(Health::default()).1,
        upstream: Upstream::default(),
    };

    Context { pods, runtime, node: Arc::new(node) }
}

struct OnePod;

impl PodLookup for OnePod {
    fn find(&self, _namespace: &str, _name: &str) -> Option<PodRef> {
        None
    }

    fn all(&self) -> Vec<PodFacts> {
        let answers = Answers { successful: 2, failed: 0, unknown: 1 };
        vec![PodFacts {
            uid: Uid::new("u1").unwrap(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            cgroup: "/kubepods/podu1".to_owned(),
            started_at: None,
            status: Bytes::from_static(br#"{"phase":"Running"}"#),
            answers: vec![("main".to_owned(), ProbeKind::Liveness, answers)],
            running: 1,
            claimed: Arc::default(),
        }]
    }
}

/// Status line and body of the answer to one request.
async fn ask(context: &Context, request: &str) -> (String, String) {
    let (mut caller, server) = tokio::io::duplex(64 * 1024);
    let head = format!("{request} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    caller.write_all(head.as_bytes()).await.unwrap();
    serve(server, context.clone()).await.unwrap();
    let mut answer = String::new();
    caller.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();

    (head.lines().next().unwrap().replace("HTTP/1.1 ", ""), body.to_owned())
}

#[tokio::test]
async fn what_needs_no_runtime_is_told_without_one() {
    let runtime = Runtime::new("/nowhere/none.sock").unwrap();
    let mut context = context(Arc::new(OnePod), runtime);
    let object = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web"},"spec":{"x":1},"status":{"phase":"Pending"}}"#;
    let key = ObjectKey::pod(&Uid::new("u1").unwrap());
    let version = Version {
        uid: Uid::new("u1").unwrap(),
        epoch: 1,
        revision: 1,
        hash: ContentHash::of(&[object]),
    };
    let object = Object { key, version, bytes: Bytes::from_static(object) };
    let node = Arc::get_mut(&mut context.node).unwrap();
    node.desired = Desired::new(vec![object], Vec::new());

    for (request, status, has) in [
        ("GET /healthz", "200 OK", "ok"),
        (
            "GET /healthz?verbose",
            "200 OK",
            "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed",
        ),
        ("GET /healthz/syncloop", "200 OK", "ok"),
        ("GET /healthz/nothing", "404 Not Found", "404: Page Not Found"),
        (
            "GET /metrics/slis",
            "200 OK",
            "\nkubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 1\n",
        ),
        (
            "GET /pods",
            "200 OK",
            r#"[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{"x":1},"status":{"phase":"Running"}}]"#,
        ),
        ("GET /pods/", "200 OK", r#""kind":"PodList""#),
        ("GET /configz", "200 OK", r#""maxPods":110"#),
        ("GET /metrics", "200 OK", "\nkubelet_running_pods 1\n"),
        ("GET /metrics", "200 OK", "\nholdfast_link_up 0\n"),
        (
            "GET /metrics/probes",
            "200 OK",
            "prober_probe_total{container=\"main\",namespace=\"shop\",pod=\"web\",pod_uid=\"u1\",\
             probe_type=\"Liveness\",result=\"unknown\"} 1\n",
        ),
        ("GET /stats/summary", "500 Internal Server Error", "none.sock"),
        ("GET /metrics/resource", "500 Internal Server Error", "none.sock"),
        ("GET /stats", "404 Not Found", "404: Page Not Found"),
        ("GET /nothing", "404 Not Found", "404: Page Not Found"),
        ("POST /pods", "405 Method Not Allowed", "405"),
        ("PUT /exec/a/b/c", "405 Method Not Allowed", "405"),
        ("GET /logs/?query=%20", "400 Bad Request", "may not be empty"),
        (
            "GET /logs/?query=no-such-service",
            "501 Not Implemented",
            "journalctl -u no-such-service",
        ),
    ] {
        let (found, body) = ask(&context, request).await;
        assert_eq!(found, status, "{request}: {body}");
        assert!(body.contains(has), "{request}: {body}");
    }
}

#[tokio::test]
async fn a_loop_that_stands_is_not_healthy() {
    let runtime = Runtime::new("/nowhere/none.sock").unwrap();
    let mut context = context(Arc::new(OnePod), runtime);
    let stuck = Health { pod_loop_age_ms: 40_000, ..Health::default() };
    Arc::get_mut(&mut context.node).unwrap().health = watch::channel(stuck).1;

    let (status, body) = ask(&context, "GET /healthz").await;
    assert_eq!(status, "500 Internal Server Error");
    assert!(body.contains("[-]syncloop failed") && body.contains("healthz check failed"), "{body}");
    let (status, _) = ask(&context, "GET /healthz/syncloop").await;
    assert_eq!(status, "500 Internal Server Error");
    let (status, _) = ask(&context, "GET /healthz/ping").await;
    assert_eq!(status, "200 OK");
    let (_, slis) = ask(&context, "GET /metrics/slis").await;
    for expected in
        ["{name=\"ping\",type=\"healthz\"} 1\n", "{name=\"syncloop\",type=\"healthz\"} 0\n"]
    {
        assert!(slis.contains(expected), "{slis}");
    }
}

#[tokio::test]
async fn metrics_are_packed_for_who_takes_it() {
    let runtime = Runtime::new("/nowhere/none.sock").unwrap();
    let context = context(Arc::new(OnePod), runtime);
    let (mut caller, server) = tokio::io::duplex(64 * 1024);
    let head =
        "GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\nAccept-Encoding: gzip\r\n\r\n";
    caller.write_all(head.as_bytes()).await.unwrap();
    serve(server, context).await.unwrap();
    let mut answer = Vec::new();
    caller.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("content-encoding: gzip\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
}
