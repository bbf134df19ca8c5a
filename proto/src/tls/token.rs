//! Join tokens, as people carry them.

use std::fmt;
use std::str::FromStr;

use super::certificate::SpkiHash;

/// Longest part of a token, bytes.
const PART_BYTES_MAX: usize = 64;

/// A text is no join token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not have the form `ID.SECRET.PIN` that `stead token create` prints")]
pub struct ParseTokenError;

/// `ID.SECRET.PIN`: which token, the proof of having it, and the hash of the public key
/// of a CA above every coordinator, by which the joiner knows the farm.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub id: String,
    pub secret: String,
    pub pin: SpkiHash,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.secret, self.pin)
    }
}

/// Without the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let mut parts = text.trim().split('.');
        let (Some(id), Some(secret), Some(pin), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseTokenError);
        };
        let is_word = |part: &str| {
            (1..=PART_BYTES_MAX).contains(&part.len())
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        if !is_word(id) || !is_word(secret) {
            return Err(ParseTokenError);
        }
        let pin = pin.parse().map_err(|_| ParseTokenError)?;
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), pin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_printed_and_its_secret_is_never_logged() {
        let text = format!("7f3a.c0ffee.{}", "ab".repeat(32));
        let token: JoinToken = text.parse().unwrap();
        assert_eq!(token.to_string(), text);
        assert!(!format!("{token:?}").contains("c0ffee"));
        for broken in ["", "a.b", "a.b.c", &format!("{text}.x"), &text[..text.len() - 1]] {
            assert_eq!(broken.parse::<JoinToken>(), Err(ParseTokenError), "{broken}");
        }
    }
}
