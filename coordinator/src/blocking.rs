//! Work that blocks on the disk or computes for long, off the async threads.

use tonic::Status;

/// Runs `work` on a thread that may block.
///
/// # Errors
///
/// INTERNAL where it panicked, or the process is stopping.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Status::internal(format!("work did not finish: {error}")))
}
