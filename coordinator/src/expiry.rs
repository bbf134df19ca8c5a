//! Ends leases whose time is over.

use std::sync::Arc;
use std::time::Duration;

use steading_core::Proposal;
use tokio_util::sync::CancellationToken;

use crate::leases::Leases;
use crate::replica::{ProposeError, Replica};

/// Most leases that one proposal ends.
const LEASES_PER_PROPOSAL_MAX: usize = 1_000;
/// Before a proposal is tried again that the replica had no room for.
const RETRY: Duration = Duration::from_millis(100);

/// Runs until `stop`.
pub(crate) async fn run(
    replica: Replica,
    leases: Arc<Leases>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let overdue = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            overdue = leases.overdue(LEASES_PER_PROPOSAL_MAX) => overdue,
        };
        tracing::warn!(leases = overdue.len(), "leases were not renewed in time");
        loop {
            match replica.propose(Proposal::ExpireLeases { leases: overdue.clone() }).await {
                Ok(_) => {
                    overdue.iter().for_each(|lease| leases.ended(*lease));
                    break;
                }
                // They stay marked, and are not renewed: the proposal may be applied yet. A
                // new term starts over.
                Err(ProposeError::NotLeader | ProposeError::Stopped) => break,
                Err(error) => {
                    tracing::warn!(%error, "overdue leases were not ended yet");
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(RETRY) => (),
                    }
                }
            }
        }
    }
}
