//! Looks at everything below a root: names, kinds and times, without reading content.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::PlatformError;

/// Most files below one root. More is not a tool but a mistake in PATH or `tools`.
pub(super) const FILES_MAX: usize = 1_000_000;

/// Something outside the workspace whose content a result depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Root {
    /// A file or a folder.
    pub path: PathBuf,
    pub depth: Depth,
}

/// How much of a folder counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Depth {
    /// All that is below.
    All,
    /// All but the folder `share` in it: manuals and other people's documentation,
    /// two thirds of a toolchain's files, that no program reads.
    WithoutShare,
    /// Its own files, and those that its links lead to: a folder of PATH.
    Flat,
}

impl Root {
    pub(super) fn all(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), depth: Depth::All }
    }

    pub(super) fn flat(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), depth: Depth::Flat }
    }
}

/// One thing below a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// From the root; empty for a root that is a file.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub stat: Stat,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File {
        executable: bool,
    },
    Link(Vec<u8>),
    /// Not to be read by a sandboxed command, and so without influence on it.
    Private,
}

/// What changes whenever the content does: nobody can set the change time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stat {
    pub inode: u64,
    pub size: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
}

impl Stat {
    fn of(about: &Metadata) -> Self {
        Self {
            inode: about.ino(),
            size: about.size(),
            mtime_ns: nanoseconds(about.mtime(), about.mtime_nsec()),
            ctime_ns: nanoseconds(about.ctime(), about.ctime_nsec()),
        }
    }
}

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds)
}

/// Everything below the root, by path. Empty where there is no such root, which
/// is as good a fact about a machine as any.
pub(super) fn entries(root: &Root) -> Result<Vec<Entry>, PlatformError> {
    let mut walk = Walk { found: Vec::new(), own_user: geteuid().as_raw() };
    walk.root(root).map_err(|source| PlatformError::Read { path: root.path.clone(), source })?;
    if walk.found.len() > FILES_MAX {
        return Err(PlatformError::TooBig { path: root.path.clone() });
    }
    walk.found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.found)
}

struct Walk {
    found: Vec<Entry>,
    own_user: u32,
}

impl Walk {
    fn root(&mut self, root: &Root) -> io::Result<()> {
        let Some(about) = unless_gone(fs::metadata(&root.path))? else { return Ok(()) };
        if !about.is_dir() {
            let kind = self.kind_of_file(&about);
            self.found.push(Entry { path: Vec::new(), kind, stat: Stat::of(&about) });
            return Ok(());
        }
        if self.is_private(&about) {
            return Ok(());
        }
        self.folder(&root.path, &mut Vec::new(), root.depth)
    }

    fn folder(&mut self, folder: &Path, relative: &mut Vec<u8>, depth: Depth) -> io::Result<()> {
        let Some(listing) = unless_gone(fs::read_dir(folder))? else { return Ok(()) };
        for entry in listing {
            if self.found.len() > FILES_MAX {
                return Ok(());
            }
            let entry = entry?;
            let name = entry.file_name();
            if depth == Depth::WithoutShare && relative.is_empty() && name == "share" {
                continue;
            }
            let path = entry.path();
            let Some(about) = unless_gone(entry.metadata())? else { continue };
            let length = relative.len();
            if length > 0 {
                relative.push(b'/');
            }
            relative.extend_from_slice(name.as_bytes());
            self.entry(&path, &about, relative, depth)?;
            relative.truncate(length);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &Path,
        about: &Metadata,
        relative: &mut Vec<u8>,
        depth: Depth,
    ) -> io::Result<()> {
        let mut stat = Stat::of(about);
        let kind = if about.is_symlink() {
            let target = fs::read_link(path)?.into_os_string().into_vec();
            match (depth, fs::metadata(path)) {
                // In PATH, what counts is the program at the end of the link.
                (Depth::Flat, Ok(about)) if about.is_file() => {
                    stat = Stat::of(&about);
                    self.kind_of_file(&about)
                }
                _ => Kind::Link(target),
            }
        } else if about.is_dir() {
            if self.is_private(about) { Kind::Private } else { Kind::Folder }
        } else {
            self.kind_of_file(about)
        };
        let descend = kind == Kind::Folder && depth != Depth::Flat;
        // A folder's times change with every `__pycache__`; its content is listed anyway.
        if matches!(kind, Kind::Folder | Kind::Private) {
            stat = Stat::default();
        }
        self.found.push(Entry { path: relative.clone(), kind, stat });
        if descend {
            self.folder(path, relative, depth)?;
        }
        Ok(())
    }

    fn kind_of_file(&self, about: &Metadata) -> Kind {
        if !about.is_file() || self.is_private(about) {
            return Kind::Private;
        }
        Kind::File { executable: about.mode() & 0o111 != 0 }
    }

    /// Root's sandboxes run as another user; an ordinary user's run as that user.
    fn is_private(&self, about: &Metadata) -> bool {
        let own = self.own_user != 0 && about.uid() == self.own_user;
        let read = if about.is_dir() { 0o5 } else { 0o4 };
        !own && about.mode() & read != read
    }
}

/// Things come and go while one looks; what an unprivileged user may not look at is
/// as good as gone.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::PermissionDenied => Ok(None),
            _ => Err(error),
        },
    }
}
