//! What files hashed to when they were last read: (path, device, inode, size, times) →
//! digest, in one file beside the store.
//!
//! Only a memory: where it is missing, torn or of another version, everything is read
//! again.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use steading_model::Digest;
use steading_model::codec::{Decode as _, DecodeError, Encode as _, Reader};

use crate::tree::{FileStamp, Wanted};

/// First bytes of the file; the last one is the version.
const MAGIC: &[u8; 8] = b"stmemo\0\x01";

/// A file that was younger than this when it was read is read again: it may have been
/// written once more within one tick of the file system's clock.
const YOUNG: Duration = Duration::from_secs(2);

/// Largest memory that is read, bytes.
const MEMO_BYTES_MAX: u64 = 1 << 30;

/// A memory of one folder.
#[derive(Debug)]
pub(crate) struct Memo {
    rows: HashMap<String, (FileStamp, Digest)>,
    /// Nanoseconds since the Unix epoch; what changed later is not remembered.
    settled_ns: i64,
    changed: bool,
}

impl Memo {
    /// Reads the memory; an empty one if there is none. `now` is a time before any of
    /// the files is looked at.
    pub(crate) fn load(path: &Path, now: SystemTime) -> Self {
        let settled = now
            .checked_sub(YOUNG)
            .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_nanos() as i64);
        let rows = match std::fs::metadata(path) {
            Ok(metadata) if metadata.len() <= MEMO_BYTES_MAX => {
                std::fs::read(path).ok().and_then(|bytes| parse(&bytes).ok()).unwrap_or_default()
            }
            _ => HashMap::new(),
        };
        Self { rows, settled_ns: settled, changed: false }
    }

    /// What the file hashed to, if it is the same file.
    pub(crate) fn get(&self, path: &str, stamp: &FileStamp) -> Option<Digest> {
        let (known, digest) = self.rows.get(path)?;
        (known == stamp).then_some(*digest)
    }

    /// Remembers these files and no others. `read`: how many of them were not known.
    pub(crate) fn replace(&mut self, files: &[Wanted], digests: &[Digest], read: usize) {
        if read == 0 && files.len() == self.rows.len() {
            return;
        }
        self.changed = true;
        let settled = |file: &Wanted| {
            file.stamp.mtime_ns.max(file.stamp.ctime_ns) < self.settled_ns
                || self.get(&file.path, &file.stamp).is_some()
        };
        self.rows = files
            .iter()
            .zip(digests)
            .filter(|(file, _)| settled(file))
            .map(|(file, digest)| (file.path.clone(), (file.stamp, *digest)))
            .collect();
    }

    /// Writes the memory if it changed. That it cannot be written costs time, not truth.
    pub(crate) fn save(&self, path: &Path) {
        if !self.changed {
            return;
        }
        if let Err(error) = self.write(path) {
            tracing::warn!(path = %path.display(), %error, "cannot remember what files hashed to");
        }
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut out = Vec::with_capacity(64 + self.rows.len() * 160);
        out.extend_from_slice(MAGIC);
        (self.rows.len() as u64).encode(&mut out);
        for (name, (stamp, digest)) in &self.rows {
            name.encode(&mut out);
            for field in [stamp.dev, stamp.ino, stamp.size] {
                field.encode(&mut out);
            }
            out.extend_from_slice(&stamp.mtime_ns.to_le_bytes());
            out.extend_from_slice(&stamp.ctime_ns.to_le_bytes());
            digest.encode(&mut out);
        }
        let sum = blake3::hash(&out);
        out.extend_from_slice(sum.as_bytes());
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&out)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Result<HashMap<String, (FileStamp, Digest)>, DecodeError> {
    let (body, sum) =
        bytes.split_last_chunk::<32>().ok_or(DecodeError::Invalid("memory of hashes"))?;
    if blake3::hash(body).as_bytes() != sum || !body.starts_with(MAGIC) {
        return Err(DecodeError::Invalid("memory of hashes"));
    }
    let mut reader = Reader::new(&body[MAGIC.len()..]);
    let count = u64::decode(&mut reader)?;
    let mut rows = HashMap::with_capacity(count.min(1 << 20) as usize);
    for _ in 0..count {
        let name = String::decode(&mut reader)?;
        let stamp = FileStamp {
            dev: u64::decode(&mut reader)?,
            ino: u64::decode(&mut reader)?,
            size: u64::decode(&mut reader)?,
            mtime_ns: i64::from_le_bytes(reader.array()?),
            ctime_ns: i64::from_le_bytes(reader.array()?),
        };
        rows.insert(name, (stamp, Digest::decode(&mut reader)?));
    }
    Ok(rows)
}
