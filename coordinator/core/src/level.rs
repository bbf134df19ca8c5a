//! The feature level: what all replicas of the group understand. A kind of proposal,
//! or a change to what an old kind does, counts only from the level on that brought it,
//! so that replicas of two versions work together while one takes the other's place.
//!
//! What is hashed into the chain may differ between versions, for a row may have new
//! fields. So the chain is not compared while some replica knows a later level than is in
//! force, and begins anew once none does: with a level that is raised, and where the last
//! replica of a later version went back or left.

use crate::effect::Rejection;
use crate::proposal::Proposal;
use crate::replica::Replica;
use crate::state::State;

/// The level that a new group has.
const LEVEL_FIRST: u32 = 1;

/// The newest level that this version knows. Replicas and coordinators are told it when they
/// are made, so that the tests of upgrades can make some of the next version: what this
/// one is to that, its predecessor was to this.
pub const FEATURE_LEVEL: u32 = LEVEL_FIRST;

impl Proposal {
    /// The level from which on it may be proposed.
    pub const fn feature_level(&self) -> u32 {
        match self {
            Self::Probe { .. } => 2,
            _ => LEVEL_FIRST,
        }
    }
}

impl State {
    /// The level in force.
    pub fn feature_level(&self) -> u32 {
        self.meta.level.max(LEVEL_FIRST)
    }

    /// The level that all replicas know.
    pub fn feature_level_known(&self) -> u32 {
        self.present().map(|replica| replica.level).min().unwrap_or(LEVEL_FIRST)
    }

    /// Whether all replicas hash the same into the chain, as far as `replica` can tell, whose
    /// version knows `level`. Its own row may still tell of the version that it had before.
    pub fn chain_is_common(&self, replica: u64, level: u32) -> bool {
        let told = self.replica(replica).is_none_or(|row| row.level == level);
        told && self.is_of_one_version()
    }

    /// How many proposals had been applied when the chain began.
    pub const fn chain_from(&self) -> u64 {
        self.meta.chain_from
    }

    pub(crate) fn is_of_one_version(&self) -> bool {
        self.present().all(|replica| replica.level == self.feature_level())
    }

    pub(crate) const fn begin_chain(&mut self) {
        (self.meta.chain, self.meta.chain_from) = ([0; 32], self.meta.applied);
    }

    fn present(&self) -> impl Iterator<Item = &Replica> {
        self.replicas().filter(|replica| !replica.removed)
    }

    /// Only ever raised, and to what everybody knows.
    pub(crate) fn set_feature_level(&mut self, level: u32) -> Result<(), Rejection> {
        if level <= self.feature_level() || level > self.feature_level_known() {
            return Err(Rejection::FeatureLevel { level, current: self.feature_level() });
        }
        self.meta.level = level;
        self.begin_chain();
        Ok(())
    }

    /// What is not in force yet changes nothing.
    pub(crate) fn check_level(&self, level: u32) -> Result<(), Rejection> {
        match self.feature_level() {
            current if level > current => Err(Rejection::FeatureLevel { level, current }),
            _ => Ok(()),
        }
    }

    /// A replica of a version that knows less than is in force would not understand the log.
    pub(crate) fn check_replica_level(&self, level: u32) -> Result<(), Rejection> {
        match self.feature_level() {
            current if current > LEVEL_FIRST && level < current => {
                Err(Rejection::FeatureLevel { level, current })
            }
            _ => Ok(()),
        }
    }
}
