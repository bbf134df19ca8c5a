//! Snapshots of a source: what a run is built from.
//!
//! In a git repository: the tracked files and the untracked ones that it does not
//! ignore, submodules with theirs. Elsewhere: everything that no `.gitignore` ignores,
//! hidden files too, `.git` not. A file that has not changed since the last snapshot is
//! only looked at.

mod git;
mod plain;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::sys::stat::SFlag;

use crate::memo::Memo;
use crate::store::Store;
use crate::sys;
use crate::tree::{
    self, Entry, FileEntry, FileStamp, Folder, TreeError, TreeSummary, Wanted, read_link,
    store_wanted, unsupported,
};
use steading_model::Digest;

/// What a source tree never holds: the farm's own state.
const STATE_FOLDER: &str = ".steading/state";

/// How a Git LFS pointer starts.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\n";

/// Largest LFS pointer, bytes, as its specification has it.
const LFS_POINTER_BYTES_MAX: usize = 1024;

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Of the root `Directory`.
    pub root: Digest,
    /// Regular files and symbolic links.
    pub files: u32,
    pub bytes: u64,
    /// Files that were read; the others were known from their times.
    pub rehashed: u32,
    /// The tree differs from the commit, or there is no commit. Always true outside git.
    pub dirty: bool,
    /// The commit checked out, 40 hexadecimal digits.
    pub head: Option<String>,
    /// The branch checked out, as `refs/heads/NAME`.
    pub git_ref: Option<String>,
}

/// Why no snapshot could be taken.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("the source `{path}` cannot be read")]
    Dir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("`git {command}` failed in `{dir}`: {message}")]
    Git { command: &'static str, dir: PathBuf, message: String },
    #[error(
        "`{path}` is a Git LFS pointer, not the file itself: run `git lfs pull`, or untrack it"
    )]
    Lfs { path: String },
    #[error("the folder cannot be walked")]
    Walk(#[source] ignore::Error),
    #[error("the name `{path}` is not UTF-8, which no tree can hold: rename or ignore it")]
    NotUtf8 { path: String },
}

/// A path of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    /// Whatever stands there; of a file's mode, what `executable` says unless it is none:
    /// then the disk knows.
    Entry { executable: Option<bool> },
    /// A folder that is kept although nothing is in it.
    Folder,
}

/// Relative paths with what they are, sorted.
type Listing = BTreeMap<String, Listed>;

/// What git knows of a folder.
#[derive(Clone, Debug, Default)]
struct State {
    dirty: bool,
    head: Option<String>,
    git_ref: Option<String>,
}

/// Takes a snapshot of the source in `dir` into the store. `memo` is a file that
/// remembers what its files hashed to.
///
/// # Errors
///
/// [`SourceError`] says what stands in the way, by name.
pub fn snapshot(store: &Store, dir: &Path, memo: &Path) -> Result<Source, SourceError> {
    snapshot_excluding(store, dir, memo, &[])
}

/// [`snapshot`] without some folders below `dir`, such as a data directory that is
/// kept there. The store's own folder never belongs to a source.
///
/// # Errors
///
/// As [`snapshot`].
pub fn snapshot_excluding(
    store: &Store,
    dir: &Path,
    memo: &Path,
    exclude: &[&Path],
) -> Result<Source, SourceError> {
    snapshot_at(SystemTime::now(), store, dir, memo, exclude)
}

/// `now`: a time before any file is looked at.
fn snapshot_at(
    now: SystemTime,
    store: &Store,
    dir: &Path,
    memo: &Path,
    exclude: &[&Path],
) -> Result<Source, SourceError> {
    let mut memory = Memo::load(memo, now);
    let dir_error = |source| SourceError::Dir { path: dir.to_owned(), source };
    let dir = &dir.canonicalize().map_err(dir_error)?;
    let (mut listing, state) = match git::list(dir)? {
        Some(listed) => listed,
        None => (plain::list(dir)?, State { dirty: true, ..State::default() }),
    };
    let mut hidden = vec![STATE_FOLDER.to_owned()];
    for path in exclude.iter().copied().chain([store.dir()]) {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        hidden.extend(path.strip_prefix(dir).ok().and_then(Path::to_str).map(str::to_owned));
    }
    hidden.retain(|path| !path.is_empty());
    listing.retain(|path, _| !hidden.iter().any(|hidden| is_below(path, hidden)));

    let (folder, wanted) = look(dir, &listing)?;
    let (summary, rehashed) = take(store, dir, &mut memory, folder, &wanted)?;
    memory.save(memo);
    let TreeSummary { root, files, bytes } = summary;
    let State { dirty, head, git_ref } = state;
    Ok(Source { root, files, bytes, rehashed, dirty, head, git_ref })
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Looks at what is listed: the tree without its regular files, and those.
fn look(dir: &Path, listing: &Listing) -> Result<(Folder, Vec<Wanted>), SourceError> {
    let io_error = |path: &str, source: nix::errno::Errno| TreeError::Io {
        what: "look at",
        path: dir.join(path),
        source: source.into(),
    };
    let root = sys::open_root(dir).map_err(|source| io_error("", source))?;
    let (mut folder, mut wanted) = (Folder::default(), Vec::with_capacity(listing.len()));
    let mut parents = Parents::default();
    for (path, listed) in listing {
        // A parent that has become a symbolic link leads elsewhere: what was listed
        // below it is gone.
        if !parents.are_folders(&root, path).map_err(|source| io_error(path, source))? {
            continue;
        }
        let stat = match sys::stat_at(&root, path.as_str()) {
            Ok(stat) => stat,
            // Tracked, and deleted.
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => continue,
            Err(source) => return Err(io_error(path, source).into()),
        };
        let kind = sys::kind(&stat);
        match (kind, listed) {
            (SFlag::S_IFREG, Listed::Entry { executable }) => {
                let mode = match executable {
                    Some(true) => 0o755,
                    Some(false) => 0o644,
                    None => stat.st_mode & 0o777,
                };
                wanted.push(Wanted { path: path.clone(), stamp: FileStamp::new(&stat), mode });
            }
            (SFlag::S_IFLNK, _) => {
                let entry = read_link(&root, path, path, dir)?;
                folder.insert(path, entry)?;
            }
            (SFlag::S_IFDIR, Listed::Folder) => {
                if !matches!(folder.get(path), Some(Entry::Folder(_))) {
                    folder.insert(path, Entry::Folder(Folder::default()))?;
                }
            }
            // Tracked as a file, and now a folder: what is in it is listed by itself.
            (SFlag::S_IFDIR, Listed::Entry { .. }) => (),
            (SFlag::S_IFREG, Listed::Folder) => (),
            (kind, _) => return Err(unsupported(kind, path).into()),
        }
    }
    Ok((folder, wanted))
}

/// Which folders were seen to be folders. Paths come sorted, so the last one's parents
/// are most of what is asked.
#[derive(Default)]
struct Parents {
    known: std::collections::HashMap<String, bool>,
}

impl Parents {
    fn are_folders(
        &mut self,
        root: &std::os::fd::OwnedFd,
        path: &str,
    ) -> Result<bool, nix::errno::Errno> {
        let Some((parent, _)) = path.rsplit_once('/') else { return Ok(true) };
        if let Some(&known) = self.known.get(parent) {
            return Ok(known);
        }
        let fine = self.are_folders(root, parent)?
            && match sys::stat_at(root, parent) {
                Ok(stat) => sys::kind(&stat) == SFlag::S_IFDIR,
                Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => false,
                Err(error) => return Err(error),
            };
        self.known.insert(parent.to_owned(), fine);
        Ok(fine)
    }
}

/// Puts the files into the store, and the tree.
fn take(
    store: &Store,
    dir: &Path,
    memory: &mut Memo,
    mut folder: Folder,
    wanted: &[Wanted],
) -> Result<(TreeSummary, u32), SourceError> {
    let root = sys::open_root(dir).map_err(|source| TreeError::Io {
        what: "open",
        path: dir.to_owned(),
        source: source.into(),
    })?;
    let pointer = std::sync::Mutex::new(None);
    let inspect = |path: &str, bytes: &[u8]| {
        if bytes.len() <= LFS_POINTER_BYTES_MAX && bytes.starts_with(LFS_POINTER) {
            *pointer.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                Some(path.to_owned());
            return Err(TreeError::Unsupported { path: path.to_owned(), what: "Git LFS pointer" });
        }
        Ok(())
    };
    let stored = store_wanted(store, &root, dir, wanted, Some(memory), &inspect);
    let pointer = pointer.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let stored = match (stored, pointer) {
        (Err(_), Some(path)) => return Err(SourceError::Lfs { path }),
        (stored, _) => stored?,
    };
    for (wanted, digest) in wanted.iter().zip(&stored.digests) {
        let executable = wanted.mode & 0o100 != 0;
        let file = FileEntry { digest: *digest, executable, mode: None };
        folder.insert(&wanted.path, Entry::File(file))?;
    }
    Ok((tree::save(store, &folder)?, stored.rehashed))
}

#[cfg(test)]
mod tests;
