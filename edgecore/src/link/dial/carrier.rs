//! What TLS to cloudcore is carried by: TCP, or the tunnel of a proxy that is itself encrypted. Keeps the
//! first bytes of the peer, so that one that does not speak TLS can be named.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// As many as name a protocol.
const FIRST_BYTES: usize = 8;

#[derive(Debug)]
pub(super) enum Inner {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

/// A stream of bytes to the peer.
#[derive(Debug)]
pub struct Carrier {
    inner: Inner,
    first: [u8; FIRST_BYTES],
    seen: usize,
}

impl Carrier {
    pub(super) fn new(inner: Inner) -> Self {
        Self { inner, first: [0; FIRST_BYTES], seen: 0 }
    }

    /// The first bytes that came.
    pub(super) fn first(&self) -> &[u8] {
        &self.first[..self.seen]
    }

    /// The address of who is connected; that of the proxy, if there is one.
    pub fn peer(&self) -> Option<IpAddr> {
        let socket = match &self.inner {
            Inner::Plain(socket) => socket,
            Inner::Encrypted(stream) => stream.get_ref().0,
        };

        socket.peer_addr().ok().map(|address| address.ip().to_canonical())
    }
}

impl From<TcpStream> for Carrier {
    fn from(socket: TcpStream) -> Self {
        Self::new(Inner::Plain(socket))
    }
}

impl AsyncRead for Carrier {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(match &mut this.inner {
            Inner::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Inner::Encrypted(stream) => Pin::new(stream).poll_read(cx, buffer),
        })?;
        let new = &buffer.filled()[before..];
        let kept = new.len().min(FIRST_BYTES - this.seen);
        this.first[this.seen..this.seen + kept].copy_from_slice(&new[..kept]);
        this.seen += kept;

        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Inner::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Inner::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Inner::Plain(socket) => socket.is_write_vectored(),
            Inner::Encrypted(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Inner::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Inner::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
