//! The one binary encoding of log entries, rows and snapshots.
//!
//! Canonical: equal values have equal bytes, so that replicas can compare
//! hashes. Additive: a record is prefixed by its length, a reader skips what a
//! later version appended, and a field that is missing takes its
//! [`Decode::missing`] value, or is an error where it has none. Bounded: a length is
//! checked against what is left before anything is allocated.
//!
//! Integers are LEB128 in the shortest form (a longer one is refused); strings
//! and lists are a length and their items; an enum is its number.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Why bytes are not the value they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the bytes end within a value")]
    Truncated,
    #[error("{0} bytes are left over")]
    Trailing(usize),
    #[error("an integer is not in its shortest form, or too large")]
    Integer,
    #[error("a string is not UTF-8")]
    Utf8,
    #[error("{name} has no variant {number}")]
    Variant { name: &'static str, number: u64 },
    #[error("not a valid {0}")]
    Invalid(&'static str),
    #[error("map keys are not in rising order")]
    Order,
}

/// Appends its canonical bytes.
pub trait Encode {
    fn encode(&self, out: &mut Vec<u8>);

    /// The canonical bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

/// Reads itself from canonical bytes. Never panics, whatever the bytes.
pub trait Decode: Sized {
    /// # Errors
    ///
    /// Any [`DecodeError`]; the reader's position is then meaningless.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// What a field of this type is in a record written before the field existed.
    fn missing() -> Option<Self> {
        None
    }

    /// Reads exactly one value.
    ///
    /// # Errors
    ///
    /// As [`Decode::decode`], and [`DecodeError::Trailing`] for bytes behind it.
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let value = Self::decode(&mut reader)?;
        match reader.rest.len() {
            0 => Ok(value),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

/// Bytes not yet read.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether all was read.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`].
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Truncated`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// A length that what is left can hold (every item has at least one byte).
    fn len(&mut self) -> Result<usize, DecodeError> {
        let len = u64::decode(self)?;
        match usize::try_from(len) {
            Ok(len) if len <= self.rest.len() => Ok(len),
            _ => Err(DecodeError::Truncated),
        }
    }
}

/// Starts a record: its body follows, behind its length. For [`record!`] and enums.
pub fn encode_record(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = Vec::new();
    body(&mut bytes);
    (bytes.len() as u64).encode(out);
    out.extend_from_slice(&bytes);
}

/// The body of a record. What a later version appended to it is skipped.
///
/// # Errors
///
/// [`DecodeError::Truncated`].
pub fn decode_record<'a>(reader: &mut Reader<'a>) -> Result<Reader<'a>, DecodeError> {
    let len = reader.len()?;
    reader.take(len).map(Reader::new)
}

/// The next field of a record, or what it is in a record older than the field.
///
/// # Errors
///
/// As [`Decode::decode`].
pub fn decode_field<T: Decode>(body: &mut Reader<'_>) -> Result<T, DecodeError> {
    if body.is_empty() {
        return T::missing().ok_or(DecodeError::Truncated);
    }
    T::decode(body)
}

impl Encode for u64 {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut left = *self;
        while left >= 0x80 {
            out.push((left & 0x7f) as u8 | 0x80);
            left >>= 7;
        }
        out.push(left as u8);
    }
}

impl Decode for u64 {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = reader.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Integer);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                // `0x80 0x00` is zero as well, and two spellings of one value would
                // be two hashes of one state.
                let shortest = byte != 0 || shift == 0;
                return if shortest { Ok(value) } else { Err(DecodeError::Integer) };
            }
        }
        Err(DecodeError::Integer)
    }

    fn missing() -> Option<Self> {
        Some(0)
    }
}

macro_rules! small_integers {
    ($($type:ty),*) => {$(
        impl Encode for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                u64::from(*self).encode(out);
            }
        }

        impl Decode for $type {
            fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                <$type>::try_from(u64::decode(reader)?).map_err(|_| DecodeError::Integer)
            }

            fn missing() -> Option<Self> {
                Some(0)
            }
        }
    )*};
}

small_integers!(u8, u16, u32);

/// Zigzag, so that small negative numbers are short.
impl Encode for i32 {
    fn encode(&self, out: &mut Vec<u8>) {
        u64::from(((self << 1) ^ (self >> 31)) as u32).encode(out);
    }
}

impl Decode for i32 {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let raw = u32::decode(reader)?;
        Ok((raw >> 1) as i32 ^ -((raw & 1) as i32))
    }

    fn missing() -> Option<Self> {
        Some(0)
    }
}

impl Encode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Decode for bool {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(DecodeError::Integer),
        }
    }

    fn missing() -> Option<Self> {
        Some(false)
    }
}

impl Encode for str {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        out.extend_from_slice(self.as_bytes());
    }
}

impl Encode for String {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_str().encode(out);
    }
}

impl Decode for String {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = reader.len()?;
        let bytes = reader.take(len)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::Utf8)
    }

    fn missing() -> Option<Self> {
        Some(Self::new())
    }
}

impl<T: Encode> Encode for [T] {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        for item in self {
            item.encode(out);
        }
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_slice().encode(out);
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = reader.len()?;
        let mut items = Self::new();
        for _ in 0..len {
            items.push(T::decode(reader)?);
        }
        Ok(items)
    }

    fn missing() -> Option<Self> {
        Some(Self::new())
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(if bool::decode(reader)? { Some(T::decode(reader)?) } else { None })
    }

    fn missing() -> Option<Self> {
        Some(None)
    }
}

impl<K: Encode, V: Encode> Encode for BTreeMap<K, V> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        for (key, value) in self {
            key.encode(out);
            value.encode(out);
        }
    }
}

impl<K: Decode + Ord, V: Decode> Decode for BTreeMap<K, V> {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = reader.len()?;
        let mut map = Self::new();
        for _ in 0..len {
            let key = K::decode(reader)?;
            if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(DecodeError::Order);
            }
            map.insert(key, V::decode(reader)?);
        }
        Ok(map)
    }

    fn missing() -> Option<Self> {
        Some(Self::new())
    }
}

impl<K: Encode> Encode for BTreeSet<K> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        for key in self {
            key.encode(out);
        }
    }
}

impl<K: Decode + Ord> Decode for BTreeSet<K> {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let len = reader.len()?;
        let mut set = Self::new();
        for _ in 0..len {
            let key = K::decode(reader)?;
            if set.last().is_some_and(|last| *last >= key) {
                return Err(DecodeError::Order);
            }
            set.insert(key);
        }
        Ok(set)
    }

    fn missing() -> Option<Self> {
        Some(Self::new())
    }
}

/// Sharing is not said: an `Arc` is its value.
impl<T: Encode> Encode for Arc<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_ref().encode(out);
    }
}

impl<T: Decode> Decode for Arc<T> {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        T::decode(reader).map(Self::new)
    }

    fn missing() -> Option<Self> {
        T::missing().map(Self::new)
    }
}

impl<A: Encode, B: Encode> Encode for (A, B) {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
        self.1.encode(out);
    }
}

impl<A: Decode, B: Decode> Decode for (A, B) {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok((A::decode(reader)?, B::decode(reader)?))
    }
}

impl<const N: usize> Encode for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}

impl<const N: usize> Decode for [u8; N] {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.array()
    }
}

/// Encodes a struct as a record: the named fields in this order, behind their
/// length. New fields go to the end and need a [`Decode::missing`] value.
#[macro_export]
macro_rules! __steading_record {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $crate::codec::encode_record(out, |_body| {
                    $($crate::codec::Encode::encode(&self.$field, _body);)*
                });
            }
        }

        impl $crate::codec::Decode for $name {
            fn decode(
                reader: &mut $crate::codec::Reader<'_>,
            ) -> Result<Self, $crate::codec::DecodeError> {
                let mut _body = $crate::codec::decode_record(reader)?;
                Ok(Self { $($field: $crate::codec::decode_field(&mut _body)?,)* })
            }
        }
    };
}

/// Encodes an enum by explicit numbers, which are never reused. Variants have
/// no fields, or named ones that follow as a record.
#[macro_export]
macro_rules! __steading_variants {
    ($name:ident { $($number:literal = $variant:ident $({ $($field:ident),* $(,)? })?),* $(,)? }) => {
        impl $crate::codec::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant $({ $($field),* })? => {
                        $crate::codec::Encode::encode(&($number as u64), out);
                        $($crate::codec::encode_record(out, |_body| {
                            $($crate::codec::Encode::encode($field, _body);)*
                        });)?
                    })*
                }
            }
        }

        impl $crate::codec::Decode for $name {
            fn decode(
                reader: &mut $crate::codec::Reader<'_>,
            ) -> Result<Self, $crate::codec::DecodeError> {
                match <u64 as $crate::codec::Decode>::decode(reader)? {
                    $($number => {
                        $(
                            let mut _body = $crate::codec::decode_record(reader)?;
                            $(let $field = $crate::codec::decode_field(&mut _body)?;)*
                        )?
                        Ok(Self::$variant $({ $($field),* })?)
                    })*
                    number => Err($crate::codec::DecodeError::Variant {
                        name: stringify!($name),
                        number,
                    }),
                }
            }
        }
    };
}

pub use crate::{__steading_record as record, __steading_variants as variants};

#[cfg(test)]
mod tests;
