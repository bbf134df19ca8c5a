//! Work that blocks, away from the runtime's threads.

/// A thread that did the work panicked; it said why where panics are logged.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a working thread panicked")]
pub(crate) struct Panicked;

/// Runs `work` on a thread where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Panicked> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Panicked)
}
