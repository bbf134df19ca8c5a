//! Reading blobs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::PoisonError;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, UtimensatFlags};
use nix::sys::time::TimeSpec;
use steading_model::{Digest, DigestFunction};

use super::index::{Key, Known, Meta};
use super::{ACCESS_SAVE_S, Shared, Store, StoreError, blob_path, io_error, scan};
use crate::hash::digest_of;

impl Store {
    /// The blob's bytes, verified; none where it is missing. A corrupt one is removed
    /// and counts as missing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] where the disk fails.
    pub fn get(
        &self,
        function: DigestFunction,
        digest: &Digest,
    ) -> Result<Option<Bytes>, StoreError> {
        let Some(mut file) = self.open_blob(function, digest)? else { return Ok(None) };
        let path = || self.0.shared.path(&blob_path(function, digest));
        let mut bytes = Vec::with_capacity(digest.size as usize);
        file.read_to_end(&mut bytes).map_err(|source| io_error("read", &path(), source))?;
        if digest_of(function, &bytes) != *digest {
            self.discard(function, digest);
            return Ok(None);
        }
        Ok(Some(Bytes::from(bytes)))
    }

    /// The blob's file, of the right size but not verified; none where it is missing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] where the disk fails.
    pub fn open_blob(
        &self,
        function: DigestFunction,
        digest: &Digest,
    ) -> Result<Option<File>, StoreError> {
        let shared = &self.0.shared;
        let key = Key::new(function, digest);
        let known = shared.index().look(&key, digest.size, shared.clock.tick());
        if known == Known::Absent {
            return Ok(None);
        }
        let path = blob_path(function, digest);
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = match nix::fcntl::openat(&shared.blobs, path.as_str(), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => {
                self.forget(&key);
                return Ok(None);
            }
            Err(source) => return Err(io_error("open", &shared.path(&path), source)),
        };
        if known == (Known::Present { first: false }) {
            return Ok(Some(file));
        }
        let stat = nix::sys::stat::fstat(&file)
            .map_err(|source| io_error("look at", &shared.path(&path), source))?;
        Ok(self.admit(function, digest, &stat).then_some(file))
    }

    /// Whether the blob is there; says so as a use of it.
    pub fn contains(&self, function: DigestFunction, digest: &Digest) -> bool {
        let shared = &self.0.shared;
        let known =
            shared.index().look(&Key::new(function, digest), digest.size, shared.clock.tick());
        match known {
            Known::Absent => false,
            Known::Present { first: false } => true,
            Known::Present { first: true } | Known::Unknown => self.look_at_disk(function, digest),
        }
    }

    /// Those of the digests that the store lacks, each once, in the order given.
    pub fn missing(&self, function: DigestFunction, digests: &[Digest]) -> Vec<Digest> {
        let mut seen = std::collections::HashSet::with_capacity(digests.len());
        digests
            .iter()
            .filter(|digest| seen.insert(**digest))
            .filter(|digest| !self.contains(function, digest))
            .copied()
            .collect()
    }

    /// Puts a hard link of the blob at `name` in `dir`; false where the blob is missing.
    /// The linked file is read-only, dated 2000-01-01 and the store's own: nobody who
    /// can write to it may ever see it other than through a read-only mount.
    pub(crate) fn link(
        &self,
        digest: &Digest,
        executable: bool,
        dir: impl AsFd,
        name: &str,
    ) -> Result<Linked, Errno> {
        let shared = &self.0.shared;
        let function = DigestFunction::Blake3;
        let mut path = blob_path(function, digest);
        if executable {
            path.push_str(".x");
        }
        let link = || {
            nix::unistd::linkat(&shared.blobs, path.as_str(), dir.as_fd(), name, AtFlags::empty())
        };
        match link() {
            Ok(()) => Ok(Linked::Yes),
            Err(Errno::EMLINK) => Ok(Linked::TooMany),
            Err(Errno::ENOENT) if executable => {
                if !self.make_twin(digest)? {
                    return Ok(Linked::Missing);
                }
                link().map(|()| Linked::Yes)
            }
            Err(Errno::ENOENT) => {
                self.forget(&Key::new(function, digest));
                Ok(Linked::Missing)
            }
            Err(error) => Err(error),
        }
    }

    /// Asks the disk, and tells the index.
    fn look_at_disk(&self, function: DigestFunction, digest: &Digest) -> bool {
        let shared = &self.0.shared;
        let path = blob_path(function, digest);
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        match nix::sys::stat::fstatat(&shared.blobs, path.as_str(), flags) {
            Ok(stat) => self.admit(function, digest, &stat),
            Err(_) => {
                self.forget(&Key::new(function, digest));
                false
            }
        }
    }

    /// Takes up a blob that the disk showed: false, and the file is gone, if a power
    /// cut left it shorter than its name says.
    fn admit(&self, function: DigestFunction, digest: &Digest, stat: &FileStat) -> bool {
        let shared = &self.0.shared;
        if u64::try_from(stat.st_size) != Ok(digest.size) {
            self.discard(function, digest);
            return false;
        }
        let used = shared.clock.tick();
        {
            let key = Key::new(function, digest);
            let mut index = shared.index();
            if index.get(&key).is_none() {
                index.insert(key, Meta { size: digest.size, used, twin: false });
            }
        }
        if (used / 1_000_000) as i64 - stat.st_atime > ACCESS_SAVE_S {
            let path = blob_path(function, digest);
            // Only orders evictions: not worth an error.
            let _ = nix::sys::stat::utimensat(
                &shared.blobs,
                path.as_str(),
                &TimeSpec::UTIME_NOW,
                &TimeSpec::UTIME_OMIT,
                UtimensatFlags::NoFollowSymlink,
            );
        }
        true
    }

    /// Removes a blob that is not what its name says.
    pub(crate) fn discard(&self, function: DigestFunction, digest: &Digest) {
        let shared: &Shared = &self.0.shared;
        tracing::warn!(%digest, function = function.as_str(), "removed a corrupt blob");
        let _places = shared.places.write().unwrap_or_else(PoisonError::into_inner);
        shared.index().remove(&Key::new(function, digest));
        scan::unlink(shared, function, digest);
    }

    fn forget(&self, key: &Key) {
        self.0.shared.index().remove(key);
    }
}

/// How a hard link went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Linked {
    Yes,
    Missing,
    /// The file system takes no more links of this file: copy it.
    TooMany,
}

/// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
