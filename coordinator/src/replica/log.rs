//! The log as Raft reads it: the write-ahead log, with what Raft may still ask
//! for kept in memory.

use std::cell::Cell;
use std::collections::VecDeque;
use std::path::PathBuf;

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::membership::Membership;
use super::wal::{Position, Promise, Record, Recovered, Wal, WalError};

/// The write-ahead log and its tail in memory.
#[derive(Debug)]
pub(crate) struct Log {
    wal: Wal,
    /// What is in memory begins behind this.
    base: Position,
    entries: VecDeque<Entry>,
    /// Bytes of entries behind the newest snapshot, in memory or not.
    bytes: u64,
    hard_state: HardState,
    /// What of `hard_state` the write-ahead log has.
    written: Promise,
    conf_state: ConfState,
    /// The newest snapshot that was read back, which a follower could be given.
    snapshot: Option<(Position, ConfState)>,
    /// A member needs a snapshot that is not there.
    wanted: Cell<bool>,
    /// Bytes of entries that stay in memory for members that lag.
    lagging_bytes_max: u64,
}

impl Log {
    /// What was recovered. `applied` must be a position of the log. The newest snapshot is
    /// of `snapshot`.
    pub(crate) fn new(
        wal: Wal,
        recovered: Recovered,
        applied: Position,
        snapshot: u64,
        conf_state: ConfState,
    ) -> Self {
        let promise = recovered.promise;
        let bytes = recovered.entries.iter().map(|record| bytes_behind(record, snapshot)).sum();
        let entries: VecDeque<Entry> = recovered.entries.into_iter().filter_map(to_entry).collect();
        let last = entries.back().map_or(recovered.base.index, |entry| entry.index);
        let hard_state = HardState {
            term: promise.term,
            vote: promise.vote,
            // A commit is written lazily, so it may be behind what was applied; and it may be
            // of a write whose entries were torn off.
            commit: promise.commit.clamp(applied.index, last),
            ..HardState::default()
        };
        let mut log = Self {
            wal,
            base: recovered.base,
            entries,
            bytes,
            hard_state,
            written: promise,
            conf_state,
            snapshot: None,
            wanted: Cell::new(false),
            lagging_bytes_max: LAGGING_BYTES_MAX,
        };
        log.forget(applied.index, LAGGING_BYTES_MAX);
        log
    }

    /// Appends entries, over what conflicts with them, and the promise; durable if `sync`.
    /// With `restart` everything before is void: a snapshot of that position takes its
    /// place, in the same write.
    ///
    /// # Errors
    ///
    /// [`WalError`], after which nothing may be acknowledged any more.
    pub(crate) fn append(
        &mut self,
        restart: Option<(Position, ConfState)>,
        entries: Vec<Entry>,
        hard_state: Option<&HardState>,
        sync: bool,
    ) -> Result<(), WalError> {
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        let mut records = Vec::with_capacity(entries.len() + 3);
        if let Some((at, conf_state)) = restart {
            self.entries.clear();
            self.bytes = 0;
            (self.base, self.conf_state) = (at, conf_state.clone());
            self.snapshot = Some((at, conf_state));
            self.hard_state.commit = self.hard_state.commit.max(at.index);
            // The promise first: a log must not be of a later term than what was promised.
            self.written = to_promise(&self.hard_state);
            records.push(Record::Promise(self.written));
            records.push(Record::Restart(at));
        }
        if let Some(first) = entries.first()
            && first.index <= self.last().index
        {
            let after = self.position(first.index - 1).unwrap_or(self.base);
            self.truncate(after);
            records.push(Record::Cut(after));
        }
        for entry in entries {
            records.push(to_record(&entry));
            self.bytes += entry.data.len() as u64;
            self.entries.push_back(entry);
        }
        let promise = to_promise(&self.hard_state);
        // Behind the entries: a commit must not be there without them. A commit on its
        // own is worth no write, unless of a change of the members (`keep_commit`); it goes
        // along with the next one.
        let (term, vote) = (self.written.term, self.written.vote);
        if !records.is_empty() || (promise.term, promise.vote) != (term, vote) {
            if promise != self.written {
                records.push(Record::Promise(promise));
                self.written = promise;
            }
            self.wal.append(&records, sync)?;
        }
        Ok(())
    }

    /// Notes how far the group has committed.
    pub(crate) fn set_commit(&mut self, commit: u64) {
        self.hard_state.commit = commit;
    }

    /// Makes durable that what is at `index` was committed. A change of the members needs
    /// it: who forgot that a joint membership was left would wait for a majority of members
    /// of which some are gone for good.
    ///
    /// # Errors
    ///
    /// [`WalError`], after which nothing may be acknowledged any more.
    pub(crate) fn keep_commit(&mut self, index: u64) -> Result<(), WalError> {
        if self.written.commit >= index {
            return Ok(());
        }
        self.hard_state.commit = self.hard_state.commit.max(index);
        self.written = to_promise(&self.hard_state);
        self.wal.append(&[Record::Promise(self.written)], true)
    }

    /// Whether the log's last write still looks like a torn tail if it is damaged.
    pub(crate) const fn wants_seal(&self) -> bool {
        self.wal.wants_seal()
    }

    /// Seals the last write; for when there is nothing else to do.
    ///
    /// # Errors
    ///
    /// [`WalError`], after which nothing may be acknowledged any more.
    pub(crate) fn seal(&mut self) -> Result<(), WalError> {
        self.wal.seal()
    }

    /// A snapshot of `position` was made. In memory the entries are kept that others may
    /// still need, unless there are no others.
    pub(crate) fn compact(&mut self, position: Position, conf_state: ConfState, alone: bool) {
        let behind = |entry: &&Entry| entry.index > position.index;
        self.bytes = self.entries.iter().filter(behind).map(bytes_of).sum();
        self.forget(position.index, if alone { 0 } else { self.lagging_bytes_max });
        self.snapshot = Some((position, conf_state));
        self.wanted.set(false);
    }

    /// The snapshot of this index, if that is the newest, is none: another has to be made.
    pub(crate) fn forget_snapshot(&mut self, index: u64) {
        if self.snapshot.take_if(|(at, _)| at.index == index).is_some() {
            self.wanted.set(true);
        }
    }

    /// Keeps so few entries for members that lag that a small log makes them need snapshots.
    #[cfg(feature = "testkit")]
    pub(crate) const fn keep_for_lagging(&mut self, bytes: u64) {
        self.lagging_bytes_max = bytes;
    }

    /// Forgets entries in memory up to `index`, but for the last `keep` bytes of them.
    fn forget(&mut self, index: u64, keep: u64) {
        let before = self.entries.iter().take_while(|entry| entry.index <= index);
        let mut excess = before.map(size_of).sum::<u64>().saturating_sub(keep);
        while excess > 0
            && self.entries.front().is_some_and(|entry| entry.index <= index)
            && let Some(entry) = self.entries.pop_front()
        {
            excess = excess.saturating_sub(size_of(&entry));
            self.base = Position { index: entry.index, term: entry.term };
        }
    }

    /// Whether a member waits for a snapshot that nobody has made. Asked once: Raft says
    /// so again.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.take()
    }

    /// The segment files that hold nothing behind `index`; they count as gone.
    pub(crate) fn cut(&mut self, index: u64) -> Vec<PathBuf> {
        self.wal.cut(index)
    }

    pub(crate) fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    pub(crate) const fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    /// Bytes of entries that no snapshot holds.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn last(&self) -> Position {
        self.entries
            .back()
            .map_or(self.base, |entry| Position { index: entry.index, term: entry.term })
    }

    fn truncate(&mut self, after: Position) {
        while self.entries.back().is_some_and(|entry| entry.index > after.index) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes = self.bytes.saturating_sub(entry.data.len() as u64);
            }
        }
    }

    /// The position with this index, if it is in memory.
    fn position(&self, index: u64) -> Option<Position> {
        if index == self.base.index {
            return Some(self.base);
        }
        let entry = self.entries.get(self.offset(index)?)?;
        Some(Position { index, term: entry.term })
    }

    fn offset(&self, index: u64) -> Option<usize> {
        usize::try_from(index.checked_sub(self.base.index + 1)?).ok()
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let Some(from) = self.offset(low) else {
            return Err(raft::Error::Store(StorageError::Compacted));
        };
        let count = usize::try_from(high.saturating_sub(low)).unwrap_or(usize::MAX);
        if high > self.last().index + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let mut left = max_size.into().unwrap_or(u64::MAX);
        let mut entries = Vec::new();
        for entry in self.entries.iter().skip(from).take(count) {
            let size = size_of(entry);
            if size > left && !entries.is_empty() {
                break;
            }
            left = left.saturating_sub(size);
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.position(index) {
            Some(position) => Ok(position.term),
            None if index < self.base.index => Err(raft::Error::Store(StorageError::Compacted)),
            None => Err(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().index)
    }

    /// Metadata only: the bytes travel on their own call.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // Behind the base it would be of no use: what follows it is not in memory any more.
        let least = request_index.max(self.base.index);
        // One that does not know whom it is for is refused there.
        let usable = self.snapshot.as_ref().filter(|(position, conf_state)| {
            position.index >= least && Membership::from(conf_state).contains(to)
        });
        let Some((position, conf_state)) = usable else {
            self.wanted.set(true);
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = position.index;
        metadata.term = position.term;
        metadata.set_conf_state(conf_state.clone());
        Ok(snapshot)
    }
}

/// What an entry takes in a message besides its data and context, bytes; generous.
const ENTRY_OVERHEAD_BYTES: usize = 32;

/// Bytes of entries that are kept in memory although a snapshot holds them, for members
/// that lag. One that is further behind gets the snapshot.
const LAGGING_BYTES_MAX: u64 = 8 << 20;

fn size_of(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len() + ENTRY_OVERHEAD_BYTES) as u64
}

fn bytes_of(entry: &Entry) -> u64 {
    entry.data.len() as u64
}

fn bytes_behind(record: &Record, index: u64) -> u64 {
    match record {
        Record::Entry { at, data, .. } if at.index > index => data.len() as u64,
        _ => 0,
    }
}

fn to_promise(hard_state: &HardState) -> Promise {
    Promise { term: hard_state.term, vote: hard_state.vote, commit: hard_state.commit }
}

fn to_record(entry: &Entry) -> Record {
    let kind = match entry.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    };
    Record::Entry {
        at: Position { index: entry.index, term: entry.term },
        kind,
        context: entry.context.clone(),
        data: entry.data.clone(),
    }
}

fn to_entry(record: Record) -> Option<Entry> {
    let Record::Entry { at, kind, context, data } = record else {
        return None;
    };
    let mut entry = Entry::default();
    entry.set_entry_type(match kind {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        _ => EntryType::EntryConfChangeV2,
    });
    (entry.index, entry.term) = (at.index, at.term);
    (entry.context, entry.data) = (context, data);
    Some(entry)
}
