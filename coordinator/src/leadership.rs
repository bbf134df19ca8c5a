//! Whether this replica leads, and what it answers where it does not.
//!
//! What only a leader may do is bound to one [`Term`]: a replica that lost its
//! leadership and won it back in the meantime is another leader, for what it knew of
//! leases and waits may have been overtaken by the one in between.

use std::collections::BTreeSet;
use std::time::Duration;

use steading_proto::leader::not_leader;
use tokio::sync::watch;
use tonic::Status;

use crate::replica::{Replica, Standing};

/// How long somebody who needs a leader waits for one: two elections.
pub(crate) const LEADER_WAIT: Duration = Duration::from_secs(1);

/// How long a replica that knows of no leader serves what it has as if it were current.
/// Beyond it, others may know more.
const ALONE_MAX: Duration = Duration::from_secs(2);

/// This replica's place in the group, as it changes.
#[derive(Clone, Debug)]
pub(crate) struct Leadership {
    replica: Replica,
    standing: watch::Receiver<Standing>,
}

/// The replica that leads, which is not this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) id: u64,
    pub(crate) endpoint: String,
}

/// A term in which this replica leads, everything before it applied.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    number: u64,
    leadership: Leadership,
}

impl Leadership {
    pub(crate) fn new(replica: Replica) -> Self {
        let standing = replica.standing();
        Self { replica, standing }
    }

    pub(crate) fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    /// The term in which this replica leads now.
    ///
    /// # Errors
    ///
    /// The hint who leads, where this one does not.
    pub(crate) fn term(&self) -> Result<Term, Status> {
        let standing = self.standing();
        match standing.leads {
            true => Ok(Term { number: standing.term, leadership: self.clone() }),
            false => Err(self.refusal()),
        }
    }

    /// Where the leader listens, if one is known and has said so.
    pub(crate) fn leader(&self) -> Option<String> {
        let leader = self.standing().leader?;
        let state = self.replica.view();
        let endpoint = state.replica(leader).map(|row| row.endpoint.clone())?;
        (!endpoint.is_empty()).then_some(endpoint)
    }

    /// The answer to what only the leader may answer.
    pub(crate) fn refusal(&self) -> Status {
        not_leader(self.leader().as_deref())
    }

    /// Waits until this replica leads, which is `None`, or follows one that can be reached.
    pub(crate) async fn settled(mut self) -> Option<Leader> {
        let mut changes = self.replica.changes();
        loop {
            let standing = *self.standing.borrow_and_update();
            if standing.leads {
                return None;
            }
            // One that is about to lead says so as soon as it does.
            if let Some(id) = standing.leader.filter(|id| *id != self.replica.id())
                && let Some(endpoint) = self.leader()
            {
                return Some(Leader { id, endpoint });
            }
            // An error: the replica has stopped, which others see to.
            let changed = tokio::select! {
                changed = self.standing.changed() => changed,
                changed = changes.changed() => changed,
            };
            if changed.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until this replica no longer follows that one.
    pub(crate) async fn left(mut self, leader: u64) {
        // An error: the replica has stopped.
        let _ = self.standing.wait_for(|standing| standing.leader != Some(leader)).await;
    }

    /// Where the replicas of the group listen.
    pub(crate) fn endpoints(&self) -> BTreeSet<String> {
        self.replica.view().replicas().map(|row| row.endpoint.clone()).collect()
    }

    /// Waits until this replica leads.
    pub(crate) async fn leads(mut self) {
        // An error: the replica has stopped, which others see to.
        let _ = self.standing.wait_for(|standing| standing.leads).await;
    }

    /// Waits for a change; never resolves once the replica has stopped.
    pub(crate) async fn changed(&mut self) -> Standing {
        if self.standing.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.standing.borrow_and_update()
    }

    /// Resolves once this replica has known of no leader for [`ALONE_MAX`].
    pub(crate) async fn alone(mut self) {
        loop {
            let led = |standing: &Standing| standing.leader.is_some();
            if self.standing.wait_for(|standing| !led(standing)).await.is_err() {
                return;
            }
            let found = self.standing.wait_for(led);
            if tokio::time::timeout(ALONE_MAX, found).await.is_err() {
                return;
            }
        }
    }
}

impl Term {
    /// Resolves once this replica leads no longer, or in a later term: what to tell
    /// those who are connected for the sake of it.
    pub(crate) async fn over(mut self) -> Status {
        let number = self.number;
        let over = |standing: &Standing| !standing.leads || standing.term != number;
        // An error: the replica has stopped.
        let _ = self.leadership.standing.wait_for(over).await;
        self.leadership.refusal()
    }
}
