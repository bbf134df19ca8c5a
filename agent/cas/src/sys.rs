//! File-system calls relative to an open folder, none of which follows a symbolic link.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::{Gid, Uid, UnlinkatFlags};

/// How a folder is opened.
const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// How a file is opened for reading; without waiting for the other end of a pipe.
pub(crate) const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// Deepest folder that is removed where it stands; what is deeper is brought up first.
/// Each level takes an open file, of which a process may have 1024.
const REMOVE_DEPTH_MAX: usize = 100;

/// Most folders that one removal brings up. Only somebody who makes new ones all the
/// while gets there.
const RENAMES_MAX: usize = 1_000_000;

/// How often a path is looked up again on which something was renamed meanwhile.
const RACES_MAX: usize = 100;

/// Opens a path below a folder; no component of it may be a symbolic link. The empty
/// path is the folder itself.
pub(crate) fn open_beneath(folder: impl AsFd, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { "." } else { path };
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(folder.as_fd(), path, how) {
        // An old kernel, or a seccomp filter that does not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => open_stepwise(folder, path, flags),
        result => result,
    }
}

fn open_stepwise(folder: impl AsFd, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut parent = openat(folder.as_fd(), ".", FOLDER, Mode::empty())?;
    for part in parents.split('/').filter(|part| !part.is_empty()) {
        if part == ".." {
            return Err(Errno::EXDEV);
        }
        parent = openat(&parent, part, FOLDER, Mode::empty())?;
    }
    openat(&parent, name, flags | OFlag::O_NOFOLLOW, Mode::empty())
}

/// Opens a folder below a folder.
pub(crate) fn open_folder(folder: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    open_beneath(folder, path, FOLDER)
}

/// Opens the folder at a trusted path, which may be a symbolic link.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

/// What stands at a path, itself if it is a symbolic link.
pub(crate) fn stat_at(
    folder: impl AsFd,
    path: &(impl nix::NixPath + ?Sized),
) -> Result<FileStat, Errno> {
    nix::sys::stat::fstatat(folder, path, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// The kind bits of a file's mode.
pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The names in an open folder, without `.` and `..`, in no order.
pub(crate) fn names(folder: &OwnedFd) -> Result<Vec<CString>, Errno> {
    // Opened anew: reading moves the descriptor's position.
    let mut dir = Dir::from_fd(openat(folder, ".", FOLDER, Mode::empty())?)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Opens a folder below a folder. Symbolic links are followed as long as they stay
/// below it, where the kernel can see to that; else none is.
pub(crate) fn open_folder_beneath(folder: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH);
    for _ in 0..RACES_MAX {
        match openat2(folder.as_fd(), path, how) {
            // Something was renamed on the way: the kernel cannot tell where it led.
            Err(Errno::EAGAIN) => (),
            Err(Errno::ENOSYS | Errno::EPERM) => {
                let path = path.to_str().ok_or(Errno::EILSEQ)?;
                return open_stepwise(folder, path, FOLDER);
            }
            result => return result,
        }
    }
    Err(Errno::EAGAIN)
}

/// Gives a folder that was just made its usual mode, whatever the umask, and its owner.
pub(crate) fn own_new_folder(folder: &OwnedFd, owner: Option<(u32, u32)>) -> Result<(), Errno> {
    nix::sys::stat::fchmod(folder, Mode::from_bits_truncate(0o755))?;
    match owner {
        Some((uid, gid)) => {
            nix::unistd::fchown(folder, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        }
        None => Ok(()),
    }
}

/// Removes what stands under a name, with all below it, however deep; nothing there is
/// fine.
pub(crate) fn remove_at(folder: impl AsFd, name: &CStr) -> Result<(), Errno> {
    let folder = folder.as_fd();
    let Some(top) = open_unless_removed(folder, name)? else { return Ok(()) };
    let mut removal = Removal { top: &top, moved: 0 };
    loop {
        let moved = removal.moved;
        removal.empty(&top, 1)?;
        // What was brought up is looked at again.
        if removal.moved == moved {
            break;
        }
    }
    nix::unistd::unlinkat(folder, name, UnlinkatFlags::RemoveDir)
}

/// Removes what is no folder; a folder is opened.
fn open_unless_removed(folder: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    match nix::unistd::unlinkat(folder, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(None),
        // Linux says EISDIR, POSIX would say EPERM.
        Err(Errno::EISDIR | Errno::EPERM) => (),
        Err(error) => return Err(error),
    }
    match openat(folder, name, FOLDER, Mode::empty()) {
        // A folder that its owner closed to itself.
        Err(Errno::EACCES) => {
            open_up(folder, name)?;
            openat(folder, name, FOLDER, Mode::empty()).map(Some)
        }
        opened => opened.map(Some),
    }
}

struct Removal<'a> {
    /// Of what is removed. Folders from deep down are moved here, to be removed from here.
    top: &'a OwnedFd,
    moved: usize,
}

impl Removal<'_> {
    fn empty(&mut self, folder: &OwnedFd, depth: usize) -> Result<(), Errno> {
        for name in names(folder)? {
            match self.remove(folder, &name, depth) {
                Err(Errno::EACCES) => {
                    nix::sys::stat::fchmod(folder, Mode::S_IRWXU)?;
                    self.remove(folder, &name, depth)?;
                }
                result => result?,
            }
        }
        Ok(())
    }

    fn remove(&mut self, folder: &OwnedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
        let Some(inner) = open_unless_removed(folder.as_fd(), name)? else { return Ok(()) };
        if depth < REMOVE_DEPTH_MAX {
            self.empty(&inner, depth + 1)?;
            return nix::unistd::unlinkat(folder, name, UnlinkatFlags::RemoveDir);
        }
        for below in names(&inner)? {
            if open_unless_removed(inner.as_fd(), &below)?.is_some() {
                self.bring_up(&inner, &below)?;
            }
        }
        nix::unistd::unlinkat(folder, name, UnlinkatFlags::RemoveDir)
    }

    /// Moves a folder to the top. A tree has no bound to its depth; open files and this
    /// thread's stack have one.
    fn bring_up(&mut self, folder: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        loop {
            self.moved += 1;
            let up = CString::new(format!(".steading-{}", self.moved))
                .expect("letters and digits hold no NUL");
            let rename = || nix::fcntl::renameat(folder, name, self.top, up.as_c_str());
            let moved = match rename() {
                // Moving a folder writes to it, for its `..`.
                Err(Errno::EACCES) => {
                    open_up(folder.as_fd(), name)?;
                    nix::sys::stat::fchmod(folder, Mode::S_IRWXU)?;
                    nix::sys::stat::fchmod(self.top, Mode::S_IRWXU)?;
                    rename()
                }
                moved => moved,
            };
            match moved {
                // Something of that name was there before.
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR)
                    if self.moved < RENAMES_MAX => {}
                moved => return moved,
            }
        }
    }
}

fn open_up(folder: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = nix::sys::stat::FchmodatFlags::NoFollowSymlink;
    nix::sys::stat::fchmodat(folder, name, Mode::S_IRWXU, flags)
}
