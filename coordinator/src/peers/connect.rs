//! Ways to another coordinator: the one place where replicas dial.

use std::path::PathBuf;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use steading_proto::tls;
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::identity::Secured;

/// What the other side may send ahead on one stream, bytes, and on all of a connection.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Where a coordinator listens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Unix(PathBuf),
    /// `HOST:PORT` on this machine.
    Loopback(String),
}

/// Why an endpoint cannot be dialled. Always its writer's mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no endpoint: want https://HOST:PORT, unix:PATH or http://127.0.0.1:PORT")]
pub(crate) struct EndpointError(String);

/// Dials other coordinators as this one, with its certificate once it has one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dialler {
    pub(crate) secured: Secured,
    /// Of one that is about to join.
    pub(crate) identity: Option<Arc<tls::Identity>>,
}

impl Dialler {
    /// A channel to `endpoint`. It connects when it is first used, and again whenever it broke.
    ///
    /// # Errors
    ///
    /// [`EndpointError`].
    pub(crate) fn channel(&self, endpoint: &str) -> Result<Channel, EndpointError> {
        if endpoint.starts_with("https://") {
            let secured = self.secured.get().map(|credentials| &credentials.identity);
            let error = || EndpointError(endpoint.to_owned());
            let identity = self.identity.as_ref().or(secured).ok_or_else(error)?;
            return tls::channel(endpoint, Arc::clone(identity)).map_err(|_| error());
        }
        let no_address = Endpoint::from_static("http://coordinator.steading.internal")
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Ok(match address(endpoint)? {
            Address::Unix(path) => {
                no_address.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                }))
            }
            Address::Loopback(to) => {
                no_address.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                    let to = to.clone();
                    async move {
                        let stream = TcpStream::connect(to).await?;
                        // Small messages must not wait for the peer's acknowledgement.
                        let _ = stream.set_nodelay(true);
                        Ok::<_, std::io::Error>(TokioIo::new(stream))
                    }
                }))
            }
        })
    }
}

/// Whether `endpoint` can be dialled at all.
///
/// # Errors
///
/// [`EndpointError`].
pub(crate) fn check_endpoint(endpoint: &str) -> Result<(), EndpointError> {
    if endpoint.starts_with("https://") {
        let error = |_| EndpointError(endpoint.to_owned());
        return tls::authority(endpoint).map(drop).map_err(error);
    }
    address(endpoint).map(drop)
}

fn address(endpoint: &str) -> Result<Address, EndpointError> {
    let error = || EndpointError(endpoint.to_owned());
    if let Some(path) = endpoint.strip_prefix("unix:") {
        // `unix:///path` is what gRPC's own names look like.
        let path = path.strip_prefix("//").unwrap_or(path);
        return if path.is_empty() { Err(error()) } else { Ok(Address::Unix(path.into())) };
    }
    let uri: Uri = endpoint.parse().map_err(|_| error())?;
    match (uri.scheme_str(), uri.authority(), uri.port_u16(), uri.host()) {
        // Plain text does not leave this machine.
        (Some("http"), Some(to), Some(_), Some("127.0.0.1" | "[::1]" | "localhost")) => {
            Ok(Address::Loopback(to.as_str().to_owned()))
        }
        _ => Err(error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_on_this_machine() {
        for good in ["unix:/run/s", "unix:///run/s", "http://127.0.0.1:7", "http://[::1]:7"] {
            assert_eq!(check_endpoint(good), Ok(()), "{good}");
        }
        for bad in
            ["", "unix:", "127.0.0.1:7", "http://10.0.0.1:7", "http://127.0.0.1", "ftp://h:1"]
        {
            assert_eq!(check_endpoint(bad), Err(EndpointError(bad.into())), "{bad}");
        }
    }
}
