//! An open folder, below which paths are resolved by the kernel and never lead out.
//!
//! For folders that somebody else may change at any moment: whoever checks a path and
//! then uses it again by name can be led elsewhere in between. What is opened here
//! stays the same folder whatever happens to its name.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag};

use crate::sys;

/// What stands under a name, itself if it is a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    File,
    Folder,
    Symlink,
    Other,
}

/// An open folder.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    /// For messages.
    path: PathBuf,
}

impl Dir {
    /// Opens the folder at a path that nobody else can change.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: sys::open_root(path)?, path: path.to_owned() })
    }

    /// Opens a folder below this one. Symbolic links are followed as long as they stay
    /// below it.
    ///
    /// # Errors
    ///
    /// `EXDEV` for a path that leads out, and what the file system says.
    pub fn beneath(&self, relative: &Path) -> io::Result<Self> {
        let fd = sys::open_folder_beneath(&self.fd, relative)?;
        Ok(Self { fd, path: self.path.join(relative) })
    }

    /// The same, with what is missing on the way made, for `owner`.
    ///
    /// # Errors
    ///
    /// As [`Self::beneath`].
    pub fn make_beneath(&self, relative: &Path, owner: Option<(u32, u32)>) -> io::Result<Self> {
        let mut done = PathBuf::new();
        let mut at = self.beneath(Path::new("."))?;
        for part in relative.components() {
            let name = match part {
                Component::Normal(name) => name,
                Component::CurDir => continue,
                _ => return Err(Errno::EXDEV.into()),
            };
            done.push(name);
            let made = match nix::sys::stat::mkdirat(&at.fd, name, Mode::from_bits_truncate(0o755))
            {
                Ok(()) => true,
                Err(Errno::EEXIST) => false,
                Err(errno) => return Err(errno.into()),
            };
            let next = self.beneath(&done)?;
            if made {
                // By the open folder: its name may stand for something else by now.
                sys::own_new_folder(&next.fd, owner)?;
            }
            at = next;
        }
        Ok(Self { fd: at.fd, path: self.path.join(relative) })
    }

    /// Where it was when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it, sorted by name.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn entries(&self) -> io::Result<Vec<(OsString, Kind)>> {
        let mut entries = Vec::new();
        for name in sys::names(&self.fd)? {
            let kind = match sys::stat_at(&self.fd, name.as_c_str()) {
                Ok(stat) => match sys::kind(&stat) {
                    SFlag::S_IFREG => Kind::File,
                    SFlag::S_IFDIR => Kind::Folder,
                    SFlag::S_IFLNK => Kind::Symlink,
                    _ => Kind::Other,
                },
                // Gone since the listing.
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno.into()),
            };
            entries.push((OsString::from_vec(name.into_bytes()), kind));
        }
        entries.sort();
        Ok(entries)
    }

    /// Opens a regular file below this folder for reading, through no symbolic link.
    ///
    /// # Errors
    ///
    /// What the file system says; `InvalidInput` for what is no regular file.
    pub fn file(&self, relative: &Path) -> io::Result<File> {
        let text = relative.to_str().ok_or(Errno::EILSEQ)?;
        // Without waiting for the other end of a pipe that took the file's place.
        let file = File::from(sys::open_beneath(&self.fd, text, sys::READ)?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(file)
    }

    /// Removes all that is in it.
    ///
    /// # Errors
    ///
    /// The first thing that could not be removed.
    pub fn clear(&self) -> io::Result<()> {
        for name in sys::names(&self.fd)? {
            sys::remove_at(&self.fd, &name)?;
        }
        Ok(())
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

/// Removes what stands at a path with all below it, however deep, and also folders that
/// their owner may not read. Follows no symbolic link below the path's own folder; what
/// is not there is removed.
///
/// # Errors
///
/// The first thing that could not be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let name = std::ffi::CString::new(name.as_bytes())?;
    match sys::open_root(parent) {
        Ok(parent) => Ok(sys::remove_at(&parent, &name)?),
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_do_not_lead_out_of_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        fs::create_dir_all(ours.join("a/b")).unwrap();
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("secret"), "x").unwrap();
        symlink("a", ours.join("inside")).unwrap();
        symlink("../theirs", ours.join("relative")).unwrap();
        symlink(&theirs, ours.join("absolute")).unwrap();
        symlink("a/../../theirs/secret", ours.join("file")).unwrap();
        let folder = Dir::open(&ours).unwrap();
        for path in ["", ".", "a/b", "inside/b", "a/../a"] {
            folder.beneath(Path::new(path)).unwrap();
        }
        for path in ["..", "../theirs", "relative", "absolute", "a/../../theirs", "/tmp"] {
            assert!(folder.beneath(Path::new(path)).is_err(), "{path}");
            assert!(folder.make_beneath(&Path::new(path).join("new"), None).is_err(), "{path}");
        }
        assert!(folder.file(Path::new("file")).is_err());
        assert!(folder.file(Path::new("relative/secret")).is_err());
        folder.make_beneath(Path::new("a/new/deep"), None).unwrap();
        assert!(ours.join("a/new/deep").is_dir());
        folder.clear().unwrap();
        assert_eq!(fs::read_dir(&ours).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&theirs).unwrap().count(), 1, "links are not followed");
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), Mode::S_IRWXU).unwrap();
        assert!(Dir::open(dir.path()).unwrap().file(Path::new("pipe")).is_err());
    }

    #[test]
    fn a_tree_is_removed_however_deep_it_is_and_whatever_its_modes() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir(&root).unwrap();
        // As a job makes it, which may go down one folder at a time for ever.
        let mut at = sys::open_root(&root).unwrap();
        for depth in 0..3_000 {
            nix::sys::stat::mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            let below = sys::open_folder(&at, "d").unwrap();
            if depth % 70 == 0 {
                nix::sys::stat::mkdirat(&at, ".steading-1", Mode::empty()).unwrap();
                nix::sys::stat::fchmod(&at, Mode::from_bits_truncate(0o500)).unwrap();
            }
            at = below;
        }
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        remove_tree(&root).unwrap();
    }
}
