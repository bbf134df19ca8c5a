//! Snapshots: the whole state in a file, so that the log before it can go.
//!
//! A file is a magic, then chunks, each `length u32 | BLAKE3 of what follows | zstd`,
//! and at the end a chunk of length zero with the digest of all digests. The first
//! chunk holds the [`Header`], the others rows. It counts only after it was
//! written, renamed, synced, read back and compared with the state it was made of.

use std::io;
use std::path::{Path, PathBuf};

use steading_core::State;
use steading_model::codec::{Decode, DecodeError, Encode, Reader, record};

use super::membership::Membership;
use super::vfs::{Vfs, VfsFile};
use super::wal::Position;

const MAGIC: &[u8; 8] = b"STSNAP\x00\x01";

/// Bytes of rows after which a chunk is closed.
const CHUNK_BYTES: usize = 1 << 20;

/// Largest chunk, bytes, compressed or not: one row of any size we know fits on top.
const CHUNK_BYTES_MAX: usize = 4 << 20;

/// zstd's level: the disk is slower than this.
const LEVEL: i32 = 1;

/// Why a snapshot is none.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("snapshot is damaged: {0}")]
    Damaged(&'static str),
    #[error("snapshot cannot be decoded")]
    Decode(#[from] DecodeError),
    #[error("the rows of the snapshot are no state")]
    State(#[from] steading_core::ImageError),
    #[error("a chunk of the snapshot has {0} bytes, at most {CHUNK_BYTES_MAX} are allowed")]
    ChunkTooLarge(usize),
}

/// What the snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub at: Position,
    pub membership: Membership,
    pub chain: [u8; 32],
    /// The newest feature level that those versions know which made the chain, if all knew
    /// the same; else 0. Others may have hashed other bytes.
    pub hashed_by: u32,
}

#[derive(Debug)]
struct HeaderRow {
    index: u64,
    term: u64,
    membership: Membership,
    chain: [u8; 32],
    hashed_by: u32,
}

record! { HeaderRow { index, term, membership, chain, hashed_by } }

/// Writes a snapshot of `state`, reads it back and compares.
///
/// # Errors
///
/// [`SnapshotError`]; nothing counts then, and the next try begins anew.
pub(crate) fn write(
    vfs: &dyn Vfs,
    dir: &Path,
    header: &Header,
    state: &State,
) -> Result<PathBuf, SnapshotError> {
    let path = dir.join(name_of(header.at));
    let tmp = path.with_extension("tmp");
    let mut writer = Writer::new(vfs.create(&tmp).map_err(io_error("make", &tmp))?, &tmp)?;
    let row = HeaderRow {
        index: header.at.index,
        term: header.at.term,
        membership: header.membership.clone(),
        chain: header.chain,
        hashed_by: header.hashed_by,
    };
    writer.chunk(&row.to_bytes())?;
    let mut chunk = Vec::new();
    for (key, value) in state.rows() {
        append(&mut chunk, &key);
        append(&mut chunk, &value);
        if chunk.len() >= CHUNK_BYTES {
            writer.chunk(&chunk)?;
            chunk.clear();
        }
    }
    if !chunk.is_empty() {
        writer.chunk(&chunk)?;
    }
    writer.finish()?;
    vfs.rename(&tmp, &path).map_err(io_error("rename", &tmp))?;
    vfs.sync_dir(dir).map_err(io_error("sync", dir))?;
    verify(vfs, &path, header, state)?;
    Ok(path)
}

/// Reads a snapshot and builds its state.
///
/// # Errors
///
/// [`SnapshotError`].
pub(crate) fn load(vfs: &dyn Vfs, path: &Path) -> Result<(Header, State), SnapshotError> {
    let mut rows = Vec::new();
    let header = read(vfs, path, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        true
    })?;
    let state = State::from_rows(rows)?;
    if state.chain() != header.chain {
        return Err(SnapshotError::Damaged("it holds another state than it says"));
    }
    Ok((header, state))
}

/// The snapshots in a directory, newest first. They may be damaged.
///
/// # Errors
///
/// [`SnapshotError::Io`].
pub(crate) fn list(vfs: &dyn Vfs, dir: &Path) -> Result<Vec<(Position, PathBuf)>, SnapshotError> {
    let names = vfs.list(dir).map_err(io_error("read", dir))?;
    let mut found: Vec<(Position, PathBuf)> =
        names.iter().filter_map(|name| Some((position_of(name)?, dir.join(name)))).collect();
    found.sort_by_key(|(at, _)| std::cmp::Reverse((at.index, at.term)));
    Ok(found)
}

/// Where a snapshot is put that came from another replica, whole and checked, until the
/// log has gone over to it.
pub(crate) fn staged_path(dir: &Path, at: Position) -> PathBuf {
    dir.join(name_of(at)).with_extension("staged")
}

/// Checks a file that came from another replica and is synced, and stages it: a start
/// takes it for a snapshot only if the log begins with it.
///
/// # Errors
///
/// [`SnapshotError`].
pub(crate) fn stage(
    vfs: &dyn Vfs,
    dir: &Path,
    incoming: &Path,
    at: Position,
) -> Result<(Header, State), SnapshotError> {
    let (header, state) = load(vfs, incoming)?;
    if header.at != at {
        return Err(SnapshotError::Damaged("it is of another index than announced"));
    }
    vfs.rename(incoming, &staged_path(dir, at)).map_err(io_error("rename", incoming))?;
    vfs.sync_dir(dir).map_err(io_error("sync", dir))?;
    Ok((header, state))
}

/// Makes the staged snapshot of `at` count, which the log begins with now.
///
/// # Errors
///
/// [`SnapshotError::Io`]; a start does it again.
pub(crate) fn adopt(vfs: &dyn Vfs, dir: &Path, at: Position) -> Result<(), SnapshotError> {
    let staged = staged_path(dir, at);
    vfs.rename(&staged, &dir.join(name_of(at))).map_err(io_error("rename", &staged))?;
    vfs.sync_dir(dir).map_err(io_error("sync", dir))
}

/// After a start: makes the staged snapshot count that the log begins with, and removes
/// the others, and what came in by halves.
///
/// # Errors
///
/// [`SnapshotError::Io`].
pub(crate) fn settle(vfs: &dyn Vfs, dir: &Path, base: Position) -> Result<(), SnapshotError> {
    let names = vfs.list(dir).map_err(io_error("read", dir))?;
    for name in names.iter().filter(|name| name.ends_with(".staged") || name.ends_with(INCOMING)) {
        let path = dir.join(name);
        if path == staged_path(dir, base) {
            adopt(vfs, dir, base)?;
        } else {
            vfs.remove(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}

/// The file of the snapshot at this index.
///
/// # Errors
///
/// [`SnapshotError::Io`]; there is none, or not any more.
pub(crate) fn find(vfs: &dyn Vfs, dir: &Path, index: u64) -> Result<PathBuf, SnapshotError> {
    let found = list(vfs, dir)?.into_iter().find(|(at, _)| at.index == index);
    let missing = || io_error("find", dir)(io::ErrorKind::NotFound.into());
    found.map(|(_, path)| path).ok_or_else(missing)
}

/// Ends the name of a snapshot that is coming in.
pub(crate) const INCOMING: &str = ".incoming";

/// Removes all snapshots but that of `newest`, which was just made, and one before it; and
/// what was never finished. The log has to reach back to the older one, which is returned, so
/// that one that rots is no loss. So it is read first: one that rotted already is none.
///
/// # Errors
///
/// [`SnapshotError::Io`].
pub(crate) fn prune(
    vfs: &dyn Vfs,
    dir: &Path,
    newest: Position,
) -> Result<Option<Position>, SnapshotError> {
    let mut older = None;
    for (at, path) in list(vfs, dir)? {
        // One that came from another replica meanwhile is newer.
        if at.index >= newest.index {
            continue;
        }
        if older.is_none() {
            match check(vfs, &path) {
                Ok(()) => {
                    older = Some(at);
                    continue;
                }
                // It may be whole, and may be read the next time.
                Err(error @ SnapshotError::Io { .. }) => {
                    tracing::warn!(path = %path.display(), %error, "a snapshot is not relied on");
                    continue;
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "snapshot rotted, it is removed");
                }
            }
        }
        vfs.remove(&path).map_err(io_error("remove", &path))?;
    }
    let names = vfs.list(dir).map_err(io_error("read", dir))?;
    for name in names.iter().filter(|name| name.ends_with(".tmp")) {
        let path = dir.join(name);
        vfs.remove(&path).map_err(io_error("remove", &path))?;
    }
    Ok(older)
}

/// Reads a snapshot from the disk, and no more.
///
/// # Errors
///
/// [`SnapshotError`].
pub(crate) fn check(vfs: &dyn Vfs, path: &Path) -> Result<(), SnapshotError> {
    read(vfs, path, &mut |_, _| true).map(drop)
}

/// Compares the file with the state, row by row.
fn verify(vfs: &dyn Vfs, path: &Path, header: &Header, state: &State) -> Result<(), SnapshotError> {
    let mut rows = state.rows();
    let found = read(vfs, path, &mut |key, value| {
        rows.next().is_some_and(|(want_key, want)| want_key == key && want == value)
    })?;
    if found != *header || rows.next().is_some() {
        return Err(SnapshotError::Damaged("it reads back as another state"));
    }
    Ok(())
}

/// Shows every row, until `each` says no.
fn read(
    vfs: &dyn Vfs,
    path: &Path,
    each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<Header, SnapshotError> {
    let file = vfs.open(path).map_err(io_error("open", path))?;
    // What the page cache says proves nothing about the disk.
    file.forget_cache();
    let mut source = Source { file: &*file, path, at: 0, digests: blake3::Hasher::new() };
    if source.take(MAGIC.len())? != MAGIC {
        return Err(SnapshotError::Damaged("it is of another format"));
    }
    let first = source.chunk()?.ok_or(SnapshotError::Damaged("it is empty"))?;
    let row = HeaderRow::from_bytes(&first)?;
    while let Some(chunk) = source.chunk()? {
        let mut reader = Reader::new(&chunk);
        while !reader.is_empty() {
            let key = take(&mut reader)?;
            let value = take(&mut reader)?;
            if !each(key, value) {
                return Err(SnapshotError::Damaged("it reads back as another state"));
            }
        }
    }
    Ok(Header {
        at: Position { index: row.index, term: row.term },
        membership: row.membership,
        chain: row.chain,
        hashed_by: row.hashed_by,
    })
}

struct Writer<'a> {
    file: Box<dyn VfsFile>,
    path: &'a Path,
    at: u64,
    digests: blake3::Hasher,
}

impl<'a> Writer<'a> {
    fn new(file: Box<dyn VfsFile>, path: &'a Path) -> Result<Self, SnapshotError> {
        let mut writer = Self { file, path, at: 0, digests: blake3::Hasher::new() };
        writer.put(MAGIC)?;
        Ok(writer)
    }

    fn chunk(&mut self, raw: &[u8]) -> Result<(), SnapshotError> {
        if raw.len() > CHUNK_BYTES_MAX {
            return Err(SnapshotError::ChunkTooLarge(raw.len()));
        }
        let packed = zstd::bulk::compress(raw, LEVEL).map_err(io_error("compress", self.path))?;
        let digest = blake3::hash(&packed);
        self.digests.update(digest.as_bytes());
        let mut bytes = Vec::with_capacity(packed.len() + CHUNK_HEAD_BYTES);
        bytes.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        bytes.extend_from_slice(digest.as_bytes());
        bytes.extend_from_slice(&packed);
        self.put(&bytes)
    }

    fn finish(mut self) -> Result<(), SnapshotError> {
        let mut end = 0u32.to_le_bytes().to_vec();
        end.extend_from_slice(self.digests.finalize().as_bytes());
        self.put(&end)?;
        self.file.sync_all().map_err(io_error("sync", self.path))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.file.write_at(self.at, bytes).map_err(io_error("write", self.path))?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// Bytes in front of a chunk.
const CHUNK_HEAD_BYTES: usize = 4 + 32;

struct Source<'a> {
    file: &'a dyn VfsFile,
    path: &'a Path,
    at: u64,
    digests: blake3::Hasher,
}

impl Source<'_> {
    /// The next chunk, unpacked; `None` at the end.
    fn chunk(&mut self) -> Result<Option<Vec<u8>>, SnapshotError> {
        let head = self.take(CHUNK_HEAD_BYTES)?;
        let (len, digest) = head.split_at(4);
        let len = len.try_into().map_or(0, u32::from_le_bytes) as usize;
        if len == 0 {
            let size = self.file.size().map_err(io_error("read", self.path))?;
            let whole = digest == self.digests.finalize().as_bytes() && size == self.at;
            return if whole { Ok(None) } else { Err(SnapshotError::Damaged("its end is wrong")) };
        }
        if len > CHUNK_BYTES_MAX {
            return Err(SnapshotError::ChunkTooLarge(len));
        }
        let packed = self.take(len)?;
        if digest != blake3::hash(&packed).as_bytes() {
            return Err(SnapshotError::Damaged("a chunk has another digest"));
        }
        self.digests.update(digest);
        zstd::bulk::decompress(&packed, CHUNK_BYTES_MAX)
            .map(Some)
            .map_err(|_| SnapshotError::Damaged("a chunk cannot be unpacked"))
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = vec![0; len];
        let read = self.file.read_at(self.at, &mut bytes).map_err(io_error("read", self.path))?;
        if read < len {
            return Err(SnapshotError::Damaged("it ends early"));
        }
        self.at += len as u64;
        Ok(bytes)
    }
}

fn name_of(at: Position) -> String {
    format!("{:016}-{:08}.snap", at.index, at.term)
}

fn position_of(name: &str) -> Option<Position> {
    let (index, term) = name.strip_suffix(".snap")?.split_once('-')?;
    Some(Position { index: index.parse().ok()?, term: term.parse().ok()? })
}

fn append(out: &mut Vec<u8>, bytes: &[u8]) {
    (bytes.len() as u64).encode(out);
    out.extend_from_slice(bytes);
}

fn take<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let len = usize::try_from(u64::decode(reader)?).map_err(|_| DecodeError::Truncated)?;
    reader.take(len)
}

/// For `map_err`: what was being done, and to what.
fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io { doing, path: path.to_owned(), source }
}
