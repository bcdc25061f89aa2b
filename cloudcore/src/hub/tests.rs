//! The hub over loopback TLS, with a small API server behind it.

pub(crate) mod api;
mod identity;
mod leaving;

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use futures_util::{SinkExt as _, StreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use proto::admission::Ticket;
use proto::codec;
use proto::digest::Summary;
use proto::wire::{Features, Frame, PROTOCOL_VERSION, RefuseCode, Welcome};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::crowd::CROWD_MAX;
use crate::pki::{Authority, NodeRequest, SERVER_NAME};
use api::Api;

/// Longest wait for anything: more than the hub gives a handshake.
const DEADLINE: Duration = Duration::from_secs(20);

const SECRETS: &str = "/api/v1/namespaces/holdfast/secrets";

const RECORD: &str = "/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/edge-1";

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

const CLUSTER: &str = "c-1";

const NODE_LIFE: Duration = Duration::from_hours(24);

struct Hub {
    address: SocketAddr,
    authority: Arc<Authority>,
    connected: mpsc::Receiver<Connected>,
    shared: Arc<Shared>,
    api: Api,
    stop: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Hub {
    async fn start() -> Self {
        let api = Api::start().await;
        let load = || Authority::load_or_create(api.client.clone(), "holdfast", CLUSTER);
        let authority = Arc::new(load().await.unwrap());
        api.name_cluster(CLUSTER);
        let evidence = Evidence::start(api.client.clone(), "holdfast", "test", CLUSTER.to_owned());
        let evidence = evidence.await.unwrap();
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, connected) = mpsc::channel(4);
        let shared = Arc::new(Shared {
            authority: Current::new(Arc::clone(&authority)),
            client: api.client.clone(),
            namespace: "holdfast".to_owned(),
            replica: "test".to_owned(),
            peer: "192.0.2.1:10002".parse().unwrap(),
            evidence,
            sessions: Sessions::default(),
            joins: Rate::default(),
            metrics: Metrics::default(),
            renewals: Rate::default(),
            node_life: NODE_LIFE,
            turns: Turns::default(),
            alarms: Alarms::default(),
            connected: sender,
        });
        let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
        let (served, stopped) = (Arc::clone(&shared), stop.clone());
        tasks.spawn(async move { run(listener, served, stopped).await.unwrap() });

        Self { address, authority, connected, shared, api, stop, _tasks: tasks }
    }

    async fn dial(&self, who: Option<&Who>) -> std::io::Result<TlsStream<TcpStream>> {
        self.dial_from("127.0.0.1", who).await
    }

    async fn dial_from(
        &self,
        address: &str,
        who: Option<&Who>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let roots = roots_of(&self.authority);
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match who {
            Some(who) => {
                let (chain, key) = who.chain_and_key();
                config.with_client_auth_cert(chain, key).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(address.parse().unwrap(), 0))?;
        let socket = socket.connect(self.address).await?;
        let name = ServerName::try_from(SERVER_NAME).unwrap();

        TlsConnector::from(Arc::new(config)).connect(name, socket).await
    }

    /// Sends raw bytes; what comes back until the end.
    async fn exchange(&self, who: Option<&Who>, request: &[u8]) -> String {
        let mut stream = self.dial(who).await.unwrap();
        let mut answer = Vec::new();
        // The hub may close before everything is written.
        drop(stream.write_all(request).await);
        drop(soon("the end", stream.read_to_end(&mut answer)).await);

        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn post(&self, who: Option<&Who>, path: &str, body: &str) -> String {
        let len = body.len();
        let head = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length:";

        self.exchange(who, format!("POST {path} {head} {len}\r\n\r\n{body}").as_bytes()).await
    }

    async fn post_join(&self, body: &str) -> String {
        self.post(None, "/v1/join", body).await
    }

    /// Keeps that edge-1 has joined.
    fn keep_record(&self, revoked: bool) {
        let mut annotations =
            json!({ "holdfast.dev/ticket-shown": "0", "holdfast.dev/ticket-since": "0" });
        if revoked {
            annotations["holdfast.dev/revoked"] = json!("true");
        }
        let metadata =
            json!({ "name": "edge-1", "resourceVersion": "1", "annotations": annotations });
        let record = json!({ "metadata": metadata, "spec": { "leaseTransitions": 0 } });
        self.api.put(RECORD, record);
    }

    async fn link(&self, who: &Who, node: &str, ticket: Option<Ticket>) -> Link {
        self.link_speaking(PROTOCOL_VERSION, who, node, ticket).await
    }

    async fn link_speaking(
        &self,
        protocol: u32,
        who: &Who,
        node: &str,
        ticket: Option<Ticket>,
    ) -> Link {
        let stream = Box::pin(self.dial(Some(who))).await.unwrap();
        let url = format!("ws://{SERVER_NAME}/v1/link");
        let (socket, _) = soon("an upgrade", Box::pin(client_async(url, stream))).await.unwrap();
        let mut link = Link(socket);
        link.send(&Frame::Hello(Hello {
            protocol,
            node: NodeName::new(node).unwrap(),
            agent_version: "test".to_owned(),
            held: Summary::default(),
            ticket,
            node_ip: String::new(),
            boot_id: String::new(),
            kinds: 0,
            features: Features::OURS,
        }))
        .await;

        link
    }

    fn node(&self, node: &str) -> Who {
        node_of(&self.authority, node)
    }
}

/// Certificate and key of a node, PEM.
pub(crate) struct Who {
    certificate: String,
    key: String,
}

impl Who {
    pub(crate) fn chain_and_key(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();

        (vec![der(&self.certificate)], key)
    }
}

pub(crate) fn roots_of(authority: &Authority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(der(authority.ca_pem())).unwrap();

    roots
}

pub(crate) fn node_of(authority: &Authority, node: &str) -> Who {
    let (csr, key) = request_of("system:nodes", &format!("system:node:{node}"));
    let request = NodeRequest::parse(&NodeName::new(node).unwrap(), &csr).unwrap();
    let certificate = authority.sign(request, NODE_LIFE).unwrap().pem();

    Who { certificate, key }
}

fn request_of(group: &str, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.distinguished_name.push(DnType::CommonName, name);
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();

    (csr, key.serialize_pem())
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

struct Link(WebSocketStream<TlsStream<TcpStream>>);

impl Link {
    async fn send(&mut self, frame: &Frame) {
        self.0.send(Message::Binary(codec::encode(frame))).await.unwrap();
    }

    /// The next frame; none if the hub closed the link.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            match soon("a frame", self.0.next()).await?.ok()? {
                Message::Binary(bytes) => return Some(codec::decode(&bytes).unwrap()),
                Message::Close(_) => return None,
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    async fn welcomed(&mut self) -> Welcome {
        match self.next().await {
            Some(Frame::Welcome(welcome)) => welcome,
            other => panic!("not welcomed: {other:?}"),
        }
    }

    async fn refused(&mut self) -> RefuseCode {
        loop {
            match self.next().await {
                Some(Frame::Refuse(refusal)) => return refusal.code,
                Some(Frame::Ping { .. } | Frame::ListHeld { .. }) => {}
                other => panic!("not refused: {other:?}"),
            }
        }
    }
}

#[test]
fn the_link_needs_the_certificate_of_a_node_of_this_authority() {
    block_on(async {
        let hub = Hub::start().await;
        let link = b"GET /v1/link HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = hub.exchange(None, link).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        let answer = hub.exchange(Some(&hub.node("edge-1")), link).await;
        assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");

        let elsewhere = Hub::start().await;
        let stranger = elsewhere.node("edge-1");
        // With TLS 1.3 the refusal of a client's certificate comes behind the handshake.
        let refused = match hub.dial(Some(&stranger)).await {
            Ok(mut stream) => soon("a refusal", stream.read(&mut [0; 1])).await.is_err(),
            Err(_) => true,
        };
        assert!(refused);
    });
}

#[test]
fn what_is_too_long_or_nonsense_is_refused() {
    block_on(async {
        let hub = Hub::start().await;
        let check = async |request: String, expected: &str| {
            let answer = hub.exchange(None, request.as_bytes()).await;
            let line = answer.lines().next().unwrap_or_default();
            assert!(line.contains(expected), "{expected}: {answer}");
        };
        let long = "a".repeat(64 * 1024);
        check(format!("GET /healthz HTTP/1.1\r\nX: {long}\r\n\r\n"), "431").await;
        check("nonsense\r\n\r\n".to_owned(), "400").await;
        check("GET /else HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), "404").await;
        for body in [long.as_str(), "null", "[]", r#"{"token":"hf1"}"#] {
            let answer = hub.post_join(body).await;
            assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        }
    });
}

#[test]
fn a_peer_that_says_nothing_is_let_go() {
    block_on(async {
        let hub = Hub::start().await;
        let mut silent = TcpStream::connect(hub.address).await.unwrap();
        let mut slow = hub.dial(None).await.unwrap();
        slow.write_all(b"POST /v1/join HTTP/1.1\r\nContent-Length: 10\r\n\r\n{").await.unwrap();
        let mut nothing = [0; 1];
        let (handshake, body) = tokio::join!(
            soon("the end of the silent", silent.read(&mut nothing)),
            soon("the answer to the slow", async {
                let mut answer = [0; 12];
                slow.read_exact(&mut answer).await.map(|_| answer)
            }),
        );
        assert_eq!(handshake.unwrap(), 0);
        assert_eq!(&body.unwrap(), b"HTTP/1.1 400");
    });
}

/// The crowd is twice as many as there are places: nodes that had to wait until its time is over would wait
/// longer than the deadline.
#[test]
fn a_crowd_that_says_nothing_keeps_no_node_out() {
    block_on(async {
        let hub = Hub::start().await;
        let mut crowd = Vec::new();
        for _ in 0..2 * CROWD_MAX {
            crowd.push(TcpStream::connect(hub.address).await.unwrap());
        }
        let asked = b"GET /v1/link HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let node = hub.node("edge-1");
        let mut stream = soon("a place", hub.dial_from("127.0.0.2", Some(&node))).await.unwrap();
        stream.write_all(asked).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 426");
    });
}

const SECRET: [u8; 32] = [7; 32];

fn token(id: &str) -> String {
    let secret = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(SECRET);

    format!("hf1.{}.{id}.{secret}", "a".repeat(64))
}

impl Hub {
    fn keep_token(&self, id: &str, expires: &str, node: &str, single: &str) {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let hash =
            proto::object::hex(ring::digest::digest(&ring::digest::SHA256, &SECRET).as_ref());
        let data = json!({
            "secretHash": encode(&hash), "expires": encode(expires),
            "nodeName": encode(node), "singleUse": encode(single),
        });
        let name = format!("holdfast-join-{id}");
        let metadata = json!({ "name": name, "resourceVersion": "1" });
        self.api.put(&format!("{SECRETS}/{name}"), json!({ "metadata": metadata, "data": data }));
    }

    async fn join_as(&self, node: &str, token: &str, csr: &str) -> String {
        self.post_join(&json!({ "token": token, "nodeName": node, "csr": csr }).to_string()).await
    }
}

const FUTURE: &str = "2200-01-01T00:00:00Z";

#[test]
fn nodes_join_by_token() {
    block_on(async {
        let hub = Hub::start().await;
        hub.keep_token("00000001", FUTURE, "", "true");
        hub.keep_token("00000002", "2000-01-01T00:00:00Z", "", "");
        hub.keep_token("00000003", FUTURE, "edge-9", "");
        hub.keep_token("00000004", FUTURE, "", "");
        let own = request_of("system:nodes", "system:node:edge-1").0;
        let (root, other) = (
            request_of("system:masters", "system:node:edge-1").0,
            request_of("system:nodes", "system:node:edge-2").0,
        );
        for (token, csr, expected) in [
            // What is refused uses nothing up.
            (token("00000001"), &root, "BadRequest"),
            (token("00000001"), &other, "BadRequest"),
            (token("00000001"), &own, "certificate"),
            // The answer was lost: the same machine asks again.
            (token("00000001"), &own, "certificate"),
            (token("00000002"), &own, "TokenExpired"),
            (token("00000003"), &own, "TokenForOtherNode"),
            (token("00000004").replace('B', "C"), &own, "TokenUnknown"),
            ("hf1.x".to_owned(), &own, "TokenMalformed"),
            (token("00000004"), &root, "BadRequest"),
            (token("00000004"), &own, "certificate"),
        ] {
            let answer = hub.join_as("edge-1", &token, csr).await;
            assert!(answer.contains(&format!("\"{expected}\"")), "{expected}: {answer}");
        }
        let answer = hub.join_as("edge-2", &token("00000001"), &other).await;
        assert!(answer.contains("\"TokenUsed\""), "{answer}");
    });
}

#[test]
fn a_name_is_given_away_only_by_a_token_for_it() {
    block_on(async {
        let hub = Hub::start().await;
        hub.keep_token("00000001", FUTURE, "", "");
        let request = |node: &str| request_of("system:nodes", &format!("system:node:{node}")).0;
        let node = |provider: &str| json!({ "metadata": {}, "spec": { "providerID": provider } });
        hub.api.put("/api/v1/nodes/control-plane", node(""));
        hub.api.put("/api/v1/nodes/cloud-node", node("aws:///x/i-1"));
        hub.api.put("/api/v1/nodes/edge-1", node("holdfast://edge-1"));
        hub.keep_record(false);
        for (name, bound, expected) in [
            ("control-plane", false, "NameTaken"),
            ("control-plane", true, "certificate"),
            ("cloud-node", true, "NameTaken"),
            ("edge-1", false, "NameTaken"),
            ("edge-1", true, "certificate"),
            ("edge-2", false, "certificate"),
            ("edge-2", false, "NameTaken"),
        ] {
            hub.keep_token("00000002", FUTURE, name, "");
            let token = token(if bound { "00000002" } else { "00000001" });
            let answer = hub.join_as(name, &token, &request(name)).await;
            assert!(answer.contains(&format!("\"{expected}\"")), "{name} {bound}: {answer}");
        }
    });
}

#[test]
fn joining_too_often_is_refused_for_a_while() {
    block_on(async {
        let hub = Hub::start().await;
        let mut refused = false;
        for _ in 0..200 {
            refused = hub.post_join("null").await.starts_with("HTTP/1.1 429");
            if refused {
                break;
            }
        }
        assert!(refused);
    });
}

#[test]
fn a_node_can_only_speak_for_itself() {
    block_on(async {
        let hub = Hub::start().await;
        let mut link = hub.link(&hub.node("edge-1"), "edge-2", None).await;
        assert_eq!(link.refused().await, RefuseCode::UnknownNode);
    });
}

#[test]
fn the_newest_session_wins_and_the_older_is_fenced() {
    block_on(async {
        let mut hub = Hub::start().await;
        let who = hub.node("edge-1");
        hub.keep_record(false);
        let mut first = hub.link(&who, "edge-1", None).await;
        let ticket = first.welcomed().await.ticket;
        let older = soon("a session", hub.connected.recv()).await.unwrap().session;
        assert!(older.is_current());
        let ends = hub.shared.sessions.earliest_expiry_s().expect("its certificate ends");
        let ends = UNIX_EPOCH + Duration::from_secs(ends);
        let left = ends.duration_since(crate::clock::system_time()).unwrap();
        assert!(left > NODE_LIFE / 2 && left <= NODE_LIFE, "{left:?}");

        // The first link is half open: nobody has closed it.
        let mut second = hub.link(&who, "edge-1", Some(ticket.clone())).await;
        let welcome = second.welcomed().await;
        let newer = soon("a session", hub.connected.recv()).await.unwrap().session;
        assert!(newer.is_current() && !older.is_current());
        assert!(newer.generation() > older.generation());
        assert_eq!(first.refused().await, RefuseCode::Superseded);

        // Once the next ticket has been shown, the first is worth nothing, nor is none.
        let mut third = hub.link(&who, "edge-1", Some(welcome.ticket)).await;
        third.welcomed().await;
        for stale in [Some(ticket), None] {
            let mut thief = hub.link(&who, "edge-1", stale).await;
            assert_eq!(thief.refused().await, RefuseCode::StaleTicket);
        }
    });
}

/// The record as another replica, or an administrator, leaves it.
fn record(generation: i32, replica: &str, is_revoked: bool) -> Lease {
    let mut annotations =
        json!({ "holdfast.dev/ticket-shown": "0", "holdfast.dev/ticket-since": "0" });
    if is_revoked {
        annotations["holdfast.dev/revoked"] = json!("true");
    }
    let record = json!({
        "metadata": { "name": "edge-1", "annotations": annotations },
        "spec": { "holderIdentity": replica, "leaseTransitions": generation },
    });

    serde_json::from_value(record).unwrap()
}

#[test]
fn a_session_that_the_record_names_no_more_is_fenced_and_ended() {
    block_on(async {
        let cases = [("other", false, RefuseCode::Superseded), ("test", true, RefuseCode::Revoked)];
        for (replica, is_revoked, code) in cases {
            let mut hub = Hub::start().await;
            let who = hub.node("edge-1");
            hub.keep_record(false);
            let mut link = hub.link(&who, "edge-1", None).await;
            link.welcomed().await;
            let session = soon("a session", hub.connected.recv()).await.unwrap().session;
            let generation = i32::try_from(session.generation()).unwrap();

            // Its own record, as the watch shows it, is no reason to end.
            fencing::take(&hub.shared, &record(generation, "test", false)).await;
            fencing::take(&hub.shared, &record(generation - 1, "other", true)).await;
            assert!(session.is_current());

            let next = if is_revoked { generation } else { generation + 1 };
            fencing::take(&hub.shared, &record(next, replica, is_revoked)).await;
            assert!(!session.is_current());
            assert_eq!(link.refused().await, code);
            let found = hub.shared.sessions.find(session.node());
            let holder =
                if let Whereabouts::Elsewhere(holder) = found { Some(holder) } else { None };
            let expected = (replica == "other").then_some("other");
            assert_eq!(holder.map(|holder| holder.replica).as_deref(), expected);
        }
    });
}

#[test]
fn who_stops_takes_no_more_nodes_and_sends_its_own_elsewhere() {
    block_on(async {
        let hub = Hub::start().await;
        hub.keep_record(false);
        let mut link = hub.link(&hub.node("edge-1"), "edge-1", None).await;
        link.welcomed().await;
        hub.stop.cancel();
        let told = loop {
            match link.next().await {
                Some(Frame::Bye(bye)) => break bye,
                Some(_) => {}
                None => panic!("the link ended without a word"),
            }
        };
        assert!(!told.retry_after.is_zero() && told.reason == "cloudcore stops", "{told:?}");
        assert!(hub.dial(None).await.is_err());
    });
}

#[test]
fn replicas_that_start_at_once_have_one_authority() {
    block_on(async {
        let api = Api::start().await;
        let load = || Authority::load_or_create(api.client.clone(), "holdfast", CLUSTER);
        let (one, other) = tokio::join!(load(), load());
        assert_eq!(one.unwrap().ca_pem(), other.unwrap().ca_pem());
    });
}
