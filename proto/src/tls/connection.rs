//! A TLS connection that ends with the certificate of its other end.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::certificate::Certified;
use super::identity::now;

/// Who is at the other end of a connection. In the extensions of every request that
/// came over it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// None: it showed no certificate, and may do nothing but join.
    pub certified: Option<Arc<Certified>>,
    /// Ends the connection, and every stream on it. Cancelled when it has ended.
    pub close: CancellationToken,
}

/// One connection. Reads and writes fail once the peer's certificate is over, or
/// [`Peer::close`] is cancelled.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    peer: Peer,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    over: Pin<Box<Sleep>>,
}

/// How long a connection without a certificate may stay: one join takes no longer.
const STRANGER: Duration = Duration::from_secs(60);

impl<S> Connection<S> {
    pub(super) fn new(stream: S, address: SocketAddr, certified: Option<Certified>) -> Self {
        let left = match &certified {
            Some(certified) => Duration::from_millis(certified.not_after.since_ms(now())),
            None => STRANGER,
        };
        let close = CancellationToken::new();
        let closed = Box::pin(close.clone().cancelled_owned());
        let over = Box::pin(tokio::time::sleep_until(Instant::now() + left));
        let peer = Peer { address, certified: certified.map(Arc::new), close };
        Self { stream, peer, closed, over }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Also makes the caller hear of the end.
    fn end(&mut self, context: &mut Context<'_>) -> Option<io::Error> {
        if self.closed.as_mut().poll(context).is_ready() {
            return Some(io::Error::new(io::ErrorKind::ConnectionAborted, "the peer was cut off"));
        }
        if self.over.as_mut().poll(context).is_ready() {
            let over = "the time of the peer's certificate is over";
            return Some(io::Error::new(io::ErrorKind::TimedOut, over));
        }
        None
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(error) = this.end(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(error) = this.end(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(error) = this.end(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut this.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Whoever keeps a list of connections sees that this one is no more.
impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.peer.close.cancel();
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}
