//! Calls to the coordinator that outlast its absence.

use std::future::Future;
use std::time::Duration;

use steading_proto::v1::agents_client::AgentsClient;
use tokio::time::Instant;
use tonic::{Code, Response, Status};

use crate::backoff::{ANSWERING, Backoff};
use crate::cluster::Cluster;

/// Largest message either way, bytes: an offer carries secrets and a spec.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The `Agents` service of whoever leads. Cloned freely.
#[derive(Clone, Debug)]
pub struct Agents {
    cluster: Cluster,
    client: AgentsClient<Cluster>,
}

impl Agents {
    /// Of these coordinators.
    pub fn new(cluster: Cluster) -> Self {
        let client = AgentsClient::new(cluster.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { cluster, client }
    }

    /// One client, for streams.
    pub fn client(&self) -> AgentsClient<Cluster> {
        self.client.clone()
    }

    /// Who is asked.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Makes a call, again and again while the coordinator is away. Whoever must not
    /// wait for ever drops the future.
    ///
    /// # Errors
    ///
    /// What another try would not change.
    pub async fn call<T, F>(
        &self,
        call: impl FnMut(AgentsClient<Cluster>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_for(Duration::MAX, call).await
    }

    /// As [`Agents::call`], but for at most `wait_max` on end.
    ///
    /// # Errors
    ///
    /// What another try would not change, or the last failure.
    pub async fn call_for<T, F>(
        &self,
        wait_max: Duration,
        mut call: impl FnMut(AgentsClient<Cluster>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut retry = Retry::new(&self.cluster);
        let mut failing_since = Instant::now();
        loop {
            let began = Instant::now();
            let ended = call(self.client()).await;
            if began.elapsed() > ANSWERING {
                failing_since = Instant::now();
                retry.reset();
            }
            match ended {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if is_transient(&status) && failing_since.elapsed() < wait_max => {
                    tracing::debug!(%status, "call will be repeated");
                    retry.wait().await;
                }
                Err(status) => return Err(status),
            }
        }
    }
}

/// Waits between tries, and not a moment longer than until another coordinator is worth
/// asking.
#[derive(Debug)]
pub(crate) struct Retry<'a> {
    cluster: &'a Cluster,
    backoff: Backoff,
    seen: u64,
}

impl<'a> Retry<'a> {
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, backoff: Backoff::default(), seen: cluster.place().tries }
    }

    pub(crate) async fn wait(&mut self) {
        self.backoff.wait_or(self.cluster.worth_a_try(self.seen)).await;
        self.seen = self.cluster.place().tries;
    }

    pub(crate) fn reset(&mut self) {
        self.backoff.reset();
    }
}

/// Whether the same call may go well a little later.
pub(crate) fn is_transient(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::Internal
    )
}
