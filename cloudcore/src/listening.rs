//! Ports, of one family or both: `[::]` takes IPv4 too, and stands for `0.0.0.0` where there is no IPv6.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use rustix::io::Errno;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};

/// Takes a port, on which so many connections may wait to be accepted.
pub fn bind(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => match TcpSocket::new_v6() {
            Err(error) if is_everywhere(address) && is_without_v6(&error) => {
                return bind(
                    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()),
                    backlog,
                );
            }
            socket => socket?,
        },
    };
    if is_everywhere(address) && address.is_ipv6() {
        // Whatever the machine's default is.
        SockRef::from(&socket).set_only_v6(false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;

    socket.listen(backlog)
}

fn is_everywhere(address: SocketAddr) -> bool {
    address.ip().is_unspecified()
}

fn is_without_v6(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::AFNOSUPPORT)
}

/// The peer as one of its own family: one of IPv4 looks otherwise to a port of both.
pub fn plain(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn a_port_of_both_families_is_reached_by_both() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = bind("[::]:0".parse().unwrap(), 4).unwrap();
            let port = listener.local_addr().unwrap().port();
            // A machine may have no IPv6 at all.
            let addresses = if listener.local_addr().unwrap().is_ipv6() {
                &["127.0.0.1", "::1"][..]
            } else {
                &["127.0.0.1"][..]
            };
            for address in addresses {
                let to = SocketAddr::new(address.parse().unwrap(), port);
                let (connected, accepted) = tokio::join!(TcpStream::connect(to), listener.accept());
                let peer = plain(accepted.unwrap().1);
                assert_eq!(peer, connected.unwrap().local_addr().unwrap());
            }
        });
    }
}
