//! One member of the group, without threads and clocks: Raft, the log and the
//! state, driven by whoever owns it (the replica's thread, or a simulation).
//!
//! The order in [`Node::process`] is the one that Raft's promises rest on: what the
//! leader sends may go out first; then entries and promises are written and
//! synced; only then go answers to other members, and only then is anything applied.

mod bars;
mod compare;
mod group;
mod keeping;

use std::collections::BTreeMap;

use raft::eraftpb::{Entry, EntryType, Message};
use raft::{RawNode, StateRole};
use steading_core::{Effect, FEATURE_LEVEL, Proposal, Rejection, State};
use steading_model::Timestamp;
use steading_model::codec::{Decode, DecodeError, Encode, Reader};
use tokio::sync::{mpsc, oneshot};

use super::image::ImageMeta;
use super::log::Log;
use super::membership::Membership;
use super::reads::{Reader_, Reads};
use super::wal::{Position, WalError};
use super::{ProposeError, slog_bridge};

pub use bars::Bar;
use bars::Bars;
use compare::Chains;
pub(crate) use group::{Ended, Staged};
pub use group::{GroupStatus, Progress, Standing};
pub use keeping::Cadence;
use keeping::Keeping;

/// Milliseconds of one of Raft's ticks.
pub(crate) const TICK_MS: u64 = 25;

/// Ticks without a word from the leader after which an election may begin; at most
/// twice as many.
pub(crate) const ELECTION_TICKS: usize = 10;

/// Version of the encoding of an entry's data.
const WAVE_FORMAT: u64 = 1;

/// Answers a proposal.
pub(crate) type Waiter = oneshot::Sender<Result<Vec<Effect>, ProposeError>>;

/// Why a replica stops. None of it can be survived: what is on the disk is all that is certain.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    #[error("the log failed, so the replica stops; what was acknowledged is safe")]
    Wal(#[from] WalError),
    #[error("raft refuses to go on")]
    Raft(#[from] raft::Error),
    #[error(
        "entry {index} of the log holds what this version does not know: start the version that wrote it, or a later one"
    )]
    Entry {
        index: u64,
        #[source]
        source: DecodeError,
    },
    #[error("the thread of the replica panicked")]
    Panicked,
    #[error(
        "replica {leader}, which leads, knows that this one had entry {commit}, but its log ends at entry {last}: its disk \
         lost what it had acknowledged. Remove this replica from the group, and let it join again with an empty directory"
    )]
    Forgot { leader: u64, commit: u64, last: u64 },
    #[error(
        "this replica's state and the leader's differ at entry {index}. It stops, and leaves its directory as it is. \
         Keep a copy of that for a report. Where the other replicas go on, remove this one from the group and let it \
         join again with an empty directory; where all have stopped, only the leader differs: do the same with that one"
    )]
    Diverged { index: u64 },
    #[error(
        "the group is at feature level {level}, and this version knows no later one than {known}: start the version \
         that ran here before, or a later one"
    )]
    Level { level: u32, known: u32 },
    #[error("raft wants snapshot {index}, which was not received")]
    NotReceived { index: u64 },
}

/// What came of a round.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// Of the accepted proposals, in order. Only a leader's count.
    pub(crate) effects: Vec<Effect>,
    pub(crate) answers: Vec<(Waiter, Result<Vec<Effect>, ProposeError>)>,
    pub(crate) reads: Vec<(Reader_, Result<(), ProposeError>)>,
    pub(crate) changes: Vec<(Ended, Result<(), ProposeError>)>,
    /// Leads from now on, with everything before applied.
    pub(crate) leads: bool,
    /// Whether anything was applied.
    pub(crate) applied: bool,
    /// The members changed.
    pub(crate) members: bool,
    /// For other members.
    pub(crate) messages: Vec<Message>,
    /// Where a leader's messages go while it writes. Its followers write at the same time.
    pub(crate) early: Option<mpsc::Sender<Vec<Message>>>,
    /// Every wave that was applied, for whoever checks what came of it.
    #[cfg(feature = "testkit")]
    pub(crate) waves: Vec<(u64, Timestamp, Vec<Proposal>)>,
}

impl Output {
    /// What is not taken goes with the others, once all is written.
    fn send_early(&mut self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        match &self.early {
            None => self.messages.extend(messages),
            Some(early) => {
                if let Err(error) = early.try_send(messages) {
                    self.messages.extend(error.into_inner());
                }
            }
        }
    }
}

/// A member.
pub(crate) struct Node {
    raw: RawNode<Log>,
    state: State,
    applied: Position,
    /// The last time that was stamped: time in the log never goes back.
    now: Timestamp,
    /// By index: the term under which it was proposed, and who waits.
    waiters: BTreeMap<u64, (u64, Vec<Waiter>)>,
    reads: Reads,
    /// Ticks so far.
    ticks: u64,
    /// By member: the tick at which it was last heard.
    heard: BTreeMap<u64, u64>,
    /// The term that it leads, with everything before it applied; 0 for none.
    leads: u64,
    /// Who waits for a change of the members, by index and term.
    changes: BTreeMap<u64, (u64, Ended)>,
    /// A snapshot that was received, for the message that comes with it.
    staged: Option<Staged>,
    bars: Bars,
    /// The newest feature level that this version knows.
    known: u32,
    /// As in [`super::snapshot::Header`], of what is applied.
    hashed_by: u32,
    /// Why it cannot go on, found between two rounds.
    failed: Option<ReplicaError>,
    chains: Chains,
    keeping: Keeping,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("applied", &self.applied).finish_non_exhaustive()
    }
}

impl Node {
    /// Goes on from `state`, which is what the log makes up to where `meta` says. A single
    /// voter leads when this returns and [`Node::process`] was called.
    ///
    /// # Errors
    ///
    /// [`ReplicaError::Raft`].
    pub(crate) fn new(
        replica: u64,
        log: Log,
        state: State,
        meta: &ImageMeta,
        image_is_current: bool,
        cadence: Cadence,
    ) -> Result<Self, ReplicaError> {
        let applied = meta.applied;
        let single = Membership::from(log.conf_state()).is_single(replica);
        let raw =
            RawNode::new(&group::config(replica, applied.index), log, &slog_bridge::logger())?;
        let chains = Chains::new(applied.index, state.chain());
        let mut node = Self {
            raw,
            now: state.now(),
            state,
            applied,
            waiters: BTreeMap::new(),
            reads: Reads::new(replica),
            ticks: 0,
            heard: BTreeMap::new(),
            leads: 0,
            changes: BTreeMap::new(),
            staged: None,
            bars: Bars::default(),
            known: FEATURE_LEVEL,
            hashed_by: meta.hashed_by,
            failed: None,
            chains,
            keeping: Keeping::new(cadence, image_is_current),
        };
        if single {
            node.raw.campaign()?;
        }
        Ok(node)
    }

    pub(crate) const fn state(&self) -> &State {
        &self.state
    }

    /// Makes it a replica of the version that knows this feature level, and none that is later.
    ///
    /// # Errors
    ///
    /// [`ReplicaError::Level`] if the group is further already.
    pub(crate) fn set_known_level(&mut self, known: u32) -> Result<(), ReplicaError> {
        self.known = known;
        self.check_known(self.state.feature_level())
    }

    /// Packs a wave of encoded proposals into one entry. `clock` is the leader's.
    pub(crate) fn propose(
        &mut self,
        clock: Timestamp,
        wave: Vec<(Vec<u8>, Waiter)>,
        output: &mut Output,
    ) {
        let refuse = |wave: Vec<(Vec<u8>, Waiter)>, output: &mut Output, error: ProposeError| {
            output.answers.extend(wave.into_iter().map(|(_, waiter)| (waiter, Err(error.clone()))));
        };
        // Raft would forward it to the leader, and nobody would wait for its end.
        if self.raw.raft.state != StateRole::Leader {
            return refuse(wave, output, ProposeError::NotLeader);
        }
        let now = if self.bars.clock() { self.now } else { self.now.max(clock) };
        let mut data =
            Vec::with_capacity(16 + wave.iter().map(|(bytes, _)| bytes.len()).sum::<usize>());
        WAVE_FORMAT.encode(&mut data);
        now.encode(&mut data);
        (wave.len() as u64).encode(&mut data);
        for (bytes, _) in &wave {
            data.extend_from_slice(bytes);
        }
        match self.raw.propose(Vec::new(), data) {
            Ok(()) => {
                self.now = now;
                let index = self.raw.raft.raft_log.last_index();
                let waiters = wave.into_iter().map(|(_, waiter)| waiter).collect();
                self.waiters.insert(index, (self.raw.raft.term, waiters));
            }
            // Too much is under way, or leadership is being handed over.
            Err(_) => refuse(wave, output, ProposeError::Busy),
        }
    }

    /// Asks the group whether this is still the leader, once for all of `reads`.
    pub(crate) fn read(&mut self, reads: Vec<Reader_>) {
        self.reads.add(reads, true, self.ticks);
    }

    /// Asks the leader, whoever that is, how far the group is, once for all of `reads`.
    pub(crate) fn read_anywhere(&mut self, reads: Vec<Reader_>) {
        self.reads.add(reads, false, self.ticks);
    }

    /// Makes this start's questions to the leader different from those of any other.
    pub(crate) const fn set_start(&mut self, start: u64) {
        self.reads.set_start(start);
    }

    /// Does everything that Raft has ready.
    ///
    /// # Errors
    ///
    /// [`ReplicaError`]: the replica must stop, and answer nobody.
    pub(crate) fn process(&mut self, output: &mut Output) -> Result<(), ReplicaError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.watch_role(output);
        self.ask_reads(output);
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            output.send_early(ready.take_messages());
            let staged = self.staged_for(ready.snapshot())?;
            let restart = staged.as_ref().map(Staged::restart);
            let must_sync = ready.must_sync() || staged.is_some();
            #[cfg(feature = "testkit")]
            let must_sync = must_sync
                && !steading_core::mutation::is_on(
                    steading_core::mutation::Mutation::AcknowledgeBeforeSync,
                );
            let entries = ready.take_entries();
            let hard_state = ready.hs().cloned();
            self.raw.mut_store().append(restart, entries, hard_state.as_ref(), must_sync)?;
            if let Some(staged) = staged {
                self.go_over_to(staged, output);
            }
            output.messages.extend(ready.take_persisted_messages());
            for read in ready.take_read_states() {
                self.reads.answered(&read.request_ctx, read.index);
            }
            self.apply(ready.take_committed_entries(), output)?;
            let mut light = self.raw.advance_append(ready);
            if let Some(commit) = light.commit_index() {
                self.raw.mut_store().set_commit(commit);
            }
            output.messages.extend(light.take_messages());
            self.apply(light.take_committed_entries(), output)?;
            self.raw.advance_apply_to(self.applied.index);
            self.watch_role(output);
            self.ask_reads(output);
        }
        self.answer_reads(output);
        Ok(())
    }

    fn watch_role(&mut self, output: &mut Output) {
        if self.raw.raft.state == StateRole::Leader {
            return;
        }
        self.leads = 0;
        // They may be committed by the next leader, or not.
        for (_, (_, waiters)) in std::mem::take(&mut self.waiters) {
            let unknown = |waiter| (waiter, Err(ProposeError::Unknown));
            output.answers.extend(waiters.into_iter().map(unknown));
        }
        for (_, (_, ended)) in std::mem::take(&mut self.changes) {
            output.changes.push((ended, Err(ProposeError::Unknown)));
        }
    }

    fn apply(&mut self, entries: Vec<Entry>, output: &mut Output) -> Result<(), ReplicaError> {
        for entry in entries {
            let (index, term) = (entry.index, entry.term);
            match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => {
                    self.change_ended(index, term, false, output);
                    let leader = self.raw.raft.state == StateRole::Leader;
                    // The first entry of a leader: all before it is applied now.
                    if leader && term == self.raw.raft.term && term != self.leads {
                        self.leads = term;
                        output.leads = true;
                    }
                }
                EntryType::EntryNormal => self.apply_wave(&entry, output)?,
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.change_committed(&entry, output)?;
                }
            }
            self.applied = Position { index, term };
            self.chains.note(index, self.state.chain());
            self.keeping.entries += 1;
            output.applied = true;
        }
        Ok(())
    }

    fn apply_wave(&mut self, entry: &Entry, output: &mut Output) -> Result<(), ReplicaError> {
        let undecodable = |source| ReplicaError::Entry { index: entry.index, source };
        let (now, proposals) = decode_wave(&entry.data, self.known).map_err(undecodable)?;
        self.now = self.now.max(now);
        #[cfg(feature = "testkit")]
        output.waves.push((entry.index, now, proposals.clone()));
        let waiting = self.waiters.remove(&entry.index);
        let mut outcomes: Vec<Result<Vec<Effect>, Rejection>> = Vec::new();
        for proposal in proposals {
            self.compare(&proposal)?;
            if let Proposal::SetFeatureLevel { level } = proposal {
                self.check_known(level)?;
            }
            let outcome = self.hash(|state| state.apply(now, proposal));
            // Those of earlier entries are derived again for a new leader.
            if self.leads != 0
                && let Ok(effects) = &outcome
            {
                output.effects.extend(effects.iter().cloned());
            }
            outcomes.push(outcome);
        }
        let Some((term, waiters)) = waiting else { return Ok(()) };
        if term == entry.term {
            let outcomes = outcomes.into_iter().map(|it| it.map_err(ProposeError::Rejected));
            output.answers.extend(waiters.into_iter().zip(outcomes));
        } else {
            // Another leader's entry took this index, so this one's is gone for good.
            let gone = |waiter| (waiter, Err(ProposeError::NotLeader));
            output.answers.extend(waiters.into_iter().map(gone));
        }
        Ok(())
    }

    /// Lets something be applied, and keeps note of whose hashes the chain is made of.
    fn hash<T>(&mut self, apply: impl FnOnce(&mut State) -> T) -> T {
        let (is_empty, from) = (self.state.chain() == [0; 32], self.state.chain_from());
        let applied = apply(&mut self.state);
        if is_empty || self.state.chain_from() != from {
            self.hashed_by = self.known;
        } else if self.hashed_by != self.known {
            self.hashed_by = 0;
        }
        applied
    }

    /// What is refused from a later level on would have to be understood.
    fn check_known(&self, level: u32) -> Result<(), ReplicaError> {
        let known = self.known;
        if level > known { Err(ReplicaError::Level { level, known }) } else { Ok(()) }
    }

    fn ask_reads(&mut self, output: &mut Output) {
        let refused = |reader| (reader, Err(ProposeError::NotLeader));
        let somebody_answers = if self.raw.raft.state == StateRole::Leader {
            // Raft drops what is asked earlier, without a word.
            self.raw.raft.commit_to_current_term()
        } else {
            output.reads.extend(self.reads.take_lead().into_iter().map(refused));
            self.raw.raft.leader_id != raft::INVALID_ID
        };
        if somebody_answers && let Some(context) = self.reads.question(self.ticks) {
            #[cfg(feature = "testkit")]
            if self.raw.raft.state == StateRole::Leader
                && steading_core::mutation::is_on(
                    steading_core::mutation::Mutation::StaleLeaderRenews,
                )
            {
                return self.reads.answered(&context, self.applied.index);
            }
            self.raw.read_index(context);
        }
    }

    fn answer_reads(&mut self, output: &mut Output) {
        output.reads.extend(self.reads.passed(self.applied.index).map(|reader| (reader, Ok(()))));
        let late = self.reads.take_late(self.ticks).into_iter();
        output.reads.extend(late.map(|reader| (reader, Err(ProposeError::NotLeader))));
    }
}

/// `known`: the newest feature level of which proposals are understood.
pub(super) fn decode_wave(
    data: &[u8],
    known: u32,
) -> Result<(Timestamp, Vec<Proposal>), DecodeError> {
    let mut reader = Reader::new(data);
    if u64::decode(&mut reader)? != WAVE_FORMAT {
        return Err(DecodeError::Invalid("format of an entry"));
    }
    let now = Timestamp::decode(&mut reader)?;
    let proposals: Vec<Proposal> = Vec::decode(&mut reader)?;
    if proposals.iter().any(|proposal| proposal.feature_level() > known) {
        return Err(DecodeError::Invalid("feature level of a proposal"));
    }
    if reader.is_empty() { Ok((now, proposals)) } else { Err(DecodeError::Trailing(1)) }
}
