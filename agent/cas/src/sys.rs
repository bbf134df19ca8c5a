//! File-system calls relative to an open folder, none of which follows a symbolic link.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::UnlinkatFlags;

/// How a folder is opened.
const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// How a file is opened for reading; without waiting for the other end of a pipe.
pub(crate) const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// Deepest folder that is removed.
const REMOVE_DEPTH_MAX: usize = 900;

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
pub(crate) fn open_root(path: &std::path::Path) -> Result<OwnedFd, Errno> {
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
pub(crate) fn names(folder: &OwnedFd) -> Result<Vec<std::ffi::CString>, Errno> {
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

/// Removes what stands under a name, with all below it; nothing there is fine.
pub(crate) fn remove_at(folder: impl AsFd, name: &CStr) -> Result<(), Errno> {
    remove_deep(folder.as_fd(), name, 0)
}

fn remove_deep(folder: impl AsFd, name: &CStr, depth: usize) -> Result<(), Errno> {
    match nix::unistd::unlinkat(folder.as_fd(), name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        // Linux says EISDIR, POSIX would say EPERM.
        Err(Errno::EISDIR | Errno::EPERM) => (),
        Err(error) => return Err(error),
    }
    if depth > REMOVE_DEPTH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let inner = match openat(folder.as_fd(), name, FOLDER, Mode::empty()) {
        Ok(inner) => inner,
        // A folder that its owner closed to itself.
        Err(Errno::EACCES) => {
            nix::sys::stat::fchmodat(
                folder.as_fd(),
                name,
                Mode::S_IRWXU,
                nix::sys::stat::FchmodatFlags::NoFollowSymlink,
            )?;
            openat(folder.as_fd(), name, FOLDER, Mode::empty())?
        }
        Err(error) => return Err(error),
    };
    for below in names(&inner)? {
        match remove_deep(&inner, &below, depth + 1) {
            Err(Errno::EACCES) => {
                nix::sys::stat::fchmod(&inner, Mode::S_IRWXU)?;
                remove_deep(&inner, &below, depth + 1)?;
            }
            result => result?,
        }
    }
    nix::unistd::unlinkat(folder.as_fd(), name, UnlinkatFlags::RemoveDir)
}
