//! Rows by key, in persistent maps: a clone shares everything, and what is
//! written to one of two clones is copied on the way.
//!
//! Every write goes through [`Table`], which remembers what stood there before
//! the proposal. That journal is the proposal's write-set: it is undone on a
//! rejection, and encoded for the hash chain and the image on success.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use steading_model::codec::{Decode, DecodeError, Encode, Reader};
use steading_model::{AgentId, Digest, JobId, Principal, ProjectName, RequestId, RunId};

/// One write: the encoded key, and the encoded row or its deletion.
pub type Write = (Vec<u8>, Option<Vec<u8>>);

/// A key of a table. Its bytes are fixed-length where that is possible and
/// big-endian, so that the image keeps ids in order.
pub(crate) trait Key: Ord + Clone {
    fn encode_key(&self, out: &mut Vec<u8>);
    fn decode_key(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// A row of a table.
pub(crate) trait Row: Encode + Decode + Clone {
    type Key: Key;

    /// First byte of every key of the table in the image. Never reused.
    const TABLE: u8;
}

/// The encoded key of a row in the image.
pub(crate) fn image_key<R: Row>(key: &R::Key) -> Vec<u8> {
    let mut bytes = vec![R::TABLE];
    key.encode_key(&mut bytes);
    bytes
}

/// Rows by key, and what they were before the current proposal.
#[derive(Debug)]
pub(crate) struct Table<R: Row> {
    rows: OrdMap<R::Key, Arc<R>>,
    journal: BTreeMap<R::Key, Option<Arc<R>>>,
}

impl<R: Row> Default for Table<R> {
    fn default() -> Self {
        Self { rows: OrdMap::default(), journal: BTreeMap::default() }
    }
}

impl<R: Row> Clone for Table<R> {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone(), journal: self.journal.clone() }
    }
}

impl<R: Row + PartialEq> PartialEq for Table<R> {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows
    }
}

impl<R: Row> Table<R> {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn get(&self, key: &R::Key) -> Option<&Arc<R>> {
        self.rows.get(key)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&R::Key, &Arc<R>)> {
        self.rows.iter()
    }

    pub(crate) fn range(
        &self,
        range: impl std::ops::RangeBounds<R::Key>,
    ) -> impl DoubleEndedIterator<Item = (&R::Key, &Arc<R>)> {
        self.rows.range(range)
    }

    /// Writes a row (or none), and returns what stood there.
    pub(crate) fn set(&mut self, key: &R::Key, row: Option<Arc<R>>) -> Option<Arc<R>> {
        let old = self.restore(key, row);
        if !self.journal.contains_key(key) {
            self.journal.insert(key.clone(), old.clone());
        }
        old
    }

    /// Like [`Table::set`], without joining the write-set: for undoing and loading.
    pub(crate) fn restore(&mut self, key: &R::Key, row: Option<Arc<R>>) -> Option<Arc<R>> {
        match row {
            Some(row) => self.rows.insert(key.clone(), row),
            None => self.rows.remove(key),
        }
    }

    /// The row as it was before the current proposal.
    pub(crate) fn before(&self, key: &R::Key) -> Option<&Arc<R>> {
        match self.journal.get(key) {
            Some(before) => before.as_ref(),
            None => self.rows.get(key),
        }
    }

    /// Keys that the current proposal wrote, in order.
    pub(crate) fn written(&self) -> impl Iterator<Item = &R::Key> {
        self.journal.keys()
    }

    /// Ends the write-set: what each written key was before.
    pub(crate) fn take_journal(&mut self) -> BTreeMap<R::Key, Option<Arc<R>>> {
        std::mem::take(&mut self.journal)
    }

    /// Ends the write-set and appends it, encoded.
    pub(crate) fn commit(&mut self, writes: &mut Vec<Write>) {
        for key in std::mem::take(&mut self.journal).into_keys() {
            writes.push((image_key::<R>(&key), self.rows.get(&key).map(|row| row.to_bytes())));
        }
    }

    /// Every row, encoded.
    pub(crate) fn encoded(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        self.rows.iter().map(|(key, row)| (image_key::<R>(key), row.to_bytes()))
    }

    /// Takes a row from the image. `key` is what follows the table's byte.
    pub(crate) fn load(&mut self, key: &[u8], row: &[u8]) -> Result<(), DecodeError> {
        let mut reader = Reader::new(key);
        let key = R::Key::decode_key(&mut reader)?;
        if !reader.is_empty() {
            return Err(DecodeError::Invalid("key of a row"));
        }
        self.rows.insert(key, Arc::new(R::from_bytes(row)?));
        Ok(())
    }
}

impl Key for u64 {
    fn encode_key(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }

    fn decode_key(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.array().map(Self::from_be_bytes)
    }
}

macro_rules! id_keys {
    ($($id:ident),*) => {$(
        impl Key for $id {
            fn encode_key(&self, out: &mut Vec<u8>) {
                self.counter().encode_key(out);
            }

            fn decode_key(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                u64::decode_key(reader).map(Self::from_counter)
            }
        }
    )*};
}

id_keys!(RunId, JobId, AgentId);

macro_rules! encoded_keys {
    ($($type:ty),*) => {$(
        impl Key for $type {
            fn encode_key(&self, out: &mut Vec<u8>) {
                self.encode(out);
            }

            fn decode_key(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Self::decode(reader)
            }
        }
    )*};
}

encoded_keys!(String, Digest, ProjectName, Principal, RequestId);

impl<A: Key, B: Key> Key for (A, B) {
    fn encode_key(&self, out: &mut Vec<u8>) {
        self.0.encode_key(out);
        self.1.encode_key(out);
    }

    fn decode_key(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((A::decode_key(reader)?, B::decode_key(reader)?))
    }
}

impl<A: Key, B: Key, C: Key> Key for (A, B, C) {
    fn encode_key(&self, out: &mut Vec<u8>) {
        self.0.encode_key(out);
        self.1.encode_key(out);
        self.2.encode_key(out);
    }

    fn decode_key(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((A::decode_key(reader)?, B::decode_key(reader)?, C::decode_key(reader)?))
    }
}
