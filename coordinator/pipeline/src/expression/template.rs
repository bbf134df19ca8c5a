//! Text with `${{ }}` in it.

use super::error::{ErrorKind, ExpressionError};

/// A piece of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Text(&'a str),
    /// What stands between `${{` and `}}`; `start` is its offset in the text, in characters.
    Expression {
        source: &'a str,
        start: usize,
    },
}

/// Whether the text holds an expression.
pub(crate) fn has_expression(text: &str) -> bool {
    text.contains("${{")
}

/// Cuts a text at its expressions. Empty pieces of text are left out.
///
/// # Errors
///
/// An expression has no `}}`, or nothing in it.
pub(crate) fn pieces(text: &str) -> Result<Vec<Piece<'_>>, ExpressionError> {
    let mut pieces = Vec::new();
    let (mut rest, mut before) = (text, 0);
    while let Some(at) = rest.find("${{") {
        if at > 0 {
            pieces.push(Piece::Text(&rest[..at]));
        }
        let start = before + rest[..at].chars().count() + 3;
        let body = &rest[at + 3..];
        let Some(end) = end_of_expression(body) else {
            let message = "the expression is not closed: `${{` without `}}`";
            return Err(ExpressionError::new(ErrorKind::Lexing, start - 3, message));
        };
        let source = &body[..end];
        if source.trim().is_empty() {
            let message = "an expression was expected between `${{` and `}}`";
            return Err(ExpressionError::new(ErrorKind::Parsing, start - 3, message));
        }
        pieces.push(Piece::Expression { source, start });
        before = start + source.chars().count() + 2;
        rest = &body[end + 2..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

/// Where `}}` is that no string holds. A doubled quote closes and opens again,
/// which comes to the same.
fn end_of_expression(body: &str) -> Option<usize> {
    let mut in_string = false;
    for (at, byte) in body.bytes().enumerate() {
        match byte {
            b'\'' => in_string = !in_string,
            b'}' if !in_string && body[at..].starts_with("}}") => return Some(at),
            _ => (),
        }
    }
    None
}

/// What an `if:` says: the expression in it, where it starts, and whether it is
/// text mixed with expressions, which is always a string and so hardly ever meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConditionText<'a> {
    /// Nothing: `success()`.
    Empty,
    Expression {
        source: &'a str,
        start: usize,
    },
    Mixed,
}

/// Reads the text of an `if:`.
pub(crate) fn condition_text(text: &str) -> Result<ConditionText<'_>, ExpressionError> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Ok(ConditionText::Empty);
    }
    let leading = text.chars().take_while(|c| c.is_whitespace()).count();
    if !has_expression(trimmed) {
        return Ok(ConditionText::Expression { source: trimmed, start: leading });
    }
    match pieces(trimmed)?.as_slice() {
        [Piece::Expression { source, start }] => {
            Ok(ConditionText::Expression { source, start: start + leading })
        }
        _ => Ok(ConditionText::Mixed),
    }
}
