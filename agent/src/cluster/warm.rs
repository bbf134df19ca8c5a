//! Keeps a connection to every coordinator open, and listens on it for who leads.

use std::collections::BTreeSet;
use std::time::Duration;

use steading_proto::v1;
use steading_proto::v1::agents_client::AgentsClient;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::Cluster;
use crate::backoff::Backoff;

/// Before a coordinator is asked again that does not know the question: it is of an
/// earlier version, and may be replaced.
const OLD_VERSION_PAUSE: Duration = Duration::from_secs(60);

impl Cluster {
    /// Listens to all coordinators until `stop`.
    pub(crate) async fn keep_warm(&self, stop: CancellationToken) {
        let mut endpoints = self.shared.endpoints.subscribe();
        let mut listeners: JoinSet<String> = JoinSet::new();
        let mut heard: BTreeSet<String> = BTreeSet::new();
        loop {
            let known: Vec<String> = self.lock().book.endpoints().cloned().collect();
            for endpoint in known {
                if heard.insert(endpoint.clone()) {
                    listeners.spawn(self.clone().listen(endpoint));
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                _ = endpoints.changed() => (),
                Some(ended) = listeners.join_next(), if !listeners.is_empty() => {
                    // Forgotten; it may be learned again.
                    if let Ok(endpoint) = ended {
                        heard.remove(&endpoint);
                    }
                }
            }
        }
        listeners.shutdown().await;
    }

    /// Listens to one coordinator as long as it is known.
    async fn listen(self, endpoint: String) -> String {
        let mut backoff = Backoff::default();
        while self.lock().book.knows(&endpoint) {
            let Ok(channel) = self.channel(&endpoint) else {
                return endpoint;
            };
            let mut client = AgentsClient::new(channel);
            match client.watch_leader(v1::WatchLeaderRequest {}).await {
                Ok(response) => {
                    let mut said = response.into_inner();
                    while let Ok(Some(leadership)) = said.message().await {
                        backoff.reset();
                        self.told(&endpoint, &leadership);
                        if !self.lock().book.knows(&endpoint) {
                            return endpoint;
                        }
                    }
                }
                Err(status) if status.code() == Code::Unimplemented => {
                    tokio::time::sleep(OLD_VERSION_PAUSE).await;
                }
                Err(status) => tracing::debug!(endpoint, %status, "a coordinator is not heard"),
            }
            self.update(|book| {
                book.connected(&endpoint, false);
                false
            });
            backoff.wait().await;
        }
        endpoint
    }
}
