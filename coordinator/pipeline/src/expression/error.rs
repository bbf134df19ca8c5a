//! Why an expression has no value.

use std::fmt;

/// Which part of the work failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    Lexing,
    Parsing,
    Evaluation,
}

impl ErrorKind {
    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lexing => "lexing",
            Self::Parsing => "parsing",
            Self::Evaluation => "evaluation",
        }
    }
}

/// Why an expression has no value. Always the author's mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpressionError {
    pub kind: ErrorKind,
    /// Where in the text that was given, in characters from 0. The start of the
    /// expression for what only its evaluation shows.
    pub offset: usize,
    /// What is wrong, without saying where.
    pub message: String,
    /// The expression, without `${{ }}`.
    pub expression: String,
    /// [`Self::offset`], but from the start of [`Self::expression`].
    pub position: usize,
}

impl ExpressionError {
    pub(crate) fn new(kind: ErrorKind, position: usize, message: impl Into<String>) -> Self {
        let (message, expression) = (message.into(), String::new());
        Self { kind, offset: position, message, expression, position }
    }

    pub(crate) fn evaluation(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Evaluation, 0, message)
    }

    /// Says in which expression it is, and where that begins in the text.
    pub(crate) fn within(mut self, expression: &str, start: usize) -> Self {
        expression.clone_into(&mut self.expression);
        self.offset = self.position + start;
        self
    }
}

impl fmt::Display for ExpressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.kind {
            ErrorKind::Evaluation => Ok(()),
            ErrorKind::Lexing | ErrorKind::Parsing => write!(
                f,
                ". Located at position {} within expression: {}",
                self.position + 1,
                self.expression
            ),
        }
    }
}

impl std::error::Error for ExpressionError {}
