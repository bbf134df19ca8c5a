//! Answers on stdout.

use std::io::{ErrorKind, Write as _};

use anyhow::Context as _;

use crate::exit::Failure;

/// Writes an answer. A reader that went away, as `head` does, has read what it wanted.
///
/// # Errors
///
/// [`Failure::Farm`] where the answer cannot be written: the caller would take half of it
/// for all.
pub fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the answer to stdout").map_err(Failure::Farm)
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes a line, as [`print`] does.
///
/// # Errors
///
/// As [`print`].
pub fn line(text: impl std::fmt::Display) -> Result<(), Failure> {
    print(format_args!("{text}\n"))
}
