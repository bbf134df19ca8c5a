//! Connections as they come: handshakes beside each other, bounded in number and time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::Certified;
use super::connection::Connection;
use super::identity::Identity;

/// Handshakes under way. Who comes then waits in the listener's own queue.
const HANDSHAKES_MAX: usize = 512;
/// How long a handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How long to wait where the process has no more files to open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An accepted connection.
type Accepted = Connection<TlsStream<TcpStream>>;

struct Accepting {
    listener: TcpListener,
    identity: Arc<Identity>,
    handshakes: JoinSet<io::Result<Accepted>>,
}

/// The connections that come to `listener` as `identity`, for tonic to serve. Never
/// ends, and has no errors: who fails to shake hands is turned away.
pub fn accept(
    listener: TcpListener,
    identity: Arc<Identity>,
) -> impl Stream<Item = io::Result<Accepted>> + Send {
    let accepting = Accepting { listener, identity, handshakes: JoinSet::new() };
    stream::unfold(accepting, |mut accepting| async move {
        let accepted = accepting.next().await;
        Some((Ok(accepted), accepting))
    })
}

impl Accepting {
    async fn next(&mut self) -> Accepted {
        loop {
            let has_room = self.handshakes.len() < HANDSHAKES_MAX;
            tokio::select! {
                Some(shaken) = self.handshakes.join_next() => match shaken {
                    Ok(Ok(connection)) => return connection,
                    Ok(Err(error)) => tracing::debug!(%error, "handshake failed"),
                    Err(error) => tracing::warn!(%error, "handshake broke off"),
                },
                accepted = self.listener.accept(), if has_room => match accepted {
                    Ok((stream, address)) => {
                        let acceptor = TlsAcceptor::from(Arc::clone(&self.identity.current().server));
                        self.handshakes.spawn(shake_hands(acceptor, stream, address));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection cannot be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
) -> io::Result<Accepted> {
    // Small answers must not wait for the peer's acknowledgement. Best effort.
    let _ = stream.set_nodelay(true);
    let stream = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await??;
    let certified = match stream.get_ref().1.peer_certificates() {
        None => None,
        Some(chain) => Some(first(chain)?),
    };
    Ok(Connection::new(stream, address, certified))
}

/// Of the peer itself.
pub(super) fn first(chain: &[CertificateDer<'_>]) -> io::Result<Certified> {
    let leaf = chain.first().ok_or_else(|| io::Error::other("a chain without certificates"))?;
    Certified::read(leaf).map_err(io::Error::other)
}
