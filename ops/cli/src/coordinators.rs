//! The coordinators of a farm, and the one connection that is kept to one of them.
//!
//! Any replica answers any request, so that one connection is enough. When it breaks,
//! the next endpoint is tried first, and while it does not answer, the one behind it as
//! well; when the replica at its other end is alive but of
//! no use (cut off from the others, or itself looking for the leader), the connection
//! is given up, which breaks whatever else goes over it: all of that resumes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use steading_cas::{Blobs, BlobsError, RemoteBlobs};
use steading_proto::tls::{self, Identity};
use steading_proto::{leader, v1};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::{Channel, Uri};
use tonic::{Code, Response, Status};

use crate::connect::{Backoff, Endpoint, FIRST_ANSWER_MAX, Stream, is_transient, no_address};

/// How long one endpoint may take to answer a connection attempt: a coordinator that is
/// stopped lets it be opened, and says nothing.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);

/// How long an endpoint is waited for alone, before the next one is tried beside it.
const ALONE_MAX: Duration = Duration::from_millis(300);

/// How long a connection waits for the renewal of a certificate.
const RENEWAL_MAX: Duration = Duration::from_secs(5);

/// A connection on which something is waited for is asked for a sign of life this
/// often, and given up when none comes for as long.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// So many times in all a replica may say that it knows no leader before another one is
/// asked.
const REFUSALS_MAX: u32 = 2;

/// Largest message that a coordinator may send, bytes: a run with all its jobs.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// The generated client, as everything here uses it.
pub type Pipelines = v1::pipelines_client::PipelinesClient<Channel>;

/// A farm's coordinators. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Coordinators {
    channel: Channel,
    route: Arc<Route>,
}

/// Where to connect next.
#[derive(Debug)]
struct Route {
    /// None: the connection is to this process, and there is no other.
    endpoints: Vec<Endpoint>,
    /// Who this is, for those that ask.
    identity: Option<Arc<Identity>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The endpoint that is tried first, by its number.
    next: usize,
    /// Where the leader was said to be. Tried before all others, once.
    hint: Option<Endpoint>,
    /// The one behind the connection.
    current: Option<Endpoint>,
    /// Counts connections.
    connection: u64,
    /// Requests over this one that were refused for want of a leader.
    refusals: u32,
    /// Breaks the connection.
    leave: CancellationToken,
}

impl Coordinators {
    /// Those that listen there. Nothing is connected before the first request.
    pub fn new(endpoints: Vec<Endpoint>, identity: Option<Arc<Identity>>) -> Self {
        let route = Arc::new(Route { endpoints, identity, state: Mutex::default() });
        let connector = Arc::clone(&route);
        let channel = no_address()
            .http2_keep_alive_interval(SILENCE_MAX)
            .keep_alive_timeout(SILENCE_MAX)
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let route = Arc::clone(&connector);
                async move { route.connect().await.map(TokioIo::new) }
            }));
        Self { channel, route }
    }

    /// The one at the other end of this channel.
    pub fn here(channel: Channel) -> Self {
        let route = Route { endpoints: Vec::new(), identity: None, state: Mutex::default() };
        Self { channel, route: Arc::new(route) }
    }

    /// The channel to whichever of them answers.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The client of the `Pipelines` service.
    pub fn pipelines(&self) -> Pipelines {
        Pipelines::new(self.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The blobs behind them.
    pub fn blobs(&self) -> Blobs {
        Blobs::Remote(RemoteBlobs::new(self.channel(), String::new()))
    }

    /// The number of the connection that the next request takes, for [`Coordinators::refused`].
    pub fn connection(&self) -> u64 {
        self.route.lock().connection
    }

    /// The request that was made over this connection was answered so: whether another
    /// replica is to be tried is decided here. Whoever comes second changes nothing.
    pub fn refused(&self, connection: u64, status: &Status) {
        if status.code() == Code::Unavailable {
            self.route.leave(connection, leader::leader_of(status));
        }
    }

    /// Makes the call, again and again while no replica can answer, for at most `bound`.
    ///
    /// # Errors
    ///
    /// What another try would not change, or the last of them.
    pub async fn call<T, F>(
        &self,
        bound: Duration,
        mut call: impl FnMut(Pipelines) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_over(bound, |channel| {
            call(Pipelines::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
        })
        .await
    }

    /// The same for any service.
    ///
    /// # Errors
    ///
    /// What another try would not change, or the last of them.
    pub async fn call_over<T, F>(
        &self,
        bound: Duration,
        mut call: impl FnMut(Channel) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut backoff = Backoff::default();
        loop {
            let connection = self.connection();
            match call(self.channel()).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => {
                    self.refused(connection, &status);
                    // Somebody has to make room: that is said before long.
                    let bound = match status.code() {
                        Code::ResourceExhausted => bound.min(FIRST_ANSWER_MAX),
                        _ => bound,
                    };
                    if !is_transient(&status) || !backoff.wait(bound).await {
                        return Err(status);
                    }
                }
            }
        }
    }
}

/// Does something with blobs, again and again while it may yet go well, for at most `bound`.
///
/// # Errors
///
/// What another try would not change, or the last of them.
pub async fn with_blobs<T, F>(
    bound: Duration,
    mut attempt: impl FnMut() -> F,
) -> Result<T, BlobsError>
where
    F: Future<Output = Result<T, BlobsError>>,
{
    let mut backoff = Backoff::default();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => {
                if !error.is_transient() || !backoff.wait(bound).await {
                    return Err(error);
                }
            }
        }
    }
}

impl Route {
    /// A connection to the first endpoint that answers.
    async fn connect(&self) -> io::Result<Leaving> {
        self.renew_if_due().await;
        let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
        let mut candidates = self.candidates().into_iter();
        let mut attempts = JoinSet::new();
        loop {
            match candidates.next() {
                Some((endpoint, next)) => {
                    let identity = self.identity.clone();
                    attempts.spawn(attempt(endpoint, next, identity));
                }
                None if attempts.is_empty() => return Err(failed),
                None => (),
            }
            // An attempt that is too late is dropped with the others.
            let alone = tokio::time::sleep(ALONE_MAX);
            let ended = tokio::select! {
                Some(ended) = attempts.join_next() => ended.map_err(io::Error::other)?,
                () = alone, if candidates.len() > 0 => continue,
            };
            match ended {
                (endpoint, next, Ok(stream)) => return Ok(self.connected(endpoint, next, stream)),
                (endpoint, _, Err(error)) => {
                    tracing::debug!(%endpoint, %error, "a coordinator cannot be reached");
                    failed = error;
                }
            }
        }
    }

    /// A certificate that is due is renewed before it is shown. Best effort: it is good
    /// for a while yet.
    async fn renew_if_due(&self) {
        let Some(identity) = self.identity.as_ref().filter(|identity| tls::is_due(identity)) else {
            return;
        };
        let endpoints: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
        let renewed = tokio::time::timeout(RENEWAL_MAX, tls::renew(identity, &endpoints)).await;
        match renewed {
            Ok(Ok(())) => tracing::debug!("the certificate was renewed"),
            Ok(Err(error)) => tracing::warn!(%error, "the certificate was not renewed"),
            Err(_) => tracing::warn!("the certificate was not renewed in time"),
        }
    }

    /// In the order in which they are tried, each with the number of the one after it.
    fn candidates(&self) -> Vec<(Endpoint, usize)> {
        let mut state = self.lock();
        let (first, count) = (state.next, self.endpoints.len());
        let around = (0..count).map(|step| (first + step) % count);
        let listed = around.map(|number| (self.endpoints[number].clone(), (number + 1) % count));
        state.hint.take().map(|hint| (hint, first)).into_iter().chain(listed).collect()
    }

    fn connected(&self, endpoint: Endpoint, next: usize, stream: Stream) -> Leaving {
        let mut state = self.lock();
        state.next = next;
        state.current = Some(endpoint);
        state.connection += 1;
        state.refusals = 0;
        state.leave = CancellationToken::new();
        let left = Box::pin(state.leave.clone().cancelled_owned());
        Leaving { stream, left }
    }

    /// Gives the connection up, unless that was done before or there is no other place.
    fn leave(&self, connection: u64, leader: Option<&str>) {
        let mut state = self.lock();
        if state.connection != connection {
            return;
        }
        let hint = leader.and_then(|text| text.parse().ok());
        let hint =
            hint.filter(|hint| self.may_be_followed(hint) && Some(hint) != state.current.as_ref());
        // Once may happen to any replica whose leader has just died.
        state.refusals += 1;
        let is_lost = state.refusals >= REFUSALS_MAX && self.endpoints.len() > 1;
        if hint.is_some() || is_lost {
            state.hint = hint;
            state.leave.cancel();
        }
    }

    /// Whether a place that a replica named is no worse protected than those that the
    /// user did.
    fn may_be_followed(&self, hint: &Endpoint) -> bool {
        self.endpoints.iter().any(|known| known.is_like(hint))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One endpoint's chance to answer.
async fn attempt(
    endpoint: Endpoint,
    next: usize,
    identity: Option<Arc<Identity>>,
) -> (Endpoint, usize, io::Result<Stream>) {
    let opened = tokio::time::timeout(ATTEMPT_MAX, endpoint.open(identity.as_deref())).await;
    let opened = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    (endpoint, next, opened)
}

/// A connection that can be given up from outside.
struct Leaving {
    stream: Stream,
    left: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Leaving {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A client always waits for bytes, so that this is where it hears of the end.
        if self.left.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Leaving {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn the_endpoint_behind_the_broken_one_is_tried_first() {
        let farm = Three::listen();
        let route = farm.route();
        let first = route.connect().await.unwrap();
        assert_eq!(farm.connected(&route), "0");
        drop(first);
        route.connect().await.unwrap();
        assert_eq!(farm.connected(&route), "1");
        let farm = farm.without(2).await;
        route.connect().await.unwrap();
        assert_eq!(farm.connected(&route), "0");
    }

    #[tokio::test]
    async fn an_endpoint_that_says_nothing_holds_nobody_up() {
        let farm = Three::listen();
        let bind = |name| UnixListener::bind(farm.dir.path().join(name)).unwrap();
        let (silent, second) = (bind("silent"), bind("9"));
        let mut route = farm.route();
        route.endpoints = ["silent", "9"].map(|name| farm.named(name)).to_vec();
        let begun = std::time::Instant::now();
        let serve = async {
            let (first, _) = silent.accept().await.unwrap();
            let (mut stream, _) = second.accept().await.unwrap();
            let mut byte = [0];
            let waits = first.try_read(&mut byte).map_err(|error| error.kind());
            let soon = begun.elapsed() < ATTEMPT_MAX;
            stream.write_all(b"!").await.unwrap();
            (waits, soon)
        };
        let (connected, (waits, soon)) = tokio::join!(route.connect(), serve);
        connected.unwrap();
        assert_eq!(farm.connected(&route), "9");
        let kept = waits == Err(io::ErrorKind::WouldBlock);
        assert!(kept || !soon, "the first one was given up before: {waits:?}");
    }

    #[tokio::test]
    async fn a_replica_of_no_use_is_left_once() {
        let farm = Three::listen();
        let route = farm.route();
        let mut stream = route.connect().await.unwrap();
        route.leave(0, None);
        assert!(!route.lock().leave.is_cancelled(), "an earlier connection was meant");
        route.leave(1, None);
        assert!(!route.lock().leave.is_cancelled(), "once is not for ever");
        route.leave(1, Some(&farm.endpoint(2).to_string()));
        assert_eq!(stream.read_u8().await.ok(), None, "it is left, whatever was said");
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        let _stream = route.connect().await.unwrap();
        assert_eq!(farm.connected(&route), "2", "the hint is followed");
        route.leave(1, None);
        assert!(!route.lock().leave.is_cancelled(), "somebody else left before");
    }

    #[tokio::test]
    async fn a_hint_does_not_lead_into_the_open() {
        let farm = Three::listen();
        let route = farm.route();
        let _stream = route.connect().await.unwrap();
        route.leave(1, Some("http://127.0.0.1:1"));
        route.leave(1, Some("http://127.0.0.1:1"));
        assert!(route.lock().leave.is_cancelled());
        assert_eq!(route.lock().hint, None);
    }

    /// Says one byte to everybody who connects.
    fn greet(listener: UnixListener) -> JoinSet<()> {
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"!").await.unwrap();
                open.push(stream);
            }
        });
        serving
    }

    /// Three sockets whose servers say one byte.
    struct Three {
        dir: tempfile::TempDir,
        serving: Vec<JoinSet<()>>,
    }

    impl Three {
        fn listen() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let bind = |number| UnixListener::bind(dir.path().join(format!("{number}"))).unwrap();
            let serving = (0..3).map(|number| greet(bind(number))).collect();
            Self { dir, serving }
        }

        async fn without(mut self, number: usize) -> Self {
            self.serving[number].shutdown().await;
            self
        }

        fn endpoint(&self, number: usize) -> Endpoint {
            self.named(&number.to_string())
        }

        fn named(&self, name: &str) -> Endpoint {
            Endpoint::Unix(self.dir.path().join(name))
        }

        fn route(&self) -> Route {
            let endpoints = (0..3).map(|number| self.endpoint(number)).collect();
            Route { endpoints, identity: None, state: Mutex::default() }
        }

        fn connected(&self, route: &Route) -> String {
            match route.lock().current.clone() {
                Some(Endpoint::Unix(path)) => {
                    path.file_name().unwrap().to_str().unwrap().to_owned()
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
