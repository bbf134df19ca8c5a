//! What the store knows of its blobs without asking the disk.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use steading_model::{Digest, DigestFunction};

/// Names a blob file: the size is not part of it, because a verified hash has one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) function: DigestFunction,
    pub(super) hash: [u8; 32],
}

impl Key {
    pub(super) fn new(function: DigestFunction, digest: &Digest) -> Self {
        Self { function, hash: digest.hash }
    }
}

/// About 60 bytes a blob with its key: a million blobs cost less than 128 MiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meta {
    pub(super) size: u64,
    /// Microseconds since the Unix epoch; zero: not used since the store was opened,
    /// the file's access time knows more.
    pub(super) used: u64,
    /// Has a second, executable file.
    pub(super) twin: bool,
}

impl Meta {
    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        if self.twin { self.size * 2 } else { self.size }
    }
}

/// What a look at the index says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// There. `first`: for the first time since the store was opened, so that the
    /// file's access time may be stale.
    Present { first: bool },
    /// Not there.
    Absent,
    /// The scan is not through: the disk knows.
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    blobs: HashMap<Key, Meta>,
    pins: HashMap<Key, u32>,
    bytes: u64,
    /// The scan of the disk is through.
    pub(super) complete: bool,
}

impl Index {
    pub(super) fn look(&mut self, key: &Key, size: u64, now: u64) -> Known {
        match self.blobs.get_mut(key) {
            Some(meta) if meta.size == size => {
                let first = meta.used == 0;
                meta.used = now;
                Known::Present { first }
            }
            // The hash of a blob that has another size: such a blob cannot exist.
            Some(_) => Known::Absent,
            None if self.complete => Known::Absent,
            None => Known::Unknown,
        }
    }

    pub(super) fn insert(&mut self, key: Key, meta: Meta) {
        self.bytes += meta.bytes();
        if let Some(old) = self.blobs.insert(key, meta) {
            self.bytes -= old.bytes();
            if let Some(new) = self.blobs.get_mut(&key)
                && old.twin
                && !new.twin
            {
                new.twin = true;
                self.bytes += new.size;
            }
        }
    }

    /// As the scan found it: what is known already is newer.
    pub(super) fn found(&mut self, key: Key, size: u64, twin: bool) {
        match self.blobs.get_mut(&key) {
            Some(meta) => {
                if twin && !meta.twin {
                    meta.twin = true;
                    self.bytes += meta.size;
                }
            }
            // The twin's own file is seen before or after the blob's: either makes the row.
            None => {
                let meta = Meta { size, used: 0, twin };
                self.bytes += meta.bytes();
                self.blobs.insert(key, meta);
            }
        }
    }

    pub(super) fn set_twin(&mut self, key: &Key) {
        if let Some(meta) = self.blobs.get_mut(key)
            && !meta.twin
        {
            meta.twin = true;
            self.bytes += meta.size;
        }
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Meta> {
        let meta = self.blobs.remove(key)?;
        self.bytes -= meta.bytes();
        Some(meta)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Meta> {
        self.blobs.get(key).copied()
    }

    pub(super) fn pin(&mut self, key: Key) {
        *self.pins.entry(key).or_insert(0) += 1;
    }

    pub(super) fn unpin(&mut self, key: &Key) {
        if let Some(count) = self.pins.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(key);
            }
        }
    }

    pub(super) fn is_pinned(&self, key: &Key) -> bool {
        self.pins.contains_key(key)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.blobs.len()
    }

    pub(super) fn digests(&self) -> Vec<(DigestFunction, Digest)> {
        let digest =
            |(key, meta): (&Key, &Meta)| (key.function, Digest { hash: key.hash, size: meta.size });
        self.blobs.iter().map(digest).collect()
    }

    /// What may go, in no order.
    pub(super) fn unpinned(&self) -> Vec<(Key, Meta)> {
        let free = |(key, _): &(&Key, &Meta)| !self.pins.contains_key(*key);
        self.blobs.iter().filter(free).map(|(key, meta)| (*key, *meta)).collect()
    }
}

/// Gives out times of use: microseconds since the Unix epoch, each larger than the
/// one before, so that two uses have an order even within a microsecond.
#[derive(Debug, Default)]
pub(super) struct UseClock(AtomicU64);

impl UseClock {
    pub(super) fn tick(&self) -> u64 {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_micros() as u64);
        let next = |last: u64| Some(wall.max(last + 1));
        match self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(last) | Err(last) => wall.max(last + 1),
        }
    }
}
