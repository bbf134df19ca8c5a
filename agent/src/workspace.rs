//! The folders of one job. Made for it, and removed with all that it left.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use steading_cas::{Dir, remove_tree};

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
    /// Where steps run as the agent's own user, folders and files that are there already
    /// are used again: ext4 looks for an inode that was not freed within seconds, so a
    /// fresh set for each of many short jobs costs more than the jobs. A user of its own
    /// gets everything fresh: an earlier job may have passed an open folder or file on to
    /// somebody else, or put rights on it that its mode does not show.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn create(root: PathBuf, user: Option<(u32, u32)>) -> io::Result<Self> {
        let workspace = Self { root, user };
        // The user of the steps may pass through `root` and `c`, not change what is in
        // them. Nobody else gets in, whatever the job opens up below.
        let (mode, inner) = if user.is_some() { (0o710, 0o711) } else { (0o700, 0o700) };
        let files = workspace.root.join("c");
        if user.is_some() {
            remove_tree(&files)?;
        }
        for (folder, mode) in [(&workspace.root, mode), (&files, inner)] {
            DirBuilder::new().recursive(true).mode(mode).create(folder)?;
            let meta = fs::symlink_metadata(folder)?;
            if meta.mode() & 0o7777 != mode {
                fs::set_permissions(folder, Permissions::from_mode(mode))?;
            }
        }
        if let Some((_, group)) = user {
            chown(&workspace.root, None, Some(group))?;
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
            Ok(meta) if self.is_ours(&meta) => return Dir::open(path)?.clear(),
            Ok(_) => remove_tree(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
        DirBuilder::new().mode(FOLDER_MODE).create(path)?;
        // Whatever the agent's umask is.
        fs::set_permissions(path, Permissions::from_mode(FOLDER_MODE))?;
        self.own(path)
    }

    fn is_ours(&self, meta: &fs::Metadata) -> bool {
        self.user.is_none() && meta.is_dir() && meta.mode() & 0o7777 == FOLDER_MODE
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
        let flags = O_NOFOLLOW | O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            // The step deleted it: it said nothing.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the step put something else than a file there",
            ));
        }
        let len = meta.size();
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

    /// Opens a folder for a step, relative to the workspace or absolute.
    ///
    /// For a user of its own it must be inside the workspace or the temporary folder, and
    /// so must be all that links on the way lead to: the agent must not read for a job
    /// what the job may not. What is opened stays the same folder, whatever a process
    /// that the job left running does to its name.
    ///
    /// # Errors
    ///
    /// What the file system says; [`leaves_workspace`] tells a path that leads out.
    pub fn folder(&self, path: &Path) -> io::Result<Dir> {
        match self.beneath(path)? {
            Some((root, inside)) => Dir::open(&root)?.beneath(&inside),
            None => Dir::open(&self.dir().join(path)),
        }
    }

    /// The same, with what is missing of it made.
    ///
    /// # Errors
    ///
    /// As [`Self::folder`].
    pub fn make_folder(&self, path: &Path) -> io::Result<Dir> {
        match self.beneath(path)? {
            Some((root, inside)) => Dir::open(&root)?.make_beneath(&inside, self.user),
            None => {
                let path = self.dir().join(path);
                fs::create_dir_all(&path)?;
                Dir::open(&path)
            }
        }
    }

    /// Which folder of the job it has to be below; none: it may be anywhere.
    fn beneath(&self, path: &Path) -> io::Result<Option<(PathBuf, PathBuf)>> {
        let roots = [self.dir(), self.temp()];
        if path.is_relative() {
            return Ok(self.user.map(|_| (self.dir(), path.to_owned())));
        }
        let found = roots.into_iter().find_map(|root| {
            let inside = path.strip_prefix(&root).ok()?.to_owned();
            Some((root, inside))
        });
        match (found, self.user) {
            (_, None) => Ok(None),
            (Some(found), Some(_)) => Ok(Some(found)),
            (None, Some(_)) => Err(Errno::EXDEV.into()),
        }
    }
}

/// Whether a folder was not opened because its path leads out of the workspace.
pub(crate) fn leaves_workspace(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EXDEV as i32)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

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

    #[test]
    fn nothing_outside_is_opened_for_a_user_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let job = Workspace::create(dir.path().join("0"), some_user()).unwrap();
        std::os::unix::fs::symlink(&elsewhere, job.dir().join("out")).unwrap();
        std::os::unix::fs::symlink("w", job.dir().join("in")).unwrap();
        fs::create_dir(job.dir().join("w")).unwrap();

        for inside in [Path::new("in"), &job.dir(), &job.temp(), &job.dir().join("w")] {
            job.folder(inside).unwrap();
        }
        job.make_folder(Path::new("in/new/deep")).unwrap();
        assert!(job.dir().join("w/new/deep").is_dir());
        for outside in [Path::new("out"), Path::new(".."), &elsewhere, &job.dir().join("../c")] {
            assert!(leaves_workspace(&job.folder(outside).unwrap_err()), "{outside:?}");
            job.make_folder(&outside.join("new")).unwrap_err();
        }
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }

    #[test]
    fn nobody_else_gets_into_the_folders_of_a_user_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("0");
        let job = Workspace::create(root.clone(), some_user()).unwrap();
        let meta = fs::metadata(&root).unwrap();
        assert_eq!((meta.mode() & 0o7777, Some(meta.gid())), (0o710, some_user().map(|u| u.1)));
        job.put_shared("set_env", b"", true).unwrap();
        // An earlier job kept these open, or opened them up to somebody.
        let kept = [job.dir(), job.temp(), job.home(), job.shared_file("set_env")]
            .map(|path| (File::open(&path).unwrap(), path));

        let next = Workspace::create(root, some_user()).unwrap();
        next.put_shared("set_env", b"", true).unwrap();
        for (file, path) in kept {
            let (old, new) = (file.metadata().unwrap(), fs::metadata(&path).unwrap());
            assert_ne!(old.ino(), new.ino(), "{}", path.display());
        }
    }

    /// One that every user may give files to.
    fn some_user() -> Option<(u32, u32)> {
        Some((nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()))
    }
}
