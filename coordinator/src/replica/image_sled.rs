//! The image in sled: one tree, one batch a checkpoint.
#![cfg_attr(
    not(any(test, feature = "testkit")),
    allow(unreachable_pub, reason = "reached from outside by tests only")
)]

use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use super::image::{ImageError, ImageStore, Write, free_name};

/// What sled may keep in memory, bytes. The image is read once, at the start.
const CACHE_BYTES: u64 = 32 << 20;

/// How many images that were set aside are kept for people to look at.
const SET_ASIDE_MAX: u32 = 3;

/// sled in a directory of its own, which is made with the first checkpoint: most runs
/// on a laptop end before one is due, and need not wait for sled.
#[derive(Debug)]
pub struct SledStore {
    dir: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    db: sled::Db,
    /// sled's own file: its `flush` does not reach the disk on Linux, so this is
    /// synced behind it.
    file: File,
}

impl SledStore {
    /// Opens what is in `dir`, or sets it aside and begins empty.
    ///
    /// # Errors
    ///
    /// [`ImageError::Store`] if what is there cannot even be set aside.
    pub fn open(dir: PathBuf) -> Result<Self, ImageError> {
        let mut store = Self { open: None, dir };
        if store.dir.exists() {
            match open(&store.dir) {
                Ok(open) => store.open = Some(open),
                Err(error) => {
                    tracing::warn!(dir = %store.dir.display(), %error, "image cannot be opened, it is set aside");
                    store.set_aside()?;
                }
            }
        }
        Ok(store)
    }
}

impl ImageStore for SledStore {
    fn scan(&self, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ImageError> {
        let Some(Open { db, .. }) = &self.open else { return Ok(()) };
        guard(|| {
            for row in db.iter() {
                let (key, value) = row?;
                each(&key, &value);
            }
            Ok(())
        })
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(Open { db, .. }) = &self.open else { return Ok(None) };
        Ok(guard(|| db.get(key))?.map(|value| value.to_vec()))
    }

    fn write(&mut self, batch: Vec<Write>) -> Result<(), ImageError> {
        let mut sled_batch = sled::Batch::default();
        for (key, value) in batch {
            match value {
                Some(value) => sled_batch.insert(key, value),
                None => sled_batch.remove(key),
            }
        }
        let Open { db, file } = match &mut self.open {
            Some(open) => open,
            // It could not be set aside, and old rows must not get between new ones.
            None if self.dir.exists() => {
                return Err(ImageError::Store("an image that failed is in the way".into()));
            }
            none => none.insert(open(&self.dir)?),
        };
        guard(|| {
            db.apply_batch(sled_batch)?;
            db.flush()
        })?;
        file.sync_data().map_err(|error| ImageError::Store(error.to_string()))
    }

    fn set_aside(&mut self) -> Result<(), ImageError> {
        // sled's errors last as long as the handle.
        self.open = None;
        if self.dir.exists() {
            let aside = free_name(&self.dir);
            std::fs::rename(&self.dir, &aside)
                .map_err(|error| ImageError::Store(error.to_string()))?;
            remove_beyond(&aside);
        }
        Ok(())
    }
}

/// Removes images that were set aside long ago: a disk that fails again and again
/// must not fill up with them.
fn remove_beyond(aside: &Path) {
    let Some(number) = aside.extension().and_then(|number| number.to_str()?.parse::<u32>().ok())
    else {
        return;
    };
    if let Some(old) = number.checked_sub(SET_ASIDE_MAX)
        && let Err(error) = std::fs::remove_dir_all(aside.with_extension(old.to_string()))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "cannot remove an image that was set aside");
    }
}

fn open(dir: &Path) -> Result<Open, ImageError> {
    let failed = |error: std::io::Error| ImageError::Store(error.to_string());
    let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let db = guard(|| config.open())?;
    let file = File::open(dir.join("db")).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    if let Some(parent) = dir.parent() {
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)?;
    }
    Ok(Open { db, file })
}

/// sled asserts on some damage instead of answering, and the image is not worth a panic.
/// A store that panicked is set aside, so that nobody meets what it left half done.
fn guard<T>(run: impl FnOnce() -> sled::Result<T>) -> Result<T, ImageError> {
    std::panic::catch_unwind(AssertUnwindSafe(run))
        .map_err(|_| ImageError::Store("sled gave up".into()))?
        .map_err(|error| ImageError::Store(error.to_string()))
}
