//! Who waits here for the decision on a claim.
//!
//! A waiter registers before its claim is proposed, so that no decision can pass
//! between proposal and wait. The claim itself is in the replicated state: what is lost
//! here is asked again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use steading_core::Lease;
use steading_model::{Digest, ProjectName};
use tokio::sync::oneshot;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The claim is granted to the lease that waited.
    Build,
    /// Its result is in the action cache.
    Published,
    /// It ended with an exit code other than zero.
    Failed(Digest),
    /// The lease that waited is no more.
    LeaseEnded,
    /// What happened was missed: ask again.
    AskAgain,
}

/// One wait: a lease, and the action in its scope.
pub(crate) type Wait = (Lease, ProjectName, Digest);

/// By lease, so that the end of one costs nothing to the others.
type Waiting = BTreeMap<Lease, BTreeMap<(ProjectName, Digest), Vec<oneshot::Sender<Decision>>>>;

/// Everyone who waits at this coordinator. Bounded by the claims in the state.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// A second call for the same wait (after a broken connection) joins the first.
    waiting: Mutex<Waiting>,
}

impl Claims {
    /// Registers a wait. Dropping the receiver ends it.
    pub(crate) fn wait(&self, (lease, scope, action): Wait) -> oneshot::Receiver<Decision> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        let senders = waiting.entry(lease).or_default().entry((scope, action)).or_default();
        senders.retain(|sender| !sender.is_closed());
        senders.push(sender);
        receiver
    }

    /// Tells one wait how it ended.
    pub(crate) fn decide(&self, (lease, scope, action): &Wait, decision: Decision) {
        let senders = {
            let mut waiting = self.lock();
            let Some(of_lease) = waiting.get_mut(lease) else {
                return;
            };
            let senders = of_lease.remove(&(scope.clone(), *action));
            if of_lease.is_empty() {
                waiting.remove(lease);
            }
            senders
        };
        for sender in senders.into_iter().flatten() {
            // Gone: its caller asks again over another connection.
            let _ = sender.send(decision);
        }
    }

    /// The caller went away: drops what nobody receives any more.
    pub(crate) fn forget(&self, (lease, scope, action): &Wait) {
        let mut waiting = self.lock();
        let Some(of_lease) = waiting.get_mut(lease) else {
            return;
        };
        let key = (scope.clone(), *action);
        if let Some(senders) = of_lease.get_mut(&key) {
            senders.retain(|sender| !sender.is_closed());
            if senders.is_empty() {
                of_lease.remove(&key);
            }
        }
        if of_lease.is_empty() {
            waiting.remove(lease);
        }
    }

    /// The lease is no more: whatever it waited for.
    pub(crate) fn lease_ended(&self, lease: Lease) {
        let ended = self.lock().remove(&lease);
        for sender in ended.into_iter().flatten().flat_map(|(_, senders)| senders) {
            // Gone, as above.
            let _ = sender.send(Decision::LeaseEnded);
        }
    }

    /// Everyone who waits, to compare with the state after effects were missed.
    pub(crate) fn waits(&self) -> Vec<Wait> {
        let waiting = self.lock();
        let waits = waiting.iter().flat_map(|(lease, of_lease)| {
            of_lease.keys().map(|(scope, action)| (*lease, scope.clone(), *action))
        });
        waits.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use steading_model::{Epoch, JobId, Work};

    use super::*;

    #[tokio::test]
    async fn a_decision_made_before_the_wait_begins_is_not_lost() {
        let claims = Claims::default();
        let decision = claims.wait(wait(1));
        claims.decide(&wait(1), Decision::Published);
        assert_eq!(decision.await, Ok(Decision::Published));
    }

    #[tokio::test]
    async fn everyone_who_asked_under_one_lease_is_answered() {
        let claims = Claims::default();
        let (first, second) = (claims.wait(wait(1)), claims.wait(wait(1)));
        let other = claims.wait(wait(2));
        claims.lease_ended(wait(1).0);
        assert_eq!(first.await, Ok(Decision::LeaseEnded));
        assert_eq!(second.await, Ok(Decision::LeaseEnded));
        assert_eq!(claims.waits(), [wait(2)]);
        drop(other);
        claims.forget(&wait(2));
        assert_eq!(claims.waits(), []);
    }

    fn wait(job: u64) -> Wait {
        let work = Work { job: JobId::from_counter(job), attempt: 1 };
        let lease = Lease { work, epoch: Epoch::from_counter(job) };
        (lease, "default".parse().unwrap(), Digest { hash: [7; 32], size: 1 })
    }
}
