//! The folders of one job. Made for it, and removed with all that it left.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::libc::O_NOFOLLOW;

use crate::sandbox::remove_tree;

/// Largest file that a step may write for its job, bytes: an output may have 1 MiB,
/// and there may be many.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Of the folders that steps may write to.
const FOLDER_MODE: u32 = 0o755;

/// The folders of one job: `w` is GITHUB_WORKSPACE, `t` RUNNER_TEMP, `h` the home of a
/// user that has none, `c` the files that steps write for their job.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
    /// Whom everything but `root` and `c` belongs to; none: the agent's own user.
    user: Option<(u32, u32)>,
}

impl Workspace {
    /// Makes the folders under `root`, and removes what an earlier job left in them.
    ///
    /// Folders and files that are there already are used again: ext4 looks for an inode
    /// that was not freed within seconds, so a fresh set for each of many short jobs
    /// costs more than the jobs.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn create(root: PathBuf, user: Option<(u32, u32)>) -> io::Result<Self> {
        let workspace = Self { root, user };
        // The user of the steps may pass through `root` and `c`, not change what is in them.
        let mode = if user.is_some() { 0o711 } else { 0o700 };
        for folder in [workspace.root.clone(), workspace.root.join("c")] {
            DirBuilder::new().recursive(true).mode(mode).create(&folder)?;
            let meta = fs::symlink_metadata(&folder)?;
            if meta.mode() & 0o7777 != mode {
                fs::set_permissions(&folder, Permissions::from_mode(mode))?;
            }
        }
        workspace.clear()?;
        Ok(workspace)
    }

    /// Removes what the job left; the folders stay for the next one.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn clear(&self) -> io::Result<()> {
        for folder in ["w", "t", "h"] {
            self.fresh(&self.root.join(folder))?;
        }
        Ok(())
    }

    /// Makes the folder an empty one of the steps' user.
    fn fresh(&self, path: &Path) -> io::Result<()> {
        match fs::symlink_metadata(path) {
            Ok(meta) if self.is_ours(&meta) => return empty(path),
            Ok(meta) if meta.is_dir() => remove_tree(path)?,
            Ok(_) => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
        DirBuilder::new().mode(FOLDER_MODE).create(path)?;
        // Whatever the agent's umask is.
        fs::set_permissions(path, Permissions::from_mode(FOLDER_MODE))?;
        self.own(path)
    }

    fn is_ours(&self, meta: &fs::Metadata) -> bool {
        let owner = self.user.is_none_or(|(uid, gid)| (meta.uid(), meta.gid()) == (uid, gid));
        meta.is_dir() && meta.mode() & 0o7777 == FOLDER_MODE && owner
    }

    /// GITHUB_WORKSPACE.
    pub fn dir(&self) -> PathBuf {
        self.root.join("w")
    }

    /// RUNNER_TEMP.
    pub fn temp(&self) -> PathBuf {
        self.root.join("t")
    }

    /// HOME of a user that has none.
    pub fn home(&self) -> PathBuf {
        self.root.join("h")
    }

    /// Whom steps run as; none: the agent's own user.
    pub fn user(&self) -> Option<(u32, u32)> {
        self.user
    }

    /// Path of a file that the agent and the step share.
    pub fn shared_file(&self, name: &str) -> PathBuf {
        self.root.join("c").join(name)
    }

    /// Writes a file that the step may read, or write if `writable`.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn put_shared(&self, name: &str, bytes: &[u8], writable: bool) -> io::Result<PathBuf> {
        let path = self.shared_file(name);
        let mode = if writable { 0o600 } else { 0o644 };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(mode)
            .custom_flags(O_NOFOLLOW)
            .open(&path)?;
        file.write_all(bytes)?;
        if writable {
            self.own(&path)?;
        }
        Ok(path)
    }

    /// Reads what a step left in a shared file.
    ///
    /// The folder is the agent's, so the file is the one that the agent put there, and
    /// no link to something that only the agent may read.
    ///
    /// # Errors
    ///
    /// What the file system says, and a file that is too large.
    pub fn take_shared(&self, name: &str) -> io::Result<Vec<u8>> {
        let path = self.shared_file(name);
        let file = match OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(&path) {
            Ok(file) => file,
            // The step deleted it: it said nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let len = file.metadata()?.size();
        if len > FILE_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{len} bytes, at most {FILE_BYTES_MAX} are allowed"),
            ));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Gives a path to the user of the steps.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn own(&self, path: &Path) -> io::Result<()> {
        match self.user {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    /// The path inside the workspace or the temporary folder, with every link on the
    /// way followed; none where that leads elsewhere.
    pub fn inside(&self, path: &Path) -> Option<PathBuf> {
        let real = self.dir().join(path).canonicalize().ok()?;
        let roots = [self.dir(), self.temp()];
        let ours = roots.iter().filter_map(|root| root.canonicalize().ok());
        ours.into_iter().any(|root| real.starts_with(root)).then_some(real)
    }
}

/// Removes what is in a folder.
pub(crate) fn empty(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_job_finds_nothing_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("0");
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("kept"), "").unwrap();
        let job = Workspace::create(root.clone(), None).unwrap();
        fs::create_dir_all(job.dir().join("a/b")).unwrap();
        fs::write(job.dir().join("a/b/c"), "").unwrap();
        fs::set_permissions(job.dir().join("a/b"), Permissions::from_mode(0o555)).unwrap();
        std::os::unix::fs::symlink(&elsewhere, job.temp().join("link")).unwrap();
        fs::remove_dir(job.home()).unwrap();
        std::os::unix::fs::symlink(&elsewhere, job.home()).unwrap();
        job.put_shared("set_env", b"A=1", true).unwrap();
        assert_eq!(job.take_shared("set_env").unwrap(), b"A=1");

        let next = Workspace::create(root, None).unwrap();
        next.put_shared("set_env", b"", true).unwrap();
        assert_eq!(next.take_shared("set_env").unwrap(), b"");
        for folder in [next.dir(), next.temp(), next.home()] {
            assert!(!fs::symlink_metadata(&folder).unwrap().is_symlink());
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
        }
        assert!(elsewhere.join("kept").exists());
    }
}
