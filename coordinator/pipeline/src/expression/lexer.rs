//! From characters to tokens.

use super::error::{ErrorKind, ExpressionError};
use super::number;

/// Longest expression, characters. What GitHub accepts.
pub(super) const LENGTH_MAX: usize = 21_000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Symbol {
    OpenGroup,
    CloseGroup,
    OpenIndex,
    CloseIndex,
    Comma,
    Dot,
    Star,
    Not,
    And,
    Or,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TokenKind {
    Symbol(Symbol),
    Null,
    Bool(bool),
    Number(f64),
    String(String),
    /// A context, a function or, after a dot, a property.
    Word,
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    /// As written.
    pub(super) text: String,
    /// Characters before it.
    pub(super) position: usize,
}

/// Cuts the expression into tokens. The whole of it is cut before any of it is
/// parsed, so that a symbol which is no token is always told first.
pub(super) fn lex(expression: &str) -> Result<Vec<Token>, ExpressionError> {
    let chars: Vec<char> = expression.chars().collect();
    if chars.len() > LENGTH_MAX {
        let message = format!("Exceeded max expression length {LENGTH_MAX}");
        return Err(ExpressionError::new(ErrorKind::Lexing, 0, message));
    }
    let mut lexer = Lexer { chars: &chars, at: 0, tokens: Vec::new() };
    while let Some(&c) = lexer.chars.get(lexer.at) {
        if c.is_whitespace() {
            lexer.at += 1;
        } else {
            lexer.token(c)?;
        }
    }
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn token(&mut self, c: char) -> Result<(), ExpressionError> {
        if let Some((symbol, length)) = self.symbol(c) {
            self.push(TokenKind::Symbol(symbol), self.at + length);
            return Ok(());
        }
        match c {
            '\'' => self.string(),
            '.' | '-' | '+' | '0'..='9' => self.number(),
            _ => self.word(),
        }
    }

    /// The symbol that begins here, and its length.
    fn symbol(&self, c: char) -> Option<(Symbol, usize)> {
        let next = self.chars.get(self.at + 1).copied();
        let found = match (c, next) {
            ('(', _) => (Symbol::OpenGroup, 1),
            (')', _) => (Symbol::CloseGroup, 1),
            ('[', _) => (Symbol::OpenIndex, 1),
            (']', _) => (Symbol::CloseIndex, 1),
            (',', _) => (Symbol::Comma, 1),
            ('*', _) => (Symbol::Star, 1),
            ('.', _) if self.can_be_followed_by_a_dot() => (Symbol::Dot, 1),
            ('!', Some('=')) => (Symbol::NotEqual, 2),
            ('!', _) => (Symbol::Not, 1),
            ('=', Some('=')) => (Symbol::Equal, 2),
            ('<', Some('=')) => (Symbol::LessOrEqual, 2),
            ('<', _) => (Symbol::Less, 1),
            ('>', Some('=')) => (Symbol::GreaterOrEqual, 2),
            ('>', _) => (Symbol::Greater, 1),
            ('&', Some('&')) => (Symbol::And, 2),
            ('|', Some('|')) => (Symbol::Or, 2),
            _ => return None,
        };
        Some(found)
    }

    /// Elsewhere a dot begins a number.
    fn can_be_followed_by_a_dot(&self) -> bool {
        match self.tokens.last().map(|token| &token.kind) {
            Some(TokenKind::Word) => true,
            Some(TokenKind::Symbol(symbol)) => {
                matches!(symbol, Symbol::CloseGroup | Symbol::CloseIndex | Symbol::Star)
            }
            _ => false,
        }
    }

    fn string(&mut self) -> Result<(), ExpressionError> {
        let mut value = String::new();
        let mut end = self.at + 1;
        loop {
            match (self.chars.get(end), self.chars.get(end + 1)) {
                (Some('\''), Some('\'')) => {
                    value.push('\'');
                    end += 2;
                }
                (Some('\''), _) => break,
                (Some(&c), _) => {
                    value.push(c);
                    end += 1;
                }
                (None, _) => return Err(self.unexpected(end)),
            }
        }
        self.push(TokenKind::String(value), end + 1);
        Ok(())
    }

    fn number(&mut self) -> Result<(), ExpressionError> {
        let end = self.end(|c| c == '.' || !is_boundary(c));
        let value = number::from_text(&self.text(end));
        if value.is_nan() {
            return Err(self.unexpected(end));
        }
        self.push(TokenKind::Number(value), end);
        Ok(())
    }

    fn word(&mut self) -> Result<(), ExpressionError> {
        let end = self.end(|c| !is_boundary(c));
        let text = self.text(end);
        if !is_word(&text) {
            return Err(self.unexpected(end));
        }
        let after_dot =
            self.tokens.last().is_some_and(|token| token.kind == TokenKind::Symbol(Symbol::Dot));
        let kind = match text.as_str() {
            _ if after_dot => TokenKind::Word,
            "null" => TokenKind::Null,
            "true" => TokenKind::Bool(true),
            "false" => TokenKind::Bool(false),
            "NaN" => TokenKind::Number(f64::NAN),
            "Infinity" => TokenKind::Number(f64::INFINITY),
            _ => TokenKind::Word,
        };
        self.push(kind, end);
        Ok(())
    }

    /// Where the token that begins here ends: it takes its first character, and
    /// those after it that belong to it.
    fn end(&self, belongs: impl Fn(char) -> bool) -> usize {
        let rest = &self.chars[self.at + 1..];
        self.at + 1 + rest.iter().position(|&c| !belongs(c)).unwrap_or(rest.len())
    }

    fn text(&self, end: usize) -> String {
        self.chars[self.at..end].iter().collect()
    }

    fn push(&mut self, kind: TokenKind, end: usize) {
        self.tokens.push(Token { kind, text: self.text(end), position: self.at });
        self.at = end;
    }

    fn unexpected(&self, end: usize) -> ExpressionError {
        let message = format!("Unexpected symbol: '{}'", self.text(end));
        ExpressionError::new(ErrorKind::Lexing, self.at, message)
    }
}

fn is_boundary(c: char) -> bool {
    "([)],.!><=&|".contains(c) || c.is_whitespace()
}

/// Whether the text can name a context, a function or a property.
pub(crate) fn is_word(text: &str) -> bool {
    let mut chars = text.chars();
    let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}
