//! What actions gave when they were executed: (scope, action) → `ActionResult`.
//!
//! One small file per entry, under `actions/` beside the blobs. An entry is believed
//! only while every blob that it names is there: otherwise it goes, and the action is
//! executed again.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use steading_model::codec::{Decode, DecodeError, Encode, Reader as Decoder};
use steading_model::{Digest, DigestFunction};
use steading_proto::reapi;

use crate::origin::OriginError;
use crate::store::{Store, StoreError};
use crate::tree::{self, TreeError};

/// First bytes of an entry's file; the last one is the version.
const MAGIC: &[u8; 8] = b"stactn\0\x01";

/// Most entries of one of the 256 folders, and so a million in all.
const FOLDER_ENTRIES_MAX: usize = 4096;

/// How many of a full folder's entries are kept, in eighths.
const KEEP_EIGHTHS: usize = 7;

/// Largest encoded result, bytes. Bulk belongs into blobs.
pub const RESULT_BYTES_MAX: usize = 3 << 20;

/// An entry's date on disk is renewed when it is older than this: it orders evictions.
const USE_SAVE: Duration = Duration::from_secs(24 * 3600);

/// Why the action cache could not do it.
#[derive(Debug, thiserror::Error)]
pub enum ActionCacheError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error("cannot {what} `{path}`")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Upload them first.
    #[error("{} blobs that the result names are not in the store, the first is `{}`", .0.len(), .0[0])]
    Incomplete(Vec<Digest>),
    /// The sender's mistake.
    #[error("the result is malformed: {0}")]
    Malformed(String),
}

/// An entry with where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct ActionEntry {
    pub result: reapi::ActionResult,
    /// Who wrote it, `ROLE/ID` as their certificate says; `local` within one process, empty
    /// where nobody asked.
    pub writer: String,
    /// Milliseconds since the Unix epoch.
    pub written_ms: u64,
}

/// The action cache of a store. Clones share it.
#[derive(Clone, Debug)]
pub struct ActionCache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    dir: PathBuf,
    /// Entries per folder, counted when a folder is first written to.
    counts: Mutex<Vec<Option<usize>>>,
}

impl ActionCache {
    /// Opens the action cache beside the store's blobs.
    ///
    /// # Errors
    ///
    /// [`ActionCacheError::Io`] where its folder cannot be made.
    pub fn open(store: &Store) -> Result<Self, ActionCacheError> {
        let dir = store.dir().join("actions");
        fs::create_dir_all(&dir).map_err(|source| io_error("make", &dir, source))?;
        let counts = Mutex::new(vec![None; 256]);
        Ok(Self(Arc::new(Inner { store: store.clone(), dir, counts })))
    }

    /// The store that holds what the results name.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The result of an action, if it is known and every blob that it names is there.
    ///
    /// # Errors
    ///
    /// [`ActionCacheError::Io`] where the disk fails.
    pub fn get(
        &self,
        scope: &str,
        function: DigestFunction,
        action: &Digest,
    ) -> Result<Option<ActionEntry>, ActionCacheError> {
        let path = self.path(scope, function, action);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("read", &path, source)),
        };
        let entry = match decode(&bytes, scope, function, action) {
            Ok(entry) => entry,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "removed a corrupt action cache entry");
                self.remove(&path)?;
                return Ok(None);
            }
        };
        match self.check(function, &entry.result) {
            Ok(()) => (),
            Err(ActionCacheError::Incomplete(_) | ActionCacheError::Malformed(_)) => {
                self.remove(&path)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        note_use(&path);
        Ok(Some(entry))
    }

    /// Remembers the result of an action.
    ///
    /// # Errors
    ///
    /// [`ActionCacheError::Incomplete`] where the store lacks a blob that it names.
    pub fn update(
        &self,
        scope: &str,
        function: DigestFunction,
        action: &Digest,
        entry: &ActionEntry,
    ) -> Result<(), ActionCacheError> {
        check_size(&entry.result)?;
        self.check(function, &entry.result)?;
        let path = self.path(scope, function, action);
        self.write(&path, &encode(entry, scope, function, action))
            .map_err(|source| io_error("write", &path, source))?;
        self.bound(&path);
        Ok(())
    }

    /// Forgets the result of an action.
    ///
    /// # Errors
    ///
    /// [`ActionCacheError::Io`] where the disk fails.
    pub fn forget(
        &self,
        scope: &str,
        function: DigestFunction,
        action: &Digest,
    ) -> Result<(), ActionCacheError> {
        self.remove(&self.path(scope, function, action))
    }

    /// The files of all entries, in no order.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let folders = list(&self.0.dir).into_iter();
        let files = folders.flat_map(|(_, folder)| list(&folder));
        files.map(|(_, path)| path).collect()
    }

    /// What one of those files holds; none where it is no entry, or not any more.
    pub(crate) fn read_file(&self, path: &Path) -> Option<Found> {
        decode_any(&fs::read(path).ok()?).ok()
    }

    fn path(&self, scope: &str, function: DigestFunction, action: &Digest) -> PathBuf {
        let mut key = Vec::with_capacity(128);
        scope.to_owned().encode(&mut key);
        function.as_str().to_owned().encode(&mut key);
        action.encode(&mut key);
        let hex = blake3::hash(&key).to_hex();
        self.0.dir.join(&hex[..2]).join(&hex[2..])
    }

    fn check(
        &self,
        function: DigestFunction,
        result: &reapi::ActionResult,
    ) -> Result<(), ActionCacheError> {
        let named = named_blobs(&self.0.store, function, result)?;
        let missing = self.0.store.missing(function, &named);
        if missing.is_empty() { Ok(()) } else { Err(ActionCacheError::Incomplete(missing)) }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let folder = path.parent().unwrap_or(&self.0.dir);
        let made = !folder.exists();
        fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().prefix(".tmp").tempfile_in(folder)?;
        file.write_all(bytes)?;
        let durable = self.0.store.is_durable();
        if durable {
            file.as_file().sync_data()?;
        }
        file.persist(path).map_err(|error| error.error)?;
        if durable {
            fs::File::open(folder)?.sync_all()?;
            if made {
                fs::File::open(&self.0.dir)?.sync_all()?;
            }
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), ActionCacheError> {
        match fs::remove_file(path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(io_error("remove", path, source)),
        }
    }

    /// Counts the new entry, and removes the oldest of its folder if that is full.
    fn bound(&self, path: &Path) {
        let Some(folder) = path.parent() else { return };
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Ok(slot) = usize::from_str_radix(name, 16) else { return };
        let mut counts = self.0.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // Counting an entry that replaced one only makes the next count come sooner.
        let count = match counts[slot] {
            Some(count) => count + 1,
            None => list(folder).len(),
        };
        counts[slot] = Some(count);
        if count <= FOLDER_ENTRIES_MAX {
            return;
        }
        let mut entries = list(folder);
        entries.sort();
        let excess = entries.len().saturating_sub(FOLDER_ENTRIES_MAX / 8 * KEEP_EIGHTHS);
        for (_, path) in &entries[..excess] {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "cannot evict an action cache entry");
            }
        }
        counts[slot] = Some(entries.len() - excess);
    }
}

/// Whether a result is no larger than any may be.
pub(crate) fn check_size(result: &reapi::ActionResult) -> Result<(), ActionCacheError> {
    let size = prost::Message::encoded_len(result);
    if size > RESULT_BYTES_MAX {
        let why = format!("it has {size} bytes, at most {RESULT_BYTES_MAX} are allowed");
        return Err(ActionCacheError::Malformed(why));
    }
    Ok(())
}

/// The entries of a folder with when they were last used. A file that was left half
/// written by a killed process counts as an old entry, and goes like one.
fn list(folder: &Path) -> Vec<(SystemTime, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect()
}

fn note_use(path: &Path) {
    let old = |file: &fs::File| {
        let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
        if age > USE_SAVE { file.set_modified(SystemTime::now()) } else { Ok(()) }
    };
    // Only orders evictions: not worth an error.
    let _ = fs::File::open(path).and_then(|file| old(&file));
}

/// Every blob that a result names, directly or through its trees, whose messages the
/// store must have.
pub(crate) fn named_blobs(
    store: &Store,
    function: DigestFunction,
    result: &reapi::ActionResult,
) -> Result<Vec<Digest>, ActionCacheError> {
    let malformed = ActionCacheError::Malformed;
    let mut named = Vec::new();
    for file in &result.output_files {
        let digest = tree::wire_digest(file.digest.as_ref())
            .map_err(|why| malformed(format!("output file `{}`: {why}", file.path)))?;
        named.push(digest);
    }
    for digest in [&result.stdout_digest, &result.stderr_digest].into_iter().flatten() {
        named.push(tree::wire_digest(Some(digest)).map_err(malformed)?);
    }
    for directory in &result.output_directories {
        let at = |why| malformed(format!("output directory `{}`: {why}", directory.path));
        if directory.tree_digest.is_none() && directory.root_directory_digest.is_none() {
            return Err(at("it has no digest".to_owned()));
        }
        if let Some(digest) = &directory.tree_digest {
            let digest = tree::wire_digest(Some(digest)).map_err(at)?;
            named.push(digest);
            let bytes = store.get(function, &digest)?;
            let bytes = bytes.ok_or(ActionCacheError::Incomplete(vec![digest]))?;
            let message = <reapi::Tree as prost::Message>::decode(bytes)
                .map_err(|error| at(error.to_string()))?;
            for folder in message.root.iter().chain(&message.children) {
                for file in &folder.files {
                    named.push(tree::wire_digest(file.digest.as_ref()).map_err(at)?);
                }
            }
        }
        if let Some(digest) = &directory.root_directory_digest {
            let digest = tree::wire_digest(Some(digest)).map_err(at)?;
            let below = tree::blobs_below(store, function, &digest);
            named.extend(below.map_err(|error| match error {
                TreeError::Missing(digest) => ActionCacheError::Incomplete(vec![digest]),
                TreeError::Store(error) => ActionCacheError::Store(error),
                error => at(error.to_string()),
            })?);
        }
    }
    Ok(named)
}

pub(crate) fn encode(
    entry: &ActionEntry,
    scope: &str,
    function: DigestFunction,
    action: &Digest,
) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    scope.to_owned().encode(&mut out);
    function.as_str().to_owned().encode(&mut out);
    action.encode(&mut out);
    entry.writer.encode(&mut out);
    entry.written_ms.encode(&mut out);
    let result = prost::Message::encode_to_vec(&entry.result);
    (result.len() as u64).encode(&mut out);
    out.extend_from_slice(&result);
    let sum = blake3::hash(&out);
    out.extend_from_slice(sum.as_bytes());
    out
}

pub(crate) fn decode(
    bytes: &[u8],
    scope: &str,
    function: DigestFunction,
    action: &Digest,
) -> Result<ActionEntry, DecodeError> {
    let found = decode_any(bytes)?;
    if (found.scope.as_str(), found.function, &found.action) != (scope, function, action) {
        return Err(DecodeError::Invalid("action cache entry"));
    }
    Ok(found.entry)
}

/// An entry with the action that it is of.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) scope: String,
    pub(crate) function: DigestFunction,
    pub(crate) action: Digest,
    pub(crate) entry: ActionEntry,
}

fn decode_any(bytes: &[u8]) -> Result<Found, DecodeError> {
    let wrong = || DecodeError::Invalid("action cache entry");
    let (body, sum) = bytes.split_last_chunk::<32>().ok_or(DecodeError::Truncated)?;
    if blake3::hash(body).as_bytes() != sum || !body.starts_with(MAGIC) {
        return Err(wrong());
    }
    let mut reader = Decoder::new(&body[MAGIC.len()..]);
    let (scope, function) = (String::decode(&mut reader)?, String::decode(&mut reader)?);
    let known = [DigestFunction::Blake3, DigestFunction::Sha256];
    let function = known.into_iter().find(|known| known.as_str() == function).ok_or_else(wrong)?;
    let action = Digest::decode(&mut reader)?;
    let (writer, written_ms) = (String::decode(&mut reader)?, u64::decode(&mut reader)?);
    let len = usize::try_from(u64::decode(&mut reader)?).map_err(|_| DecodeError::Truncated)?;
    let result =
        <reapi::ActionResult as prost::Message>::decode(reader.take(len)?).map_err(|_| wrong())?;
    let entry = ActionEntry { result, writer, written_ms };
    Ok(Found { scope, function, action, entry })
}

fn io_error(what: &'static str, path: &Path, source: io::Error) -> ActionCacheError {
    ActionCacheError::Io { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
