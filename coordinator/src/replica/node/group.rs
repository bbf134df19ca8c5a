//! A member among others: what it hears and says, who leads, who belongs to the group,
//! and how it goes over to a snapshot of another.

use std::collections::BTreeMap;

use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message,
    MessageType, Snapshot,
};
use raft::{Changer, Config, ReadOnlyOption, SnapshotStatus, StateRole};
use steading_core::State;
use steading_model::codec::DecodeError;
use tokio::sync::oneshot;

use super::super::ProposeError;
use super::super::membership::Membership;
use super::super::snapshot::Header;
use super::super::wal::Position;
use super::bars::Stand;
use super::{Bar, Chains, ELECTION_TICKS, Node, Output, ReplicaError};

/// Is told how a change of the members ended.
pub(crate) type Ended = oneshot::Sender<Result<(), ProposeError>>;

/// Who leads, as far as a replica knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub term: u64,
    /// The replica that it follows, or itself.
    pub leader: Option<u64>,
    /// It leads, and has applied everything that was committed before its term. It may
    /// have been deposed and not know it yet: a read barrier tells.
    pub leads: bool,
}

/// How far another member is, as the leader knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Index up to which it has the leader's log on disk.
    pub matched: u64,
    /// It was heard of within the last election timeout.
    pub active: bool,
}

/// The group, as one of its members sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    pub standing: Standing,
    pub term: u64,
    pub commit: u64,
    pub applied: u64,
    pub membership: Membership,
    /// Of every member, itself included. Empty unless it leads.
    pub progress: BTreeMap<u64, Progress>,
}

/// A snapshot that was received and checked, with its file in place.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) header: Header,
    pub(crate) state: State,
}

impl Staged {
    /// Where the log begins anew, and with whom.
    pub(super) fn restart(&self) -> (Position, ConfState) {
        (self.header.at, (&self.header.membership).into())
    }
}

#[cfg(feature = "testkit")]
impl Node {
    pub(crate) const fn applied(&self) -> Position {
        self.applied
    }

    pub(crate) fn raw(&mut self) -> &mut raft::RawNode<super::super::log::Log> {
        &mut self.raw
    }
}

impl Node {
    /// Whether nobody else is there.
    pub(crate) fn is_alone(&self) -> bool {
        self.membership().is_alone(self.raw.raft.id)
    }

    /// Whether nobody else is there, so that time means nothing to it, once it leads: the last
    /// one of a group that shrank has to be elected first, by itself.
    pub(crate) fn is_timeless(&self) -> bool {
        self.raw.raft.state == StateRole::Leader && self.is_alone()
    }

    /// The election timeout in ticks, where Raft has just drawn a new one: at random, which
    /// nobody could repeat.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn set_election_timeout(&mut self, ticks: usize) {
        if self.raw.raft.election_elapsed == 0 {
            self.raw.raft.set_randomized_election_timeout(ticks);
        }
    }

    pub(crate) fn membership(&self) -> Membership {
        Membership::from(self.raw.store().conf_state())
    }

    pub(crate) fn standing(&self) -> Standing {
        let raft = &self.raw.raft;
        let leads = raft.state == StateRole::Leader && self.leads == raft.term;
        Standing {
            term: raft.term,
            leader: (raft.leader_id != raft::INVALID_ID).then_some(raft.leader_id),
            leads,
        }
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let raft = &self.raw.raft;
        let leads = raft.state == StateRole::Leader;
        let progress = raft.prs().iter().filter(|_| leads).map(|(id, progress)| {
            let active = *id == raft.id || self.is_heard(*id);
            (*id, Progress { matched: progress.matched, active })
        });
        GroupStatus {
            standing: self.standing(),
            term: raft.term,
            commit: raft.raft_log.committed,
            applied: self.applied.index,
            membership: self.membership(),
            progress: progress.collect(),
        }
    }

    /// Time passed: one tick.
    pub(crate) fn tick(&mut self) {
        self.ticks += 1;
        self.raw.tick();
        let raft = &mut self.raw.raft;
        // Who stands for election himself begins to count anew, and has no leader either.
        let leaderless =
            raft.leader_id == raft::INVALID_ID || raft.election_elapsed > ELECTION_TICKS;
        match self.bars.stand(leaderless) {
            Stand::HoldBack if raft.state != StateRole::Leader => {
                // Patient, but not so that it would refuse others their votes: between the
                // shortest election timeout and its own.
                raft.set_randomized_election_timeout(2 * ELECTION_TICKS - 1);
                raft.election_elapsed = raft.election_elapsed.min(ELECTION_TICKS + 1);
            }
            Stand::NowOrLater => {
                let turn = raft.id % (ELECTION_TICKS as u64 - 2);
                raft.set_randomized_election_timeout(ELECTION_TICKS + 2 + turn as usize);
            }
            Stand::HoldBack | Stand::Freely => (),
        }
    }

    /// Hears a message of another member. What makes no sense is dropped: Raft says all
    /// that matters again.
    pub(crate) fn step(&mut self, message: Message) {
        let raft = &self.raw.raft;
        if message.to != raft.id {
            return;
        }
        match message.get_msg_type() {
            // Comes with its bytes, by `install`, or not at all.
            MessageType::MsgSnapshot => return,
            // Clients' proposals travel by other means; members have none of their own.
            MessageType::MsgPropose | MessageType::MsgTransferLeader => return,
            MessageType::MsgTimeoutNow if self.bars.any() => return,
            MessageType::MsgHeartbeat if message.term >= raft.term => {
                let (leader, commit) = (message.from, message.commit);
                let last = raft.raft_log.last_index();
                // Raft would panic.
                if commit > last {
                    self.failed = Some(ReplicaError::Forgot { leader, commit, last });
                    return;
                }
            }
            _ => (),
        }
        self.deliver(message);
    }

    /// Hears that the leader sends a snapshot, which is here already.
    ///
    /// # Errors
    ///
    /// [`ReplicaError`]: the replica must stop.
    pub(crate) fn install(
        &mut self,
        staged: Staged,
        message: Message,
        output: &mut Output,
    ) -> Result<(), ReplicaError> {
        let wanted = message.get_snapshot().get_metadata();
        let fits = message.to == self.raw.raft.id
            && message.get_msg_type() == MessageType::MsgSnapshot
            && (wanted.index, wanted.term) == (staged.header.at.index, staged.header.at.term)
            && Membership::from(wanted.get_conf_state()) == staged.header.membership;
        if !fits {
            tracing::warn!(from = message.from, "a snapshot is not what its message says");
            return Ok(());
        }
        // On its own: two that came at once must not take each other's place.
        self.process(output)?;
        self.staged = Some(staged);
        self.deliver(message);
        self.process(output)?;
        self.staged = None;
        Ok(())
    }

    /// Whether it said something within the last election timeout. Raft forgets whom it
    /// heard of whenever it counts them, so that for a moment nobody seems to be there.
    fn is_heard(&self, id: u64) -> bool {
        self.heard.get(&id).is_some_and(|at| self.ticks <= at + ELECTION_TICKS as u64)
    }

    fn deliver(&mut self, message: Message) {
        let (from, kind) = (message.from, message.get_msg_type());
        if self.raw.raft.prs().get(from).is_some() {
            self.heard.insert(from, self.ticks);
        }
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(from, ?kind, %error, "a message was not taken");
        }
    }

    /// Another member cannot be reached at the moment.
    pub(crate) fn unreachable(&mut self, member: u64) {
        self.raw.report_unreachable(member);
    }

    /// A snapshot was sent to another member, or could not be.
    pub(crate) fn snapshot_sent(&mut self, member: u64, ok: bool) {
        let status = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(member, status);
    }

    /// The snapshot of this index cannot be read any more.
    pub(crate) fn snapshot_rotten(&mut self, index: u64) {
        self.raw.mut_store().forget_snapshot(index);
    }

    /// Begins to hand leadership over, if it leads, to the member that is furthest if to
    /// nobody in particular; whether there is somebody.
    pub(crate) fn transfer(&mut self, to: Option<u64>) -> bool {
        if self.raw.raft.state != StateRole::Leader {
            return false;
        }
        // One at a time: another target would begin anew.
        let to = to.or(self.raw.raft.lead_transferee).or_else(|| self.successor());
        if let Some(to) = to {
            self.raw.transfer_leader(to);
        }
        to.is_some()
    }

    /// The voter that has most of the log, of those that were heard of lately.
    fn successor(&self) -> Option<u64> {
        self.successors().first().copied()
    }

    /// The voters that were heard of lately, as a leader knows; who has most of the log first.
    fn successors(&self) -> Vec<u64> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        let membership = self.membership();
        let others = raft
            .prs()
            .iter()
            .filter(|(id, _)| **id != raft.id && self.is_heard(**id) && membership.votes(**id));
        let mut others: Vec<_> = others.map(|(id, progress)| (progress.matched, *id)).collect();
        others.sort_unstable_by(|one, two| two.cmp(one));
        others.into_iter().map(|(_, id)| id).collect()
    }

    /// Whether it had better not lead, for this reason. One whose disk is full hands over if
    /// it leads: each time that it is said to another, for who is to take over may be barred
    /// itself. One whose clock is wrong does so by `peers::policy`, which knows whose is right.
    pub(crate) fn bar(&mut self, why: Bar, barred: bool) {
        self.bars.set(why, barred);
        if !barred || why == Bar::Clock || self.raw.raft.lead_transferee.is_some() {
            return;
        }
        let others = self.successors();
        if let Some(to) = self.bars.next_of(&others, self.ticks) {
            self.transfer(Some(to));
        }
    }

    /// Proposes a change of the members; one at a time.
    pub(crate) fn change_members(
        &mut self,
        change: &ConfChangeV2,
        ended: Ended,
        output: &mut Output,
    ) {
        if self.raw.raft.state != StateRole::Leader {
            return output.changes.push((ended, Err(ProposeError::NotLeader)));
        }
        // What cannot be applied must not get into the log.
        if let Err(why) = self.check_change(change) {
            return output.changes.push((ended, Err(ProposeError::Membership(why))));
        }
        match self.raw.propose_conf_change(Vec::new(), change.clone()) {
            Ok(()) => {
                let index = self.raw.raft.raft_log.last_index();
                self.changes.insert(index, (self.raw.raft.term, ended));
            }
            Err(_) => output.changes.push((ended, Err(ProposeError::Busy))),
        }
    }

    fn check_change(&self, change: &ConfChangeV2) -> Result<(), String> {
        let raft = &self.raw.raft;
        let leaves = |one: &ConfChangeSingle| {
            one.node_id == raft.id && one.get_change_type() != ConfChangeType::AddNode
        };
        if change.changes.iter().any(leaves) {
            return Err("who leads cannot leave: hand over the leadership first".to_owned());
        }
        let mut changer = Changer::new(raft.prs());
        let changed = if change.leave_joint() {
            changer.leave_joint()
        } else if let Some(auto_leave) = change.enter_joint() {
            changer.enter_joint(auto_leave, &change.changes)
        } else {
            changer.simple(&change.changes)
        };
        changed.map(drop).map_err(|error| error.to_string())
    }

    /// A change is committed. What comes of it is the same everywhere, also where it is void.
    pub(super) fn change_committed(
        &mut self,
        entry: &Entry,
        output: &mut Output,
    ) -> Result<(), ReplicaError> {
        // Those of the first version are never written.
        let change = match entry.get_entry_type() {
            EntryType::EntryConfChangeV2 => ConfChangeV2::parse_from_bytes(&entry.data).ok(),
            EntryType::EntryNormal | EntryType::EntryConfChange => None,
        };
        let change = change.ok_or(ReplicaError::Entry {
            index: entry.index,
            source: DecodeError::Invalid("change of membership"),
        })?;
        self.raw.mut_store().keep_commit(entry.index)?;
        let changed = match self.raw.apply_conf_change(&change) {
            Ok(state) => {
                self.raw.mut_store().set_conf_state(state);
                output.members = true;
                self.step_down_if_out(output);
                true
            }
            Err(error) => {
                tracing::error!(index = entry.index, %error, "a change of the members is void");
                false
            }
        };
        self.change_ended(entry.index, entry.term, changed, output);
        Ok(())
    }

    /// Who was elected in the middle of a change may find its own end in the log. Raft lets
    /// it lead on, and panics with the next acknowledgement.
    fn step_down_if_out(&mut self, output: &mut Output) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && !raft.promotable() {
            tracing::info!(term = raft.term, "this replica votes no longer, and leads no longer");
            // As leader it says yet what is committed. As follower it would have nothing to say.
            output.messages.append(&mut raft.msgs);
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
    }

    /// The entry at this index is applied. Raft puts an empty one in the place of a change
    /// that it refuses because another is under way.
    pub(super) fn change_ended(
        &mut self,
        index: u64,
        term: u64,
        changed: bool,
        output: &mut Output,
    ) {
        let Some((proposed, ended)) = self.changes.remove(&index) else { return };
        let answer = match (proposed == term, changed) {
            (true, true) => Ok(()),
            (true, false) => Err(ProposeError::Busy),
            (false, _) => Err(ProposeError::NotLeader),
        };
        output.changes.push((ended, answer));
    }

    /// What was received for the snapshot that Raft has taken, if it has taken one.
    pub(super) fn staged_for(
        &mut self,
        snapshot: &Snapshot,
    ) -> Result<Option<Staged>, ReplicaError> {
        let staged = self.staged.take();
        if snapshot.is_empty() {
            // Raft had no use for it.
            return Ok(None);
        }
        let wanted = snapshot.get_metadata();
        let at = Position { index: wanted.index, term: wanted.term };
        match staged.filter(|staged| staged.header.at == at) {
            Some(staged) => {
                self.check_known(staged.state.feature_level())?;
                Ok(Some(staged))
            }
            None => Err(ReplicaError::NotReceived { index: at.index }),
        }
    }

    /// The log begins with this snapshot now, durably: the state is the snapshot's.
    pub(super) fn go_over_to(&mut self, staged: Staged, output: &mut Output) {
        let Staged { header, state } = staged;
        tracing::info!(index = header.at.index, term = header.at.term, "snapshot.installed");
        self.now = self.now.max(state.now());
        self.state = state;
        self.applied = header.at;
        self.chains = Chains::new(header.at.index, self.state.chain());
        self.hashed_by = header.hashed_by;
        self.keeping.replaced(header.at);
        (output.applied, output.members) = (true, true);
    }
}

/// Every field is set: most defaults are traps.
pub(super) fn config(replica: u64, applied: u64) -> Config {
    Config {
        id: replica,
        election_tick: ELECTION_TICKS,
        heartbeat_tick: 2,
        applied,
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: 256,
        check_quorum: true,
        pre_vote: true,
        min_election_tick: 0,
        max_election_tick: 0,
        read_only_option: ReadOnlyOption::Safe,
        skip_bcast_commit: false,
        // raft 0.7.0 puts entries into an earlier empty append whatever that one's `prev` is,
        // if a rejection came in between, within one round. The follower then acknowledges
        // entries that it does not have. Seed 46 of the simulator.
        batch_append: false,
        priority: 0,
        max_uncommitted_size: 32 << 20,
        max_committed_size_per_ready: 4 << 20,
    }
}
