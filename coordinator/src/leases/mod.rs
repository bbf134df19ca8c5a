//! Deadlines of leases, in the leader's memory: [`LeaseBook`], and who waits for it.

mod book;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use steading_core::Lease;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use book::{LeaseBook, Look};

/// What this leader knows of the leases' time. What each does stands at [`LeaseBook`].
#[derive(Debug)]
pub(crate) struct Leases {
    book: Mutex<LeaseBook>,
    /// When its clock began.
    began: Instant,
    /// The earliest deadline may have changed.
    changed: Notify,
}

impl Default for Leases {
    fn default() -> Self {
        Self { book: Mutex::default(), began: Instant::now(), changed: Notify::new() }
    }
}

impl Leases {
    pub(crate) fn granted(&self, lease: Lease) {
        if self.lock().granted(self.now(), lease) {
            self.changed.notify_one();
        }
    }

    pub(crate) fn renew(&self, leases: &[Lease]) -> Vec<Lease> {
        self.change(|book, now| book.renew(now, leases))
    }

    pub(crate) fn ended(&self, lease: Lease) {
        self.lock().ended(lease);
    }

    pub(crate) fn begin_term(&self, term: u64, leases: impl IntoIterator<Item = Lease>) {
        self.change(|book, now| book.begin_term(now, term, leases));
    }

    pub(crate) fn end_term(&self) {
        self.lock().end_term();
    }

    pub(crate) fn resync(&self, leases: &BTreeSet<Lease>) {
        self.change(|book, now| book.resync(now, leases));
    }

    pub(crate) fn not_expired(&self, leases: &[Lease]) {
        self.change(|book, now| book.not_expired(now, leases));
    }

    /// Waits until leases are overdue and marks them as expiring, until the caller says
    /// [`Leases::ended`] or [`Leases::not_expired`]. At most `max`, with the term whose
    /// deadlines they missed.
    pub(crate) async fn overdue(&self, max: usize) -> (u64, Vec<Lease>) {
        loop {
            let look = self.lock().look(self.now(), max);
            match look {
                Look::Overdue { term, leases } => return (term, leases),
                Look::Never => self.changed.notified().await,
                Look::At(time) => tokio::select! {
                    () = tokio::time::sleep_until(self.began + time) => (),
                    () = self.changed.notified() => (),
                },
            }
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut LeaseBook, Duration) -> T) -> T {
        let mut book = self.lock();
        // Read under the lock, so that it never goes backwards in the book.
        let done = change(&mut book, self.now());
        drop(book);
        self.changed.notify_one();
        done
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LeaseBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use steading_model::{Epoch, JobId, Work};

    use super::book::LEASE;
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
