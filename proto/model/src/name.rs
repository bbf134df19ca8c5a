//! Names that clients choose. Parsed at the edge; inside, the type is the proof.

use std::fmt;
use std::str::FromStr;

use crate::codec::{Decode, DecodeError, Encode, Reader};
use crate::limits::NAME_BYTES_MAX;

/// Why a string is not a name. Always the sender's mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNameError {
    #[error("a {what} is empty")]
    Empty { what: &'static str },
    #[error("a {what} has {len} bytes, at most {NAME_BYTES_MAX} are allowed")]
    TooLong { what: &'static str, len: usize },
    #[error(
        "`{character}` stands in a {what}: letters, digits, `-`, `_`, `.`, `:`, `/` and `@` are allowed"
    )]
    Character { what: &'static str, character: char },
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseNameError;

            fn from_str(text: &str) -> Result<Self, ParseNameError> {
                check_name($what, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }
        }

        impl Decode for $name {
            fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                String::decode(reader)?.parse().map_err(|_| DecodeError::Invalid($what))
            }
        }
    )*};
}

names! {
    /// The unit of tenancy.
    ProjectName = "project name";
    /// Who asks, from the authenticated identity.
    Principal = "principal";
    /// Makes a client's mutation idempotent: the same id with the same body has
    /// one effect and one answer.
    RequestId = "request id";
}

fn check_name(what: &'static str, text: &str) -> Result<(), ParseNameError> {
    if text.is_empty() {
        return Err(ParseNameError::Empty { what });
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(ParseNameError::TooLong { what, len: text.len() });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:/@".contains(c);
    match text.chars().find(|&c| !allowed(c)) {
        None => Ok(()),
        Some(character) => Err(ParseNameError::Character { what, character }),
    }
}
