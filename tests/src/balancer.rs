//! A TCP balancer in front of replicas, as a Service is: it leads to those that say they are ready, and
//! leaves connections alone that it has led.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Between questions whether a replica is ready.
const PROBE_PERIOD: Duration = Duration::from_millis(200);

/// Longest wait for the answer, or for a connection.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// A replica as the balancer sees it.
#[derive(Debug)]
struct Backend {
    link: SocketAddr,
    is_ready: bool,
    connections: usize,
}

type Backends = Arc<Mutex<Vec<Backend>>>;

fn lock(backends: &Backends) -> MutexGuard<'_, Vec<Backend>> {
    backends.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The balancer, until dropped.
#[derive(Debug)]
pub struct Balancer {
    /// Where it is.
    pub address: SocketAddr,
    backends: Backends,
    _tasks: JoinSet<()>,
}

impl Balancer {
    /// Listens at an address; of each replica it is told where edges connect, and where to ask if it is ready.
    pub async fn start(address: &str, replicas: &[(String, String)]) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let (backends, mut tasks) = (Backends::default(), JoinSet::new());
        for (number, (link, probes)) in replicas.iter().enumerate() {
            let (link, probes) = (link.parse()?, probes.parse()?);
            let is_ready = is_ready(probes).await;
            ensure!(is_ready, "{link} is not ready");
            lock(&backends).push(Backend { link, is_ready, connections: 0 });
            tasks.spawn(watch(Arc::clone(&backends), number, probes));
        }
        tasks.spawn(accept(listener, Arc::clone(&backends)));

        Ok(Self { address, backends, _tasks: tasks })
    }

    /// How many connections it has led to each replica that are still there.
    pub fn connections(&self) -> Vec<usize> {
        lock(&self.backends).iter().map(|backend| backend.connections).collect()
    }
}

async fn watch(backends: Backends, number: usize, probes: SocketAddr) {
    loop {
        let is_ready = is_ready(probes).await;
        lock(&backends)[number].is_ready = is_ready;
        sleep(PROBE_PERIOD).await;
    }
}

async fn is_ready(probes: SocketAddr) -> bool {
    let asked = async {
        let mut socket = TcpStream::connect(probes).await?;
        let request = "GET /readyz HTTP/1.1\r\nHost: probes\r\nConnection: close\r\n\r\n";
        socket.write_all(request.as_bytes()).await?;
        let mut status = [0; 12];
        socket.read_exact(&mut status).await?;
        ensure!(&status == b"HTTP/1.1 200", "it is not");
        Ok(())
    };

    matches!(timeout(ANSWER_MAX, asked).await, Ok(Ok(())))
}

async fn accept(listener: TcpListener, backends: Backends) {
    let mut connections = JoinSet::new();
    while let Ok((edge, _)) = listener.accept().await {
        connections.spawn(lead(edge, Arc::clone(&backends)));
        while connections.try_join_next().is_some() {}
    }
}

/// One connection, to the ready replica that has fewest.
async fn lead(mut edge: TcpStream, backends: Backends) {
    let chosen = {
        let mut backends = lock(&backends);
        let ready = backends.iter_mut().enumerate().filter(|(_, backend)| backend.is_ready);
        ready.min_by_key(|(_, backend)| backend.connections).map(|(number, backend)| {
            backend.connections += 1;
            (number, backend.link)
        })
    };
    let Some((number, link)) = chosen else { return };
    let led = async {
        let mut replica = timeout(ANSWER_MAX, TcpStream::connect(link)).await.context("slow")??;
        edge.set_nodelay(true)?;
        replica.set_nodelay(true)?;
        copy_bidirectional(&mut edge, &mut replica).await?;
        Ok::<(), anyhow::Error>(())
    };
    let _either_side_may_end_it = led.await;
    lock(&backends)[number].connections -= 1;
}
