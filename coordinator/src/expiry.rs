//! Ends leases whose time is over.

use std::sync::Arc;
use std::time::Duration;

use steading_core::Proposal;
use steading_model::limits::ASSIGNMENTS_PER_PROPOSAL_MAX;
use tokio_util::sync::CancellationToken;

use crate::leadership::Leadership;
use crate::leases::Leases;
use crate::replica::{ProposeError, Replica};

/// Before the fate of a proposal is asked for again.
const RETRY: Duration = Duration::from_millis(100);

/// Runs until `stop`.
pub(crate) async fn run(
    replica: Replica,
    leadership: Leadership,
    leases: Arc<Leases>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let sweep = async {
        loop {
            let (term, overdue) = leases.overdue(ASSIGNMENTS_PER_PROPOSAL_MAX).await;
            let standing = leadership.standing();
            // A leader in between may have renewed them.
            if !standing.leads || standing.term != term {
                leases.not_expired(&overdue);
                continue;
            }
            tracing::warn!(leases = overdue.len(), "leases were not renewed in time");
            match replica.propose(Proposal::ExpireLeases { leases: overdue.clone() }).await {
                Ok(_) => overdue.iter().for_each(|lease| leases.ended(*lease)),
                Err(error) => {
                    tracing::warn!(%error, "overdue leases were not ended");
                    if error == ProposeError::Unknown {
                        settle(&replica).await;
                    }
                    leases.not_expired(&overdue);
                }
            }
        }
    };
    // The sweep itself has no end.
    stop.run_until_cancelled(sweep).await;
    Ok(())
}

/// Waits until a proposal whose answer was lost has been applied or never will be: a
/// barrier of a later term has passed, or this replica does not lead.
async fn settle(replica: &Replica) {
    loop {
        match replica.read_barrier().await {
            Ok(()) | Err(ProposeError::NotLeader | ProposeError::Stopped) => return,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}
