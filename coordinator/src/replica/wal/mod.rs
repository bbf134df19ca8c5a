//! The log of record: entries and promises, durable before anybody hears of them.
//!
//! The protocol, to be attacked:
//!
//! 1. The log is a row of frames with sequence numbers 1, 2, 3…, in segment files
//!    that are zero-filled and synced, with their names, before their first frame.
//! 2. A write is one frame (a large one several), then one fdatasync, then the
//!    acknowledgement. `synced` in a frame is the last sequence number that an
//!    fdatasync had covered, *successfully*, when the frame was made.
//! 3. A segment is synced before the first frame of the next one is written, and
//!    that first frame repeats where the log stands, so that older segments can go.
//! 4. Reading stops at the first sequence number `k` without an intact frame. If any
//!    intact frame anywhere behind it says `synced >= k`, then `k` was on the disk
//!    and is no more: corruption, and the replica refuses. Otherwise `k` was never
//!    synced, hence never acknowledged: a torn tail.
//! 5. Frames behind a torn tail may be intact (pages reach the disk in any order).
//!    None was acknowledged. Before anything is written they are overwritten with
//!    zeros and that is synced, so that none can come back as the successor of
//!    a frame that is written later. A cut in the middle leaves a torn tail again:
//!    zeros make no frame intact, and they remove only frames that prove nothing.
//! 6. Intact frames that nothing proves synced (the process was killed, or an
//!    fdatasync failed and left the pages clean) are written again, byte for byte,
//!    and synced with the zeros. From then on they count as synced.
//! 7. The last frame of a log that fell idle is followed by an empty one, so that
//!    damage to the last acknowledged write is corruption too, and not a torn tail.
//! 8. After any error of a write or a sync the log is dead: nothing is tried again.
//! 9. Segments are removed oldest first, the directory synced after each, so that
//!    what is left is always a row without gaps.

mod frame;
mod recover;
mod segment;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use steading_model::codec::Encode;

pub use frame::{LogId, Position, Promise, Record};
pub use recover::Recovered;

use super::vfs::{Vfs, VfsFile};
use segment::{Next, path_of};

/// Payload of one frame before it is split, bytes. One entry more may fit in.
pub const FRAME_BYTES: usize = 1 << 20;

/// Smallest segment, bytes: a first frame and some more.
pub const SEGMENT_BYTES_MIN: u64 = 1 << 10;

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the log is damaged: frame {seq} at byte {offset} of `{}` was on the disk once and cannot be read any more. \
         Nothing was changed. Put back a copy of the data directory, or, in a group, remove this replica and let \
         it join again with an empty directory",
        path.display()
    )]
    Damaged { path: PathBuf, offset: u64, seq: u64 },
    #[error(
        "the log is inconsistent: {what}, in frame {seq} of `{}`. Nothing was changed. This is a bug, or \
         files of different replicas were mixed; put back a copy of the data directory",
        path.display()
    )]
    Inconsistent { path: PathBuf, seq: u64, what: &'static str },
    #[error(
        "the log in `{}` is missing or its first segment is of another log or damaged ({what}). \
         Nothing was changed. Put back a copy of the data directory",
        dir.display()
    )]
    Missing { dir: PathBuf, what: &'static str },
}

/// How a log is laid out.
#[derive(Clone, Debug)]
pub struct WalOptions {
    pub dir: PathBuf,
    pub id: LogId,
    /// Size of a segment file, bytes. A frame that does not fit makes a larger one.
    pub segment_bytes: u64,
    /// Payload of one frame before it is split, bytes.
    pub frame_bytes: usize,
    /// Whether the next segment is made ahead in a thread of its own. Not in the
    /// simulator, which has one thread.
    pub background: bool,
}

/// The log, open for appending.
#[derive(Debug)]
pub struct Wal {
    vfs: Arc<dyn Vfs>,
    options: WalOptions,
    /// The segment that is written to.
    number: u64,
    file: Box<dyn VfsFile>,
    size: u64,
    /// Where the next frame goes.
    at: u64,
    /// Sequence number of the last frame, and of the last one that was synced.
    seq: u64,
    synced: u64,
    /// Whether a later frame says that the last write was synced.
    sealed: bool,
    last: Position,
    promise: Promise,
    /// Every segment, oldest first, with where the log stood when it began.
    segments: VecDeque<(u64, Position)>,
    next: Next,
    buffer: Vec<u8>,
}

impl Wal {
    /// Makes a log that begins behind `base`, and nothing else in its directory.
    ///
    /// # Errors
    ///
    /// [`WalError::Io`].
    pub fn create(
        vfs: Arc<dyn Vfs>,
        options: WalOptions,
        base: Position,
        promise: Promise,
    ) -> Result<Self, WalError> {
        vfs.create_dir(&options.dir).map_err(io_error("make", &options.dir))?;
        let size = options.segment_bytes.max(SEGMENT_BYTES_MIN);
        let file = segment::prepare(&*vfs, &options.dir, 1, size)?;
        let mut wal = Self {
            vfs,
            options,
            number: 1,
            file,
            size,
            at: 0,
            seq: 0,
            synced: 0,
            sealed: true,
            last: base,
            promise,
            segments: VecDeque::from([(1, base)]),
            next: Next::None,
            buffer: Vec::new(),
        };
        wal.frame_segment();
        wal.flush()?;
        wal.sync()?;
        Ok(wal)
    }

    /// Writes the records, in this order and with all before them, and syncs them if `sync`.
    ///
    /// # Errors
    ///
    /// [`WalError::Io`], after which the log must not be used any more.
    pub fn append(&mut self, records: &[Record], sync: bool) -> Result<(), WalError> {
        let mut from = 0;
        while from < records.len() {
            let mut payload = Vec::new();
            let mut to = from;
            while to < records.len() && (to == from || payload.len() < self.options.frame_bytes) {
                records[to].encode(&mut payload);
                to += 1;
            }
            self.frame(&payload)?;
            for record in &records[from..to] {
                self.note(record);
            }
            self.flush()?;
            from = to;
        }
        if sync { self.sync() } else { Ok(()) }
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    ///
    /// [`WalError::Io`], after which the log must not be used any more.
    pub fn sync(&mut self) -> Result<(), WalError> {
        if self.synced == self.seq {
            return Ok(());
        }
        self.file.sync_data().map_err(io_error("sync", &self.path()))?;
        self.synced = self.seq;
        Ok(())
    }

    /// Whether the last write would pass for a torn tail if it were damaged now.
    pub const fn wants_seal(&self) -> bool {
        !self.sealed
    }

    /// Follows the last write with a frame that says that it was synced.
    ///
    /// # Errors
    ///
    /// [`WalError::Io`], after which the log must not be used any more.
    pub fn seal(&mut self) -> Result<(), WalError> {
        if self.sealed {
            return Ok(());
        }
        self.sync()?;
        let mut payload = Vec::new();
        Record::Promise(self.promise).encode(&mut payload);
        self.frame(&payload)?;
        self.flush()?;
        self.sync()?;
        self.sealed = true;
        Ok(())
    }

    /// The segments without which the log still begins at or before `index`, oldest
    /// first. They count as gone; [`remove_segments`] removes them.
    pub fn cut(&mut self, index: u64) -> Vec<PathBuf> {
        let mut gone = Vec::new();
        while self.segments.get(1).is_some_and(|(_, base)| base.index <= index) {
            if let Some((number, _)) = self.segments.pop_front() {
                gone.push(path_of(&self.options.dir, number));
            }
        }
        gone
    }

    /// Where the oldest segment begins.
    pub fn base(&self) -> Position {
        self.segments.front().map_or(self.last, |(_, base)| *base)
    }

    /// Encodes a frame into the buffer, going over to the next segment where it does not fit.
    fn frame(&mut self, payload: &[u8]) -> Result<(), WalError> {
        let size = frame::size_of(payload.len()) as u64;
        if self.at + size > self.size {
            self.rotate(size)?;
        }
        self.seq += 1;
        frame::write(&mut self.buffer, self.options.id, self.seq, self.synced, |out| {
            out.extend_from_slice(payload);
        });
        self.sealed = false;
        Ok(())
    }

    fn frame_segment(&mut self) {
        let record = Record::Segment {
            number: self.number,
            size: self.size,
            last: self.last,
            promise: self.promise,
        };
        self.seq += 1;
        frame::write(&mut self.buffer, self.options.id, self.seq, self.synced, |out| {
            record.encode(out);
        });
    }

    /// Writes what the buffer holds.
    fn flush(&mut self) -> Result<(), WalError> {
        self.file
            .write_at(self.at, &self.buffer)
            .map_err(io_error("write", &path_of(&self.options.dir, self.number)))?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        if self.at > self.size / 2 && self.next.is_none() {
            self.next = Next::begin(&self.vfs, &self.options, self.number + 1)?;
        }
        Ok(())
    }

    /// Goes over to the next segment, which has room for a frame of `size` bytes.
    fn rotate(&mut self, size: u64) -> Result<(), WalError> {
        self.sync()?;
        let number = self.number + 1;
        let want = size + SEGMENT_BYTES_MIN;
        let (file, size) = match std::mem::take(&mut self.next).finish()? {
            Some((file, size)) if size >= want => (file, size),
            _ => {
                let size = self.options.segment_bytes.max(want);
                (segment::prepare(&*self.vfs, &self.options.dir, number, size)?, size)
            }
        };
        (self.file, self.size, self.number, self.at) = (file, size, number, 0);
        self.segments.push_back((number, self.last));
        self.frame_segment();
        Ok(())
    }

    fn note(&mut self, record: &Record) {
        match record {
            Record::Entry { at, .. } | Record::Cut(at) | Record::Restart(at) => self.last = *at,
            Record::Promise(promise) => self.promise = *promise,
            Record::Segment { .. } => (),
        }
    }

    fn path(&self) -> PathBuf {
        path_of(&self.options.dir, self.number)
    }
}

impl Drop for Wal {
    /// Nobody may find a segment half made by a thread of an earlier owner.
    fn drop(&mut self) {
        let _ = std::mem::take(&mut self.next).finish();
    }
}

/// Removes what [`Wal::cut`] named.
///
/// # Errors
///
/// [`WalError::Io`]. What is left is removed by a later cut.
pub fn remove_segments(vfs: &dyn Vfs, paths: &[PathBuf]) -> Result<(), WalError> {
    for path in paths {
        match vfs.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", path)(error));
            }
            Ok(()) | Err(_) => (),
        }
        if let Some(dir) = path.parent() {
            vfs.sync_dir(dir).map_err(io_error("sync", dir))?;
        }
    }
    Ok(())
}

/// Whether a segment was written to after it was made, whatever log it is of.
pub fn holds_more_than_its_first_frame(bytes: &[u8]) -> bool {
    let len = bytes
        .get(8..12)
        .and_then(|len| len.first_chunk())
        .map_or(0, |len| u32::from_le_bytes(*len));
    let first = frame::size_of(usize::try_from(len).unwrap_or(usize::MAX / 2));
    bytes.get(first..).is_some_and(|rest| !frame::is_zero(rest))
}

/// For `map_err`: what was being done, and to what.
fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WalError {
    move |source| WalError::Io { doing, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
