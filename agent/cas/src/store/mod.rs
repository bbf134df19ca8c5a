//! Blobs by digest on the local disk.
//!
//! One plain file per blob, `blobs/FUNCTION/AB/HASH-SIZE`, mode 0444, dated
//! 2000-01-01, so that hard links of it can stand in read-only trees; executables
//! get a second file, `HASH-SIZE.x`, mode 0555, when such a tree first wants one.
//! Files arrive by rename from `tmp/`, so a process that is killed leaves nothing
//! but rubbish there, which the next start sweeps out.
//!
//! The folder belongs to one process at a time: whoever owns the data directory
//! holds its lock.

mod group;
mod index;
mod read;
mod scan;
mod write;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use steading_model::{Digest, DigestFunction};

use index::{Index, Key, UseClock};
pub(crate) use read::{Linked, read_at};
pub use write::BlobWriter;
pub(crate) use write::FIXED_TIME_S;

/// How much an eviction leaves, in hundredths of the bound: it makes room for more
/// than one blob, or every put would evict.
const EVICT_TO_PERCENT: u64 = 90;

/// A blob's access time on disk is renewed when it is older than this many seconds:
/// it orders evictions after a restart, for which a day is fine enough.
const ACCESS_SAVE_S: i64 = 24 * 3600;

/// Blobs of at least this many bytes are not read whole into memory by [`Store::get`]'s
/// callers on the wire, but streamed.
pub const STREAM_BYTES_MIN: u64 = 4 << 20;

/// How long an eviction that could not make enough room stands for the next ones, where
/// what must stay is found out by reading all of it. Nobody is warned more often either.
const EVICT_PAUSE: Duration = Duration::from_secs(10);

/// Lists the blobs that must stay, whenever others are to go. None: nobody can tell now,
/// and nothing goes.
pub type Named = Box<dyn Fn() -> Option<Vec<(DigestFunction, Digest)>> + Send + Sync>;

struct Bound {
    bytes_max: u64,
    named: Named,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("bytes_max", &self.bytes_max).finish_non_exhaustive()
    }
}

/// How a store is kept.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// What the blobs may take on disk, bytes. Pinned blobs may exceed it.
    pub bytes_max: u64,
    /// Sync a blob's bytes and its name before the put is acknowledged.
    pub durable: bool,
}

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {what} `{path}`")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The sender's mistake.
    #[error("the bytes are those of `{actual}`, not of `{expected}`")]
    Mismatch { expected: Digest, actual: Digest },
    /// The sender's mistake.
    #[error("more bytes than the {size} that the digest names")]
    TooLong { size: u64 },
    /// The file's fault: somebody writes to it.
    #[error("`{path}` changes while it is read: wait until it is written, then try again")]
    Changing { path: PathBuf },
}

/// A content-addressed store. Clones share it.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    scan: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// Of `blobs/`: paths of blobs are relative to it.
    blobs: OwnedFd,
    /// Of `tmp/`.
    tmp: OwnedFd,
    tmp_last: AtomicU64,
    options: StoreOptions,
    index: Mutex<Index>,
    /// Shared by whoever puts a file in place and tells the index; alone for whoever
    /// removes one from both.
    places: RwLock<()>,
    /// Who waits for the next sync.
    group: Mutex<group::Group>,
    /// Set where the bound came after the opening.
    bound: OnceLock<Bound>,
    /// One eviction at a time; until when the next one would find no more to remove than
    /// the last.
    evicting: Mutex<Option<Instant>>,
    clock: UseClock,
    stop: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let handle = self.scan.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The scan may be the last to let go, of what it asked for named blobs.
        let this = std::thread::current().id();
        if let Some(handle) = handle.filter(|handle| handle.thread().id() != this) {
            let _ = handle.join();
        }
    }
}

impl Store {
    /// Opens the store in this folder, or makes it. What it holds is listed in the
    /// background: it answers from the disk until that is through.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] where the folder cannot be made or read.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        make_dir(dir)?;
        // It may have been made by others, for all to enter.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .map_err(|source| io_error("close to others", dir, source))?;
        let (blobs, tmp) = (dir.join("blobs"), dir.join("tmp"));
        make_dir(&blobs)?;
        for function in [DigestFunction::Blake3, DigestFunction::Sha256] {
            make_dir(&blobs.join(function.as_str()))?;
        }
        sweep(&tmp)?;
        let shared = Arc::new(Shared {
            root: dir.to_owned(),
            blobs: open_dir(&blobs)?,
            tmp: open_dir(&tmp)?,
            tmp_last: AtomicU64::new(0),
            options,
            index: Mutex::default(),
            places: RwLock::default(),
            group: Mutex::default(),
            bound: OnceLock::new(),
            evicting: Mutex::default(),
            clock: UseClock::default(),
            stop: AtomicBool::new(false),
        });
        let store = Self(Arc::new(Inner { shared: Arc::clone(&shared), scan: Mutex::default() }));
        for function in [DigestFunction::Blake3, DigestFunction::Sha256] {
            store.put(function, b"")?;
        }
        let handle = std::thread::Builder::new()
            .name("store-scan".to_owned())
            .spawn(move || scan::run(&shared))
            .map_err(|source| io_error("start the scan of", dir, source))?;
        *store.0.scan.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        Ok(store)
    }

    /// The folder that it was opened in.
    pub fn dir(&self) -> &Path {
        &self.0.shared.root
    }

    /// Whether puts are synced.
    pub fn is_durable(&self) -> bool {
        self.0.shared.options.durable
    }

    /// What it may hold, bytes: a larger blob would not stay.
    pub fn bytes_max(&self) -> u64 {
        self.0.shared.bytes_max()
    }

    /// Waits until the list of blobs is complete. For tests and for whoever asks for sizes.
    pub fn wait_scanned(&self) {
        let handle = self.0.scan.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle {
            let _ = handle.join();
        }
    }

    /// All blobs, in no order. Waits for the scan.
    pub(crate) fn list(&self) -> Vec<(DigestFunction, Digest)> {
        self.wait_scanned();
        self.0.shared.index().digests()
    }

    /// What the blobs take on disk, bytes, as far as listed.
    pub fn bytes(&self) -> u64 {
        self.0.shared.index().bytes()
    }

    /// How many blobs there are, as far as listed.
    pub fn len(&self) -> usize {
        self.0.shared.index().len()
    }

    /// Never: the empty blob is always there.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Keeps these blobs, which need not be there yet, from eviction while the guard lives.
    pub fn pin(&self, function: DigestFunction, digests: &[Digest]) -> Pin {
        let keys: Vec<Key> = digests.iter().map(|digest| Key::new(function, digest)).collect();
        let mut index = self.0.shared.index();
        for key in &keys {
            index.pin(*key);
        }
        drop(index);
        Pin { store: self.clone(), keys }
    }

    /// From now on the blobs may take `bytes_max` on disk, beyond which the least recently
    /// used go, but none that `named` lists: for a store that holds the only copy, and was
    /// opened without a bound, because nobody could tell yet what must stay. Once.
    ///
    /// A blob that is to be named must be pinned, or have been put or asked for after
    /// that pin, until it is: what was used since an eviction began stays.
    pub fn bound(&self, bytes_max: u64, named: Named) {
        let first = self.0.shared.bound.set(Bound { bytes_max, named });
        debug_assert!(first.is_ok(), "a store is bounded once");
        self.evict();
    }

    /// Removes least recently used blobs until nine tenths of the bound are left, if
    /// the bound is exceeded. Puts do so by themselves, but pause for a while behind an
    /// eviction that found too little to remove.
    pub fn evict(&self) {
        scan::evict_now(&self.0.shared);
    }
}

/// Keeps blobs in the store.
#[derive(Debug)]
#[must_use = "blobs are kept while this lives"]
pub struct Pin {
    store: Store,
    keys: Vec<Key>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut index = self.store.0.shared.index();
        for key in &self.keys {
            index.unpin(key);
        }
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        // Nothing that holds it can leave it half changed.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the blobs may take on disk now, bytes.
    fn bytes_max(&self) -> u64 {
        self.bound.get().map_or(self.options.bytes_max, |bound| bound.bytes_max)
    }

    /// For messages.
    fn path(&self, relative: &str) -> PathBuf {
        self.root.join("blobs").join(relative)
    }
}

/// The blob's file, relative to `blobs/`.
fn blob_path(function: DigestFunction, digest: &Digest) -> String {
    use std::fmt::Write as _;
    let hex = digest.hash_hex();
    let mut path = String::with_capacity(100);
    let _ = write!(path, "{}/{}/{hex}-{}", function.as_str(), &hex[..2], digest.size);
    path
}

fn io_error(what: &'static str, path: &Path, source: impl Into<io::Error>) -> StoreError {
    StoreError::Io { what, path: path.to_owned(), source: source.into() }
}

/// Makes a folder that nobody else may enter: what a job may not read must not be
/// readable through the store.
fn make_dir(path: &Path) -> Result<(), StoreError> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(source) => Err(io_error("make the folder", path, source)),
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
        .map_err(|source| io_error("open the folder", path, source))
}

/// Removes what a killed process left.
fn sweep(tmp: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(tmp) {
        Ok(()) => (),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(source) => return Err(io_error("sweep out", tmp, source)),
    }
    make_dir(tmp)
}

#[cfg(test)]
mod tests;
