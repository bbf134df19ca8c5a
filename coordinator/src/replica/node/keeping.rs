//! When the image and the snapshots are brought up to date: the node's half of the keeper.

use std::path::PathBuf;

use super::super::image::ImageMeta;
use super::super::keeper::{Job, Kept, Writes};
use super::super::membership::Membership;
use super::super::snapshot::Header;
use super::super::wal::Position;
use super::{Node, ReplicaError};

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

/// Where the image and the snapshots stand.
#[derive(Debug)]
pub(super) struct Keeping {
    cadence: Cadence,
    /// A job is under way.
    busy: bool,
    /// Entries applied since the image was written, and when the first of them was.
    pub(super) entries: u64,
    since_ms: Option<u64>,
    /// The image must be written as a whole.
    whole: bool,
    /// The state was replaced while a job was under way, which is of no use then.
    replaced: bool,
    /// Segments to remove.
    remove: Vec<PathBuf>,
    /// The snapshot that the log begins with since it was received.
    adopt: Option<Position>,
    /// Not before this, after a snapshot that failed: bytes of log.
    snapshot_at_bytes: u64,
    /// Nor before this, however much it is wanted.
    snapshot_at_ms: u64,
    /// The last one failed a moment ago.
    failed: bool,
}

/// How long a snapshot that failed is not tried again, milliseconds: each is all of the state.
const FAILED_MS: u64 = 5_000;

impl Node {
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
        if std::mem::take(&mut keeping.failed) {
            keeping.snapshot_at_ms = clock_ms + FAILED_MS;
        }
        let may_try = clock_ms >= keeping.snapshot_at_ms;
        let log = self.raw.raft.raft_log.store.bytes();
        let header = || Header {
            at: self.applied,
            membership: Membership::from(self.raw.raft.raft_log.store.conf_state()),
            chain: self.state.chain(),
            hashed_by: self.hashed_by,
        };
        let job = if let Some(at) = keeping.adopt.take() {
            Job::Adopt(at)
        } else if !keeping.remove.is_empty() {
            Job::Remove(std::mem::take(&mut keeping.remove))
        } else if may_try && (self.raw.store().take_wanted() || log >= keeping.snapshot_at_bytes) {
            Job::Snapshot { header: header(), state: Box::new(self.state.clone()) }
        } else if keeping.checkpoint_is_due(clock_ms) {
            let Header { at: applied, membership, chain, hashed_by } = header();
            (keeping.entries, keeping.since_ms) = (0, None);
            // Taken in any case, so that they do not pile up.
            let changes = self.state.take_writes();
            let writes = if keeping.whole {
                Writes::All(Box::new(self.state.clone()))
            } else {
                Writes::Changes(changes)
            };
            Job::Checkpoint { meta: ImageMeta { applied, membership, chain, hashed_by }, writes }
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
        let replaced = std::mem::take(&mut self.keeping.replaced);
        self.keeping.busy = false;
        match kept {
            Kept::Checkpoint { done } => self.keeping.whole = !done || replaced,
            // It is of an earlier state than the one that the log begins with now.
            Kept::Snapshot { .. } if replaced => (),
            Kept::Snapshot { made, covered } => {
                let cadence = self.keeping.cadence.snapshot_bytes;
                let alone = self.is_alone();
                let log = self.raw.mut_store();
                if let Some(header) = made {
                    log.compact(header.at, (&header.membership).into(), alone);
                    self.keeping.snapshot_at_bytes = cadence;
                } else {
                    self.keeping.snapshot_at_bytes = log.bytes() + cadence;
                    self.keeping.failed = true;
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
    pub(super) const fn new(cadence: Cadence, image_is_current: bool) -> Self {
        Self {
            cadence,
            busy: false,
            entries: 0,
            since_ms: None,
            whole: !image_is_current,
            replaced: false,
            remove: Vec::new(),
            adopt: None,
            snapshot_at_bytes: cadence.snapshot_bytes,
            snapshot_at_ms: 0,
            failed: false,
        }
    }

    /// The state is now that of a snapshot from another replica.
    pub(super) const fn replaced(&mut self, at: Position) {
        self.whole = true;
        self.replaced = self.busy;
        self.entries += 1;
        self.adopt = Some(at);
        self.snapshot_at_bytes = self.cadence.snapshot_bytes;
    }

    fn checkpoint_is_due(&mut self, clock_ms: u64) -> bool {
        if self.entries == 0 {
            return false;
        }
        let since = *self.since_ms.get_or_insert(clock_ms);
        self.entries >= self.cadence.checkpoint_entries
            || clock_ms.saturating_sub(since) >= self.cadence.checkpoint_ms
    }
}
