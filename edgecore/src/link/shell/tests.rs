//! The shell with a real socket, store and desired state, against a cloud that speaks by frames.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use proto::admission::Ticket;
use proto::ids::{Kind, ObjectKey, Uid};
use proto::object::{ContentHash, Version};
use proto::payload::Payload;
use proto::session::EVENTS_MAX;
use proto::wire::{
    Features, Fingerprint, Frame, Health, Hello, IdentityHeld, Issued, Refusal, RefuseCode,
    StreamId, Welcome,
};
use store::{Opened, Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::{WebSocketStream, accept_async};

use super::*;
use crate::desired;
use crate::identity::load;
use crate::link::dial::SERVER_NAME;
use crate::link::dial::tests::Authority;

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// The cloud's end of one connection.
struct Cloud(WebSocketStream<TlsStream<TcpStream>>);

impl Cloud {
    async fn accept(listener: &TcpListener, acceptor: &TlsAcceptor) -> (Self, Hello) {
        let (socket, _) = soon("a dial", listener.accept()).await.unwrap();
        let upgraded =
            async { accept_async(acceptor.accept(socket).await.unwrap()).await.unwrap() };
        let mut cloud = Self(soon("an upgrade", Box::pin(upgraded)).await);
        let Frame::Hello(hello) = cloud.next().await else { panic!("the first frame is no Hello") };

        (cloud, hello)
    }

    async fn next(&mut self) -> Frame {
        loop {
            let message = soon("a frame", self.0.next()).await.expect("an end").expect("a frame");
            if let Message::Binary(bytes) = message {
                return codec::decode(&bytes).unwrap();
            }
        }
    }

    async fn send(&mut self, frame: &Frame) {
        self.0.send(Message::Binary(codec::encode(frame))).await.unwrap();
    }

    async fn welcome(&mut self, generation: u64) -> Ticket {
        self.welcome_with(generation, Features::default()).await
    }

    async fn welcome_with(&mut self, generation: u64, features: Features) -> Ticket {
        let ticket = Ticket::new(generation.to_be_bytes().to_vec()).unwrap();
        let welcome = Welcome {
            generation,
            ticket: ticket.clone(),
            epoch: 1,
            server_time_ms: 1_000,
            features,
        };
        self.send(&Frame::Welcome(welcome)).await;

        ticket
    }
}

/// An agent's link with the store in a folder, and what the rest of the agent holds of it.
struct Edge {
    link: watch::Receiver<LinkState>,
    streams: mpsc::Receiver<TunnelStream>,
    upstream: Upstream,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

fn edge(address: SocketAddr, identity: Identity, dir: &std::path::Path) -> Edge {
    let (store, Opened { objects, settings, .. }) = Store::open(&Options::in_folder(dir)).unwrap();
    let held = Desired::new(objects, []);
    let (deliveries, delivered) = mpsc::channel(desired::DELIVERIES_MAX);
    let down = LinkState::Down { since: clock::now(), reason: String::new() };
    let (link_told, link) = watch::channel(down);
    let (_, health) = watch::channel(Health::default());
    let (_, addresses) = watch::channel(vec!["192.0.2.7".to_owned()]);
    let (accepted, streams) = mpsc::channel(ACCEPTED_MAX);
    let (upstream, stop) = (Upstream::default(), CancellationToken::new());
    let parts = LinkParts {
        node: NodeName::new("edge-1").unwrap(),
        way: Way::straight(address.to_string()),
        identity,
        identity_dir: dir.join("identity"),
        seed: 7,
        boot_id: "boot".to_owned(),
        deliveries,
        link: link_told,
        health,
        upstream: upstream.clone(),
        desired: held.clone(),
        store: store.clone(),
        state_dir: dir.to_owned(),
        settings,
        known: KnownTime::of_build(),
        addresses,
        accepted,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(desired::run(held, store, delivered, link.clone(), stop.clone()));
    tasks.spawn(run(parts, stop.clone()));

    Edge { link, streams, upstream, stop, tasks }
}

impl Edge {
    async fn is_up(&mut self, expected: u64) {
        let is_it = |s: &LinkState| matches!(s, LinkState::Up { generation, .. } if *generation == expected);
        soon("the link", self.link.wait_for(is_it)).await.unwrap();
    }

    async fn is_down(&mut self) {
        let is_it = |state: &LinkState| matches!(state, LinkState::Down { .. });
        soon("the end of the link", self.link.wait_for(is_it)).await.unwrap();
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while soon("the end of the tasks", self.tasks.join_next()).await.is_some() {}
    }
}

fn config_map() -> Frame {
    let uid = Uid::new("11111111-2222-3333-4444-555555555555").unwrap();
    let bytes = Bytes::from_static(b"{}");
    let hash = ContentHash::of(&[&bytes]);

    Frame::Put {
        seq: 1,
        key: ObjectKey::named(Kind::ConfigMap, "default", "settings"),
        version: Version { uid, epoch: 1, revision: 5, hash },
        payload: Payload::pack(&bytes),
    }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

/// What the cloud gets next that is neither a ping nor a pong.
async fn next_but_beats(cloud: &mut Cloud) -> Frame {
    loop {
        let frame = cloud.next().await;
        if !matches!(frame, Frame::Ping(_) | Frame::Pong(_)) {
            return frame;
        }
    }
}

#[test]
fn a_link_stores_before_it_acknowledges_and_resumes_by_its_ticket() {
    block_on(async {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = authority.server(SERVER_NAME);
        let identity = authority.node();
        let mut edge = edge_of(&listener, &identity, &dir);

        let (mut cloud, hello) = Cloud::accept(&listener, &acceptor).await;
        assert_eq!((hello.ticket, hello.held.count), (None, 0));
        assert_eq!((hello.node_ip.as_str(), hello.boot_id.as_str()), ("192.0.2.7", "boot"));
        let first = cloud.welcome(1).await;
        edge.is_up(1).await;
        cloud.send(&config_map()).await;
        assert_eq!(next_but_beats(&mut cloud).await, Frame::Ack { seqs: vec![1] });
        cloud.send(&Frame::Synced).await;
        let is_synced = |state: &LinkState| matches!(state, LinkState::Up { synced: true, .. });
        soon("the sync", edge.link.wait_for(is_synced)).await.unwrap();

        // The connection breaks without a word.
        drop(cloud);
        edge.is_down().await;
        let (mut cloud, hello) = Cloud::accept(&listener, &acceptor).await;
        assert_eq!((hello.ticket, hello.held.count), (Some(first), 1));
        let second = cloud.welcome(2).await;
        edge.is_up(2).await;
        edge.upstream.event(Bytes::from_static(b"{}"));
        assert!(matches!(next_but_beats(&mut cloud).await, Frame::Event { seq: 1, .. }));

        // The agent stops and says so; the next one goes on where it was.
        let (last, ()) = tokio::join!(next_but_beats(&mut cloud), edge.stop());
        assert!(matches!(last, Frame::Bye(_)), "{last:?}");
        let edge = edge_of(&listener, &identity, &dir);
        let (_, hello) = Cloud::accept(&listener, &acceptor).await;
        assert_eq!((hello.ticket, hello.held.count), (Some(second), 1));
        edge.stop().await;
    });
}

#[test]
fn the_cloud_is_told_that_the_ticket_is_kept() {
    block_on(async {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let edge = edge_of(&listener, &authority.node(), &dir);
        let (mut cloud, _) = Cloud::accept(&listener, &authority.server(SERVER_NAME)).await;
        cloud.welcome_with(1, Features::TICKET_HELD).await;
        assert_eq!(next_but_beats(&mut cloud).await, Frame::TicketHeld);
        edge.stop().await;
    });
}

#[test]
fn what_the_cloud_says_of_the_time_is_known_by_the_next_agent() {
    block_on(async {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (identity, in_2096) = (authority.node(), Duration::from_secs(4_000_000_000));
        let edge = edge_of(&listener, &identity, &dir);
        let (mut cloud, _) = Cloud::accept(&listener, &authority.server(SERVER_NAME)).await;
        let welcome = Welcome {
            generation: 1,
            ticket: Ticket::new(b"ticket".to_vec()).unwrap(),
            epoch: 1,
            server_time_ms: in_2096.as_millis().try_into().unwrap(),
            features: Features::TICKET_HELD,
        };
        cloud.send(&Frame::Welcome(welcome)).await;
        assert_eq!(next_but_beats(&mut cloud).await, Frame::TicketHeld);
        edge.stop().await;

        let (_, Opened { settings, .. }) = Store::open(&Options::in_folder(dir.path())).unwrap();
        let (known, now) = (KnownTime::of_build(), clock::instant());
        time::recall(&known, &settings, &identity, now);
        assert!(known.least(now) >= in_2096, "{:?}", known.least(now));
    });
}

#[test]
fn a_refusal_is_told_with_its_code() {
    block_on(async {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut edge = edge_of(&listener, &authority.node(), &dir);
        let (mut cloud, _) = Cloud::accept(&listener, &authority.server(SERVER_NAME)).await;
        let reason = "join it by token".to_owned();
        let retry_after = Duration::from_mins(1);
        let refusal = Refusal { code: RefuseCode::StaleTicket, reason, retry_after };
        cloud.send(&Frame::Refuse(refusal)).await;
        // As cloudcore does: the connection ends right behind the refusal.
        drop(cloud);
        let is_told = |state: &LinkState| {
            matches!(state, LinkState::Down { reason, .. }
                if reason.ends_with("stale ticket: join it by token"))
        };
        soon("the refusal", edge.link.wait_for(is_told)).await.unwrap();
        edge.stop().await;
    });
}

#[test]
fn a_node_that_joined_anew_shows_no_ticket() {
    block_on(async {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = authority.server(SERVER_NAME);
        let mut edge = edge_of(&listener, &authority.node(), &dir);
        let (mut cloud, _) = Cloud::accept(&listener, &acceptor).await;
        let ticket = cloud.welcome(1).await;
        edge.is_up(1).await;
        drop(cloud);
        let (_, hello) = Cloud::accept(&listener, &acceptor).await;
        assert_eq!(hello.ticket, Some(ticket));
        edge.stop().await;

        let edge = edge_of(&listener, &authority.node(), &dir);
        let (_, hello) = Cloud::accept(&listener, &acceptor).await;
        assert_eq!(hello.ticket, None);
        edge.stop().await;
    });
}

/// The certificate that the node has shown.
fn shown(cloud: &Cloud) -> Vec<u8> {
    cloud.0.get_ref().get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[test]
fn who_joins_anew_is_another_at_the_next_dial() {
    block_on(async {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = authority.server(SERVER_NAME);
        let identity_dir = dir.path().join("identity");
        let mut edge = edge_of(&listener, &authority.join(&identity_dir), &dir);
        let (mut cloud, _) = Cloud::accept(&listener, &acceptor).await;
        cloud.welcome(1).await;
        edge.is_up(1).await;
        let before = shown(&cloud);
        authority.join(&identity_dir);
        drop(cloud);
        let (cloud, hello) = Cloud::accept(&listener, &acceptor).await;
        assert_eq!(hello.ticket, None);
        assert_ne!(shown(&cloud), before);
        // What cannot be read replaces nothing.
        let after = shown(&cloud);
        drop(cloud);
        std::fs::write(identity_dir.join("node.pem"), "nonsense").unwrap();
        let (cloud, _) = Cloud::accept(&listener, &acceptor).await;
        assert_eq!(shown(&cloud), after);
        edge.stop().await;
    });
}

#[test]
fn a_certificate_is_renewed_while_the_link_stays_and_the_ticket_stays_good() {
    block_on(async {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = authority.server(SERVER_NAME);
        let identity_dir = dir.path().join("identity");
        let identity = authority.join(&identity_dir);
        let mut edge = edge_of(&listener, &identity, &dir);
        let (mut cloud, _) = Cloud::accept(&listener, &acceptor).await;
        let before = shown(&cloud);
        let (_, until) = identity.validity.unwrap();
        let welcome = Welcome {
            generation: 1,
            ticket: Ticket::new(b"first".to_vec()).unwrap(),
            epoch: 1,
            server_time_ms: i64::try_from(until.as_millis()).unwrap(),
            features: Features::CERTIFICATES,
        };
        cloud.send(&Frame::Welcome(welcome.clone())).await;
        edge.is_up(1).await;
        let Frame::CertificateWanted { csr } = next_but_beats(&mut cloud).await else {
            panic!("no certificate is asked for")
        };
        let issued = Issued { certificate: authority.issue(&csr), authorities: Vec::new() };
        cloud.send(&Frame::CertificateIssued(issued.clone())).await;
        soon("the new certificate", async {
            while identity.reload(&identity_dir, clock::since_1970()).is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert!(matches!(*edge.link.borrow(), LinkState::Up { .. }), "the link was dropped");
        drop(cloud);
        let (cloud, hello) = Cloud::accept(&listener, &acceptor).await;
        assert_eq!(hello.ticket, Some(welcome.ticket));
        assert_eq!(shown(&cloud), issued.certificate);
        assert_ne!(shown(&cloud), before);
        edge.stop().await;
    });
}

/// The authority is about to be another: the node gets both, says so, and the link stays.
#[test]
fn an_outdated_certificate_is_renewed_at_once_and_the_cloud_is_told_what_is_stored() {
    block_on(async {
        let (authority, next) = (Authority::new(), Authority::new());
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = authority.server(SERVER_NAME);
        let identity = authority.join(&dir.path().join("identity"));
        let edge = edge_of(&listener, &identity, &dir);
        let (mut cloud, _) = Cloud::accept(&listener, &acceptor).await;
        let before = Fingerprint::of(&shown(&cloud));
        let features = Features(Features::CERTIFICATES.0 | Features::AUTHORITIES.0);
        cloud.welcome_with(1, features).await;
        let (first, second) = (authority.der(), next.der());
        let prints = [&first, &second].map(|der| Fingerprint::of(der));
        let held = |certificate, authorities: &[Fingerprint]| {
            let authorities = authorities.to_vec();
            Frame::IdentityHeld(IdentityHeld { certificate, authorities })
        };
        assert_eq!(next_but_beats(&mut cloud).await, held(before, &prints[..1]));

        cloud.send(&Frame::CertificateOutdated).await;
        let Frame::CertificateWanted { csr } = next_but_beats(&mut cloud).await else {
            panic!("no certificate is asked for")
        };
        let certificate = next.issue(&csr);
        let print = Fingerprint::of(&certificate);
        let issued = Issued { certificate, authorities: vec![first, second] };
        cloud.send(&Frame::CertificateIssued(issued)).await;
        assert_eq!(next_but_beats(&mut cloud).await, held(print, &prints));
        assert!(matches!(*edge.link.borrow(), LinkState::Up { .. }), "the link was dropped");

        // Whoever of both answers next is believed, and an agent that starts again knows both.
        drop(cloud);
        let found = load(&dir.path().join("identity"), clock::since_1970()).unwrap().held();
        assert_eq!(found, IdentityHeld { certificate: print, authorities: prints.to_vec() });
        edge.stop().await;
    });
}

#[test]
fn streams_reach_whoever_serves_them_and_end_with_the_link() {
    block_on(async {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = authority.server(SERVER_NAME);
        let mut edge = edge_of(&listener, &authority.node(), &dir);
        let (mut cloud, _) = Cloud::accept(&listener, &acceptor).await;
        cloud.welcome(1).await;

        let unknown = StreamId(1);
        cloud.send(&Frame::StreamOpen { id: unknown, kind: StreamKind(99) }).await;
        assert!(matches!(
            next_but_beats(&mut cloud).await,
            Frame::StreamClose { id, .. } if id == unknown
        ));
        let id = StreamId(2);
        cloud.send(&Frame::StreamOpen { id, kind: StreamKind::KUBELET_API }).await;
        let bytes = Bytes::from_static(b"request");
        cloud.send(&Frame::StreamData { id, bytes, end: false }).await;
        let mut stream = soon("the stream", edge.streams.recv()).await.unwrap();
        let mut request = [0; 7];
        soon("the request", stream.read_exact(&mut request)).await.unwrap();
        assert_eq!(&request, b"request");
        stream.write_all(b"answer").await.unwrap();
        let answer = Frame::StreamData { id, bytes: Bytes::from_static(b"answer"), end: false };
        assert_eq!(next_but_beats(&mut cloud).await, answer);

        let id = StreamId(3);
        cloud.send(&Frame::StreamOpen { id, kind: StreamKind::KUBELET_API }).await;
        let mut other = soon("the stream", edge.streams.recv()).await.unwrap();
        other.write_all(b"last words").await.unwrap();
        other.shutdown().await.unwrap();
        drop(other);
        let bytes = Bytes::from_static(b"last words");
        assert_eq!(next_but_beats(&mut cloud).await, Frame::StreamData { id, bytes, end: true });

        drop(cloud);
        let error = soon("the end", stream.read(&mut request)).await.unwrap_err();
        assert_eq!(error.to_string(), "the link is down");
        edge.stop().await;
    });
}

fn edge_of(listener: &TcpListener, identity: &Identity, dir: &tempfile::TempDir) -> Edge {
    edge(listener.local_addr().unwrap(), identity.clone(), dir.path())
}

#[test]
fn events_that_find_no_room_are_counted() {
    block_on(async {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let edge = edge_of(&listener, &authority.node(), &dir);
        for _ in 0..EVENTS_MAX + 3 {
            edge.upstream.event(Bytes::from_static(b"{}"));
            // Some are dropped by the session, which takes them, and some before.
            tokio::task::yield_now().await;
        }
        let counted = async {
            while edge.upstream.dropped() != 3 {
                tokio::task::yield_now().await;
            }
        };
        soon("the count", counted).await;
        edge.stop().await;
    });
}
