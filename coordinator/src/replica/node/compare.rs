//! What a leader proposes by itself: its hash chain, for the others to compare with theirs,
//! and the feature level that all of them know.

use std::collections::VecDeque;

use steading_core::Proposal;

use super::{Node, ReplicaError};

/// Entries between two comparisons.
const COMPARE_ENTRIES: u64 = 1000;

/// Entries behind which a comparison comes too late to be answered.
const REMEMBERED_MAX: usize = 4096;

/// The chain after each of the last entries.
#[derive(Debug)]
pub(super) struct Chains {
    last: VecDeque<(u64, [u8; 32])>,
    /// The entry that was compared last, or is about to be.
    compared: u64,
    /// The last entry before the level was asked for.
    raised: u64,
}

impl Chains {
    pub(super) fn new(index: u64, chain: [u8; 32]) -> Self {
        Self { last: VecDeque::from([(index, chain)]), compared: index, raised: 0 }
    }

    pub(super) fn note(&mut self, index: u64, chain: [u8; 32]) {
        if self.last.len() == REMEMBERED_MAX {
            self.last.pop_front();
        }
        self.last.push_back((index, chain));
    }

    fn at(&self, index: u64) -> Option<[u8; 32]> {
        let place = self.last.binary_search_by_key(&index, |(at, _)| *at).ok()?;
        self.last.get(place).map(|(_, chain)| *chain)
    }
}

impl Node {
    /// What a leader should propose now, besides what it is asked to.
    pub(crate) fn own_proposal(&mut self) -> Option<Proposal> {
        if self.leads == 0 {
            return None;
        }
        let (index, level) = (self.applied.index, self.state.feature_level());
        let known = || self.state.feature_level_known().min(self.known);
        if self.known > level && index > self.chains.raised && known() > level {
            let level = known();
            self.chains.raised = index;
            return Some(Proposal::SetFeatureLevel { level });
        }
        let due = index >= self.chains.compared + COMPARE_ENTRIES;
        if !due || self.is_alone() || !self.chain_is_common() {
            return None;
        }
        self.chains.compared = index;
        Some(Proposal::CompareChain { index, chain: self.state.chain() })
    }

    /// Whether the others hash the same. One that was of another version for a while has
    /// hashes of both in its chain, or got them with a snapshot.
    fn chain_is_common(&self) -> bool {
        self.hashed_by == self.known && self.state.chain_is_common(self.raw.raft.id, self.known)
    }

    /// Compares the leader's chain with this replica's.
    pub(super) fn compare(&mut self, proposal: &Proposal) -> Result<(), ReplicaError> {
        let Proposal::CompareChain { index, chain } = proposal else { return Ok(()) };
        self.chains.compared = self.chains.compared.max(*index);
        match self.chains.at(*index) {
            Some(ours) if ours != *chain && self.chain_is_common() => {
                Err(ReplicaError::Diverged { index: *index })
            }
            Some(_) | None => Ok(()),
        }
    }
}
