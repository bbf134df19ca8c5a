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
    deadlines: BTreeMap<Lease, Us>,
    expiring: BTreeSet<Lease>,
    looked: Option<Us>,
}

impl Book {
    pub(crate) fn granted(&mut self, now: Us, lease: Lease) {
        self.deadlines.entry(lease).or_insert(now + LEASE);
    }

    pub(crate) fn renew(&mut self, now: Us, leases: &[Lease]) -> Vec<Lease> {
        let kept = leases.iter().filter(|lease| !self.expiring.contains(lease));
        let renewed: Vec<Lease> = kept.copied().collect();
        self.deadlines.extend(renewed.iter().map(|lease| (*lease, now + LEASE)));
        renewed
    }

    pub(crate) fn ended(&mut self, lease: Lease) {
        self.deadlines.remove(&lease);
        self.expiring.remove(&lease);
    }

    pub(crate) fn begin_term(&mut self, now: Us, leases: impl IntoIterator<Item = Lease>) {
        self.deadlines.clear();
        for lease in leases {
            if !self.expiring.contains(&lease) {
                self.deadlines.insert(lease, now + LEASE);
            }
        }
    }

    pub(crate) fn not_expired(&mut self, now: Us, leases: &[Lease]) {
        for lease in leases {
            if self.expiring.remove(lease) {
                self.deadlines.insert(*lease, now + LEASE);
            }
        }
    }

    pub(crate) fn overdue(&mut self, now: Us) -> Vec<Lease> {
        if self.deadlines.is_empty() {
            self.looked = None;
            return Vec::new();
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
        due
    }
}
