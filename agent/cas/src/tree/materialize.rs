//! Writing trees to disk.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags};
use steading_model::{Digest, DigestFunction};
use steading_proto::reapi;

use super::wire::{Reader, file_entry, unix_mode, wire_digest};
use super::{DEPTH_MAX, FileEntry, Patterns, TreeError, TreeSummary, io_error};
use crate::dir::Dir;
use crate::store::{FIXED_TIME_S, Linked, Store};
use crate::sys;

/// Threads that write. More than two only wait for each other in the file system.
const THREADS: usize = 2;

/// Files that a thread takes at a time out of one folder.
const TAKE_FILES: usize = 256;

/// Files up to this many bytes are copied through memory, larger ones by the kernel,
/// which shares their blocks where the file system can.
const COPY_BUFFER_BYTES: u64 = 128 << 10;

/// What kind of tree is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaterializeMode {
    /// Copies, that whoever owns them may change.
    Writable,
    /// Hard links out of the store, 0444 or 0555, dated 2000-01-01. Only for folders that
    /// jobs see through a read-only mount: who writes to a file there rewrites the store.
    ReadOnlyLower,
}

/// How the files of a writable tree are dated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtime {
    Now,
    /// 2000-01-01.
    Fixed,
}

/// How a tree is written.
#[derive(Clone, Copy, Debug)]
pub struct Materialize {
    pub mode: MaterializeMode,
    pub mtime: Mtime,
    /// Uid and gid of everything but hard links; none: whoever writes.
    pub owner: Option<(u32, u32)>,
}

impl Materialize {
    /// Copies, dated now, owned by whoever writes.
    pub const WRITABLE: Self =
        Self { mode: MaterializeMode::Writable, mtime: Mtime::Now, owner: None };
    /// Hard links, for a read-only lower of an overlay.
    pub const LOWER: Self =
        Self { mode: MaterializeMode::ReadOnlyLower, mtime: Mtime::Fixed, owner: None };
}

/// Writes a tree into a folder, which is made if need be. What stands in its way is
/// replaced, everything else stays.
///
/// Follows no symbolic link below `dest`, whoever made it. All blobs must be in the
/// store: see `Blobs::fetch_tree`.
///
/// # Errors
///
/// [`TreeError::Missing`] names a blob that is not there; part of the tree may be written.
pub fn materialize(
    store: &Store,
    root: &Digest,
    dest: &Path,
    options: &Materialize,
) -> Result<TreeSummary, TreeError> {
    std::fs::create_dir_all(dest).map_err(|source| io_error("make", dest, source))?;
    let dest = Dir::open(dest).map_err(|source| io_error("open", dest, source))?;
    materialize_in(store, root, &dest, options)
}

/// [`materialize`] into an open folder.
///
/// # Errors
///
/// As [`materialize`].
pub fn materialize_in(
    store: &Store,
    root: &Digest,
    dest: &Dir,
    options: &Materialize,
) -> Result<TreeSummary, TreeError> {
    let work = Work {
        store,
        dest: dest.path(),
        root: dest.fd(),
        options,
        reader: Mutex::new(Reader::new(store, DigestFunction::Blake3)),
        queue: Mutex::new(Queue::default()),
        changed: Condvar::new(),
    };
    work.push(vec![Job::Folder { path: String::new(), digest: *root, depth: 0 }]);
    std::thread::scope(|scope| {
        // An empty tree is nothing to share.
        for _ in 1..if root.size == 0 { 1 } else { THREADS } {
            scope.spawn(|| work.run());
        }
        work.run();
    });
    let queue = work.queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = queue.failed {
        return Err(error);
    }
    if options.mtime == Mtime::Fixed {
        date_folders(dest.fd(), dest.path(), &queue.folders)?;
    }
    Ok(TreeSummary { root: *root, files: queue.files, bytes: queue.bytes })
}

/// Applies a layer: what `replaced` chooses in `dest` is removed, then the layer is
/// written.
///
/// # Errors
///
/// As [`remove_matching`] and [`materialize`].
pub fn apply_layer(
    store: &Store,
    root: &Digest,
    dest: &Path,
    replaced: &Patterns,
    options: &Materialize,
) -> Result<TreeSummary, TreeError> {
    remove_matching(dest, replaced)?;
    materialize(store, root, dest, options)
}

/// Removes what the patterns choose in a folder; folders go when they are chosen and
/// nothing is left in them.
///
/// # Errors
///
/// [`TreeError::Io`] for what cannot be listed or removed.
pub fn remove_matching(dest: &Path, patterns: &Patterns) -> Result<(), TreeError> {
    let root = match sys::open_root(dest) {
        Ok(root) => root,
        Err(Errno::ENOENT) => return Ok(()),
        Err(source) => return Err(io_error("open", dest, source)),
    };
    remove_below(dest, &root, patterns, &mut String::new(), 0)
}

fn remove_below(
    dest: &Path,
    fd: &OwnedFd,
    patterns: &Patterns,
    path: &mut String,
    depth: usize,
) -> Result<(), TreeError> {
    if depth > DEPTH_MAX {
        return Err(TreeError::TooDeep { path: path.clone() });
    }
    let len = path.len();
    let names = sys::names(fd).map_err(|source| io_error("list", dest.join(&*path), source))?;
    for name in names {
        if len > 0 {
            path.push('/');
        }
        path.push_str(&name.to_string_lossy());
        let error = |what, source: Errno, path: &str| io_error(what, dest.join(path), source);
        let stat =
            sys::stat_at(fd, name.as_c_str()).map_err(|source| error("look at", source, path))?;
        let matched = patterns.matches(path);
        if sys::kind(&stat) == SFlag::S_IFDIR {
            if patterns.may_descend(path) {
                let text = name.to_string_lossy();
                let inner =
                    sys::open_folder(fd, &text).map_err(|source| error("open", source, path))?;
                remove_below(dest, &inner, patterns, path, depth + 1)?;
            }
            if matched {
                match nix::unistd::unlinkat(fd, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                    Ok(()) | Err(Errno::ENOTEMPTY | Errno::ENOENT) => (),
                    Err(source) => return Err(error("remove", source, path)),
                }
            }
        } else if matched {
            sys::remove_at(fd, &name).map_err(|source| error("remove", source, path))?;
        }
        path.truncate(len);
    }
    Ok(())
}

enum Job {
    Folder { path: String, digest: Digest, depth: usize },
    Files { path: String, message: Arc<reapi::Directory>, from: usize },
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    running: usize,
    failed: Option<TreeError>,
    /// All folders, to be dated when everything is in them.
    folders: Vec<String>,
    files: u32,
    bytes: u64,
}

struct Work<'a> {
    store: &'a Store,
    dest: &'a Path,
    root: &'a OwnedFd,
    options: &'a Materialize,
    reader: Mutex<Reader<'a>>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// What one thread keeps to itself.
struct Hand {
    buffer: Vec<u8>,
    files: u32,
    bytes: u64,
}

impl Work<'_> {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, jobs: Vec<Job>) {
        self.queue().jobs.extend(jobs);
        self.changed.notify_all();
    }

    fn run(&self) {
        let mut hand = Hand { buffer: Vec::new(), files: 0, bytes: 0 };
        while let Some(job) = self.next() {
            let result = match job {
                Job::Folder { path, digest, depth } => {
                    self.folder(&path, &digest, depth, &mut hand)
                }
                Job::Files { path, message, from } => self
                    .open(&path)
                    .and_then(|fd| self.files(&fd, &path, &message, from, &mut hand)),
            };
            let mut queue = self.queue();
            queue.running -= 1;
            if let Err(error) = result {
                queue.failed.get_or_insert(error);
            }
            drop(queue);
            self.changed.notify_all();
        }
        let mut queue = self.queue();
        queue.files += hand.files;
        queue.bytes += hand.bytes;
    }

    /// The next job; none when all is done or something failed.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue();
        loop {
            if queue.failed.is_some() {
                return None;
            }
            if let Some(job) = queue.jobs.pop() {
                queue.running += 1;
                return Some(job);
            }
            if queue.running == 0 {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn open(&self, path: &str) -> Result<OwnedFd, TreeError> {
        sys::open_folder(self.root, path).map_err(|source| self.error("open", path, source))
    }

    fn error(&self, what: &'static str, path: &str, source: Errno) -> TreeError {
        io_error(what, self.dest.join(path), source)
    }

    fn folder(
        &self,
        path: &str,
        digest: &Digest,
        depth: usize,
        hand: &mut Hand,
    ) -> Result<(), TreeError> {
        if depth > DEPTH_MAX {
            return Err(TreeError::TooDeep { path: path.to_owned() });
        }
        let message = {
            let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::new(reader.read(digest)?)
        };
        let malformed = |why| TreeError::Malformed { digest: *digest, why };
        let fd = self.open(path)?;
        let mut jobs = Vec::new();
        for node in &message.directories {
            let below = join(path, &node.name);
            self.make_folder(&fd, &node.name, &below)?;
            let digest = wire_digest(node.digest.as_ref()).map_err(malformed)?;
            jobs.push(Job::Folder { path: below, digest, depth: depth + 1 });
        }
        for from in (TAKE_FILES..message.files.len()).step_by(TAKE_FILES) {
            jobs.push(Job::Files { path: path.to_owned(), message: Arc::clone(&message), from });
        }
        // Others can start on these while this thread goes on here.
        if !jobs.is_empty() {
            self.push(jobs);
        }
        for node in &message.symlinks {
            self.replacing(&fd, &node.name, || {
                nix::unistd::symlinkat(node.target.as_str(), &fd, node.name.as_str())
            })
            .map_err(|source| self.error("link", &join(path, &node.name), source))?;
            self.own_at(&fd, &node.name, &join(path, &node.name))?;
            if self.options.mtime == Mtime::Fixed {
                date_at(&fd, &node.name)
                    .map_err(|source| self.error("date", &join(path, &node.name), source))?;
            }
            hand.files += 1;
        }
        self.files(&fd, path, &message, 0, hand)?;
        if let Some(mode) = unix_mode(message.node_properties.as_ref())
            && self.options.mode == MaterializeMode::Writable
            && !path.is_empty()
        {
            // The owner always gets in: a folder closed to itself could not be filled.
            let mode = Mode::from_bits_truncate(mode | 0o700);
            nix::sys::stat::fchmod(&fd, mode)
                .map_err(|source| self.error("open up", path, source))?;
        }
        self.queue().folders.push(path.to_owned());
        Ok(())
    }

    fn make_folder(&self, fd: &OwnedFd, name: &str, path: &str) -> Result<(), TreeError> {
        let made = (|| {
            let mode = Mode::from_bits_truncate(0o755);
            match nix::sys::stat::mkdirat(fd, name, mode) {
                Err(Errno::EEXIST) => (),
                made => return made.map(|()| true),
            }
            if sys::kind(&sys::stat_at(fd, name)?) == SFlag::S_IFDIR {
                return Ok(false);
            }
            sys::remove_at(fd, &c_name(name))?;
            nix::sys::stat::mkdirat(fd, name, mode).map(|()| true)
        })();
        if made.map_err(|source| self.error("make the folder", path, source))? {
            // By the open folder: whoever owns the folder above may have put something else
            // under its name.
            sys::open_folder(fd, name)
                .and_then(|inner| sys::own_new_folder(&inner, self.options.owner))
                .map_err(|source| self.error("make the folder", path, source))?;
        }
        Ok(())
    }

    fn own_at(&self, fd: &OwnedFd, name: &str, path: &str) -> Result<(), TreeError> {
        let Some((uid, gid)) = self.options.owner else { return Ok(()) };
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        nix::unistd::fchownat(fd, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|source| self.error("give away", path, source))
    }

    /// Does it, and once more after removing what stands in the way.
    fn replacing<T>(
        &self,
        fd: &OwnedFd,
        name: &str,
        mut make: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::EEXIST) => {
                sys::remove_at(fd, &c_name(name))?;
                make()
            }
            result => result,
        }
    }

    fn files(
        &self,
        fd: &OwnedFd,
        path: &str,
        message: &reapi::Directory,
        from: usize,
        hand: &mut Hand,
    ) -> Result<(), TreeError> {
        let until = message.files.len().min(from + TAKE_FILES);
        for node in &message.files[from..until] {
            let entry = file_entry(node).map_err(|why| TreeError::Malformed {
                digest: Digest { hash: [0; 32], size: 0 },
                why,
            })?;
            let linked = match self.options.mode {
                MaterializeMode::Writable => Linked::TooMany,
                MaterializeMode::ReadOnlyLower => self
                    .replacing(fd, &node.name, || {
                        self.store.link(&entry.digest, entry.executable, fd, &node.name)
                    })
                    .map_err(|source| self.error("link", &join(path, &node.name), source))?,
            };
            match linked {
                Linked::Yes => (),
                Linked::Missing => return Err(TreeError::Missing(entry.digest)),
                Linked::TooMany => self.copy(fd, path, &node.name, &entry, hand)?,
            }
            hand.files += 1;
            hand.bytes += entry.digest.size;
        }
        Ok(())
    }

    fn copy(
        &self,
        fd: &OwnedFd,
        path: &str,
        name: &str,
        entry: &FileEntry,
        hand: &mut Hand,
    ) -> Result<(), TreeError> {
        let error =
            |source: std::io::Error| io_error("write", self.dest.join(join(path, name)), source);
        let blob = self.store.open_blob(DigestFunction::Blake3, &entry.digest)?;
        let mut blob = blob.ok_or(TreeError::Missing(entry.digest))?;
        let flags =
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = self
            .replacing(fd, name, || {
                nix::fcntl::openat(fd, name, flags, Mode::from_bits_truncate(0o600))
            })
            .map(File::from)
            .map_err(|source| error(source.into()))?;
        if entry.digest.size <= COPY_BUFFER_BYTES {
            hand.buffer.clear();
            blob.read_to_end(&mut hand.buffer).map_err(error)?;
            file.write_all(&hand.buffer).map_err(error)?;
        } else {
            std::io::copy(&mut blob, &mut file).map_err(error)?;
        }
        let mode = match self.options.mode {
            MaterializeMode::Writable => entry.permissions(),
            MaterializeMode::ReadOnlyLower if entry.executable => 0o555,
            MaterializeMode::ReadOnlyLower => 0o444,
        };
        let finish = || {
            if let Some((uid, gid)) = self.options.owner {
                nix::unistd::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
            nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(mode))?;
            if self.options.mtime == Mtime::Fixed {
                let fixed = TimeSpec::new(FIXED_TIME_S, 0);
                nix::sys::stat::futimens(&file, &fixed, &fixed)?;
            }
            Ok(())
        };
        finish().map_err(|source: Errno| error(source.into()))
    }
}

/// Dates folders, once nothing more is put into them.
fn date_folders(root: &OwnedFd, dest: &Path, folders: &[String]) -> Result<(), TreeError> {
    for path in folders {
        date_at(root, if path.is_empty() { "." } else { path })
            .map_err(|source| io_error("date", dest.join(path), source))?;
    }
    Ok(())
}

fn date_at(fd: &OwnedFd, name: &str) -> Result<(), Errno> {
    let fixed = TimeSpec::new(FIXED_TIME_S, 0);
    nix::sys::stat::utimensat(fd, name, &fixed, &fixed, UtimensatFlags::NoFollowSymlink)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

fn c_name(name: &str) -> CString {
    CString::new(name).expect("names of a checked folder hold no NUL")
}
