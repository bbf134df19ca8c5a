//! Small disks for the processes of a test: file systems in memory, which nobody but the
//! test's own thread sees, and what it starts.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate, posix_fallocate};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;

/// What fills a disk, and is removed again.
const FILL: &str = "fill";

/// What is read of a log at once, bytes: as much as is zero where nothing was written.
const PAGE: usize = 4096;

/// Room that a log keeps when what it holds in advance is taken: at most this much more is
/// written to it before a write fails, bytes.
const MARGIN: i64 = 4 * PAGE as i64;

/// How often what is free is taken before that is believed to be all.
const FILLS_MAX: usize = 16;

/// A disk, mounted on a folder.
#[derive(Debug)]
pub struct SmallDisk {
    dir: PathBuf,
}

/// Gives the calling thread, and what it starts from now on, mounts of its own.
///
/// # Errors
///
/// Why that cannot be.
pub fn own_mounts() -> Result<(), String> {
    let failed = |error: nix::Error| format!("no mounts of one's own: {error}");
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed)?;
    let all = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, all, None::<&str>).map_err(failed)
}

/// Mounts an empty disk of so many bytes.
pub fn mount_small(dir: &Path, bytes: u64) {
    std::fs::create_dir_all(dir).expect("make a folder");
    let options = format!("size={bytes}");
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .expect("mount a disk");
}

impl SmallDisk {
    /// The one that is mounted here; it goes away with this.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        let stat = statvfs(&self.dir).expect("a disk");
        stat.blocks_available() * stat.fragment_size()
    }

    /// Takes room until no more than `left` bytes are free.
    pub fn fill(&self, left: u64) {
        let path = self.dir.join(FILL);
        let file = File::options().create(true).append(true).open(path).expect("make a file");
        // Somebody else may take or give some meanwhile.
        for _ in 0..FILLS_MAX {
            let size = file.metadata().expect("a file").len();
            let more = self.free().saturating_sub(left);
            let (size, more) = (i64::try_from(size), i64::try_from(more));
            let (Ok(size), Ok(more @ 1..)) = (size, more) else { return };
            let _ = posix_fallocate(&file, size, more);
        }
    }

    /// Gives back what was taken.
    pub fn clear(&self) {
        std::fs::remove_file(self.dir.join(FILL)).expect("remove what fills the disk");
    }

    /// Takes from files of a log what they hold in advance, as a disk does that promised
    /// more than it has: a write to it then needs room. Whoever writes them must stand still.
    pub fn thin_out(&self, log: &Path) {
        for entry in std::fs::read_dir(self.dir.join(log)).expect("a log") {
            let path = entry.expect("an entry").path();
            let file = File::options().read(true).write(true).open(path).expect("a file");
            let size = i64::try_from(file.metadata().expect("a file").len()).expect("a size");
            let from = written(&file) + MARGIN;
            if from < size {
                let punch =
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                fallocate(&file, punch, from, size - from).expect("punch a hole");
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // At the latest it goes with the thread.
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
    }
}

/// Where the first page begins that holds nothing.
fn written(file: &File) -> i64 {
    let mut page = [0; PAGE];
    let mut offset = 0;
    while file.read_exact_at(&mut page, offset).is_ok() && page != [0; PAGE] {
        offset += PAGE as u64;
    }
    i64::try_from(offset).expect("a file's size")
}
