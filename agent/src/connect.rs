//! How the coordinator is reached.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use steading_proto::tls::{self, Identity};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::cluster::Dial;

/// How long one try to connect may take. In one region it takes milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a silent connection is tried, and how long an answer may take: a machine that
/// is gone says nothing.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error(
        "`{0}` is no endpoint: want https://HOST:PORT (with an identity), unix:/PATH, or \
         http://127.0.0.1:PORT"
    )]
    Spelling(String),
    #[error("`{0}` wants to know who asks, and this agent has no certificate: --join TOKEN")]
    NoCertificate(String),
    #[error(
        "`{0}` is on another machine, or not allowed, and plain text does not leave this one: use \
         https://HOST:PORT, unix:/PATH, or a loopback address with --insecure-loopback"
    )]
    NotHere(String),
}

/// A channel to `unix:/PATH`, or to `http://LOOPBACK:PORT` if `insecure_loopback`. It
/// connects when it is first used, and again whenever it broke.
///
/// # Errors
///
/// [`EndpointError`] where the text names no place that may be spoken to.
pub fn connect(endpoint: &str, insecure_loopback: bool) -> Result<Channel, EndpointError> {
    if let Some(path) = endpoint.strip_prefix("unix:") {
        let path = path.to_owned();
        let connector = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name is never looked up: the connector knows where to go.
        let endpoint = lasting(Endpoint::from_static("http://unix"));
        return Ok(endpoint.connect_with_connector_lazy(connector));
    }
    let spelling = || EndpointError::Spelling(endpoint.to_owned());
    let uri: Uri = endpoint.parse().map_err(|_| spelling())?;
    let host = uri.host().ok_or_else(spelling)?;
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    let loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    if uri.scheme_str() != Some("http") {
        return Err(spelling());
    }
    if !loopback || !insecure_loopback {
        return Err(EndpointError::NotHere(endpoint.to_owned()));
    }
    Ok(lasting(Endpoint::from(uri)).tcp_nodelay(true).connect_lazy())
}

/// [`connect`], for a [`crate::Cluster`]; over mTLS to `https://HOST:PORT`, where there is
/// an identity to show.
pub fn dial(identity: Option<Arc<Identity>>, insecure_loopback: bool) -> Dial {
    Arc::new(move |endpoint| match &identity {
        Some(identity) if endpoint.starts_with("https://") => {
            tls::channel(endpoint, Arc::clone(identity))
                .map_err(|_| EndpointError::Spelling(endpoint.to_owned()))
        }
        None if endpoint.starts_with("https://") => {
            Err(EndpointError::NoCertificate(endpoint.to_owned()))
        }
        Some(_) | None => connect(endpoint, insecure_loopback),
    })
}

/// A connection that is kept, and whose end is noticed.
fn lasting(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_this_machine_is_spoken_to_in_plain_text() {
        assert!(connect("unix:/run/steading.sock", false).is_ok());
        assert!(connect("http://127.0.0.1:7000", true).is_ok());
        assert!(connect("http://[::1]:7000", true).is_ok());
        for (endpoint, insecure) in
            [("http://127.0.0.1:7000", false), ("http://10.0.0.1:7000", true)]
        {
            assert!(matches!(connect(endpoint, insecure), Err(EndpointError::NotHere(_))));
        }
        for endpoint in ["", "nowhere", "https://127.0.0.1:1"] {
            assert!(matches!(connect(endpoint, true), Err(EndpointError::Spelling(_))));
        }
    }
}
