//! A coordinator that serves connections in memory, and its end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use steading_coordinator::Coordinator;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

/// A story that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connections that wait to be accepted.
const CONNECTIONS_MAX: usize = 16;

/// Bytes that a connection holds.
const CONNECTION_BYTES: usize = 1 << 20;

/// Waits, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}

/// A coordinator that serves.
pub(crate) struct Served {
    pub(crate) coordinator: Arc<Coordinator>,
    connect: mpsc::Sender<io::Result<DuplexStream>>,
    pub(crate) serving: JoinSet<anyhow::Result<()>>,
    pub(crate) stop: CancellationToken,
}

impl Served {
    pub(crate) fn new(coordinator: Coordinator) -> Self {
        let (coordinator, stop) = (Arc::new(coordinator), CancellationToken::new());
        let (connect, accept) = mpsc::channel(CONNECTIONS_MAX);
        let mut serving = JoinSet::new();
        let (server, shutdown) = (Arc::clone(&coordinator), stop.clone().cancelled_owned());
        serving.spawn(async move { server.serve(ReceiverStream::new(accept), shutdown).await });
        Self { coordinator, connect, serving, stop }
    }

    /// As somebody on the machine.
    pub(crate) fn channel(&self) -> Channel {
        let connect = self.connect.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let connect = connect.clone();
            async move {
                let (here, there) = tokio::io::duplex(CONNECTION_BYTES);
                let refused = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
                connect.send(Ok(there)).await.map_err(refused)?;
                Ok::<_, io::Error>(TokioIo::new(here))
            }
        });
        Endpoint::from_static("http://memory").connect_with_connector_lazy(connector)
    }

    /// Stops as a signal would make it; clients see their connections end.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = soon("the end of serving", self.serving.join_next()).await {
            ended.unwrap().unwrap();
        }
        let coordinator = Arc::into_inner(self.coordinator).expect("nobody else holds it");
        soon("the end of the coordinator", coordinator.stop()).await.unwrap();
    }
}
