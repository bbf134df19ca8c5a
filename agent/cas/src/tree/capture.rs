//! Making a tree of a folder on disk.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag};
use steading_model::{Digest, DigestFunction};

use super::{DEPTH_MAX, ENTRIES_MAX, Entry, FileEntry, Folder, Patterns, TreeError, TreeSummary};
use super::{io_error, save};
use crate::dir::Dir;
use crate::hash::digest_of;
use crate::memo::Memo;
use crate::store::Store;
use crate::sys;

/// Threads that read and hash. Two keep a small machine's disk and CPU busy at once.
const THREADS_MAX: usize = 4;

/// Files below this many are hashed by one thread: starting others costs more.
const PARALLEL_FILES_MIN: usize = 16;

/// Files that a thread takes at a time.
const TAKE_FILES: usize = 32;

/// Files up to this many bytes are read whole and put in batches, which share a sync.
const SMALL_FILE_BYTES: u64 = 128 << 10;

/// Content of a batch, bytes.
const BATCH_BYTES: usize = 8 << 20;

/// Most blobs in a batch.
const BATCH_BLOBS: usize = 1024;

/// Which permission bits a tree keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    /// Only whether a file is executable: the rest is the umask of who made it.
    Executable,
    /// All nine: for what a step with a known umask made.
    All,
}

/// What to take of a folder.
#[derive(Clone, Copy, Debug)]
pub struct CaptureOptions<'a> {
    pub patterns: &'a Patterns,
    pub modes: Modes,
    /// File of what was hashed before, see the module `memo`.
    pub memo: Option<&'a Path>,
}

/// A folder as a tree in the store, with its files.
#[derive(Clone, Debug)]
pub struct Capture {
    pub summary: TreeSummary,
    pub folder: Folder,
    /// Choosing patterns that no path matched, as written.
    pub unmatched: Vec<String>,
    /// Files that were read; the others were known from their times.
    pub rehashed: u32,
}

/// What tells a file that changed from one that did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileStamp {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) size: u64,
    /// Nanoseconds since the Unix epoch.
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
}

impl FileStamp {
    pub(crate) fn new(stat: &FileStat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: stat.st_mtime.wrapping_mul(1_000_000_000).wrapping_add(stat.st_mtime_nsec),
            ctime_ns: stat.st_ctime.wrapping_mul(1_000_000_000).wrapping_add(stat.st_ctime_nsec),
        }
    }
}

/// A regular file that is to be in the store.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Relative to the root.
    pub(crate) path: String,
    pub(crate) stamp: FileStamp,
    pub(crate) mode: u32,
}

/// Refuses a small file by its content.
pub(crate) type Inspect<'a> = &'a (dyn Fn(&str, &[u8]) -> Result<(), TreeError> + Sync);

/// [`capture`] of everything that the patterns choose, with executable bits only.
///
/// # Errors
///
/// As [`capture`].
pub fn snapshot_dir(
    store: &Store,
    dir: &Path,
    patterns: &Patterns,
    memo: Option<&Path>,
) -> Result<TreeSummary, TreeError> {
    let options = CaptureOptions { patterns, modes: Modes::Executable, memo };
    Ok(capture(store, dir, &options)?.summary)
}

/// Puts what the patterns choose of a folder into the store, files and messages.
///
/// Follows no symbolic link below `dir`, so a folder that somebody hostile owns gives
/// away nothing but itself.
///
/// # Errors
///
/// [`TreeError::Unsupported`] and [`TreeError::NotUtf8`] for what a tree cannot hold,
/// [`TreeError::Io`] for what cannot be read.
pub fn capture(
    store: &Store,
    dir: &Path,
    options: &CaptureOptions<'_>,
) -> Result<Capture, TreeError> {
    let root = Dir::open(dir).map_err(|source| io_error("open", dir, source))?;
    capture_in(store, &root, options)
}

/// [`capture`] of an open folder.
///
/// # Errors
///
/// As [`capture`].
pub fn capture_in(
    store: &Store,
    dir: &Dir,
    options: &CaptureOptions<'_>,
) -> Result<Capture, TreeError> {
    let started = SystemTime::now();
    let (root, dir) = (dir.fd(), dir.path());
    let mut walk = Walk {
        dir,
        options,
        used: vec![false; options.patterns.len()],
        wanted: Vec::new(),
        entries: 0,
    };
    let mut folder = walk.folder(root, &mut String::new(), 0)?.unwrap_or_default();
    let Walk { wanted, used, .. } = walk;

    let mut memo = options.memo.map(|path| Memo::load(path, started));
    let stored = store_wanted(store, root, dir, &wanted, memo.as_mut(), &|_, _| Ok(()))?;
    if let (Some(memo), Some(path)) = (memo, options.memo) {
        memo.save(path);
    }
    for (wanted, digest) in wanted.iter().zip(&stored.digests) {
        let file = match options.modes {
            Modes::All => FileEntry::with_mode(*digest, wanted.mode),
            Modes::Executable => {
                let executable = wanted.mode & 0o100 != 0;
                FileEntry { digest: *digest, executable, mode: None }
            }
        };
        folder.insert(&wanted.path, Entry::File(file))?;
    }
    let summary = save(store, &folder)?;
    let unmatched = options.patterns.unmarked(&used);
    Ok(Capture { summary, folder, unmatched, rehashed: stored.rehashed })
}

struct Walk<'a> {
    dir: &'a Path,
    options: &'a CaptureOptions<'a>,
    used: Vec<bool>,
    wanted: Vec<Wanted>,
    entries: usize,
}

impl Walk<'_> {
    /// The folder without its files, which join `wanted`; none if nothing is chosen.
    fn folder(
        &mut self,
        fd: &OwnedFd,
        path: &mut String,
        depth: usize,
    ) -> Result<Option<Folder>, TreeError> {
        if depth > DEPTH_MAX {
            return Err(TreeError::TooDeep { path: path.clone() });
        }
        let names = sys::names(fd).map_err(|source| self.error("list", path, source))?;
        self.entries += names.len();
        if self.entries > ENTRIES_MAX {
            return Err(TreeError::TooLarge);
        }
        let mut folder = Folder::default();
        let mut chosen = false;
        let len = path.len();
        for name in names {
            if len > 0 {
                path.push('/');
            }
            let Ok(text) = name.to_str() else {
                path.push_str(&name.to_string_lossy());
                // What nobody chose may be called as it likes.
                if self.options.patterns.matches(path) {
                    return Err(TreeError::NotUtf8 { path: path.clone() });
                }
                path.truncate(len);
                continue;
            };
            path.push_str(text);
            chosen |= self.entry(fd, text, path, depth, &mut folder)?;
            path.truncate(len);
        }
        Ok(chosen.then_some(folder))
    }

    /// True if the entry, or something below it, is chosen.
    fn entry(
        &mut self,
        fd: &OwnedFd,
        name: &str,
        path: &mut String,
        depth: usize,
        folder: &mut Folder,
    ) -> Result<bool, TreeError> {
        let patterns = self.options.patterns;
        patterns.mark(path, &mut self.used);
        let matched = patterns.matches(path);
        let stat = match sys::stat_at(fd, name) {
            Ok(stat) => stat,
            // Gone since the listing.
            Err(Errno::ENOENT) => return Ok(false),
            Err(source) => return Err(self.error("look at", path, source)),
        };
        let kind = sys::kind(&stat);
        if kind == SFlag::S_IFDIR {
            if !patterns.may_descend(path) {
                return Ok(false);
            }
            let inner =
                sys::open_folder(fd, name).map_err(|source| self.error("open", path, source))?;
            let mut below = match self.folder(&inner, path, depth + 1)? {
                Some(below) => below,
                None if matched => Folder::default(),
                None => return Ok(false),
            };
            let mode = stat.st_mode & 0o777;
            if self.options.modes == Modes::All && mode != 0o755 {
                below.mode = Some(mode);
            }
            folder.entries.insert(name.to_owned(), Entry::Folder(below));
            return Ok(true);
        }
        if !matched {
            return Ok(false);
        }
        if kind == SFlag::S_IFREG {
            let (stamp, mode) = (FileStamp::new(&stat), stat.st_mode & 0o777);
            self.wanted.push(Wanted { path: path.clone(), stamp, mode });
        } else if kind == SFlag::S_IFLNK {
            folder.entries.insert(name.to_owned(), read_link(fd, name, path, self.dir)?);
        } else {
            return Err(unsupported(kind, path));
        }
        Ok(true)
    }

    fn error(&self, what: &'static str, path: &str, source: Errno) -> TreeError {
        io_error(what, self.dir.join(path), source)
    }
}

/// The entry of a symbolic link at `name` in `fd`.
pub(crate) fn read_link(
    fd: &OwnedFd,
    name: &str,
    path: &str,
    dir: &Path,
) -> Result<Entry, TreeError> {
    let target = nix::fcntl::readlinkat(fd, name)
        .map_err(|source| io_error("read the link", dir.join(path), source))?;
    match target.into_string() {
        Ok(target) => Ok(Entry::Symlink { target }),
        Err(_) => Err(TreeError::NotUtf8 { path: format!("target of {path}") }),
    }
}

/// Why this kind of file is in no tree.
pub(crate) fn unsupported(kind: SFlag, path: &str) -> TreeError {
    let what = match kind {
        SFlag::S_IFSOCK => "socket",
        SFlag::S_IFIFO => "named pipe",
        SFlag::S_IFBLK | SFlag::S_IFCHR => "device",
        _ => "special file",
    };
    TreeError::Unsupported { path: path.to_owned(), what }
}

/// What [`store_wanted`] did.
#[derive(Debug)]
pub(crate) struct Stored {
    /// In the order of what was wanted.
    pub(crate) digests: Vec<Digest>,
    pub(crate) rehashed: u32,
}

/// Puts files into the store, those that the memo does not know.
pub(crate) fn store_wanted(
    store: &Store,
    root: &OwnedFd,
    dir: &Path,
    wanted: &[Wanted],
    memo: Option<&mut Memo>,
    inspect: Inspect<'_>,
) -> Result<Stored, TreeError> {
    let mut digests: Vec<Option<Digest>> = match &memo {
        Some(memo) => wanted
            .iter()
            .map(|file| memo.get(&file.path, &file.stamp))
            .map(|known| known.filter(|digest| store.contains(DigestFunction::Blake3, digest)))
            .collect(),
        None => vec![None; wanted.len()],
    };
    let unknown: Vec<usize> = (0..wanted.len()).filter(|&at| digests[at].is_none()).collect();
    let hashed = Hashing { store, root, dir, wanted, inspect }.run(&unknown)?;
    for (at, digest) in hashed {
        digests[at] = Some(digest);
    }
    // Every position is either known or was hashed.
    let digests: Vec<Digest> = digests.into_iter().flatten().collect();
    if let Some(memo) = memo {
        memo.replace(wanted, &digests, unknown.len());
    }
    Ok(Stored { digests, rehashed: u32::try_from(unknown.len()).unwrap_or(u32::MAX) })
}

struct Hashing<'a> {
    store: &'a Store,
    root: &'a OwnedFd,
    dir: &'a Path,
    wanted: &'a [Wanted],
    inspect: Inspect<'a>,
}

impl Hashing<'_> {
    /// Positions and digests, in no order.
    fn run(&self, unknown: &[usize]) -> Result<Vec<(usize, Digest)>, TreeError> {
        let threads = if unknown.len() < PARALLEL_FILES_MIN {
            1
        } else {
            std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX))
        };
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        if threads == 1 {
            return self.work(unknown, &next, &failed);
        }
        let results = Mutex::new(Vec::with_capacity(threads));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let result = self.work(unknown, &next, &failed);
                    if result.is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                });
            }
        });
        let mut all = Vec::with_capacity(unknown.len());
        for result in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            all.extend(result?);
        }
        Ok(all)
    }

    fn work(
        &self,
        unknown: &[usize],
        next: &AtomicUsize,
        failed: &AtomicBool,
    ) -> Result<Vec<(usize, Digest)>, TreeError> {
        let mut hashed = Vec::new();
        let mut batch: Vec<(Digest, Vec<u8>)> = Vec::new();
        let mut batch_bytes = 0;
        loop {
            let from = next.fetch_add(TAKE_FILES, Ordering::Relaxed);
            if from >= unknown.len() || failed.load(Ordering::Relaxed) {
                break;
            }
            for &at in &unknown[from..unknown.len().min(from + TAKE_FILES)] {
                match self.read(&self.wanted[at])? {
                    Content::Small(digest, bytes) => {
                        hashed.push((at, digest));
                        if !self.store.contains(DigestFunction::Blake3, &digest) {
                            batch_bytes += bytes.len();
                            batch.push((digest, bytes));
                        }
                    }
                    Content::Stored(digest) => hashed.push((at, digest)),
                }
                if batch_bytes >= BATCH_BYTES || batch.len() >= BATCH_BLOBS {
                    self.put(&mut batch)?;
                    batch_bytes = 0;
                }
            }
        }
        self.put(&mut batch)?;
        Ok(hashed)
    }

    fn put(&self, batch: &mut Vec<(Digest, Vec<u8>)>) -> Result<(), TreeError> {
        let blobs = batch.iter().map(|(digest, bytes)| (*digest, &bytes[..]));
        self.store.put_hashed(DigestFunction::Blake3, blobs)?;
        batch.clear();
        Ok(())
    }

    fn read(&self, wanted: &Wanted) -> Result<Content, TreeError> {
        let error =
            |what, source: std::io::Error| io_error(what, self.dir.join(&wanted.path), source);
        let fd = sys::open_beneath(self.root, &wanted.path, sys::READ)
            .map_err(|source| error("open", source.into()))?;
        let mut file = File::from(fd);
        let metadata = file.metadata().map_err(|source| error("look at", source))?;
        if !metadata.is_file() {
            let (path, what) = (wanted.path.clone(), "special file");
            return Err(TreeError::Unsupported { path, what });
        }
        if metadata.len() <= SMALL_FILE_BYTES {
            let mut bytes = Vec::with_capacity(metadata.len() as usize);
            let read = file.by_ref().take(SMALL_FILE_BYTES + 1).read_to_end(&mut bytes);
            read.map_err(|source| error("read", source))?;
            if bytes.len() as u64 <= SMALL_FILE_BYTES {
                (self.inspect)(&wanted.path, &bytes)?;
                let digest = digest_of(DigestFunction::Blake3, &bytes);
                return Ok(Content::Small(digest, bytes));
            }
        }
        use std::io::Seek as _;
        file.rewind().map_err(|source| error("read", source))?;
        let path = self.dir.join(&wanted.path);
        let digest = self.store.put_open_file(DigestFunction::Blake3, &mut file, &path)?;
        Ok(Content::Stored(digest))
    }
}

enum Content {
    Small(Digest, Vec<u8>),
    Stored(Digest),
}
