//! A backup: the state in one file, and what it is the state of.
//!
//! A magic, then frames, each `length u32 | BLAKE3 of what follows | zstd`, and at the end
//! a frame of length zero with the digest of all digests. The first frame holds the
//! [`Manifest`] (JSON, so that a person can read it with `zstd`), the others rows. A file
//! that was cut off, or changed anywhere, is none.

mod service;

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use steading_core::{FEATURE_LEVEL, State};
use steading_model::codec::{Decode as _, DecodeError, Encode as _, Reader};

pub(crate) use service::BackupsService;

const MAGIC: &[u8; 8] = b"STBACK\0\x01";

/// The one format of backups that this version reads.
const FORMAT: u32 = 1;

/// Bytes of rows after which a frame is closed.
const FRAME_BYTES: usize = 1 << 20;

/// Largest frame, bytes, compressed or not: one row of any size we know fits on top.
const FRAME_BYTES_MAX: usize = 3 << 20;

/// zstd's level: the network is slower than this.
const LEVEL: i32 = 3;

/// Why a file is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("cannot read the backup")]
    Io(#[from] io::Error),
    #[error("the backup is damaged: {0}")]
    Damaged(&'static str),
    #[error("the backup is of format {0}, this version reads {FORMAT}")]
    Format(u32),
    #[error("the backup is of feature level {level}, this version knows {known}: use a newer one")]
    Level { level: u32, known: u32 },
    #[error("the backup cannot be decoded")]
    Decode(#[from] DecodeError),
    #[error("the rows of the backup are no state")]
    State(#[from] steading_core::ImageError),
}

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// The group that it was taken of.
    pub cluster_id: String,
    /// The term in which it was taken.
    pub term: u64,
    /// Proposals that the state has seen, the refused ones counted.
    pub index: u64,
    /// The hash chain over all of them, hexadecimal.
    pub chain: String,
    /// The level that was in force: no older version understands the rows.
    pub feature_level: u32,
    /// Blobs were in an origin that the group shared, and are still there.
    pub shared_origin: bool,
    /// Milliseconds since the Unix epoch, by the group's clock.
    pub taken_ms: u64,
}

impl Manifest {
    pub(crate) fn of(state: &State, cluster_id: String, term: u64, shared_origin: bool) -> Self {
        Self {
            format: FORMAT,
            cluster_id,
            term,
            index: state.applied(),
            chain: blake3::Hash::from_bytes(state.chain()).to_hex().to_string(),
            feature_level: state.feature_level(),
            shared_origin,
            taken_ms: state.now().as_ms(),
        }
    }
}

/// The backup's file, part by part, until `each` says no. Takes as long as `each` does, and
/// keeps nobody waiting: the state is a version of its own.
pub(crate) fn pack(
    manifest: &Manifest,
    state: &State,
    each: &mut dyn FnMut(Vec<u8>) -> bool,
) -> Result<(), BackupError> {
    let mut digests = blake3::Hasher::new();
    let mut frame = |raw: &[u8]| -> Result<Vec<u8>, BackupError> {
        if raw.len() > FRAME_BYTES_MAX {
            return Err(BackupError::Damaged("a row is too large"));
        }
        let packed = zstd::bulk::compress(raw, LEVEL)?;
        let digest = blake3::hash(&packed);
        digests.update(digest.as_bytes());
        Ok([&(packed.len() as u32).to_le_bytes(), &digest.as_bytes()[..], &packed].concat())
    };
    let json = serde_json::to_vec_pretty(manifest).map_err(io::Error::from)?;
    if !each([MAGIC, &frame(&json)?[..]].concat()) {
        return Ok(());
    }
    let mut rows = Vec::new();
    for (key, value) in state.rows() {
        for bytes in [key, value] {
            (bytes.len() as u64).encode(&mut rows);
            rows.extend_from_slice(&bytes);
        }
        if rows.len() >= FRAME_BYTES {
            if !each(frame(&rows)?) {
                return Ok(());
            }
            rows.clear();
        }
    }
    if !rows.is_empty() && !each(frame(&rows)?) {
        return Ok(());
    }
    each([&0u32.to_le_bytes()[..], digests.finalize().as_bytes()].concat());
    Ok(())
}

/// Reads a backup from end to end, and believes nothing that it did not check. Blocks.
///
/// # Errors
///
/// [`BackupError`].
pub fn read(path: &Path) -> Result<(Manifest, State), BackupError> {
    let mut source =
        Source { file: BufReader::new(File::open(path)?), digests: blake3::Hasher::new() };
    if source.take(MAGIC.len())? != MAGIC {
        return Err(BackupError::Damaged("it does not begin as a backup does"));
    }
    let first = source.frame()?.ok_or(BackupError::Damaged("it is empty"))?;
    let manifest: Manifest = serde_json::from_slice(&first)
        .map_err(|_| BackupError::Damaged("its manifest is unreadable"))?;
    if manifest.format != FORMAT {
        return Err(BackupError::Format(manifest.format));
    }
    check_level(manifest.feature_level)?;
    let mut rows = Vec::new();
    while let Some(frame) = source.frame()? {
        let mut reader = Reader::new(&frame);
        while !reader.is_empty() {
            rows.push((take(&mut reader)?, take(&mut reader)?));
        }
    }
    let state = State::from_rows(rows)?;
    check_level(state.feature_level())?;
    if Manifest::of(&state, String::new(), 0, false).chain != manifest.chain {
        return Err(BackupError::Damaged("it holds another state than it says"));
    }
    Ok((manifest, state))
}

/// An older version would take the rows for what they are not, and lose what it does not know.
fn check_level(level: u32) -> Result<(), BackupError> {
    match level > FEATURE_LEVEL {
        true => Err(BackupError::Level { level, known: FEATURE_LEVEL }),
        false => Ok(()),
    }
}

fn take(reader: &mut Reader<'_>) -> Result<Vec<u8>, DecodeError> {
    let len = usize::try_from(u64::decode(reader)?).map_err(|_| DecodeError::Truncated)?;
    reader.take(len).map(<[u8]>::to_vec)
}

struct Source {
    file: BufReader<File>,
    digests: blake3::Hasher,
}

impl Source {
    /// The next frame, unpacked; none at the end.
    fn frame(&mut self) -> Result<Option<Vec<u8>>, BackupError> {
        let head = self.take(4 + 32)?;
        let (len, digest) = head.split_at(4);
        let len = len.try_into().map_or(0, u32::from_le_bytes) as usize;
        if len == 0 {
            let nothing_follows = self.file.read(&mut [0])? == 0;
            let whole = nothing_follows && digest == self.digests.finalize().as_bytes();
            return if whole { Ok(None) } else { Err(BackupError::Damaged("its end is wrong")) };
        }
        if len > FRAME_BYTES_MAX {
            return Err(BackupError::Damaged("a part of it is too large"));
        }
        let packed = self.take(len)?;
        if digest != blake3::hash(&packed).as_bytes() {
            return Err(BackupError::Damaged("a part of it has another digest"));
        }
        self.digests.update(digest);
        zstd::bulk::decompress(&packed, FRAME_BYTES_MAX)
            .map(Some)
            .map_err(|_| BackupError::Damaged("a part of it cannot be unpacked"))
    }

    fn take(&mut self, len: usize) -> Result<Vec<u8>, BackupError> {
        let mut bytes = vec![0; len];
        match self.file.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(BackupError::Damaged("it ends early"))
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
