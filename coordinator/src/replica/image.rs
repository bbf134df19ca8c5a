//! The image of the state on disk: what a start loads before it replays the log.
//! It can always be made again from a snapshot and the log, so it is believed only
//! after every row was checked, and set aside otherwise.
#![cfg_attr(
    not(any(test, feature = "testkit")),
    allow(unreachable_pub, reason = "reached from outside by tests only")
)]

use std::fmt::Debug;
use std::path::PathBuf;

use steading_core::State;
use steading_model::codec::{Decode, DecodeError, Encode, record};

use super::membership::Membership;
use super::wal::Position;

/// Largest row, bytes. Larger values would go to files of their own in sled, which it
/// never syncs.
pub(crate) const ROW_BYTES_MAX: usize = 256 << 10;

/// Key of the row that says what the others are.
const META_KEY: &[u8] = b"m";

/// What begins the key of a row of the state.
const ROW_PREFIX: u8 = b's';

/// Bytes of a row's own digest, in front of its value.
const DIGEST_BYTES: usize = 16;

/// A row: key and value; `None` removes it.
pub(crate) type Write = (Vec<u8>, Option<Vec<u8>>);

/// Why the image is of no use. Never a reason not to start.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("the store of the image failed: {0}")]
    Store(String),
    #[error("a row of the image is damaged")]
    RowDamaged,
    #[error("rows of the image are missing, or are too many")]
    RowsDiffer,
    #[error("the image has rows, but none that says what they are")]
    NoMeta,
    #[error("a row of the image has {0} bytes, at most {ROW_BYTES_MAX} are kept")]
    RowTooLarge(usize),
    #[error("the image cannot be decoded")]
    Decode(#[from] DecodeError),
    #[error("the rows of the image are no state")]
    State(#[from] steading_core::ImageError),
    #[error("the image holds another state than it says")]
    ChainDiffers,
}

/// Rows on a disk. The real one is [`super::image_sled::SledStore`].
pub trait ImageStore: Debug + Send {
    /// Shows every row, in the order of keys.
    ///
    /// # Errors
    ///
    /// [`ImageError`]. The same holds for all of this trait.
    fn scan(&self, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ImageError>;

    /// One row.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ImageError>;

    /// Writes all or nothing, and returns once it is durable.
    fn write(&mut self, batch: Vec<Write>) -> Result<(), ImageError>;

    /// Puts what is there out of the way, for people to look at, and begins empty.
    fn set_aside(&mut self) -> Result<(), ImageError>;
}

/// What the image is an image of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageMeta {
    pub applied: Position,
    pub membership: Membership,
    pub chain: [u8; 32],
    /// As in [`super::snapshot::Header`].
    pub hashed_by: u32,
}

/// The row behind [`META_KEY`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct MetaRow {
    index: u64,
    term: u64,
    membership: Membership,
    chain: [u8; 32],
    hashed_by: u32,
    /// Number of rows, and the sum of their digests, in two halves.
    rows: u64,
    sum_low: u64,
    sum_high: u64,
}

record! { MetaRow { index, term, membership, chain, rows, sum_low, sum_high, hashed_by } }

/// The image, with the digest over all of its rows.
#[derive(Debug)]
pub(crate) struct Image {
    store: Box<dyn ImageStore>,
    rows: u64,
    sum: u128,
}

impl Image {
    pub(crate) fn new(store: Box<dyn ImageStore>) -> Self {
        Self { store, rows: 0, sum: 0 }
    }

    /// Reads and checks everything; `None` for an empty image.
    ///
    /// # Errors
    ///
    /// [`ImageError`]; then the image should be set aside.
    pub(crate) fn load(&mut self) -> Result<Option<(ImageMeta, State)>, ImageError> {
        let mut meta = None;
        let mut rows = Vec::new();
        let mut sum = 0u128;
        let mut damaged = false;
        self.store.scan(&mut |key, value| match key.split_first() {
            Some((&ROW_PREFIX, key)) => match value.split_first_chunk::<DIGEST_BYTES>() {
                Some((digest, value)) if *digest == row_digest(key, value) => {
                    sum = sum.wrapping_add(u128::from_le_bytes(*digest));
                    rows.push((key.to_vec(), value.to_vec()));
                }
                _ => damaged = true,
            },
            _ if key == META_KEY => meta = Some(value.to_vec()),
            _ => damaged = true,
        })?;
        if damaged {
            return Err(ImageError::RowDamaged);
        }
        let Some(meta) = meta else {
            return if rows.is_empty() { Ok(None) } else { Err(ImageError::NoMeta) };
        };
        let (digest, value) =
            meta.split_first_chunk::<DIGEST_BYTES>().ok_or(ImageError::RowDamaged)?;
        if *digest != row_digest(META_KEY, value) {
            return Err(ImageError::RowDamaged);
        }
        let row = MetaRow::from_bytes(value)?;
        if (row.rows, row.sum_low, row.sum_high) != (rows.len() as u64, low(sum), high(sum)) {
            return Err(ImageError::RowsDiffer);
        }
        (self.rows, self.sum) = (row.rows, sum);
        let state = State::from_rows(rows)?;
        if state.chain() != row.chain {
            return Err(ImageError::ChainDiffers);
        }
        let applied = Position { index: row.index, term: row.term };
        let MetaRow { membership, chain, hashed_by, .. } = row;
        Ok(Some((ImageMeta { applied, membership, chain, hashed_by }, state)))
    }

    /// Brings the image to `meta` by `writes`, all or nothing.
    ///
    /// # Errors
    ///
    /// [`ImageError`]; then the image should be set aside.
    pub(crate) fn write(&mut self, meta: &ImageMeta, writes: Vec<Write>) -> Result<(), ImageError> {
        let mut batch = Vec::with_capacity(writes.len() + 1);
        let (mut rows, mut sum) = (self.rows, self.sum);
        for (key, value) in writes {
            let stored_key = [&[ROW_PREFIX], key.as_slice()].concat();
            if let Some(old) = self.store.get(&stored_key)? {
                let digest = old.first_chunk().ok_or(ImageError::RowDamaged)?;
                sum = sum.wrapping_sub(u128::from_le_bytes(*digest));
                rows = rows.checked_sub(1).ok_or(ImageError::RowsDiffer)?;
            }
            let stored = value.map(|value| {
                let digest = row_digest(&key, &value);
                sum = sum.wrapping_add(u128::from_le_bytes(digest));
                rows += 1;
                [&digest[..], &value].concat()
            });
            if let Some(stored) = &stored
                && stored.len() > ROW_BYTES_MAX
            {
                return Err(ImageError::RowTooLarge(stored.len()));
            }
            batch.push((stored_key, stored));
        }
        let row = MetaRow {
            index: meta.applied.index,
            term: meta.applied.term,
            membership: meta.membership.clone(),
            chain: meta.chain,
            hashed_by: meta.hashed_by,
            rows,
            sum_low: low(sum),
            sum_high: high(sum),
        }
        .to_bytes();
        let digest = row_digest(META_KEY, &row);
        batch.push((META_KEY.to_vec(), Some([&digest[..], &row].concat())));
        self.store.write(batch)?;
        (self.rows, self.sum) = (rows, sum);
        Ok(())
    }

    /// Begins empty, whatever there is.
    ///
    /// # Errors
    ///
    /// [`ImageError::Store`].
    pub(crate) fn empty(&mut self) -> Result<(), ImageError> {
        let mut found = false;
        match self.store.scan(&mut |_, _| found = true) {
            Ok(()) if !found => {
                (self.rows, self.sum) = (0, 0);
                Ok(())
            }
            Ok(()) | Err(_) => self.set_aside(),
        }
    }

    /// Puts what is there out of the way and begins empty.
    ///
    /// # Errors
    ///
    /// [`ImageError::Store`].
    pub(crate) fn set_aside(&mut self) -> Result<(), ImageError> {
        (self.rows, self.sum) = (0, 0);
        self.store.set_aside()
    }
}

fn row_digest(key: &[u8], value: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    let mut digest = [0; DIGEST_BYTES];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..DIGEST_BYTES]);
    digest
}

const fn low(sum: u128) -> u64 {
    sum as u64
}

const fn high(sum: u128) -> u64 {
    (sum >> 64) as u64
}

/// A directory's name with a number that is free: `image.bad.3`.
pub(crate) fn free_name(dir: &std::path::Path) -> PathBuf {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut number = 1u32;
    loop {
        let path = dir.with_file_name(format!("{name}.bad.{number}"));
        if !path.exists() {
            return path;
        }
        number += 1;
    }
}
