//! Channels to coordinators.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::accept::first;
use super::certificate::SpkiHash;
use super::connection::Connection;
use super::identity::Identity;
use super::verify::Pinned;
use super::{ALPN, SERVER_NAME, provider};

/// How long a connection may take to come about, its handshake included.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How often a connection is asked for a sign of life, so that a machine that went away
/// without a word is noticed, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const KEEP_ALIVE_ANSWER_MAX: Duration = Duration::from_secs(5);
/// What the other side may send ahead on one stream, bytes, and on all of a connection.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Why an endpoint cannot be dialled.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("`{0}` is no endpoint: want https://HOST:PORT")]
    Spelling(String),
    #[error("the connection cannot be prepared")]
    Tls(#[from] rustls::Error),
}

/// `HOST:PORT` of an `https://HOST:PORT` endpoint.
///
/// # Errors
///
/// [`ChannelError::Spelling`], also for one with a path.
pub fn authority(endpoint: &str) -> Result<String, ChannelError> {
    let spelling = || ChannelError::Spelling(endpoint.to_owned());
    let text = endpoint.strip_prefix("https://").ok_or_else(spelling)?;
    let text = text.strip_suffix('/').unwrap_or(text);
    let (host, port) = text.rsplit_once(':').ok_or_else(spelling)?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !host.is_empty() && host.chars().all(allowed)
        }
    };
    if !is_host || port.parse::<u16>().is_err() {
        return Err(spelling());
    }
    Ok(text.to_owned())
}

/// A channel to the coordinator at `endpoint` (`https://HOST:PORT`), as `identity`. It
/// connects when it is first used, and again whenever it broke, each time with what is
/// then in force.
///
/// # Errors
///
/// [`ChannelError::Spelling`].
pub fn channel(endpoint: &str, identity: Arc<Identity>) -> Result<Channel, ChannelError> {
    dial(endpoint, move || Arc::clone(&identity.current().client))
}

/// One connection to the coordinator at `endpoint`, for those who make channels of their
/// own.
///
/// # Errors
///
/// It cannot be reached, or one side does not believe the other.
pub async fn dial_stream(
    endpoint: &str,
    identity: &Identity,
) -> io::Result<Connection<TlsStream<TcpStream>>> {
    let authority = authority(endpoint).map_err(io::Error::other)?;
    let config = Arc::clone(&identity.current().client);
    tokio::time::timeout(CONNECT_MAX, connect(&authority, config)).await?
}

/// A channel of somebody who has no certificate yet: the coordinator is believed if its
/// CA has this key.
///
/// # Errors
///
/// [`ChannelError`].
pub fn pinned_channel(endpoint: &str, pin: SpkiHash) -> Result<Channel, ChannelError> {
    let config = pinned_config(pin)?;
    dial(endpoint, move || Arc::clone(&config))
}

pub(super) fn pinned_config(pin: SpkiHash) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn dial(
    endpoint: &str,
    config: impl Fn() -> Arc<ClientConfig> + Send + Sync + 'static,
) -> Result<Channel, ChannelError> {
    let authority = authority(endpoint)?;
    let connector = service_fn(move |_: Uri| {
        let (authority, config) = (authority.clone(), config());
        async move {
            let connected = tokio::time::timeout(CONNECT_MAX, connect(&authority, config));
            connected.await?.map(TokioIo::new)
        }
    });
    // The connector knows where to go; this is what stands in the requests.
    let endpoint = Endpoint::from_static("http://coordinator.steading.internal")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER_MAX)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

pub(super) async fn connect(
    authority: &str,
    config: Arc<ClientConfig>,
) -> io::Result<Connection<TlsStream<TcpStream>>> {
    let stream = TcpStream::connect(authority).await?;
    // Small requests must not wait for the peer's acknowledgement. Best effort.
    let _ = stream.set_nodelay(true);
    let address = stream.peer_addr()?;
    let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certified = first(chain)?;
    Ok(Connection::new(stream, address, Some(certified)))
}
