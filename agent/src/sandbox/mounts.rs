//! The mounts of a sandbox, one function for each kind.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::pivot_root;

use super::{Bind, SandboxError, Workspace};

/// Of the new root, which holds mount points, links and a few small files. KiB.
const ROOT_KIB_MAX: u32 = 16 << 10;

const NONE: Option<&str> = None;

/// Devices that a program may expect. None of them reaches anything of the machine.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

pub(super) fn private() -> Result<(), SandboxError> {
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)
        .map_err(at("cannot part from the outside's mounts below", Path::new("/")))
}

pub(super) fn root(root: &Path) -> Result<(), SandboxError> {
    tmpfs(root, &format!("mode=0755,size={ROOT_KIB_MAX}k"))
}

pub(super) fn tmpfs(target: &Path, options: &str) -> Result<(), SandboxError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))
        .map_err(at("cannot mount a tmpfs at", target))
}

/// `/proc` of the pid namespace that this process is in.
pub(super) fn proc(root: &Path) -> Result<(), SandboxError> {
    let target = folder(root, Path::new("/proc"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), &target, Some("proc"), flags, NONE)
        .map_err(at("cannot mount proc at", &target))
}

pub(super) fn devices(root: &Path) -> Result<(), SandboxError> {
    let dev = folder(root, Path::new("/dev"))?;
    for name in DEVICES {
        let source = Path::new("/dev").join(name);
        let target = dev.join(name);
        fs::write(&target, b"").map_err(io_at("cannot create", &target))?;
        mount(Some(&source), &target, NONE, MsFlags::MS_BIND, NONE)
            .map_err(at("cannot show the device", &source))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(name)).map_err(io_at("cannot link", &dev.join(name)))?;
    }
    tmpfs(&folder(root, Path::new("/dev/shm"))?, "mode=1777")?;
    let pts = folder(root, Path::new("/dev/pts"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    // Few programs want a terminal; a kernel that refuses costs those only.
    let options = Some("newinstance,ptmxmode=0666,mode=0620");
    let _ = mount(Some("devpts"), &pts, Some("devpts"), flags, options);
    Ok(())
}

/// Shows `bind.source` at `bind.target`, with all that is mounted below it.
pub(super) fn bind(root: &Path, bind: &Bind) -> Result<(), SandboxError> {
    let source = &bind.source;
    let about = fs::metadata(source).map_err(io_at("cannot find", source))?;
    let target =
        if about.is_dir() { folder(root, &bind.target)? } else { file(root, &bind.target, "")? };
    let opened = bind.exact.then(|| open_exact(source)).transpose()?;
    let from = opened.as_ref().map_or_else(|| source.clone(), path_of);
    mount(Some(&from), &target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .map_err(at("cannot show", source))?;
    restrict(&target, bind.writable)?;
    if about.is_dir() {
        for below in mounts_below(&target)? {
            restrict(&below, bind.writable)?;
        }
    }
    Ok(())
}

/// Opens what stands at a path, unless a link has come in its way since it was looked at.
fn open_exact(path: &Path) -> Result<OwnedFd, SandboxError> {
    let opened = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(at("cannot open", path))?;
    let is = fs::read_link(path_of(&opened)).map_err(io_at("cannot look up", path))?;
    if is == path {
        return Ok(opened);
    }
    let moved = io::Error::other("it was replaced by a link");
    Err(io_at("cannot show", path)(moved))
}

/// A path that leads to an open file, whatever its names are.
fn path_of(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// No set-uid, no devices and, unless `writable`, no writes through this mount.
fn restrict(target: &Path, writable: bool) -> Result<(), SandboxError> {
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if !writable {
        flags |= MsFlags::MS_RDONLY;
    }
    let now = statvfs(target).map_err(at("cannot look at", target))?.flags();
    // A user namespace may not take these off what the outside mounted with them.
    for (have, keep) in [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if now.contains(have) {
            flags |= keep;
        }
    }
    mount(NONE, target, NONE, flags, NONE).map_err(at("cannot restrict", target))
}

/// Mount points strictly below `folder`, parents first.
fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>, SandboxError> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(io_at("cannot read", Path::new(path)))?;
    let mut below: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(folder) && point != folder)
        .collect();
    below.sort();
    Ok(below)
}

/// `mountinfo` writes space, tab, newline and backslash in octal.
fn unescape(text: &str) -> PathBuf {
    let mut out = text.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        out = out.replace(code, character);
    }
    PathBuf::from(out)
}

/// Puts the workspace at `target` inside. `in_user_namespace` says whose right
/// the mounts are made with.
pub(super) fn workspace(
    root: &Path,
    target: &Path,
    workspace: &Workspace,
    in_user_namespace: bool,
) -> Result<(), SandboxError> {
    match workspace {
        Workspace::Folder(source) => bind(root, &Bind::writable(source, target)),
        Workspace::Overlay { lower, upper, work } => {
            let target = folder(root, target)?;
            let options = overlay_options(lower, upper, work, in_user_namespace)?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(Some("overlay"), &target, Some("overlay"), flags, Some(options.as_str()))
                .map_err(at("cannot mount an overlay on", lower))
        }
    }
}

/// Without redirects and metadata-only copies, the upper layer says by itself
/// what was written.
fn overlay_options(
    lower: &Path,
    upper: &Path,
    work: &Path,
    in_user_namespace: bool,
) -> Result<String, SandboxError> {
    let mut options = String::new();
    for (key, path) in [("lowerdir", lower), ("upperdir", upper), ("workdir", work)] {
        let Some(text) = path.to_str().filter(|text| !text.contains([',', ':', '\\'])) else {
            return Err(SandboxError::Path {
                what: "an overlay cannot be made of a path with `,`, `:` or `\\`:",
                path: path.to_owned(),
                source: io::ErrorKind::InvalidInput.into(),
            });
        };
        options.push_str(&format!("{key}={text},"));
    }
    options.push_str("redirect_dir=nofollow,metacopy=off,index=off");
    if in_user_namespace {
        options.push_str(",userxattr");
    }
    Ok(options)
}

/// Makes `root` the root, and the outside unreachable.
pub(super) fn enter(root: &Path) -> Result<(), SandboxError> {
    let step = at("cannot make the root of", root);
    std::env::set_current_dir(root).map_err(io_at("cannot enter", root))?;
    // The old root lands on top of the new one, and is taken off again.
    pivot_root(".", ".").map_err(&step)?;
    umount2(".", MntFlags::MNT_DETACH).map_err(&step)?;
    std::env::set_current_dir("/").map_err(io_at("cannot enter", root))?;
    let flags = MsFlags::MS_BIND
        | MsFlags::MS_REMOUNT
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    mount(NONE, "/", NONE, flags, NONE).map_err(&step)
}

/// Makes sure of the folder `inside` below `root`, and returns where it is.
pub(super) fn folder(root: &Path, inside: &Path) -> Result<PathBuf, SandboxError> {
    let path = below(root, inside);
    fs::create_dir_all(&path).map_err(io_at("cannot create the folder", &path))?;
    Ok(path)
}

/// Makes sure of the file `inside` below `root`, and returns where it is.
pub(super) fn file(root: &Path, inside: &Path, content: &str) -> Result<PathBuf, SandboxError> {
    if let Some(parent) = inside.parent() {
        folder(root, parent)?;
    }
    let path = below(root, inside);
    if !path.exists() {
        fs::write(&path, content).map_err(io_at("cannot write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .map_err(io_at("cannot open up", &path))?;
    }
    Ok(path)
}

pub(super) fn link(root: &Path, inside: &Path, target: &Path) -> Result<(), SandboxError> {
    if let Some(parent) = inside.parent() {
        folder(root, parent)?;
    }
    let path = below(root, inside);
    symlink(target, &path).map_err(io_at("cannot link", &path))
}

fn below(root: &Path, inside: &Path) -> PathBuf {
    root.join(inside.strip_prefix("/").unwrap_or(inside))
}

fn at(what: &'static str, path: &Path) -> impl Fn(nix::errno::Errno) -> SandboxError {
    move |errno| SandboxError::Path { what, path: path.to_owned(), source: errno.into() }
}

fn io_at(what: &'static str, path: &Path) -> impl Fn(io::Error) -> SandboxError {
    move |source| SandboxError::Path { what, path: path.to_owned(), source }
}
