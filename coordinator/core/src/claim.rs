//! Claims: who executes an action, and who waits for it.

use steading_model::limits::CLAIMS_PER_LEASE_MAX;

use crate::effect::{Effect, Rejection};
use crate::index::Part;
use crate::limits::CLAIM_WAITERS_MAX;
use crate::proposal::{Lease, Resolution};
use crate::rows::{Claim, ClaimKey, Waiter};
use crate::run::at_most;
use crate::state::{State, Turn};

impl State {
    pub(crate) fn claim_action(
        &mut self,
        turn: &mut Turn,
        key: ClaimKey,
        lease: Lease,
    ) -> Result<(), Rejection> {
        self.leased_job(lease).ok_or(Rejection::LeaseStale)?;
        let mut parts = 0;
        for (claimed, part) in self.parts_of(lease) {
            if claimed == key {
                // Asked again, after a break: answered again.
                let holder = self.claims.get(&key).map_or(lease, |claim| claim.holder);
                turn.effects.push(match part {
                    Part::Holds => granted(&key, lease),
                    Part::Waits(_) => waits(&key, lease, holder),
                });
                return Ok(());
            }
            parts += 1;
        }
        at_most("number of claims of a lease", parts + 1, CLAIMS_PER_LEASE_MAX)?;
        match self.claims.get(&key) {
            None => {
                let claim = Claim { holder: lease, since: turn.now, waiters: 0, next_place: 0 };
                self.set_claim(&key, Some(claim));
                turn.effects.push(granted(&key, lease));
            }
            Some(claim) => {
                let claim = Claim::clone(claim);
                if claim.waiters as usize >= CLAIM_WAITERS_MAX {
                    return Err(Rejection::ClaimFull);
                }
                turn.effects.push(waits(&key, lease, claim.holder));
                self.set_waiter(&(key.clone(), claim.next_place), Some(Waiter { lease }));
                let waiters = claim.waiters + 1;
                let next_place = claim.next_place + 1;
                self.set_claim(&key, Some(Claim { waiters, next_place, ..claim }));
            }
        }
        Ok(())
    }

    pub(crate) fn resolve_claim(
        &mut self,
        turn: &mut Turn,
        key: &ClaimKey,
        lease: Lease,
        resolution: Resolution,
    ) -> Result<(), Rejection> {
        if self.claims.get(key).is_none_or(|claim| claim.holder != lease) {
            return Err(Rejection::ClaimNotHeld);
        }
        match resolution {
            Resolution::Abandoned => self.pass_on(turn, key),
            Resolution::Published | Resolution::Failed { .. } => {
                let line: Vec<(u64, Lease)> = self.line(key).collect();
                for (place, _) in &line {
                    self.set_waiter(&(key.clone(), *place), None);
                }
                self.set_claim(key, None);
                turn.effects.push(Effect::ClaimResolved {
                    scope: key.0.clone(),
                    action: key.1,
                    waiters: line.into_iter().map(|(_, lease)| lease).collect(),
                    resolution,
                });
            }
        }
        Ok(())
    }

    /// The lease ended: what it held goes to the next in line, and it waits no more.
    pub(crate) fn leave_claims(&mut self, turn: &mut Turn, lease: Lease) {
        let parts: Vec<(ClaimKey, Part)> = self.parts_of(lease).collect();
        for (key, part) in parts {
            match part {
                Part::Holds => self.pass_on(turn, &key),
                Part::Waits(place) => {
                    self.set_waiter(&(key.clone(), place), None);
                    if let Some(claim) = self.claims.get(&key) {
                        let waiters = claim.waiters.saturating_sub(1);
                        let claim = Claim { waiters, ..Claim::clone(claim) };
                        self.set_claim(&key, Some(claim));
                    }
                }
            }
        }
    }

    /// Gives the claim to the first who waits, or ends it.
    fn pass_on(&mut self, turn: &mut Turn, key: &ClaimKey) {
        let next = self.line(key).next();
        let claim = self.claims.get(key).map(|claim| Claim::clone(claim));
        let (Some((place, holder)), Some(claim)) = (next, claim) else {
            self.set_claim(key, None);
            return;
        };
        self.set_waiter(&(key.clone(), place), None);
        let waiters = claim.waiters.saturating_sub(1);
        self.set_claim(key, Some(Claim { holder, since: turn.now, waiters, ..claim }));
        turn.effects.push(granted(key, holder));
    }

    /// Who waits and at which place, first come first.
    fn line(&self, key: &ClaimKey) -> impl Iterator<Item = (u64, Lease)> {
        let range = (key.clone(), 0)..=(key.clone(), u64::MAX);
        self.waiters.range(range).map(|((_, place), waiter)| (*place, waiter.lease))
    }

    /// The claims that a lease takes part in.
    fn parts_of(&self, lease: Lease) -> impl Iterator<Item = (ClaimKey, Part)> {
        let parts = self.index.claims_by_lease.get(&lease);
        parts.into_iter().flatten().map(|(key, part)| (key.clone(), *part))
    }
}

pub(crate) fn granted((scope, action): &ClaimKey, lease: Lease) -> Effect {
    Effect::ClaimGranted { scope: scope.clone(), action: *action, lease }
}

pub(crate) fn waits((scope, action): &ClaimKey, lease: Lease, holder: Lease) -> Effect {
    Effect::ClaimWaits { scope: scope.clone(), action: *action, lease, holder }
}
