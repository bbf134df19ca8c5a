//! Putting blobs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use nix::unistd::UnlinkatFlags;
use steading_model::{Digest, DigestFunction};

use super::index::{Key, Meta};
use super::{Shared, Store, StoreError, blob_path, io_error, scan};
use crate::hash::{Hasher, digest_of};

/// Files up to this many bytes are read whole before they are put: nothing is written
/// for those that are there already.
const SMALL_FILE_BYTES: u64 = 1 << 20;

/// From this many new blobs a batch is made durable by one sync of the file system,
/// below it by one sync per file.
const SYNCFS_BLOBS_MIN: usize = 8;

/// What a file's read is cut into, bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// How often a file that changes while it is read is tried.
const READ_TRIES: u32 = 3;

/// The time of every file of the store, seconds: 2000-01-01. Hard links of it stand in
/// trees whose files must not tell when they were made.
pub(crate) const FIXED_TIME_S: i64 = 946_684_800;

impl Store {
    /// Puts these bytes. There already: only the use is noted.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] where the disk fails.
    pub fn put(&self, function: DigestFunction, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digests = self.put_many(function, [bytes])?;
        Ok(digests[0])
    }

    /// Puts these bytes, if they are what the digest names.
    ///
    /// # Errors
    ///
    /// [`StoreError::Mismatch`] where they are not, else as [`Store::put`].
    pub fn put_expected(
        &self,
        function: DigestFunction,
        expected: &Digest,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let actual = digest_of(function, bytes);
        if actual != *expected {
            return Err(StoreError::Mismatch { expected: *expected, actual });
        }
        self.put_hashed(function, [(actual, bytes)])
    }

    /// Puts several blobs; durable ones share one sync. The digests come in order.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] where the disk fails; some blobs may be there.
    pub fn put_many<'a>(
        &self,
        function: DigestFunction,
        blobs: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<Digest>, StoreError> {
        let hashed: Vec<(Digest, &[u8])> =
            blobs.into_iter().map(|bytes| (digest_of(function, bytes), bytes)).collect();
        let digests = hashed.iter().map(|(digest, _)| *digest).collect();
        self.put_hashed(function, hashed)?;
        Ok(digests)
    }

    /// Puts blobs whose digests the caller has computed from these very bytes.
    pub(crate) fn put_hashed<'a>(
        &self,
        function: DigestFunction,
        blobs: impl IntoIterator<Item = (Digest, &'a [u8])>,
    ) -> Result<(), StoreError> {
        let mut staged = Vec::new();
        for (digest, bytes) in blobs {
            if self.contains(function, &digest) {
                continue;
            }
            let mut tmp = self.tmp()?;
            tmp.write(bytes)?;
            // A batch may be larger than the number of files that may be open, so only
            // those stay open that are synced one by one.
            if !self.is_durable() || staged.len() >= SYNCFS_BLOBS_MIN {
                tmp.close()?;
            }
            staged.push((digest, tmp));
        }
        self.place(function, staged)
    }

    /// Puts a file's content. The caller opened it, so no path is followed here;
    /// `path` is for messages.
    ///
    /// # Errors
    ///
    /// [`StoreError::Changing`] where somebody keeps writing to the file, and
    /// [`StoreError::Io`] where the disk fails.
    pub fn put_open_file(
        &self,
        function: DigestFunction,
        file: &mut File,
        path: &Path,
    ) -> Result<Digest, StoreError> {
        for _ in 0..READ_TRIES {
            let size = file.metadata().map_err(|source| io_error("look at", path, source))?.len();
            let digest = if size <= SMALL_FILE_BYTES {
                let mut bytes = Vec::with_capacity(size as usize + 1);
                // One byte more than was promised shows that the file grows.
                let read = Read::by_ref(file).take(size + 1).read_to_end(&mut bytes);
                read.map_err(|source| io_error("read", path, source))?;
                if bytes.len() as u64 == size {
                    return self.put(function, &bytes);
                }
                None
            } else {
                self.put_large_file(function, file, path, size)?
            };
            if let Some(digest) = digest {
                return Ok(digest);
            }
            file.rewind().map_err(|source| io_error("read again", path, source))?;
        }
        Err(StoreError::Changing { path: path.to_owned() })
    }

    /// Puts a file's content.
    ///
    /// # Errors
    ///
    /// As [`Store::put_open_file`].
    pub fn put_file(&self, function: DigestFunction, path: &Path) -> Result<Digest, StoreError> {
        let mut file = File::open(path).map_err(|source| io_error("open", path, source))?;
        self.put_open_file(function, &mut file, path)
    }

    /// Hashes first, and copies only what is missing; none if the file changed its size.
    fn put_large_file(
        &self,
        function: DigestFunction,
        file: &mut File,
        path: &Path,
        size: u64,
    ) -> Result<Option<Digest>, StoreError> {
        let digest =
            hash_reader(function, file).map_err(|source| io_error("read", path, source))?;
        if digest.size != size {
            return Ok(None);
        }
        if self.contains(function, &digest) {
            return Ok(Some(digest));
        }
        file.rewind().map_err(|source| io_error("read again", path, source))?;
        let mut tmp = self.tmp()?;
        // The kernel copies, or shares the blocks where the file system can.
        io::copy(&mut Read::by_ref(file).take(size), tmp.file())
            .map_err(|source| io_error("copy", path, source))?;
        tmp.file().rewind().map_err(|source| io_error("read the copy of", path, source))?;
        // The copy is what is kept, so the copy is what is hashed.
        let digest = hash_reader(function, tmp.file())
            .map_err(|source| io_error("read the copy of", path, source))?;
        self.place(function, vec![(digest, tmp)])?;
        Ok((digest.size == size).then_some(digest))
    }

    /// Takes a blob in pieces. With a digest it takes those bytes and no others.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] where the disk fails.
    pub fn writer(
        &self,
        function: DigestFunction,
        expected: Option<Digest>,
    ) -> Result<BlobWriter, StoreError> {
        let (tmp, hasher) = (self.tmp()?, Hasher::new(function));
        Ok(BlobWriter { store: self.clone(), tmp, hasher, function, expected, written: 0 })
    }

    /// Makes the executable file of a blob; false where the blob is missing.
    pub(super) fn make_twin(&self, digest: &Digest) -> Result<bool, Errno> {
        let shared = &self.0.shared;
        let function = DigestFunction::Blake3;
        let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let mut source = match self.open_blob(function, digest) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(false),
            Err(StoreError::Io { source, .. }) => return Err(errno(source)),
            Err(_) => return Err(Errno::EIO),
        };
        let mut tmp = self.tmp().map_err(|_| Errno::EIO)?;
        io::copy(&mut source, tmp.file()).map_err(errno)?;
        tmp.close_with_mode(0o555)?;
        let path = format!("{}.x", blob_path(function, digest));
        let _places = shared.places.read().unwrap_or_else(PoisonError::into_inner);
        tmp.rename(&path)?;
        shared.index().set_twin(&Key::new(function, digest));
        Ok(true)
    }

    fn tmp(&self) -> Result<TmpFile, StoreError> {
        let shared = &self.0.shared;
        let name = shared.tmp_last.fetch_add(1, Ordering::Relaxed).to_string();
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let file = nix::fcntl::openat(&shared.tmp, name.as_str(), flags, mode)
            .map_err(|source| io_error("write into", &shared.root.join("tmp"), source))?;
        Ok(TmpFile { store: self.clone(), name, file: Some(File::from(file)), placed: false })
    }

    /// Gives complete files their names, durably if that is asked for.
    fn place(
        &self,
        function: DigestFunction,
        mut staged: Vec<(Digest, TmpFile)>,
    ) -> Result<(), StoreError> {
        if staged.is_empty() {
            return Ok(());
        }
        let shared = &self.0.shared;
        let durable = shared.options.durable;
        if durable {
            sync_files(shared, &staged)?;
        }
        {
            let _places = shared.places.read().unwrap_or_else(PoisonError::into_inner);
            let mut made_folder = false;
            for (digest, tmp) in &mut staged {
                tmp.close()?;
                let path = blob_path(function, digest);
                made_folder |= tmp
                    .rename(&path)
                    .map_err(|source| io_error("put in place", &shared.path(&path), source))?;
            }
            if durable {
                sync_names(shared, function, &staged, made_folder)?;
            }
            // Last, so that nobody takes a blob for durable before it is.
            let mut index = shared.index();
            for (digest, _) in &staged {
                let meta = Meta { size: digest.size, used: shared.clock.tick(), twin: false };
                index.insert(Key::new(function, digest), meta);
            }
        }
        let bytes = shared.index().bytes();
        if bytes > shared.bytes_max() {
            scan::evict(shared);
        }
        Ok(())
    }
}

/// Syncs the content of staged files.
fn sync_files(shared: &Shared, staged: &[(Digest, TmpFile)]) -> Result<(), StoreError> {
    if staged.len() >= SYNCFS_BLOBS_MIN {
        return nix::unistd::syncfs(&shared.tmp)
            .map_err(|source| io_error("sync", &shared.root, source));
    }
    for file in staged.iter().filter_map(|(_, tmp)| tmp.file.as_ref()) {
        nix::unistd::fdatasync(file).map_err(|source| io_error("sync", &shared.root, source))?;
    }
    Ok(())
}

/// Syncs the names of placed files, and those of folders made for them.
fn sync_names(
    shared: &Shared,
    function: DigestFunction,
    placed: &[(Digest, TmpFile)],
    made_folder: bool,
) -> Result<(), StoreError> {
    if placed.len() >= SYNCFS_BLOBS_MIN {
        return nix::unistd::syncfs(&shared.tmp)
            .map_err(|source| io_error("sync", &shared.root, source));
    }
    let folders: BTreeSet<u8> = placed.iter().map(|(digest, _)| digest.hash[0]).collect();
    let mut paths: Vec<String> =
        folders.iter().map(|prefix| format!("{}/{prefix:02x}", function.as_str())).collect();
    if made_folder {
        paths.push(function.as_str().to_owned());
    }
    for path in paths {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::openat(&shared.blobs, path.as_str(), flags, Mode::empty())
            .and_then(nix::unistd::fsync)
            .map_err(|source| io_error("sync the folder", &shared.path(&path), source))?;
    }
    Ok(())
}

/// A file in `tmp/` that goes away unless it is placed.
#[derive(Debug)]
struct TmpFile {
    store: Store,
    name: String,
    /// None once it is complete.
    file: Option<File>,
    placed: bool,
}

impl TmpFile {
    fn file(&mut self) -> &mut File {
        self.file.as_mut().expect("a file is written before it is closed")
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file().write_all(bytes).map_err(|error| self.error("write", error))
    }

    /// Completes it.
    fn close(&mut self) -> Result<(), StoreError> {
        self.close_with_mode(0o444).map_err(|error| self.error("finish", error))
    }

    /// Gives it the mode and time of the store's files.
    fn close_with_mode(&mut self, mode: u32) -> Result<(), Errno> {
        let Some(file) = self.file.take() else { return Ok(()) };
        nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(mode))?;
        let fixed = TimeSpec::new(FIXED_TIME_S, 0);
        nix::sys::stat::futimens(&file, &TimeSpec::UTIME_NOW, &fixed)
    }

    /// Gives it its name; true if a folder had to be made for it.
    fn rename(&mut self, path: &str) -> Result<bool, Errno> {
        let shared = &self.store.0.shared;
        let rename = || nix::fcntl::renameat(&shared.tmp, self.name.as_str(), &shared.blobs, path);
        let made = match rename() {
            Err(Errno::ENOENT) => {
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                make_folder(shared, folder)?;
                rename().map(|()| true)
            }
            result => result.map(|()| false),
        };
        self.placed = made.is_ok();
        made
    }

    fn error(&self, what: &'static str, source: impl Into<io::Error>) -> StoreError {
        io_error(what, &self.store.0.shared.root.join("tmp").join(&self.name), source)
    }
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        if !self.placed {
            let _ = nix::unistd::unlinkat(
                &self.store.0.shared.tmp,
                self.name.as_str(),
                UnlinkatFlags::NoRemoveDir,
            );
        }
    }
}

fn make_folder(shared: &Shared, folder: &str) -> Result<(), Errno> {
    match nix::sys::stat::mkdirat(&shared.blobs, folder, Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Takes one blob in pieces. Dropped before the commit it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    tmp: TmpFile,
    hasher: Hasher,
    function: DigestFunction,
    expected: Option<Digest>,
    written: u64,
}

impl BlobWriter {
    /// Bytes taken so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooLong`] at once when they are more than the digest names.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.written + bytes.len() as u64;
        if let Some(expected) = self.expected
            && written > expected.size
        {
            return Err(StoreError::TooLong { size: expected.size });
        }
        self.tmp.write(bytes)?;
        self.hasher.update(bytes);
        self.written = written;
        Ok(())
    }

    /// Puts the blob.
    ///
    /// # Errors
    ///
    /// [`StoreError::Mismatch`] where the bytes are not what was expected, and
    /// [`StoreError::Io`] where the disk fails.
    pub fn commit(self) -> Result<Digest, StoreError> {
        let actual = self.hasher.finish();
        if let Some(expected) = self.expected
            && expected != actual
        {
            return Err(StoreError::Mismatch { expected, actual });
        }
        if !self.store.contains(self.function, &actual) {
            self.store.place(self.function, vec![(actual, self.tmp)])?;
        }
        Ok(actual)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn hash_reader(function: DigestFunction, file: &mut File) -> io::Result<Digest> {
    let mut hasher = Hasher::new(function);
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
}
