//! The first failure of a background task.

use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// Why a background task ended by itself. A coordinator that has lost one looks healthy
/// and strands work, so that the first to end ends all.
#[derive(Debug, Default)]
pub(super) struct Failure {
    first: Mutex<Option<anyhow::Error>>,
    pub(super) happened: CancellationToken,
}

impl Failure {
    pub(super) fn report(&self, error: anyhow::Error) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        drop(first);
        self.happened.cancel();
    }

    /// The first failure, for the first who asks.
    pub(super) fn take(&self) -> anyhow::Error {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| anyhow::anyhow!("a part of the coordinator failed"))
    }
}
