//! Connections as they come: handshakes beside each other, bounded in number and time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::certificate::Certified;
use super::connection::{Connection, Peer};
use super::crowd::Crowd;
use super::identity::Identity;

/// Handshakes under way. Who comes then takes the place of the oldest one from where most
/// come.
const HANDSHAKES_MAX: usize = 512;
/// Connections without a certificate, which end in the same way. Each is there for one join.
pub(super) const STRANGERS_MAX: usize = 256;
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
    shaking: Crowd<AbortHandle>,
    strangers: Crowd<CancellationToken>,
}

/// The connections that come to `listener` as `identity`, for tonic to serve. Never
/// ends, and has no errors: who fails to shake hands is turned away.
pub fn accept(
    listener: TcpListener,
    identity: Arc<Identity>,
) -> impl Stream<Item = io::Result<Accepted>> + Send {
    let accepting = Accepting {
        listener,
        identity,
        handshakes: JoinSet::new(),
        shaking: Crowd::new(HANDSHAKES_MAX),
        strangers: Crowd::new(STRANGERS_MAX),
    };
    stream::unfold(accepting, |mut accepting| async move {
        let accepted = accepting.next().await;
        Some((Ok(accepted), accepting))
    })
}

impl Accepting {
    async fn next(&mut self) -> Accepted {
        loop {
            tokio::select! {
                // Those that are done first, so that they do not pile up.
                biased;
                Some(shaken) = self.handshakes.join_next() => match shaken {
                    Ok(Ok(connection)) => {
                        self.bound_strangers(connection.peer());
                        return connection;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "handshake failed"),
                    Err(error) if error.is_cancelled() => tracing::debug!("handshake given up"),
                    Err(error) => tracing::warn!(%error, "handshake broke off"),
                },
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => self.shake(stream, address),
                    Err(error) => {
                        tracing::warn!(%error, "a connection cannot be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn shake(&mut self, stream: TcpStream, address: SocketAddr) {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.identity.current().server));
        let handshake = self.handshakes.spawn(shake_hands(acceptor, stream, address));
        self.shaking.retain(|handshake| !handshake.is_finished());
        if let Some(oldest) = self.shaking.push(address.ip(), handshake) {
            oldest.abort();
        }
    }

    fn bound_strangers(&mut self, peer: &Peer) {
        if peer.certified.is_some() {
            return;
        }
        self.strangers.retain(|close| !close.is_cancelled());
        if let Some(oldest) = self.strangers.push(peer.address.ip(), peer.close.clone()) {
            tracing::debug!(%peer.address, "too many without a certificate: one is cut off");
            oldest.cancel();
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
