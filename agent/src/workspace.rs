//! The folders of one job. Made for it, and removed with all that it left.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use crate::sandbox::remove_tree;

/// Largest file that a step may write for its job, bytes: an output may have 1 MiB,
/// and there may be many.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The folders of one job: `w` is GITHUB_WORKSPACE, `t` RUNNER_TEMP, `h` the home of a
/// user that has none, `c` the files that steps write for their job.
#[derive(Clone, Debug)]
pub struct Workspace {
    root: PathBuf,
    /// Whom everything but `root` and `c` belongs to; none: the agent's own user.
    user: Option<(u32, u32)>,
}

impl Workspace {
    /// Makes the folders under `root`, removing what an earlier job left there.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn create(root: PathBuf, user: Option<(u32, u32)>) -> io::Result<Self> {
        remove_tree(&root)?;
        let workspace = Self { root, user };
        // The user of the steps may pass through `root` and `c`, not change what is in them.
        let mode = if user.is_some() { 0o711 } else { 0o700 };
        DirBuilder::new().recursive(true).mode(mode).create(&workspace.root)?;
        DirBuilder::new().mode(mode).create(workspace.root.join("c"))?;
        for folder in ["w", "t", "h"] {
            let path = workspace.root.join(folder);
            DirBuilder::new().mode(0o755).create(&path)?;
            workspace.own(&path)?;
        }
        Ok(workspace)
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
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&path)?;
        file.write_all(bytes)?;
        if writable {
            self.own(&path)?;
        }
        Ok(path)
    }

    /// Reads what a step left in a shared file, and removes it.
    ///
    /// The folder is the agent's, so the file is the one that the agent put there, and
    /// no link to something that only the agent may read.
    ///
    /// # Errors
    ///
    /// What the file system says, and a file that is too large.
    pub fn take_shared(&self, name: &str) -> io::Result<Vec<u8>> {
        let path = self.shared_file(name);
        let file =
            match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path) {
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
        fs::remove_file(&path)?;
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

    /// Removes everything.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn remove(self) -> io::Result<()> {
        remove_tree(&self.root)
    }
}
