//! Calls to the coordinator that outlast its absence.

use std::future::Future;

use steading_proto::v1::agents_client::AgentsClient;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::backoff::Backoff;

/// Largest message either way, bytes: an offer carries secrets and a spec.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The `Agents` service. Cloned freely.
#[derive(Clone, Debug)]
pub struct Agents {
    client: AgentsClient<Channel>,
}

impl Agents {
    /// Over this channel.
    pub fn new(channel: Channel) -> Self {
        let client = AgentsClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Self { client }
    }

    /// One client, for streams.
    pub fn client(&self) -> AgentsClient<Channel> {
        self.client.clone()
    }

    /// Makes a call, again and again while the coordinator is away. Whoever must not
    /// wait for ever drops the future.
    ///
    /// # Errors
    ///
    /// What another try would not change.
    pub async fn call<T, F>(
        &self,
        mut call: impl FnMut(AgentsClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut backoff = Backoff::default();
        loop {
            match call(self.client()).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if is_transient(&status) => {
                    tracing::debug!(%status, "call will be repeated");
                    backoff.wait().await;
                }
                Err(status) => return Err(status),
            }
        }
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
