//! Gives queued jobs to agents: asks the placement policy on a version of the state,
//! and proposes what it says, one batch at a time.

use std::sync::Arc;
use std::time::Duration;

use steading_core::{Effect, Proposal, placement};
use steading_model::limits::ASSIGNMENTS_PER_PROPOSAL_MAX;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::replica::{ProposeError, Replica};
use crate::sessions::Sessions;

/// Before a batch is tried again that the replica had no room for.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// The dispatcher of this coordinator; it works while this one leads.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    replica: Replica,
    sessions: Arc<Sessions>,
    wake: Notify,
}

impl Dispatcher {
    pub(crate) fn new(replica: Replica, sessions: Arc<Sessions>) -> Self {
        Self { replica, sessions, wake: Notify::new() }
    }

    /// There may be something to place.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Places until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.wake.notified() => (),
                () = self.sessions.changed() => (),
            }
            while self.place().await {}
        }
    }

    /// One batch. Whether another one is worth trying at once: something was granted, or
    /// what was chosen was overtaken, and others of the queue may do.
    async fn place(&self) -> bool {
        let agents = self.sessions.taking_work();
        if agents.is_empty() {
            return false;
        }
        let state = self.replica.view();
        if state.queue_len() == 0 {
            return false;
        }
        let assignments = placement::place(&state, &agents, ASSIGNMENTS_PER_PROPOSAL_MAX);
        if assignments.is_empty() {
            return false;
        }
        // The old version would be copied as it is written to.
        drop(state);
        match self.replica.propose(Proposal::Assign { assignments }).await {
            Ok(effects) => {
                let granted = effects.iter().any(|it| matches!(it, Effect::Offer { .. }));
                let overtaken = effects.iter().any(|it| matches!(it, Effect::NotAssigned { .. }));
                if overtaken && !granted {
                    // Chosen on a version in which it held. Nobody wakes this one for those
                    // behind it in the queue; the pause is for a policy that would insist.
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                granted || overtaken
            }
            Err(error @ (ProposeError::Rejected(_) | ProposeError::TooLarge(_))) => {
                tracing::error!(%error, "a batch of assignments was refused as a whole");
                false
            }
            Err(ProposeError::Busy) => {
                tokio::time::sleep(BUSY_PAUSE).await;
                true
            }
            // Another replica leads, or will: a new term dispatches anew.
            Err(error) => {
                tracing::debug!(%error, "a batch of assignments was not proposed");
                false
            }
        }
    }
}
