//! What stands between a node and cloudcore in real networks: a proxy that gives tunnels to who says the right
//! words, and a captive portal.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 4096;

/// For a request, and for the way to where it asks for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A proxy, until dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where it is.
    pub address: SocketAddr,
    wanted: watch::Sender<String>,
    tunnels: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens at an address, and gives tunnels to those who say this in `Proxy-Authorization`.
    pub async fn start(address: &str, authorization: &str) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let (wanted, words) = watch::channel(authorization.to_owned());
        let (tunnels, mut tasks) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        tasks.spawn(accept(listener, words, Arc::clone(&tunnels)));

        Ok(Self { address, wanted, tunnels, _tasks: tasks })
    }

    /// From now on it wants these words. All tunnels end.
    pub fn want(&self, authorization: &str) {
        self.wanted.send_replace(authorization.to_owned());
    }

    /// Tunnels that it has given.
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, words: watch::Receiver<String>, tunnels: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (words, tunnels) = (words.clone(), Arc::clone(&tunnels));
        connections.spawn(async move {
            let _either_side_may_end_it = serve(client, words, &tunnels).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(
    mut client: TcpStream,
    mut words: watch::Receiver<String>,
    tunnels: &AtomicUsize,
) -> Result<()> {
    let head = timeout(PATIENCE, head(&mut client)).await??;
    let wanted = words.borrow_and_update().clone();
    let mut lines = head.split("\r\n");
    let mut request = lines.next().unwrap_or_default().split(' ');
    let (method, to) = (request.next(), request.next().context("no address")?);
    ensure!(method == Some("CONNECT"), "{head}");
    let said = lines.find_map(|line| line.strip_prefix("Proxy-Authorization: "));
    if said != Some(wanted.as_str()) {
        let answer = "HTTP/1.1 407 Proxy Authentication Required\r\n\
                      Proxy-Authenticate: Basic realm=\"test\"\r\nContent-Length: 0\r\n\r\n";
        client.write_all(answer.as_bytes()).await?;
        return Ok(());
    }
    let Ok(Ok(mut server)) = timeout(PATIENCE, TcpStream::connect(to)).await else {
        client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await?;
        return Ok(());
    };
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    tunnels.fetch_add(1, Ordering::Relaxed);
    tokio::select! {
        ended = copy_bidirectional(&mut client, &mut server) => {
            let _bytes = ended?;
        }
        _changed = words.changed() => {}
    }

    Ok(())
}

async fn head(client: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < HEAD_BYTES_MAX, "too long");
        ensure!(client.read_buf(&mut head).await? > 0, "it has gone");
    }

    Ok(String::from_utf8(head)?)
}

/// A web server that leads everybody to its own page, until dropped.
#[derive(Debug)]
pub struct Portal {
    /// Where it is.
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Portal {
    /// Listens at an address.
    pub async fn start(address: &str) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                clients.spawn(timeout(PATIENCE, show(client)));
                while clients.try_join_next().is_some() {}
            }
        });

        Ok(Self { address, _tasks: tasks })
    }
}

/// Shows the page to who asks for anything.
async fn show(mut client: TcpStream) -> Result<()> {
    let _asked = client.read(&mut [0; HEAD_BYTES_MAX]).await?;
    let page = "HTTP/1.1 302 Found\r\nLocation: http://portal.test/\r\n\
                Content-Length: 0\r\nConnection: close\r\n\r\n";

    Ok(client.write_all(page.as_bytes()).await?)
}
