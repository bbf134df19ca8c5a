//! One member of the group, without threads and clocks: Raft, the log and the
//! state, driven by whoever owns it (the replica's thread, or a simulation).
//!
//! The order in [`Node::process`] is the one that Raft's promises rest on: what the
//! leader sends may go out first; then entries and promises are written and
//! synced; only then go answers to other members, and only then is anything applied.

mod group;

use std::collections::BTreeMap;
use std::path::PathBuf;

use raft::eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType, Message};
use raft::{RawNode, StateRole};
use steading_core::{Effect, Proposal, Rejection, State};
use steading_model::Timestamp;
use steading_model::codec::{Decode, DecodeError, Encode, Reader};
use tokio::sync::oneshot;

use super::image::ImageMeta;
use super::keeper::{Job, Kept, Writes};
use super::log::Log;
use super::membership::Membership;
use super::snapshot::Header;
use super::wal::{Position, WalError};
use super::{ProposeError, slog_bridge};

pub(crate) use group::{Ended, Staged};
pub use group::{GroupStatus, Progress, Standing};

/// Milliseconds of one of Raft's ticks.
pub(crate) const TICK_MS: u64 = 25;

/// Ticks without a word from the leader after which an election may begin; at most
/// twice as many.
pub(crate) const ELECTION_TICKS: usize = 10;

/// Version of the encoding of an entry's data.
const WAVE_FORMAT: u64 = 1;

/// Answers a proposal.
pub(crate) type Waiter = oneshot::Sender<Result<Vec<Effect>, ProposeError>>;

/// Answers a read barrier.
pub(crate) type Reader_ = oneshot::Sender<Result<(), ProposeError>>;

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
    #[error("raft wants snapshot {index}, which was not received")]
    NotReceived { index: u64 },
}

/// When the image and the snapshots are brought up to date.
#[derive(Clone, Copy, Debug)]
pub struct Cadence {
    /// Entries after which the image is due.
    pub checkpoint_entries: u64,
    /// Milliseconds after which the image is due if anything changed.
    pub checkpoint_ms: u64,
    /// Bytes of log after which a snapshot is due.
    pub snapshot_bytes: u64,
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
    /// Not yet asked, because nothing of this term is committed; asked, by context;
    /// and answered, by the index that must be applied first.
    reads_new: Vec<Reader_>,
    reads_asked: BTreeMap<u64, Vec<Reader_>>,
    reads_ready: BTreeMap<u64, Vec<Reader_>>,
    read_last: u64,
    /// The term that it leads, with everything before it applied; 0 for none.
    leads: u64,
    /// Who waits for a change of the members, by index and term.
    changes: BTreeMap<u64, (u64, Ended)>,
    /// A snapshot that was received, for the message that comes with it.
    staged: Option<Staged>,
    may_lead: bool,
    keeping: Keeping,
}

/// Where the image and the snapshots stand.
#[derive(Debug)]
struct Keeping {
    cadence: Cadence,
    /// A job is under way.
    busy: bool,
    /// Entries applied since the image was written, and when the first of them was.
    entries: u64,
    since_ms: Option<u64>,
    /// The image must be written as a whole.
    whole: bool,
    /// Segments to remove.
    remove: Vec<PathBuf>,
    /// The snapshot that the log begins with since it was received.
    adopt: Option<Position>,
    /// Not before this, after a snapshot that failed: bytes of log.
    snapshot_at_bytes: u64,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("applied", &self.applied).finish_non_exhaustive()
    }
}

impl Node {
    /// Goes on from `state`, which is what the log makes up to `applied`. A single
    /// voter leads when this returns and [`Node::process`] was called.
    ///
    /// # Errors
    ///
    /// [`ReplicaError::Raft`].
    pub(crate) fn new(
        replica: u64,
        log: Log,
        state: State,
        applied: Position,
        image_is_current: bool,
        cadence: Cadence,
    ) -> Result<Self, ReplicaError> {
        let single = Membership::from(log.conf_state()).is_single(replica);
        let raw =
            RawNode::new(&group::config(replica, applied.index), log, &slog_bridge::logger())?;
        let mut node = Self {
            raw,
            now: state.now(),
            state,
            applied,
            waiters: BTreeMap::new(),
            reads_new: Vec::new(),
            reads_asked: BTreeMap::new(),
            reads_ready: BTreeMap::new(),
            read_last: 0,
            leads: 0,
            changes: BTreeMap::new(),
            staged: None,
            may_lead: true,
            keeping: Keeping {
                cadence,
                busy: false,
                entries: 0,
                since_ms: None,
                whole: !image_is_current,
                remove: Vec::new(),
                adopt: None,
                snapshot_at_bytes: cadence.snapshot_bytes,
            },
        };
        if single {
            node.raw.campaign()?;
        }
        Ok(node)
    }

    pub(crate) const fn state(&self) -> &State {
        &self.state
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
        let now = self.now.max(clock);
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
        self.reads_new.extend(reads);
    }

    /// Does everything that Raft has ready.
    ///
    /// # Errors
    ///
    /// [`ReplicaError`]: the replica must stop, and answer nobody.
    pub(crate) fn process(&mut self, output: &mut Output) -> Result<(), ReplicaError> {
        self.ask_reads(output);
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            output.messages.extend(ready.take_messages());
            let staged = self.staged_for(ready.snapshot())?;
            let restart = staged.as_ref().map(Staged::restart);
            let must_sync = ready.must_sync() || staged.is_some();
            let entries = ready.take_entries();
            let hard_state = ready.hs().cloned();
            self.raw.mut_store().append(restart, entries, hard_state.as_ref(), must_sync)?;
            if let Some(staged) = staged {
                self.go_over_to(staged, output);
            }
            output.messages.extend(ready.take_persisted_messages());
            for read in ready.take_read_states() {
                let context = read.request_ctx.first_chunk().map(|ctx| u64::from_be_bytes(*ctx));
                if let Some(reads) = context.and_then(|ctx| self.reads_asked.remove(&ctx)) {
                    self.reads_ready.entry(read.index).or_default().extend(reads);
                }
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
                EntryType::EntryConfChange => {
                    let change: ConfChange = parse(&entry)?;
                    let state = self.raw.apply_conf_change(&change)?;
                    self.members_changed(state, &entry, output);
                }
                EntryType::EntryConfChangeV2 => {
                    let change: ConfChangeV2 = parse(&entry)?;
                    let state = self.raw.apply_conf_change(&change)?;
                    self.members_changed(state, &entry, output);
                }
            }
            self.applied = Position { index, term };
            self.keeping.entries += 1;
            output.applied = true;
        }
        Ok(())
    }

    fn apply_wave(&mut self, entry: &Entry, output: &mut Output) -> Result<(), ReplicaError> {
        let undecodable = |source| ReplicaError::Entry { index: entry.index, source };
        let (now, proposals) = decode_wave(&entry.data).map_err(undecodable)?;
        self.now = self.now.max(now);
        let waiting = self.waiters.remove(&entry.index);
        let mut outcomes: Vec<Result<Vec<Effect>, Rejection>> = Vec::new();
        for proposal in proposals {
            let outcome = self.state.apply(now, proposal);
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

    fn ask_reads(&mut self, output: &mut Output) {
        if self.raw.raft.state != StateRole::Leader {
            let all = std::mem::take(&mut self.reads_new)
                .into_iter()
                .chain(std::mem::take(&mut self.reads_asked).into_values().flatten());
            output.reads.extend(all.map(|reader| (reader, Err(ProposeError::NotLeader))));
        } else if !self.reads_new.is_empty() && self.raw.raft.commit_to_current_term() {
            // Raft drops what is asked earlier, without a word.
            self.read_last += 1;
            self.reads_asked.insert(self.read_last, std::mem::take(&mut self.reads_new));
            self.raw.read_index(self.read_last.to_be_bytes().to_vec());
        }
    }

    fn answer_reads(&mut self, output: &mut Output) {
        let later = self.reads_ready.split_off(&(self.applied.index + 1));
        let ready = std::mem::replace(&mut self.reads_ready, later).into_values().flatten();
        output.reads.extend(ready.map(|reader| (reader, Ok(()))));
    }

    /// Whether the log wants to be sealed once there is nothing else to do.
    pub(crate) fn wants_seal(&self) -> bool {
        self.raw.store().wants_seal()
    }

    /// Seals the log.
    ///
    /// # Errors
    ///
    /// [`ReplicaError::Wal`]: the replica must stop.
    pub(crate) fn seal(&mut self) -> Result<(), ReplicaError> {
        Ok(self.raw.mut_store().seal()?)
    }

    /// What the keeper should do next, one thing at a time. `clock_ms` is any clock that
    /// does not go back.
    pub(crate) fn due(&mut self, clock_ms: u64) -> Option<Job> {
        let keeping = &mut self.keeping;
        if keeping.busy {
            return None;
        }
        let log = self.raw.raft.raft_log.store.bytes();
        let header = || Header {
            at: self.applied,
            membership: Membership::from(self.raw.raft.raft_log.store.conf_state()),
            chain: self.state.chain(),
        };
        let wanted = self.raw.raft.raft_log.store.wants_snapshot();
        let job = if let Some(at) = keeping.adopt.take() {
            Job::Adopt(at)
        } else if !keeping.remove.is_empty() {
            Job::Remove(std::mem::take(&mut keeping.remove))
        } else if wanted || log >= keeping.snapshot_at_bytes {
            Job::Snapshot { header: header(), state: Box::new(self.state.clone()) }
        } else if keeping.checkpoint_is_due(clock_ms) {
            let Header { at, membership, chain } = header();
            (keeping.entries, keeping.since_ms) = (0, None);
            // Taken in any case, so that they do not pile up.
            let changes = self.state.take_writes();
            let writes = if keeping.whole {
                Writes::All(Box::new(self.state.clone()))
            } else {
                Writes::Changes(changes)
            };
            Job::Checkpoint { meta: ImageMeta { applied: at, membership, chain }, writes }
        } else {
            return None;
        };
        self.keeping.busy = true;
        Some(job)
    }

    /// Milliseconds until [`Node::due`] may have something, if time alone brings it.
    pub(crate) fn due_in_ms(&self, clock_ms: u64) -> Option<u64> {
        let due = self.keeping.since_ms? + self.keeping.cadence.checkpoint_ms;
        (!self.keeping.busy).then(|| due.saturating_sub(clock_ms))
    }

    /// Hears how the keeper's job ended.
    pub(crate) fn kept(&mut self, kept: Kept) {
        self.keeping.busy = false;
        match kept {
            Kept::Checkpoint { done } => self.keeping.whole = !done,
            Kept::Snapshot { made, covered } => {
                let cadence = self.keeping.cadence.snapshot_bytes;
                let keep = self.wanted_from();
                let log = self.raw.mut_store();
                if let Some(header) = made {
                    log.compact(header.at, (&header.membership).into(), keep);
                    self.keeping.snapshot_at_bytes = cadence;
                } else {
                    self.keeping.snapshot_at_bytes = log.bytes() + cadence;
                }
                if let Some(covered) = covered {
                    self.keeping.remove = self.raw.mut_store().cut(covered.index);
                }
            }
            Kept::Removed => (),
        }
    }
}

impl Keeping {
    fn checkpoint_is_due(&mut self, clock_ms: u64) -> bool {
        if self.entries == 0 {
            return false;
        }
        let since = *self.since_ms.get_or_insert(clock_ms);
        self.entries >= self.cadence.checkpoint_entries
            || clock_ms.saturating_sub(since) >= self.cadence.checkpoint_ms
    }
}

fn parse<T: protobuf::Message>(entry: &Entry) -> Result<T, ReplicaError> {
    T::parse_from_bytes(&entry.data).map_err(|_| ReplicaError::Entry {
        index: entry.index,
        source: DecodeError::Invalid("change of membership"),
    })
}

pub(super) fn decode_wave(data: &[u8]) -> Result<(Timestamp, Vec<Proposal>), DecodeError> {
    let mut reader = Reader::new(data);
    if u64::decode(&mut reader)? != WAVE_FORMAT {
        return Err(DecodeError::Invalid("format of an entry"));
    }
    let now = Timestamp::decode(&mut reader)?;
    let proposals = Vec::decode(&mut reader)?;
    if reader.is_empty() { Ok((now, proposals)) } else { Err(DecodeError::Trailing(1)) }
}
