//! The member among others: how a group is founded, who joins it, and what its leader does
//! for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use steading_core::{FEATURE_LEVEL, Proposal, State};
use steading_model::Timestamp;
use steading_model::codec::Encode;
use tokio::sync::oneshot;

use super::super::identity::{Identity, Joined};
use super::super::membership::Membership;
use super::super::open::StartError;
use super::super::snapshot::{self, Header};
use super::super::testkit::Layout;
use super::super::wal::{Position, Promise, Wal, WalOptions};
use super::Member;
use crate::group::{as_seen, to_raft};
use crate::peers::policy::{Change, due, may_leave};

/// Where the group's log begins: behind a snapshot that each founder has, and so not where
/// the log of a group does that began with nothing.
const GENESIS: Position = Position { index: 2, term: 1 };

/// What a leader did for the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    Learner,
    LearnerLeft,
    Voters,
    JointLeft,
    HandedOver,
}

/// The group's, and a founder's own.
const fn names(id: u64) -> [u8; 32] {
    let mut names = [7; 32];
    names[31] = id as u8;
    names
}

impl Member {
    /// The state that a group of these founders begins with: it knows them. The first
    /// one made itself known, and took the others in.
    ///
    /// # Panics
    ///
    /// More founders than a group may have members, or not counted from one.
    pub fn genesis(voters: &[u64]) -> State {
        let mut state = State::default();
        for &replica in voters {
            let storage_id = Self::founders_storage(replica);
            let proposal = match replica {
                1 => Self::announcement(replica, storage_id.clone()),
                _ => Self::admission(storage_id.clone()),
            };
            let known = state.apply(Timestamp::default(), proposal);
            assert!(known.is_ok(), "a founder is not taken: {known:?}");
            let id = state.replica_by_storage(&storage_id).map(|known| known.id);
            assert_eq!(id, Some(replica), "founders are counted from one");
        }
        drop(state.take_writes());
        state
    }

    /// Names the directory of a founder.
    pub fn founders_storage(id: u64) -> String {
        Identity::first(names(id)).storage_id
    }

    /// What a member says of itself.
    pub fn announcement(replica: u64, storage_id: String) -> Proposal {
        let endpoint = format!("unix:/replica-{storage_id}");
        Proposal::UpdateReplica { replica, storage_id, endpoint, level: FEATURE_LEVEL }
    }

    /// How an empty directory asks to belong to the group.
    pub fn admission(storage_id: String) -> Proposal {
        let endpoint = format!("unix:/replica-{storage_id}");
        Proposal::AdmitReplica { storage_id, endpoint, level: FEATURE_LEVEL }
    }

    /// Who an empty directory is to be.
    pub fn joined(replica_id: u64, storage_id: String) -> Joined {
        Joined { cluster_id: Identity::first(names(0)).cluster_id, replica_id, storage_id }
    }

    /// Makes the directory of a founding member, one of `voters`: what each would have if
    /// the others had joined the first one at the very beginning.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn found(layout: &Layout, id: u64, voters: &[u64]) -> Result<(), StartError> {
        let identity = Identity { replica_id: id, ..Identity::first(names(id)) };
        let options = WalOptions {
            dir: layout.dir.join("wal"),
            id: identity.log_id(),
            segment_bytes: layout.segment_bytes,
            frame_bytes: layout.frame_bytes,
            background: false,
        };
        let promise = Promise { term: GENESIS.term, vote: 0, commit: GENESIS.index };
        let snapshots = layout.dir.join("snapshots");
        for dir in [&layout.dir, &snapshots] {
            let failed = |source| StartError::Io { path: dir.clone(), source };
            layout.vfs.create_dir(dir).map_err(failed)?;
        }
        let state = Self::genesis(voters);
        let membership = Membership { voters: voters.to_vec(), ..Membership::default() };
        let (chain, hashed_by) = (state.chain(), FEATURE_LEVEL);
        let header = Header { at: GENESIS, membership, chain, hashed_by };
        snapshot::write(&*layout.vfs, &snapshots, &header, &state)?;
        Wal::create(Arc::clone(&layout.vfs), options, GENESIS, promise)?;
        Ok(identity.store(&*layout.vfs, &layout.dir)?)
    }

    /// Proposes what a leader proposes by itself, if anything is due.
    pub fn propose_own(&mut self, clock: Timestamp) {
        if let Some(proposal) = self.node.own_proposal() {
            let waiting = vec![(proposal.to_bytes(), oneshot::channel().0)];
            self.node.propose(clock, waiting, &mut self.output);
        }
    }

    /// Proposes the next change of the group, if it leads and one is due.
    pub fn keep_group(&mut self) -> Option<Kept> {
        let pending = self.change.as_mut().map(oneshot::Receiver::try_recv);
        if matches!(pending, Some(Err(oneshot::error::TryRecvError::Empty))) {
            return None;
        }
        self.change = None;
        let status = self.node.status();
        let leader = status.standing.leader.filter(|_| status.standing.leads)?;
        let group = as_seen(leader, status, self.node.state(), &BTreeSet::new());
        let change = due(&group)?;
        let kept = match &change {
            Change::Transfer(to) => {
                self.node.transfer(Some(*to));
                return Some(Kept::HandedOver);
            }
            Change::AddLearner(_) => Kept::Learner,
            Change::RemoveLearner(_) => Kept::LearnerLeft,
            Change::Voters { .. } => Kept::Voters,
            Change::LeaveJoint => Kept::JointLeft,
        };
        let (ended, answer) = oneshot::channel();
        self.change = Some(answer);
        self.node.change_members(&to_raft(&change), ended, &mut self.output);
        Some(kept)
    }

    /// Whether a voter could leave now without force, as a leader tells who asks for it.
    pub fn may_leave(&self, replica: u64) -> bool {
        let status = self.node.status();
        let Some(leader) = status.standing.leader.filter(|_| status.standing.leads) else {
            return false;
        };
        may_leave(&as_seen(leader, status, self.node.state(), &BTreeSet::new()), replica)
    }

    /// Who is in the group, as far as it knows.
    pub fn membership(&self) -> Membership {
        self.node.membership()
    }

    /// Index of the last entry in its log.
    pub fn last_index(&mut self) -> u64 {
        self.node.raw().raft.raft_log.last_index()
    }
}
