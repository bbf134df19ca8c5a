//! Ways to a coordinator.

use std::path::PathBuf;
use std::time::Duration;

use steading_proto::tls::{self, Identity};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Endpoint as TonicEndpoint, Uri};
use tonic::{Code, Status};

use crate::exit::Failure;

/// How long a coordinator may be away before a client that has a run there gives up.
/// Jobs stay frozen as long (`FROZEN_MS_MAX`), so giving up earlier would lose a run
/// that the farm does not.
pub const AWAY_MAX: Duration = Duration::from_secs(600);

/// How long a coordinator is waited for that has not answered yet: long enough for
/// its restart, short enough for a mistyped address.
pub const FIRST_ANSWER_MAX: Duration = Duration::from_secs(20);

/// First and longest pause between attempts.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// Where a coordinator listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// `http://HOST:PORT`, plain text, this machine only.
    Loopback(Uri),
    /// `https://HOST:PORT`, mTLS.
    Tls(String),
}

/// Bytes both ways, over whatever it is.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// An open connection.
pub type Stream = Box<dyn Bytes>;

/// Why a text is no endpoint. Always the caller's mistake.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("`{0}` is no endpoint\n  hint: write https://HOST:PORT, or unix:/PATH")]
    Form(String),
    #[error(
        "`{0}` is not on this machine, and plain text does not leave it\n  \
         hint: write https://HOST:PORT, unix:/PATH or http://127.0.0.1:PORT"
    )]
    NotLoopback(String),
}

impl std::str::FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let form = || EndpointError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///path` is what gRPC's own names look like.
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(form()) } else { Ok(Self::Unix(path.into())) };
        }
        if text.starts_with("https://") {
            let authority = tls::authority(text).map_err(|_| form())?;
            return Ok(Self::Tls(format!("https://{authority}")));
        }
        let uri: Uri = text.parse().map_err(|_| form())?;
        if uri.scheme_str() != Some("http") || uri.port_u16().is_none() {
            return Err(form());
        }
        match uri.host() {
            Some("127.0.0.1" | "localhost" | "[::1]") => Ok(Self::Loopback(uri)),
            _ => Err(EndpointError::NotLoopback(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Loopback(uri) => write!(f, "{}", uri.to_string().trim_end_matches('/')),
            Self::Tls(endpoint) => f.write_str(endpoint),
        }
    }
}

impl Endpoint {
    /// Reads what the command line or the environment says: one or several, separated
    /// by commas.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] for what is no endpoint, or none at all.
    pub fn read_all(text: &str) -> Result<Vec<Self>, Failure> {
        let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
        let endpoints: Result<Vec<Self>, EndpointError> = texts.map(str::parse).collect();
        match endpoints {
            Ok(endpoints) if endpoints.is_empty() => {
                Err(Failure::usage(EndpointError::Form(text.to_owned())))
            }
            Ok(endpoints) => Ok(endpoints),
            Err(error) => Err(Failure::usage(error)),
        }
    }

    /// Whether the other is reached in the same way, and so protected as well as this.
    pub const fn is_like(&self, other: &Self) -> bool {
        matches!(
            (self, other),
            (Self::Unix(_), Self::Unix(_))
                | (Self::Loopback(_), Self::Loopback(_))
                | (Self::Tls(_), Self::Tls(_))
        )
    }

    /// Opens a connection, where the endpoint asks for it as `identity`. The coordinator
    /// has answered when this returns; bound it in time.
    ///
    /// # Errors
    ///
    /// What the system or the handshake says.
    pub async fn open(&self, identity: Option<&Identity>) -> std::io::Result<Stream> {
        match self {
            // A server speaks first. The system connects to one that is stopped as well.
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).await?;
                stream.readable().await?;
                Ok(Box::new(stream))
            }
            Self::Loopback(uri) => {
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                let stream = TcpStream::connect((host, uri.port_u16().unwrap_or_default())).await?;
                stream.set_nodelay(true)?;
                stream.readable().await?;
                Ok(Box::new(stream))
            }
            Self::Tls(endpoint) => match identity {
                Some(identity) => Ok(Box::new(tls::dial_stream(endpoint, identity).await?)),
                None => Err(std::io::Error::other("no certificate to show")),
            },
        }
    }
}

/// The URI of requests over a connection that has no address of its own.
pub fn no_address() -> TonicEndpoint {
    TonicEndpoint::from_static("http://steading.invalid")
}

/// Whether the same request may succeed when it is sent again: the connection broke,
/// or the farm has no leader or no room at the moment.
pub fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted | Code::Aborted => true,
        // How tonic tells of a connection that broke in the middle of an answer.
        Code::Unknown | Code::Cancelled | Code::Internal => {
            std::error::Error::source(status).is_some() || status.message().contains("h2 protocol")
        }
        _ => false,
    }
}

/// What a status means for the caller of this process.
pub fn failure(what: &str, status: Status) -> Failure {
    let message = status.message();
    match status.code() {
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::OutOfRange => {
            Failure::usage(message)
        }
        Code::Unavailable => Failure::Farm(anyhow::anyhow!(
            "cannot {what}: the coordinator does not answer: {message}\n  \
             hint: is it running, and is --coordinator (or STEADING_COORDINATOR) its address?"
        )),
        code => Failure::Farm(anyhow::anyhow!("cannot {what}: {message} ({code:?})")),
    }
}

/// Pauses between attempts: doubled each time, with jitter, so that clients that lost
/// the same coordinator do not all come back in the same instant.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
    failing_since: Option<std::time::Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: PAUSE_MIN, failing_since: None }
    }
}

impl Backoff {
    /// Something worked: the next failure is a first one.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Waits before the next attempt; `false` once failures have gone on for `bound`.
    pub async fn wait(&mut self, bound: Duration) -> bool {
        let since = *self.failing_since.get_or_insert_with(std::time::Instant::now);
        if since.elapsed() >= bound {
            return false;
        }
        let jitter = self.pause.mul_f64(f64::from(crate::id::random_byte()) / 512.0);
        tokio::time::sleep(self.pause / 2 + jitter).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_unix_socket_or_loopback() {
        check("unix:/run/s", "unix:/run/s");
        check("unix:///run/s", "unix:/run/s");
        check("unix:rel/s", "unix:rel/s");
        check("http://127.0.0.1:7070", "http://127.0.0.1:7070");
        check("http://[::1]:7070/", "http://[::1]:7070");
        check("http://localhost:1", "http://localhost:1");
        check("https://10.0.0.1:7070/", "https://10.0.0.1:7070");
        for text in ["", "unix:", "127.0.0.1:7070", "http://127.0.0.1", "https://10.0.0.1"] {
            check(text, "form");
        }
        check("http://10.0.0.1:7070", "not loopback");
        check("http://127.0.0.1.example.org:7070", "not loopback");
    }

    #[test]
    fn several_endpoints_are_separated_by_commas() {
        let all = Endpoint::read_all("unix:/a, unix:/b,").unwrap();
        assert_eq!(all, [Endpoint::Unix("/a".into()), Endpoint::Unix("/b".into())]);
        for bad in ["", ",", "unix:/a,b"] {
            assert!(Endpoint::read_all(bad).is_err(), "{bad}");
        }
    }

    fn check(text: &str, want: &str) {
        let got = match text.parse::<Endpoint>() {
            Ok(endpoint) => endpoint.to_string(),
            Err(EndpointError::Form(_)) => "form".to_owned(),
            Err(EndpointError::NotLoopback(_)) => "not loopback".to_owned(),
        };
        assert_eq!(got, want, "{text}");
    }
}
