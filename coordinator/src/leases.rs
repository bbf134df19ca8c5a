//! Deadlines of leases, in the leader's memory.
//!
//! A lease ends [`LEASE_MS`] after the last renewal that was acknowledged. The
//! deadline is set before the acknowledgement leaves, and a lease that was chosen
//! for expiry is never acknowledged again: the agent can never count on a lease
//! that the log is about to end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use steading_core::Lease;
use steading_model::limits::LEASE_MS;
use tokio::sync::Notify;
use tokio::time::Instant;

const LEASE: Duration = Duration::from_millis(LEASE_MS);

/// How often deadlines are looked at while there are any, though none may be due.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// A look that comes so long after the one before shows that this process stood still
/// (stopped, swapped out, its disk stuck) and heard no renewal: no agent is to blame.
const STALL: Duration = Duration::from_secs(4);

/// What this leader knows of the leases' time.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    inner: Mutex<Inner>,
    /// The earliest deadline may have changed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    deadlines: BTreeMap<Lease, Instant>,
    by_time: BTreeSet<(Instant, Lease)>,
    /// Chosen for expiry; the proposal is on its way, and may yet be applied where its
    /// answer was lost.
    expiring: BTreeSet<Lease>,
    /// When the deadlines were last looked at; none while there are none.
    looked: Option<Instant>,
    /// The term in which this replica leads: only a leader counts.
    term: Option<u64>,
}

impl Leases {
    /// A lease was granted: it counts from now, whether its agent accepts or not.
    pub(crate) fn granted(&self, lease: Lease) {
        let first;
        {
            let mut inner = self.lock();
            if inner.term.is_none() || inner.deadlines.contains_key(&lease) {
                return;
            }
            first = inner.by_time.is_empty();
            inner.set(lease, Instant::now() + LEASE);
        }
        // A new lease has the latest deadline of all, so the sweep must wake only
        // where it waited for none.
        if first {
            self.changed.notify_one();
        }
    }

    /// Prolongs those leases whose renewal is about to be acknowledged, and returns
    /// them. One that is being expired is left out: its fate is the log's to tell. None
    /// are, where this replica leads no longer.
    pub(crate) fn renew(&self, leases: &[Lease]) -> Vec<Lease> {
        let deadline = Instant::now() + LEASE;
        let mut inner = self.lock();
        if inner.term.is_none() {
            return Vec::new();
        }
        let mut renewed = Vec::with_capacity(leases.len());
        for &lease in leases {
            if !inner.expiring.contains(&lease) {
                inner.set(lease, deadline);
                renewed.push(lease);
            }
        }
        drop(inner);
        self.changed.notify_one();
        renewed
    }

    /// The lease is no more.
    pub(crate) fn ended(&self, lease: Lease) {
        let mut inner = self.lock();
        inner.remove(lease);
        inner.expiring.remove(&lease);
    }

    /// A new leader's grace: every lease lasts one full time from now. Called once a term,
    /// after this leader's first commit, with all leases of the state. Those that are
    /// being expired are the sweep's to decide.
    pub(crate) fn begin_term(&self, term: u64, leases: impl IntoIterator<Item = Lease>) {
        let deadline = Instant::now() + LEASE;
        let mut inner = self.lock();
        inner.term = Some(term);
        inner.deadlines.clear();
        inner.by_time.clear();
        for lease in leases {
            if !inner.expiring.contains(&lease) {
                inner.set(lease, deadline);
            }
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// This replica leads no longer: the deadlines are another one's to keep.
    pub(crate) fn end_term(&self) {
        let mut inner = self.lock();
        inner.term = None;
        inner.deadlines.clear();
        inner.by_time.clear();
        inner.looked = None;
    }

    /// Some changes were missed: what is held now begins to count, if it does not yet,
    /// and what is no more does not any longer.
    pub(crate) fn resync(&self, leases: &BTreeSet<Lease>) {
        let deadline = Instant::now() + LEASE;
        let mut inner = self.lock();
        if inner.term.is_none() {
            return;
        }
        let known: BTreeSet<Lease> = inner.deadlines.keys().copied().collect();
        known.difference(leases).for_each(|lease| inner.remove(*lease));
        for &lease in leases.difference(&known) {
            if !inner.expiring.contains(&lease) {
                inner.set(lease, deadline);
            }
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// These were not expired, and it is certain that they will not be: they count from
    /// now, as if granted, since another leader may have renewed them meanwhile.
    pub(crate) fn not_expired(&self, leases: &[Lease]) {
        let deadline = Instant::now() + LEASE;
        let mut inner = self.lock();
        for lease in leases {
            if inner.expiring.remove(lease) && inner.term.is_some() {
                inner.set(*lease, deadline);
            }
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Waits until leases are overdue and marks them as expiring, until the caller says
    /// [`Leases::ended`] or [`Leases::not_expired`]. At most `max`, with the term whose
    /// deadlines they missed.
    ///
    /// Where this process itself stood still, every lease begins anew, as in a new term.
    pub(crate) async fn overdue(&self, max: usize) -> (u64, Vec<Lease>) {
        loop {
            let next = {
                let mut inner = self.lock();
                let now = Instant::now();
                inner.forgive_stall(now);
                let due = inner.take_overdue(now, max);
                if let (Some(term), false) = (inner.term, due.is_empty()) {
                    return (term, due);
                }
                let first = inner.by_time.first().map(|(deadline, _)| *deadline);
                inner.looked = first.map(|_| now);
                first.map(|deadline| deadline.min(now + LOOK_PERIOD))
            };
            match next {
                None => self.changed.notified().await,
                Some(deadline) => tokio::select! {
                    () = tokio::time::sleep_until(deadline) => (),
                    () = self.changed.notified() => (),
                },
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn set(&mut self, lease: Lease, deadline: Instant) {
        if let Some(before) = self.deadlines.insert(lease, deadline) {
            self.by_time.remove(&(before, lease));
        }
        self.by_time.insert((deadline, lease));
    }

    fn remove(&mut self, lease: Lease) {
        if let Some(deadline) = self.deadlines.remove(&lease) {
            self.by_time.remove(&(deadline, lease));
        }
    }

    fn forgive_stall(&mut self, now: Instant) {
        let stood_still = self.looked.map(|looked| now.duration_since(looked));
        if let Some(stood_still) = stood_still.filter(|time| *time > STALL) {
            tracing::warn!(?stood_still, "this coordinator stood still: leases begin anew");
            for lease in self.deadlines.keys().copied().collect::<Vec<_>>() {
                self.set(lease, now + LEASE);
            }
        }
        self.looked = Some(now);
    }

    fn take_overdue(&mut self, now: Instant, max: usize) -> Vec<Lease> {
        let due: Vec<Lease> = self
            .by_time
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .take(max)
            .map(|(_, lease)| *lease)
            .collect();
        for &lease in &due {
            self.remove(lease);
            self.expiring.insert(lease);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use steading_model::{Epoch, JobId, Work};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_expires_one_full_time_after_its_last_renewal() {
        let leases = leading();
        let start = Instant::now();
        leases.granted(lease(1));
        leases.granted(lease(2));
        tokio::time::advance(LEASE / 2).await;
        assert_eq!(leases.renew(&[lease(2)]), [lease(2)]);
        assert_eq!(leases.overdue(10).await.1, [lease(1)]);
        assert_eq!(start.elapsed(), LEASE);
        assert_eq!(leases.overdue(10).await.1, [lease(2)]);
        assert_eq!(start.elapsed(), LEASE + LEASE / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_chosen_for_expiry_is_not_acknowledged_again() {
        let leases = leading();
        leases.granted(lease(1));
        assert_eq!(leases.overdue(10).await.1, [lease(1)]);
        assert_eq!(leases.renew(&[lease(1)]), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_could_not_be_expired_begins_anew() {
        let leases = leading();
        leases.granted(lease(1));
        let (_, overdue) = leases.overdue(10).await;
        // A resync meanwhile changes nothing: the proposal may be applied yet.
        leases.begin_term(1, [lease(1)]);
        assert_eq!(leases.renew(&[lease(1)]), []);
        leases.not_expired(&overdue);
        let start = Instant::now();
        assert_eq!(leases.renew(&[lease(1)]), [lease(1)]);
        assert_eq!(leases.overdue(10).await.1, [lease(1)]);
        assert_eq!(start.elapsed(), LEASE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_term_gives_every_lease_its_full_time() {
        let leases = leading();
        leases.granted(lease(1));
        tokio::time::advance(LEASE - Duration::from_secs(1)).await;
        leases.begin_term(1, [lease(1), lease(2)]);
        let start = Instant::now();
        assert_eq!(leases.overdue(10).await.1, [lease(1), lease(2)]);
        assert_eq!(start.elapsed(), LEASE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_stood_still_blames_no_agent() {
        let leases = leading();
        leases.granted(lease(1));
        let none = tokio::time::timeout(LEASE / 2, leases.overdue(10)).await;
        assert!(none.is_err());
        tokio::time::advance(LEASE * 2).await;
        let start = Instant::now();
        assert_eq!(leases.overdue(10).await.1, [lease(1)]);
        assert_eq!(start.elapsed(), LEASE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_lead_counts_nothing() {
        let leases = leading();
        leases.granted(lease(1));
        leases.granted(lease(2));
        tokio::time::advance(LEASE / 2).await;
        leases.renew(&[lease(2)]);
        let (_, overdue) = leases.overdue(10).await;
        leases.end_term();
        leases.not_expired(&overdue);
        leases.granted(lease(3));
        leases.resync(&BTreeSet::from([lease(4)]));
        assert_eq!(leases.renew(&[lease(2)]), []);
        let none = tokio::time::timeout(LEASE * 3, leases.overdue(10)).await;
        assert!(none.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn missed_changes_prolong_no_lease() {
        let leases = leading();
        leases.granted(lease(1));
        leases.granted(lease(2));
        let start = Instant::now();
        tokio::time::advance(LEASE / 2).await;
        leases.resync(&BTreeSet::from([lease(2), lease(3)]));
        assert_eq!(leases.overdue(10).await.1, [lease(2)]);
        assert_eq!(start.elapsed(), LEASE);
        assert_eq!(leases.overdue(10).await.1, [lease(3)]);
        assert_eq!(start.elapsed(), LEASE + LEASE / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_lease_never_expires() {
        let leases = leading();
        leases.granted(lease(1));
        leases.ended(lease(1));
        let none = tokio::time::timeout(LEASE * 3, leases.overdue(10)).await;
        assert!(none.is_err());
    }

    fn leading() -> Leases {
        let leases = Leases::default();
        leases.begin_term(1, []);
        leases
    }

    fn lease(job: u64) -> Lease {
        Lease {
            work: Work { job: JobId::from_counter(job), attempt: 1 },
            epoch: Epoch::from_counter(job),
        }
    }
}
