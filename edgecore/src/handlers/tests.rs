//! Against servers on this machine that answer as they are told, or not at all.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use ::http::{HeaderMap, HeaderValue, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::*;

const HOST: &str = "127.0.0.1";
const LIMIT: Duration = Duration::from_secs(20);
/// For what must not be answered.
const SHORT: Duration = Duration::from_millis(50);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

/// A server that answers each path as `answers` says, and what it was asked.
async fn server(answers: &'static [(&str, &str)]) -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            let asked = String::from_utf8(asked).unwrap();
            let path = asked.split(' ').nth(1).unwrap();
            let Some((_, answer)) = answers.iter().find(|(of, _)| *of == path) else {
                // Keeps silent until the caller goes.
                let _gone = stream.read_u8().await;
                continue;
            };
            let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 4\r\n\r\nbody");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });

    (port, tasks)
}

fn get(port: u16, path: &str) -> Get {
    let (host, path) = (HOST.to_owned(), path.to_owned());

    Get { https: false, host, port, path, headers: Vec::new(), agent: PROBE }
}

#[test]
fn http_answers_are_told_as_the_kubelet_tells_them() {
    run(async {
        let (port, _tasks) = server(&[
            ("/well", "200 OK"),
            ("/ill", "503 x"),
            ("/moved", "302 x\r\nlocation: /well?a=b"),
            ("/well?a=b", "201 x"),
            ("/away", "302 x\r\nlocation: http://192.0.2.1/"),
            ("/round", "302 x\r\nlocation: /round"),
            ("/in/here", "301 x\r\nlocation: there?b"),
            ("/in/there?b", "307 x\r\nlocation: ../up/./%20x"),
            ("/up/%20x", "303 x\r\nlocation: ?q"),
            ("/up/%20x?q", "200 x"),
            ("/ill/on", "308 x\r\nlocation: ."),
            ("/ill/", "503 x"),
            ("/other", "300 x\r\nlocation: /ill"),
            ("/nowhere", "302 x"),
            ("/wrong", "302 x\r\nlocation: /%zz"),
            ("/a%20b/%3Cc%3E%60?d", "200 x"),
            ("/100%25", "200 x"),
        ])
        .await;
        let failure = |text: &str| Answer::Failure(text.to_owned());
        let round = format!("Get \"http://{HOST}:{port}/round\": stopped after 10 redirects");
        let away = "Probe terminated redirects, Response body: body".to_owned();
        let wrong =
            format!("Get \"http://{HOST}:{port}/wrong\": failed to parse Location header \"/%zz\"");
        for (path, expected) in [
            ("/well", Answer::Success),
            ("well", Answer::Success),
            ("/ill", failure("HTTP probe failed with statuscode: 503")),
            ("/moved", Answer::Success),
            ("/in/here", Answer::Success),
            ("/ill/on", failure("HTTP probe failed with statuscode: 503")),
            ("/a b/<c>`?d", Answer::Success),
            ("/100%", Answer::Success),
            ("/away", Answer::Warning(away.clone())),
            ("/other", Answer::Warning(away.clone())),
            ("/nowhere", Answer::Warning(away)),
            ("/wrong", failure(&wrong)),
            ("/round", failure(&round)),
        ] {
            assert_eq!(http::get(&get(port, path), LIMIT).await, expected, "{path}");
        }
        let Answer::Failure(late) = http::get(&get(port, "/silent"), SHORT).await else { panic!() };
        assert!(late.contains("context deadline exceeded"), "{late}");
    });
}

#[test]
fn a_hook_is_delivered_without_tls_to_whom_speaks_none() {
    run(async {
        let answers = &[("/a%20hook", "302 x\r\nlocation: done"), ("/done", "500 x")];
        let (port, _tasks) = server(answers).await;
        let hook = Get { agent: LIFECYCLE, ..get(port, "/a hook") };
        assert_eq!(deliver(&hook, LIMIT).await, Ok(Delivered::AsAsked));
        let late = deliver(&get(port, "/silent"), SHORT).await.unwrap_err();
        assert!(late.ends_with("exceeded while awaiting headers)"), "{late}");

        // Speaks without being asked: it cannot read what TLS begins with.
        let listener = TcpListener::bind((HOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _begun = stream.read_u8().await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                let mut rest = Vec::new();
                let _gone = stream.read_to_end(&mut rest).await;
            }
        });
        let hook = Get { https: true, agent: LIFECYCLE, ..get(port, "/hook") };
        assert_eq!(deliver(&hook, LIMIT).await, Ok(Delivered::WithoutTls));
        let told = http::get(&hook, LIMIT).await;
        let why = "http: server gave HTTP response to HTTPS client";
        assert_eq!(told, Answer::Failure(format!("Get \"https://{HOST}:{port}/hook\": {why}")));
    });
}

/// A server with a certificate that nobody knows, that answers well once it is asked by TLS; and by which
/// name it was asked for.
async fn secure() -> (u16, mpsc::Receiver<Option<String>>, JoinSet<()>) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["elsewhere.test".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, names) = mpsc::channel(8);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            asked.send(stream.get_ref().1.server_name().map(str::to_owned)).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = match head.split(|byte| *byte == b' ').nth(1).unwrap() {
                b"/moved" => "302 x\r\nlocation: well",
                // Ends with the connection, which is just closed.
                b"/well" => "200 OK\r\n\r\nyes",
                _other => "503 x",
            };
            stream.write_all(format!("HTTP/1.0 {answer}\r\n\r\n").as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
    });

    (port, names, tasks)
}

#[test]
fn https_takes_any_certificate_and_names_only_what_has_a_name() {
    run(async {
        let (port, mut names, _tasks) = secure().await;
        let ask = async |host: &str, path: &str| {
            let host = host.to_owned();
            http::get(&Get { https: true, host, ..get(port, path) }, LIMIT).await
        };
        assert_eq!(ask(HOST, "/well").await, Answer::Success);
        assert_eq!(names.recv().await, Some(None));
        assert_eq!(ask("localhost", "/moved").await, Answer::Success);
        for _ in 0..2 {
            assert_eq!(names.recv().await, Some(Some("localhost".to_owned())));
        }
        let ill = "HTTP probe failed with statuscode: 503".to_owned();
        assert_eq!(ask(HOST, "/ill").await, Answer::Failure(ill));

        let hook = Get { https: true, agent: LIFECYCLE, ..get(port, "/moved") };
        assert_eq!(deliver(&hook, LIMIT).await, Ok(Delivered::AsAsked));
    });
}

#[test]
fn what_does_not_listen_is_refused() {
    run(async {
        let port = {
            let listener = TcpListener::bind((HOST, 0)).await.unwrap();
            listener.local_addr().unwrap().port()
        };
        let expected = format!("dial tcp {HOST}:{port}: connect: connection refused");
        assert_eq!(dial(HOST, port).await.unwrap_err(), expected);
        let told = grpc::check(HOST, port, "", Duration::from_secs(1)).await;
        let late = format!("failed to connect service \"{HOST}:{port}\" within 1s");
        let late = format!("timeout: {late}: context deadline exceeded");
        assert_eq!(told, Answer::Failure(late));
        let told = http::get(&get(port, "/"), LIMIT).await;
        assert_eq!(told, Answer::Failure(format!("Get \"http://{HOST}:{port}/\": {expected}")));
    });
}

#[test]
fn headers_of_the_pod_replace_or_remove_those_of_the_node() {
    let check = |given: &[(&str, &str)], expected: &[(&str, &str)]| {
        let headers = given.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let told = http::headers(&Get { headers, ..get(80, "/") }, "127.0.0.1:80", true).unwrap();
        let mut told: Vec<_> =
            told.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        told.sort_unstable();

        assert_eq!(told, expected);
    };
    check(
        &[],
        &[
            ("accept", "*/*"),
            ("connection", "close"),
            ("host", "127.0.0.1:80"),
            ("user-agent", "kube-probe/1.35"),
        ],
    );
    check(
        &[("User-Agent", ""), ("Accept", "text/plain"), ("Host", "a.test"), ("X", "1"), ("X", "2")],
        &[
            ("accept", "text/plain"),
            ("connection", "close"),
            ("host", "a.test"),
            ("x", "1"),
            ("x", "2"),
        ],
    );
    check(
        &[("host", ""), ("content-length", "7"), ("accept", "")],
        &[("connection", "close"), ("host", "127.0.0.1:80"), ("user-agent", "kube-probe/1.35")],
    );
    let named = Get { headers: vec![("host".to_owned(), "a.test".to_owned())], ..get(80, "/") };
    assert_eq!(http::headers(&named, "b", false).unwrap()["host"], "b");
    let bad = Get { headers: vec![("a b".to_owned(), String::new())], ..get(80, "/") };
    assert_eq!(http::headers(&bad, "b", true).unwrap_err(), "\"a b\" is no header's name");
}

/// A server of gRPC's health protocol that knows two services.
async fn health() -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = service_fn(|request: hyper::Request<hyper::body::Incoming>| async {
                let asked = request.into_body().collect().await.unwrap().to_bytes();
                let (status, code): (&[u8], &str) = match asked.get(7..).unwrap_or_default() {
                    b"" => (&[0, 0, 0, 0, 2, 8, 1], "0"),
                    b"ill" => (&[0, 0, 0, 0, 2, 8, 2], "0"),
                    b"unknown" => (&[], "5"),
                    _ => (&[], "12"),
                };
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static(code));
                trailers.insert("grpc-message", HeaderValue::from_static("m"));
                let frames = [Frame::data(Bytes::from_static(status)), Frame::trailers(trailers)];
                let frames = frames.map(Ok::<_, Infallible>);

                Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(
                    frames,
                ))))
            });
            let server = http2::Builder::new(TokioExecutor::new());
            let _ended = server.serve_connection(TokioIo::new(stream), answer).await;
        }
    });

    (port, tasks)
}

#[test]
fn grpc_health_is_asked_by_service() {
    run(async {
        let (port, _tasks) = health().await;
        let check = async |service: &str, expected: &str| {
            let told = match grpc::check(HOST, port, service, LIMIT).await {
                Answer::Success => "well".to_owned(),
                Answer::Failure(text) => text,
                other @ (Answer::Warning(_) | Answer::Unknown(_)) => panic!("{other:?}"),
            };
            assert_eq!(told, expected, "{service}");
        };
        check("", "well").await;
        check("ill", "service unhealthy (responded with \"NOT_SERVING\")").await;
        check("unknown", "error: health rpc probe failed: rpc error: code = NotFound desc = m")
            .await;
        check(
            "none",
            "error: this server does not implement the grpc health protocol \
             (grpc.health.v1.Health): m",
        )
        .await;
    });
}

#[test]
fn a_silent_server_costs_no_more_than_the_limit() {
    run(async {
        // The kernel takes the connection; nobody reads.
        let listener = TcpListener::bind((HOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let Answer::Failure(late) = grpc::check(HOST, port, "", SHORT).await else { panic!() };
        assert!(late.contains("did not complete within"), "{late}");
    });
}

#[test]
fn an_answer_is_cut_at_its_limit() {
    let text = [b'x'; OUTPUT_BYTES_MAX + 1];
    assert_eq!(shortened(&text).len(), OUTPUT_BYTES_MAX);
}
