//! Segment files: their names, and making the next one before it is needed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::super::vfs::{Vfs, VfsFile};
use super::{SEGMENT_BYTES_MIN, WalError, WalOptions, io_error};

/// How much is zeroed with one write, bytes.
const ZERO_WRITE_BYTES: usize = 1 << 20;

/// A segment's file and size.
pub(super) type Made = (Box<dyn VfsFile>, u64);

/// The segment after the one that is written to.
#[derive(Debug, Default)]
pub(super) enum Next {
    #[default]
    None,
    Ready(Box<dyn VfsFile>, u64),
    Making(JoinHandle<Result<Made, WalError>>),
}

impl Next {
    pub(super) const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Starts making segment `number`.
    ///
    /// # Errors
    ///
    /// [`WalError::Io`], when not in the background.
    pub(super) fn begin(
        vfs: &Arc<dyn Vfs>,
        options: &WalOptions,
        number: u64,
    ) -> Result<Self, WalError> {
        let size = options.segment_bytes.max(SEGMENT_BYTES_MIN);
        if options.background {
            let (vfs, dir) = (Arc::clone(vfs), options.dir.clone());
            let make = move || Ok((prepare(&*vfs, &dir, number, size)?, size));
            // Without a thread it is made when it is needed.
            let thread = std::thread::Builder::new().name("log-segment".into()).spawn(make);
            return Ok(thread.map_or(Self::None, Self::Making));
        }
        Ok(Self::Ready(prepare(&**vfs, &options.dir, number, size)?, size))
    }

    /// Waits until it is made.
    ///
    /// # Errors
    ///
    /// None: one that could not be made ahead is `Ok(None)`, and made again by the caller.
    pub(super) fn finish(self) -> Result<Option<Made>, WalError> {
        match self {
            Self::None => Ok(None),
            Self::Ready(file, size) => Ok(Some((file, size))),
            Self::Making(thread) => match thread.join() {
                Ok(Ok(made)) => Ok(Some(made)),
                Ok(Err(error)) => {
                    tracing::warn!(error = %error, "cannot make the next log segment ahead");
                    Ok(None)
                }
                Err(_) => Ok(None),
            },
        }
    }
}

/// The file of segment `number`.
pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016}.seg"))
}

/// The number in a segment's file name.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() != 16 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// Makes a segment of zeros, durable with its name. Zeros are written, not only
/// allocated: fdatasync on written blocks has no metadata to sync.
///
/// # Errors
///
/// [`WalError::Io`].
pub(super) fn prepare(
    vfs: &dyn Vfs,
    dir: &Path,
    number: u64,
    size: u64,
) -> Result<Box<dyn VfsFile>, WalError> {
    let path = path_of(dir, number);
    let mut file = vfs.create(&path).map_err(io_error("make", &path))?;
    zero(&mut *file, 0, size).map_err(io_error("write", &path))?;
    file.sync_all().map_err(io_error("sync", &path))?;
    vfs.sync_dir(dir).map_err(io_error("sync", dir))?;
    Ok(file)
}

/// Writes zeros from `from` to `to`.
pub(super) fn zero(file: &mut dyn VfsFile, from: u64, to: u64) -> std::io::Result<()> {
    let zeros = vec![0; ZERO_WRITE_BYTES.min(to.saturating_sub(from) as usize)];
    let mut at = from;
    while at < to {
        let len = (to - at).min(zeros.len() as u64);
        file.write_at(at, &zeros[..len as usize])?;
        at += len;
    }
    Ok(())
}
