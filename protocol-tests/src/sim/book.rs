//! Deadlines of leases in the simulated leader's memory: the rules of the coordinator's
//! own, on a clock that is passed in.

use std::collections::{BTreeMap, BTreeSet};

use steading_core::Lease;
use steading_model::limits::LEASE_MS;

use super::queue::{MS, S, Us};

const LEASE: Us = LEASE_MS * MS;

/// A look that comes so long after the one before shows that the process stood still.
const STALL: Us = 4 * S;

/// What a leader knows of the leases' time, on its own clock.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// The term in which this replica leads: only a leader counts.
    pub(crate) term: Option<u64>,
    deadlines: BTreeMap<Lease, Us>,
    expiring: BTreeSet<Lease>,
    looked: Option<Us>,
}

impl Book {
    pub(crate) fn granted(&mut self, now: Us, lease: Lease) {
        if self.term.is_some() {
            self.deadlines.entry(lease).or_insert(now + LEASE);
        }
    }

    pub(crate) fn renew(&mut self, now: Us, leases: &[Lease]) -> Vec<Lease> {
        if self.term.is_none() {
            return Vec::new();
        }
        let kept = leases.iter().filter(|lease| !self.expiring.contains(lease));
        let renewed: Vec<Lease> = kept.copied().collect();
        self.deadlines.extend(renewed.iter().map(|lease| (*lease, now + LEASE)));
        renewed
    }

    pub(crate) fn ended(&mut self, lease: Lease) {
        self.deadlines.remove(&lease);
        self.expiring.remove(&lease);
    }

    pub(crate) fn begin_term(&mut self, now: Us, term: u64, leases: BTreeSet<Lease>) {
        self.term = Some(term);
        self.deadlines.clear();
        let counted = leases.into_iter().filter(|lease| !self.expiring.contains(lease));
        self.deadlines.extend(counted.map(|lease| (lease, now + LEASE)));
    }

    pub(crate) fn end_term(&mut self) {
        self.term = None;
        self.deadlines.clear();
        self.looked = None;
    }

    /// Some changes were missed.
    pub(crate) fn resync(&mut self, now: Us, leases: &BTreeSet<Lease>) {
        self.deadlines.retain(|lease, _| leases.contains(lease));
        for lease in leases {
            if !self.expiring.contains(lease) {
                self.granted(now, *lease);
            }
        }
    }

    pub(crate) fn not_expired(&mut self, now: Us, leases: &[Lease]) {
        for lease in leases {
            if self.expiring.remove(lease) && self.term.is_some() {
                self.deadlines.insert(*lease, now + LEASE);
            }
        }
    }

    /// Leases whose time is over, with the term whose deadlines they missed.
    pub(crate) fn overdue(&mut self, now: Us) -> Option<(u64, Vec<Lease>)> {
        if self.deadlines.is_empty() {
            self.looked = None;
            return None;
        }
        if self.looked.is_some_and(|looked| now - looked > STALL) {
            self.deadlines.values_mut().for_each(|deadline| *deadline = now + LEASE);
        }
        self.looked = Some(now);
        let due = self.deadlines.iter().filter(|(_, deadline)| **deadline <= now);
        let due: Vec<Lease> = due.map(|(lease, _)| *lease).collect();
        for lease in &due {
            self.deadlines.remove(lease);
            self.expiring.insert(*lease);
        }
        self.term.filter(|_| !due.is_empty()).map(|term| (term, due))
    }
}
