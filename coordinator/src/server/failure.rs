//! The first failure of a background task.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::watchdog::Hangs;

/// Why a background task ended by itself. A coordinator that has lost one looks healthy
/// and strands work, so that the first to end ends all.
#[derive(Debug, Default)]
pub(super) struct Failure {
    first: Mutex<Option<anyhow::Error>>,
    pub(super) happened: CancellationToken,
    /// The replica will not end in time either.
    pub(super) hangs: AtomicBool,
}

impl Failure {
    pub(super) fn report(&self, error: anyhow::Error) {
        self.hangs.fetch_or(error.is::<Hangs>(), Ordering::Relaxed);
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        drop(first);
        self.happened.cancel();
    }

    /// The first failure, for the first who asks.
    pub(super) fn take(&self) -> anyhow::Error {
        self.take_or("a part of the coordinator failed")
    }

    /// The same; `otherwise` where nothing has failed.
    pub(super) fn take_or(&self, otherwise: &'static str) -> anyhow::Error {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| anyhow::anyhow!(otherwise))
    }
}
