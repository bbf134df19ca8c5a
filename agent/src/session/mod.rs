//! The session with the coordinator.

use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::config::Config;

/// Runs an agent until `shutdown`, over whatever breaks in between.
///
/// # Errors
///
/// What no retry helps with: the data directory is in use or cannot be written.
pub async fn run(
    config: Config,
    channel: Channel,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let _ = (config, channel);
    shutdown.cancelled().await;
    Ok(())
}
