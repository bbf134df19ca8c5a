//! The account of leases' deadlines: pure, on a clock that is passed in.
//!
//! A lease ends [`LEASE_MS`] after the last renewal that was acknowledged. The deadline is
//! set before the acknowledgement leaves, and a lease that was chosen for expiry is never
//! acknowledged again: the agent can never count on a lease that the log is about to end.
//! Only who leads counts. Who stood still blames no agent.
//!
//! Times are those of one monotonic clock, from wherever it began.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use steading_core::Lease;
use steading_model::limits::LEASE_MS;

pub(super) const LEASE: Duration = Duration::from_millis(LEASE_MS);

/// How often deadlines are looked at while there are any, though none may be due.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// A look that comes so long after the one before shows that this process stood still
/// (stopped, swapped out, its disk stuck) and heard no renewal: no agent is to blame.
const STALL: Duration = Duration::from_secs(4);

/// What a leader knows of the leases' time.
#[derive(Debug, Default)]
pub struct LeaseBook {
    deadlines: BTreeMap<Lease, Duration>,
    by_time: BTreeSet<(Duration, Lease)>,
    /// Chosen for expiry; the proposal is on its way, and may yet be applied where its
    /// answer was lost.
    expiring: BTreeSet<Lease>,
    /// When the deadlines were last looked at; none while there are none.
    looked: Option<Duration>,
    /// The term in which this replica leads: only a leader counts.
    term: Option<u64>,
}

/// What a look at the deadlines comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// These missed the deadlines of that term, and are to be ended by the log: until the
    /// caller says [`LeaseBook::ended`] or [`LeaseBook::not_expired`] they are not renewed.
    Overdue { term: u64, leases: Vec<Lease> },
    /// Nothing is due; look again at this time at the latest.
    At(Duration),
    /// There is nothing to look at until something changes.
    Never,
}

impl LeaseBook {
    /// A lease was granted: it counts from now, whether its agent accepts or not. True where
    /// it is the only one, so that whoever waits for none looks again: a new lease has the
    /// latest deadline of all.
    pub fn granted(&mut self, now: Duration, lease: Lease) -> bool {
        if self.term.is_none() || self.deadlines.contains_key(&lease) {
            return false;
        }
        let first = self.by_time.is_empty();
        self.set(lease, now + LEASE);
        first
    }

    /// Prolongs those leases whose renewal is about to be acknowledged, and returns
    /// them. One that is being expired is left out: its fate is the log's to tell. None
    /// are, where this replica leads no longer.
    pub fn renew(&mut self, now: Duration, leases: &[Lease]) -> Vec<Lease> {
        if self.term.is_none() {
            return Vec::new();
        }
        let kept = leases.iter().copied().filter(|lease| !self.expiring.contains(lease));
        let renewed: Vec<Lease> = kept.collect();
        renewed.iter().for_each(|lease| self.set(*lease, now + LEASE));
        renewed
    }

    /// The lease is no more.
    pub fn ended(&mut self, lease: Lease) {
        self.remove(lease);
        self.expiring.remove(&lease);
    }

    /// A new leader's grace: every lease lasts one full time from now. Called once a term,
    /// after this leader's first commit, with all leases of the state. Those that are
    /// being expired are the sweep's to decide.
    pub fn begin_term(
        &mut self,
        now: Duration,
        term: u64,
        leases: impl IntoIterator<Item = Lease>,
    ) {
        self.term = Some(term);
        self.deadlines.clear();
        self.by_time.clear();
        self.count(now, leases);
    }

    /// This replica leads no longer: the deadlines are another one's to keep.
    pub fn end_term(&mut self) {
        self.term = None;
        self.deadlines.clear();
        self.by_time.clear();
        self.looked = None;
    }

    /// Some changes were missed: what is held now begins to count, if it does not yet,
    /// and what is no more does not any longer.
    pub fn resync(&mut self, now: Duration, leases: &BTreeSet<Lease>) {
        if self.term.is_none() {
            return;
        }
        let known: BTreeSet<Lease> = self.deadlines.keys().copied().collect();
        known.difference(leases).for_each(|lease| self.remove(*lease));
        self.count(now, leases.difference(&known).copied());
    }

    /// These were not expired, and it is certain that they will not be: they count from
    /// now, as if granted, since another leader may have renewed them meanwhile.
    pub fn not_expired(&mut self, now: Duration, leases: &[Lease]) {
        for lease in leases {
            if self.expiring.remove(lease) && self.term.is_some() {
                self.set(*lease, now + LEASE);
            }
        }
    }

    /// What is due, at most `max`.
    ///
    /// Where this process itself stood still, every lease begins anew, as in a new term.
    pub fn look(&mut self, now: Duration, max: usize) -> Look {
        self.forgive_stall(now);
        let due = self.take_overdue(now, max);
        if let (Some(term), false) = (self.term, due.is_empty()) {
            return Look::Overdue { term, leases: due };
        }
        let first = self.by_time.first().map(|(deadline, _)| *deadline);
        self.looked = first.map(|_| now);
        first.map_or(Look::Never, |deadline| Look::At(deadline.min(now + LOOK_PERIOD)))
    }

    fn count(&mut self, now: Duration, leases: impl IntoIterator<Item = Lease>) {
        for lease in leases {
            if !self.expiring.contains(&lease) {
                self.set(lease, now + LEASE);
            }
        }
    }

    fn set(&mut self, lease: Lease, deadline: Duration) {
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

    fn forgive_stall(&mut self, now: Duration) {
        let stood_still = self.looked.map(|looked| now.saturating_sub(looked));
        if let Some(stood_still) = stood_still.filter(|time| *time > STALL) {
            tracing::warn!(?stood_still, "this coordinator stood still: leases begin anew");
            for lease in self.deadlines.keys().copied().collect::<Vec<_>>() {
                self.set(lease, now + LEASE);
            }
        }
        self.looked = Some(now);
    }

    fn take_overdue(&mut self, now: Duration, max: usize) -> Vec<Lease> {
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
