//! Opening a log that is there: what it holds, and whether what is missing may be.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use super::super::vfs::{Vfs, VfsFile, read_all};
use super::frame::{self, ALIGN, Position, Promise, Record};
use super::segment::{Next, number_of, path_of, zero};
use super::{SEGMENT_BYTES_MIN, Wal, WalError, WalOptions, io_error};

/// What a log held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The log begins behind this.
    pub base: Position,
    /// The entries behind `base`, without gaps.
    pub entries: Vec<Record>,
    pub promise: Promise,
    /// Whether something unfinished was found at the end and wiped.
    pub torn: bool,
}

/// A segment as it was read.
struct Segment {
    number: u64,
    file: Box<dyn VfsFile>,
    bytes: Vec<u8>,
}

/// How far reading came.
struct Reading {
    recovered: Recovered,
    segments: VecDeque<(u64, Position)>,
    last: Position,
    seq: u64,
    /// The highest frame that another one says was synced.
    proven: u64,
    /// Position in `files` of the segment with the last intact frame, and where that ends.
    active: usize,
    end: usize,
    /// Where the first frame in the active segment begins that nothing proves synced.
    unproven: usize,
}

impl Wal {
    /// Opens the log, wipes what was never synced, and makes sure of the rest.
    ///
    /// # Errors
    ///
    /// [`WalError::Missing`], [`WalError::Damaged`] and [`WalError::Inconsistent`]: the
    /// log is not what was written, and was left as it is. [`WalError::Io`].
    pub fn open(vfs: Arc<dyn Vfs>, options: WalOptions) -> Result<(Self, Recovered), WalError> {
        let mut files = read_segments(&*vfs, &options)?;
        let reading = read(&options, &files)?;
        let (at, size) = settle(&*vfs, &options, &mut files, &reading)?;
        // What follows the active segment is at most one that was made ahead.
        let next = match files.split_off(reading.active + 1).pop() {
            Some(next) => Next::Ready(next.file, next.bytes.len() as u64),
            None => Next::None,
        };
        let Some(active) = files.pop() else {
            return Err(missing(&options.dir, "it has no segment"));
        };
        let wal = Self {
            vfs,
            number: active.number,
            file: active.file,
            size,
            at,
            seq: reading.seq,
            synced: reading.seq,
            sealed: reading.proven == reading.seq,
            last: reading.last,
            promise: reading.recovered.promise,
            segments: reading.segments,
            next,
            buffer: Vec::new(),
            options,
        };
        Ok((wal, reading.recovered))
    }
}

fn missing(dir: &Path, what: &'static str) -> WalError {
    WalError::Missing { dir: dir.to_owned(), what }
}

fn read_segments(vfs: &dyn Vfs, options: &WalOptions) -> Result<Vec<Segment>, WalError> {
    let names = vfs.list(&options.dir).map_err(io_error("read", &options.dir))?;
    let mut files: Vec<Segment> = Vec::new();
    for number in names.iter().filter_map(|name| number_of(name)) {
        if files.last().is_some_and(|before| before.number + 1 != number) {
            return Err(missing(&options.dir, "a segment in the middle is missing"));
        }
        let path = path_of(&options.dir, number);
        let file = vfs.open(&path).map_err(io_error("open", &path))?;
        let bytes = read_all(&*file).map_err(io_error("read", &path))?;
        files.push(Segment { number, file, bytes });
    }
    Ok(files)
}

/// Follows the frames as far as they are intact, and judges what stops them.
fn read(options: &WalOptions, files: &[Segment]) -> Result<Reading, WalError> {
    let id = options.id;
    let Some(oldest) = files.first() else {
        return Err(missing(&options.dir, "it has no segment"));
    };
    let Some(first) = frame::read(id, &oldest.bytes) else {
        return Err(missing(
            &options.dir,
            "the oldest segment does not begin with a frame of this log",
        ));
    };
    let mut reading = Reading {
        recovered: Recovered {
            base: Position::default(),
            entries: Vec::new(),
            promise: Promise::default(),
            torn: false,
        },
        segments: VecDeque::new(),
        last: Position::default(),
        seq: first.seq - first.seq.min(1),
        proven: first.seq - first.seq.min(1),
        active: 0,
        end: 0,
        unproven: 0,
    };
    let mut starts: Vec<(u64, usize, usize)> = Vec::new();
    for (position, segment) in files.iter().enumerate() {
        let mut at = 0;
        while let Some(found) = frame::read(id, &segment.bytes[at..]) {
            if found.seq != reading.seq + 1 {
                break;
            }
            reading.frame(options, segment, &found)?;
            starts.push((found.seq, position, at));
            at += found.size;
            (reading.active, reading.end) = (position, at);
        }
        if at == 0 {
            break;
        }
    }
    reading.unproven = starts
        .iter()
        .find(|(seq, position, _)| *seq > reading.proven && *position == reading.active)
        .map_or(reading.end, |(_, _, at)| *at);
    reading.judge(options, files)?;
    Ok(reading)
}

impl Reading {
    /// Takes in the records of the next frame.
    fn frame(
        &mut self,
        options: &WalOptions,
        segment: &Segment,
        found: &frame::Frame<'_>,
    ) -> Result<(), WalError> {
        let wrong = |what| WalError::Inconsistent {
            path: path_of(&options.dir, segment.number),
            seq: found.seq,
            what,
        };
        if found.kind != frame::KIND {
            return Err(wrong("the frame is of a later format"));
        }
        let records =
            frame::records(found.payload).map_err(|_| wrong("a record cannot be decoded"))?;
        self.seq = found.seq;
        self.proven = self.proven.max(found.synced);
        for record in records {
            self.record(segment, record).map_err(wrong)?;
        }
        Ok(())
    }

    fn record(&mut self, segment: &Segment, record: Record) -> Result<(), &'static str> {
        let entries = &mut self.recovered.entries;
        match record {
            Record::Segment { number, size, last, promise } => {
                if number != segment.number {
                    return Err("a segment has another number inside than outside");
                }
                if size != segment.bytes.len() as u64 {
                    return Err("a segment has another size inside than outside");
                }
                if self.segments.is_empty() {
                    (self.recovered.base, self.last) = (last, last);
                    self.recovered.promise = promise;
                } else if last != self.last {
                    return Err("a segment begins where the one before does not end");
                }
                self.segments.push_back((number, last));
            }
            Record::Entry { at, kind, .. } => {
                if kind > frame::ENTRY_KIND_MAX {
                    return Err("an entry is of a later kind");
                }
                if at.index != self.last.index + 1 || at.term < self.last.term {
                    return Err("an entry does not follow the one before");
                }
                self.last = at;
                entries.push(record);
            }
            Record::Promise(promise) => self.recovered.promise = promise,
            Record::Cut(after) => {
                if after.index > self.last.index {
                    return Err("a cut lies outside of the log");
                }
                match after.index.checked_sub(self.recovered.base.index) {
                    Some(kept) => entries.truncate(kept as usize),
                    // The segments before went, and with them what this goes back to: the
                    // oldest one left began with entries that are void.
                    None => {
                        entries.clear();
                        self.recovered.base = after;
                    }
                }
                self.last = after;
            }
            Record::Restart(at) => {
                entries.clear();
                (self.recovered.base, self.last) = (at, at);
            }
        }
        Ok(())
    }

    /// Refuses if anything behind the last intact frame proves that more was on the disk.
    fn judge(&mut self, options: &WalOptions, files: &[Segment]) -> Result<(), WalError> {
        for (position, segment) in files.iter().enumerate().skip(self.active) {
            let from = if position == self.active { self.end } else { 0 };
            let rest = &segment.bytes[from.min(segment.bytes.len())..];
            let later = frame::highest_synced(options.id, rest).unwrap_or(0);
            if later.max(self.proven) > self.seq {
                return Err(WalError::Damaged {
                    path: path_of(&options.dir, files[self.active].number),
                    offset: self.end as u64,
                    seq: self.seq + 1,
                });
            }
            self.recovered.torn |= !frame::is_zero(rest);
        }
        Ok(())
    }
}

/// Wipes what lies behind the last intact frame, writes again what nothing proves
/// synced, removes segments that hold nothing, and syncs all of it. Answers where
/// the next frame goes, and the size of that segment.
fn settle(
    vfs: &dyn Vfs,
    options: &WalOptions,
    files: &mut Vec<Segment>,
    reading: &Reading,
) -> Result<(u64, u64), WalError> {
    let keep = reading.active + 1;
    // One segment of zeros was made ahead; anything else is made again when needed.
    let reusable = files.get(keep).is_some_and(|next| {
        next.bytes.len() as u64 >= options.segment_bytes.max(SEGMENT_BYTES_MIN)
            && frame::is_zero(&next.bytes)
    });
    let kept = keep + usize::from(reusable);
    // The newest first, each on its own: a cut in between must not leave a gap.
    while files.len() > kept {
        if let Some(segment) = files.pop() {
            let path = path_of(&options.dir, segment.number);
            vfs.remove(&path).map_err(io_error("remove", &path))?;
            vfs.sync_dir(&options.dir).map_err(io_error("sync", &options.dir))?;
        }
    }
    if reusable && let Some(next) = files.last_mut() {
        // It may have been written by a process that was killed before its sync.
        let path = path_of(&options.dir, next.number);
        next.file.sync_all().map_err(io_error("sync", &path))?;
        vfs.sync_dir(&options.dir).map_err(io_error("sync", &options.dir))?;
    }

    let active = &mut files[reading.active];
    let path = path_of(&options.dir, active.number);
    let (end, size) = (reading.end, active.bytes.len());
    debug_assert_eq!(end % ALIGN, 0, "frames are padded");
    let used = frame::used(&active.bytes);
    let file = &mut active.file;
    if reading.unproven < end {
        file.write_at(reading.unproven as u64, &active.bytes[reading.unproven..end])
            .map_err(io_error("write", &path))?;
    }
    if used > end {
        zero(&mut **file, end as u64, used as u64).map_err(io_error("write", &path))?;
    }
    if reading.unproven < end || used > end {
        file.sync_all().map_err(io_error("sync", &path))?;
    }
    Ok((end as u64, size as u64))
}
