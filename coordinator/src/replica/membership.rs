//! Who is in the group, as it is kept in the image and in snapshots.

use std::collections::BTreeSet;

use raft::eraftpb::ConfState;
use steading_model::codec::record;

/// Raft's configuration in our own encoding: what is on disk must not depend on a library's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    pub voters_outgoing: Vec<u64>,
    pub learners_next: Vec<u64>,
    pub auto_leave: bool,
}

record! { Membership { voters, learners, voters_outgoing, learners_next, auto_leave } }

impl Membership {
    /// A group of one.
    pub fn single(replica: u64) -> Self {
        Self { voters: vec![replica], ..Self::default() }
    }

    /// Whether `replica` decides alone; others may listen.
    pub fn is_single(&self, replica: u64) -> bool {
        self.voters == [replica] && self.voters_outgoing.is_empty()
    }

    /// Whether nobody is there but `replica`, which decides.
    pub fn is_alone(&self, replica: u64) -> bool {
        self.is_single(replica) && self.learners.is_empty() && self.learners_next.is_empty()
    }

    /// Everybody, each once.
    pub fn all(&self) -> impl Iterator<Item = u64> {
        let lists = [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next];
        let all: BTreeSet<u64> = lists.into_iter().flatten().copied().collect();
        all.into_iter()
    }

    /// Whether `replica` is a member, of whatever kind.
    pub fn contains(&self, replica: u64) -> bool {
        self.all().any(|member| member == replica)
    }

    /// Whether `replica` has a vote in the newer configuration.
    pub fn votes(&self, replica: u64) -> bool {
        self.voters.contains(&replica)
    }

    /// Whether two configurations have to agree, until the newer one is entered.
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }
}

impl From<&ConfState> for Membership {
    fn from(state: &ConfState) -> Self {
        Self {
            voters: state.voters.clone(),
            learners: state.learners.clone(),
            voters_outgoing: state.voters_outgoing.clone(),
            learners_next: state.learners_next.clone(),
            auto_leave: state.auto_leave,
        }
    }
}

impl From<&Membership> for ConfState {
    fn from(membership: &Membership) -> Self {
        Self {
            voters: membership.voters.clone(),
            learners: membership.learners.clone(),
            voters_outgoing: membership.voters_outgoing.clone(),
            learners_next: membership.learners_next.clone(),
            auto_leave: membership.auto_leave,
            ..Self::default()
        }
    }
}
