//! Digests: what names a blob.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use crate::codec::{Decode, DecodeError, Encode, Reader};

/// The hash functions that the store is keyed by. Both are 32 bytes long, so
/// the function is never to be guessed from a digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DigestFunction {
    /// What the farm itself uses everywhere.
    #[default]
    Blake3,
    /// What REAPI clients use that know nothing else.
    Sha256,
}

impl DigestFunction {
    /// The name in REAPI resource names and in the store's folders.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }
}

/// Names a blob: its 32-byte hash and its size. The size is part of the name,
/// so that a reader can bound what it accepts before it reads a byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    /// BLAKE3 unless the context says another function.
    pub hash: [u8; 32],
    /// Bytes.
    pub size: u64,
}

/// Why a string is not a [`Digest`]. Always the sender's mistake: never worth a retry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    #[error("no `/` between hash and size")]
    NoSeparator,
    #[error("hash is not 64 hexadecimal digits")]
    Hash,
    #[error("size is not a number of bytes")]
    Size(#[source] ParseIntError),
    #[error("not the canonical spelling, which is `{0}`")]
    NotCanonical(Digest),
}

impl Digest {
    /// The hash in 64 lower-case hexadecimal digits.
    pub fn hash_hex(&self) -> String {
        use fmt::Write as _;
        let mut text = String::with_capacity(64);
        for byte in self.hash {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// Reads a hash in 64 lower-case hexadecimal digits.
    ///
    /// # Errors
    ///
    /// [`ParseDigestError::Hash`] for any other text.
    pub fn from_hex(hash: &str, size: u64) -> Result<Self, ParseDigestError> {
        let bytes = hash.as_bytes();
        if bytes.len() != 64 {
            return Err(ParseDigestError::Hash);
        }
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self { hash: out, size })
    }
}

fn nibble(digit: u8) -> Result<u8, ParseDigestError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(ParseDigestError::Hash),
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.hash_hex(), self.size)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let (hash, size) = text.split_once('/').ok_or(ParseDigestError::NoSeparator)?;
        let size = size.parse().map_err(ParseDigestError::Size)?;
        let digest = Self::from_hex(&hash.to_ascii_lowercase(), size)?;
        // `AB…/+7` names the same blob as `ab…/7`, and two spellings of one blob
        // would be two cache entries.
        if digest.to_string() != text {
            return Err(ParseDigestError::NotCanonical(digest));
        }
        Ok(digest)
    }
}

impl Encode for Digest {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hash);
        self.size.encode(out);
    }
}

impl Decode for Digest {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let hash = reader.array::<32>()?;
        Ok(Self { hash, size: u64::decode(reader)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_one_spelling() {
        let digest = Digest { hash: [0xab; 32], size: 7 };
        let text = digest.to_string();
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(
            text.to_uppercase().parse::<Digest>(),
            Err(ParseDigestError::NotCanonical(digest))
        );
        assert_eq!(
            text.replace("/7", "/+7").parse::<Digest>(),
            Err(ParseDigestError::NotCanonical(digest))
        );
        assert_eq!("ab".parse::<Digest>(), Err(ParseDigestError::NoSeparator));
        assert_eq!("ab/7".parse::<Digest>(), Err(ParseDigestError::Hash));
    }
}
