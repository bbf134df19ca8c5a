//! Hashing, for both digest functions.

use sha2::Digest as _;
use steading_model::{Digest, DigestFunction};

/// A running hash of one blob.
#[derive(Debug)]
pub struct Hasher {
    state: State,
    size: u64,
}

#[derive(Debug)]
enum State {
    // Boxed: the state is two kilobytes, and hashers live in structs that move.
    Blake3(Box<blake3::Hasher>),
    Sha256(sha2::Sha256),
}

impl Hasher {
    /// A hash of nothing yet.
    pub fn new(function: DigestFunction) -> Self {
        let state = match function {
            DigestFunction::Blake3 => State::Blake3(Box::default()),
            DigestFunction::Sha256 => State::Sha256(sha2::Sha256::new()),
        };
        Self { state, size: 0 }
    }

    /// Adds the blob's next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        match &mut self.state {
            State::Blake3(hasher) => {
                hasher.update(bytes);
            }
            State::Sha256(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        let hash = match self.state {
            State::Blake3(hasher) => *hasher.finalize().as_bytes(),
            State::Sha256(hasher) => hasher.finalize().into(),
        };
        Digest { hash, size: self.size }
    }
}

/// The digest of these bytes.
pub fn digest_of(function: DigestFunction, bytes: &[u8]) -> Digest {
    let hash = match function {
        DigestFunction::Blake3 => *blake3::hash(bytes).as_bytes(),
        DigestFunction::Sha256 => sha2::Sha256::digest(bytes).into(),
    };
    Digest { hash, size: bytes.len() as u64 }
}
