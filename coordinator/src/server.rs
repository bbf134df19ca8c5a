//! Where the parts meet.

use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use steading_cas::{Store, StoreOptions};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router};

use crate::config::Config;

/// How long connections may take to end once their listener has stopped.
const DRAIN: Duration = Duration::from_secs(2);
/// What a client may send ahead on one stream, bytes: at 2 GB/s that is the way of
/// a loopback round trip.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// And on all streams of one connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// One coordinator: its replica, its store, its tasks.
#[derive(Debug)]
pub struct Coordinator {
    store: Store,
    stop: CancellationToken,
}

impl Coordinator {
    /// Opens the data directory and starts the replica and the tasks.
    ///
    /// # Errors
    ///
    /// The configuration is wrong, the directory is another coordinator's, or what is
    /// in it cannot be trusted.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        config.validate()?;
        let dir = &config.data_dir;
        std::fs::create_dir_all(dir).with_context(|| format!("make `{}`", dir.display()))?;
        let options = StoreOptions { bytes_max: config.store_bytes_max, durable: true };
        let store = Store::open(&dir.join("cas"), options).context("open the store")?;
        Ok(Self { store, stop: CancellationToken::new() })
    }

    /// The store, for an agent in the same process.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// Serves everything on these connections until `shutdown` resolves or the
    /// coordinator stops. May be called several times, one listener each.
    ///
    /// # Errors
    ///
    /// The listener failed.
    pub async fn serve<I, IO, E>(
        &self,
        incoming: I,
        shutdown: impl Future<Output = ()>,
    ) -> anyhow::Result<()>
    where
        I: Stream<Item = Result<IO, E>>,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        IO::ConnectInfo: Clone + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let router = self.router()?;
        let ended = CancellationToken::new();
        let signal = async {
            tokio::select! {
                () = shutdown => (),
                () = self.stop.cancelled() => (),
            }
            ended.cancel();
        };
        let serving = router.serve_with_incoming_shutdown(incoming, signal);
        let overdue = async {
            ended.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            served = serving => served.context("serve connections"),
            // A client that never closes must not keep the process.
            () = overdue => Ok(()),
        }
    }

    /// Stops: listeners, sessions, dispatcher, replica, stores, in this order.
    ///
    /// # Errors
    ///
    /// Something had failed before, or did not stop in time.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        Ok(())
    }

    fn router(&self) -> anyhow::Result<Router> {
        let (_, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(steading_proto::FILE_DESCRIPTOR_SET)
            .build_v1()
            .context("build the reflection service")?;
        Ok(Server::builder()
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .add_service(health)
            .add_service(reflection))
    }
}
