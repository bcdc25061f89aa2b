//! Watches this node's way to the outside: told by the kernel (rtnetlink) when an address or a route
//! changes, it looks whether the address that the default route uses is another one.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::node::facts;
use crate::telemetry::chain;

/// Messages about addresses and routes (rtnetlink(7): `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`,
/// `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE`).
const GROUPS: u32 = 0x10 | 0x40 | 0x100 | 0x400;

/// It is looked that often even if the kernel says nothing.
const PERIOD: Duration = Duration::from_secs(10);

/// Of a message only its arrival counts; what does not fit is dropped by the kernel.
const MESSAGE_BYTES: usize = 64;

/// Messages taken at once: pods that come and go cause some, and each look covers all of them.
const MESSAGES_AT_ONCE_MAX: usize = 256;

/// The addresses of this node.
#[derive(Debug)]
pub struct Addresses {
    /// Overrides what is found.
    configured: Option<IpAddr>,
    /// The address of the default route when it was last looked.
    path: Option<IpAddr>,
    told: watch::Sender<Vec<String>>,
}

impl Addresses {
    /// As they are now, and a receiver that is told when the way to the outside changes, even if
    /// the addresses are as before. Without any address the last one is still the best answer.
    pub fn new(configured: Option<IpAddr>) -> (Self, watch::Receiver<Vec<String>>) {
        let path = facts::default_address();
        let now = configured.or(path).iter().map(ToString::to_string).collect();
        let (told, receiver) = watch::channel(now);

        (Self { configured, path, told }, receiver)
    }

    fn look(&mut self, path: Option<IpAddr>) {
        if self.path == path {
            return;
        }
        self.path = path;
        let Some(path) = path else {
            tracing::info!("this node has no way to the outside");
            return;
        };
        let address = self.configured.unwrap_or(path);
        tracing::info!(%path, "the way to the outside has changed");
        self.told.send_replace(vec![address.to_string()]);
    }
}

/// Watches until asked to stop.
pub async fn run(mut addresses: Addresses, stop: CancellationToken) {
    let socket = listen();
    if let Err(error) = &socket {
        tracing::warn!(error = %chain(error), "an address change is seen late: no netlink socket");
    }
    let socket = socket.ok();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = messages(socket.as_ref()) => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
        addresses.look(facts::default_address());
    }
}

/// A socket for datagrams of the kernel, which is all that tokio needs to know of it.
fn listen() -> io::Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // No protocol stands for NETLINK_ROUTE.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;

    UdpSocket::from_std(socket.into())
}

/// Resolves when there were messages; they are taken.
async fn messages(socket: Option<&UdpSocket>) {
    let Some(socket) = socket else { return std::future::pending().await };
    let mut message = [0; MESSAGE_BYTES];
    match socket.recv(&mut message).await {
        Ok(_) => {}
        // Messages that were lost are messages too.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {}
        Err(_broken) => return std::future::pending().await,
    }
    for _ in 0..MESSAGES_AT_ONCE_MAX {
        if socket.try_recv(&mut message).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(configured: Option<&str>, looks: &[(Option<&str>, Option<&str>)]) {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        let (told, mut receiver) = watch::channel(Vec::new());
        let mut addresses = Addresses { configured: configured.map(parse), path: None, told };
        for (found, expected) in looks {
            addresses.look(found.map(parse));
            let changed = receiver.has_changed().unwrap();
            let now = receiver.borrow_and_update().first().cloned();
            assert_eq!(now.as_deref().filter(|_| changed), *expected, "{found:?} in {looks:?}");
        }
    }

    #[test]
    fn what_is_told() {
        let (a, b) = ("192.0.2.1", "192.0.2.2");
        check(None, &[(Some(a), Some(a)), (Some(a), None), (Some(b), Some(b))]);
        check(None, &[(None, None), (Some(a), Some(a)), (None, None), (Some(a), Some(a))]);
        check(Some(b), &[(Some(a), Some(b)), (Some(a), None), (Some("::1"), Some(b))]);
    }

    #[test]
    fn the_kernel_lets_us_listen() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = listen().unwrap();
            let nothing = socket.try_recv(&mut [0; MESSAGE_BYTES]).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        });
    }

    /// Says to the test's program that it is in a network of its own.
    const ALONE: &str = "HOLDFAST_TEST_ALONE";

    /// Changes routes, so the test's program runs it a second time, in a network of its own.
    #[test]
    fn changes_are_told_at_once() {
        if std::env::var_os(ALONE).is_some() {
            return tell_changes();
        }
        let module = module_path!().split_once("::").unwrap().1;
        let output = std::process::Command::new("unshare")
            .arg("--net")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::changes_are_told_at_once")])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{output:?}");
    }

    fn tell_changes() {
        let ip = |arguments: &str| {
            let status = std::process::Command::new("ip").args(arguments.split(' ')).status();
            assert!(status.unwrap().success(), "ip {arguments}");
        };
        assert_eq!(facts::default_address(), None, "this is not a network of its own");
        ip("link add uplink type veth peer name other");
        ip("link set other up");
        ip("link set uplink up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (addresses, mut told) = Addresses::new(None);
            let stop = CancellationToken::new();
            let changes = async {
                for (add, remove) in [("192.0.2.1", None), ("192.0.2.2", Some("192.0.2.1"))] {
                    if let Some(address) = remove {
                        ip(&format!("addr del {address}/24 dev uplink"));
                    }
                    ip(&format!("addr add {add}/24 dev uplink"));
                    ip("route replace default dev uplink");
                    tokio::time::timeout(PERIOD / 2, told.changed()).await.unwrap().unwrap();
                    assert_eq!(*told.borrow_and_update(), [add]);
                }
                stop.cancel();
            };
            tokio::join!(run(addresses, stop.clone()), changes);
        });
    }
}
