//! What every part of the parser needs: diagnostics, fields of mappings, texts
//! whose expressions are checked.

use crate::Diagnostic;
use crate::expression::parser::{self, Scope};
use crate::expression::template::{self, ConditionText, Piece};
use crate::expression::{ExpressionError, Value};
use crate::job::Text;

use super::allowed::Allowed;
use super::names::{did_you_mean, list};
use super::reference::{Reference, collect_references};
use super::yaml::{Kind, Node, Place};

/// Most errors that are told. What GitHub tells.
const ERRORS_MAX: usize = 10;

/// Most warnings that are told.
const WARNINGS_MAX: usize = 100;

/// Most errors that are kept to choose the first ones from; the others are counted.
/// For no more is the name looked for that was meant, which would cost more than the
/// file that asks for a hundred thousand of them.
const ERRORS_KEPT_MAX: usize = 50;

/// Most expressions of a file whose place inside their text is worked out, for the
/// same reason. The others are said to be where their text begins.
const PRECISE_PLACES_MAX: usize = 500;

/// Longest message, characters. What GitHub tells.
const MESSAGE_MAX: usize = 500;

/// Collects what is wrong with a file while it is read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    file: &'a str,
    lines: Vec<&'a str>,
    pub(super) errors: Vec<Diagnostic>,
    pub(super) warnings: Vec<Diagnostic>,
    /// Of all expressions read so far.
    pub(super) references: Vec<Reference>,
    precise_places: usize,
    /// Errors beyond [`ERRORS_KEPT_MAX`].
    more_errors: usize,
}

/// The known keys of a mapping.
#[derive(Debug)]
pub(super) struct Fields<'n> {
    pub(super) place: Place,
    entries: Vec<(String, &'n Node, &'n Node)>,
}

impl<'n> Fields<'n> {
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(key, ..)| key == name).map(|(_, _, value)| *value)
    }

    /// Where the key stands.
    pub(super) fn key_place(&self, name: &str) -> Option<Place> {
        self.entries.iter().find(|(key, ..)| key == name).map(|(_, key, _)| key.place)
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        let (errors, warnings, references) = (Vec::new(), Vec::new(), Vec::new());
        let lines = text.lines().collect();
        Self { file, lines, errors, warnings, references, precise_places: 0, more_errors: 0 }
    }

    pub(super) fn error(&mut self, place: Place, message: impl Into<String>) {
        self.error_with(place, message, "");
    }

    /// An empty hint is none.
    pub(super) fn error_with(
        &mut self,
        place: Place,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if self.errors.len() == ERRORS_KEPT_MAX {
            self.more_errors += 1;
            return;
        }
        let hint = Some(hint.into()).filter(|hint| !hint.is_empty());
        self.errors.push(diagnostic(self.file, place, message.into(), hint, false));
    }

    pub(super) fn warning(
        &mut self,
        place: Place,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if self.warnings.len() < WARNINGS_MAX {
            let hint = Some(hint.into());
            self.warnings.push(diagnostic(self.file, place, message.into(), hint, true));
        }
    }

    /// Which of `known` was probably meant by `name`.
    pub(super) fn did_you_mean<S: AsRef<str>>(&self, name: &str, known: &[S]) -> Option<String> {
        if self.errors.len() < ERRORS_KEPT_MAX { did_you_mean(name, known) } else { None }
    }

    /// The errors in the order of the file, the first ten of them, then the warnings.
    pub(super) fn into_errors(mut self) -> Vec<Diagnostic> {
        self.errors.sort_by_key(|error| (error.line, error.column));
        if self.errors.len() > ERRORS_MAX {
            let more = self.errors.len() - ERRORS_MAX + self.more_errors;
            self.errors.truncate(ERRORS_MAX);
            let message = format!("and {more} more errors");
            self.errors.push(diagnostic(self.file, Place::default(), message, None, false));
        }
        let mut errors = std::mem::take(&mut self.errors);
        errors.append(&mut self.into_warnings());
        errors
    }

    /// The warnings in the order of the file.
    pub(super) fn into_warnings(mut self) -> Vec<Diagnostic> {
        self.warnings.sort_by_key(|warning| (warning.line, warning.column));
        self.warnings
    }

    /// Says that a thing is known but not built.
    pub(super) fn unsupported(&mut self, place: Place, what: &str) {
        self.error(place, format!("{what} is not supported yet"));
    }

    /// The fields of a mapping. Keys that are not in `known` are errors, those in
    /// `later` are said to be not supported yet.
    pub(super) fn fields<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        known: &[&str],
        later: &[&str],
    ) -> Option<Fields<'n>> {
        let mut entries = Vec::new();
        for (key, value) in self.mapping(node, what)? {
            let name = key.text().unwrap_or_default();
            if known.contains(&name.as_str()) {
                entries.push((name, key, value));
            } else if later.contains(&name.as_str()) {
                self.unsupported(key.place, &format!("`{name}`"));
            } else if template::has_expression(&name) {
                self.expression_not_allowed(key.place);
            } else {
                let hint = self
                    .did_you_mean(&name, known)
                    .unwrap_or_else(|| format!("{what} knows {}", list(known.iter().copied())));
                self.error_with(key.place, format!("unknown key `{name}` in {what}"), hint);
            }
        }
        Some(Fields { place: node.place, entries })
    }

    pub(super) fn mapping<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [(Node, Node)]> {
        if let Kind::Mapping(entries) = &node.kind {
            return Some(entries);
        }
        self.wanted(node, what, "a mapping");
        None
    }

    pub(super) fn sequence<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Node]> {
        if let Kind::Sequence(items) = &node.kind {
            return Some(items);
        }
        self.wanted(node, what, "a sequence");
        None
    }

    /// A sequence's items, or the one scalar that stands in its place.
    pub(super) fn one_or_more<'n>(&mut self, node: &'n Node, what: &str) -> &'n [Node] {
        match &node.kind {
            Kind::Sequence(items) => items,
            Kind::Scalar { .. } if !node.is_null() => std::slice::from_ref(node),
            Kind::Scalar { .. } | Kind::Mapping(_) => {
                self.wanted(node, what, "a string or a sequence of strings");
                &[]
            }
        }
    }

    pub(super) fn wanted(&mut self, node: &Node, what: &str, wanted: &str) {
        let found = node.describe();
        self.error(node.place, format!("{what} is {found}, want {wanted}"));
    }

    pub(super) fn expression_not_allowed(&mut self, place: Place) {
        self.error_with(place, "an expression is not allowed here", "write the value itself");
    }

    /// A scalar without expressions.
    pub(super) fn literal(&mut self, node: &Node, what: &str) -> Option<String> {
        let Some(text) = node.text() else {
            self.wanted(node, what, "a string");
            return None;
        };
        if template::has_expression(&text) {
            self.expression_not_allowed(node.place);
            return None;
        }
        Some(text)
    }

    /// A scalar without expressions that says something.
    pub(super) fn name(&mut self, node: &Node, what: &str) -> Option<String> {
        let text = self.literal(node, what)?;
        if text.is_empty() {
            self.error(node.place, format!("{what} is empty"));
            return None;
        }
        Some(text)
    }

    /// `true` or `false`, without expressions.
    pub(super) fn literal_bool(&mut self, node: &Node, what: &str) -> Option<bool> {
        if let Kind::Scalar { value: Value::Bool(bool), .. } = node.kind {
            return Some(bool);
        }
        self.wanted(node, what, "`true` or `false`");
        None
    }

    /// Literal strings, one or more.
    pub(super) fn names(&mut self, node: &Node, what: &str) -> Vec<String> {
        let items = self.one_or_more(node, what);
        items.iter().filter_map(|item| self.name(item, what)).collect()
    }

    /// A scalar that may hold expressions.
    pub(super) fn text(&mut self, node: &Node, what: &str, allowed: Allowed) -> Option<Text> {
        let Some(value) = node.text() else {
            self.wanted(node, what, "a string");
            return None;
        };
        self.check_text(node, &value, allowed);
        let Place { line, column } = node.place;
        Some(Text { value, line, column })
    }

    /// Like [`Self::text`], and not empty.
    pub(super) fn full_text(&mut self, node: &Node, what: &str, allowed: Allowed) -> Option<Text> {
        let text = self.text(node, what, allowed)?;
        if text.value.is_empty() {
            self.error(node.place, format!("{what} is empty"));
            return None;
        }
        Some(text)
    }

    /// `true`, `false`, or one expression.
    pub(super) fn bool_text(&mut self, node: &Node, what: &str, allowed: Allowed) -> Option<Text> {
        self.typed_text(node, what, allowed, "`true`, `false` or an expression", |value| {
            matches!(value, Value::Bool(_))
        })
    }

    /// A number, or one expression.
    pub(super) fn number_text(
        &mut self,
        node: &Node,
        what: &str,
        allowed: Allowed,
    ) -> Option<Text> {
        let text = self.typed_text(node, what, allowed, "a number or an expression", |value| {
            matches!(value, Value::Number(_))
        })?;
        if matches!(&node.kind, Kind::Scalar { value: Value::Number(n), .. } if *n <= 0.0) {
            let message = format!("{what} is {}", text.value);
            self.warning(node.place, message, "a job or step with it cannot start");
        }
        Some(text)
    }

    fn typed_text(
        &mut self,
        node: &Node,
        what: &str,
        allowed: Allowed,
        wanted: &str,
        fits: fn(&Value) -> bool,
    ) -> Option<Text> {
        let text = self.text(node, what, allowed)?;
        let literal = match &node.kind {
            Kind::Scalar { value, .. } => value,
            Kind::Sequence(_) | Kind::Mapping(_) => return None,
        };
        let one_expression = matches!(
            template::pieces(&text.value).as_deref(),
            Ok([Piece::Expression { .. }]) | Err(_)
        );
        if !fits(literal) && !one_expression {
            self.wanted(node, what, wanted);
            return None;
        }
        Some(text)
    }

    /// An `if:`.
    pub(super) fn condition(&mut self, node: &Node, allowed: Allowed) -> Option<Text> {
        let Some(value) = node.text() else {
            self.wanted(node, "`if`", "an expression");
            return None;
        };
        match template::condition_text(&value) {
            Ok(ConditionText::Empty) => (),
            Ok(ConditionText::Expression { source, start }) => {
                self.check_expression(node, &value, source, start, allowed);
            }
            Ok(ConditionText::Mixed) => {
                self.check_text(node, &value, allowed);
                self.warning(
                    node.place,
                    "`if` mixes text with `${{ }}`: that is a string, and so always true",
                    "put the whole condition inside one `${{ }}`, or use none",
                );
            }
            Err(error) => self.expression_error(node, &value, &error, allowed),
        }
        let Place { line, column } = node.place;
        Some(Text { value, line, column })
    }

    fn check_text(&mut self, node: &Node, value: &str, allowed: Allowed) {
        match template::pieces(value) {
            Ok(pieces) => {
                for piece in pieces {
                    if let Piece::Expression { source, start } = piece {
                        self.check_expression(node, value, source, start, allowed);
                    }
                }
            }
            Err(error) => self.expression_error(node, value, &error, allowed),
        }
    }

    fn check_expression(
        &mut self,
        node: &Node,
        value: &str,
        source: &str,
        start: usize,
        allowed: Allowed,
    ) {
        let is_context =
            |name: &str| allowed.contexts.iter().any(|known| known.eq_ignore_ascii_case(name));
        let scope = Scope { is_context: &is_context, functions: allowed.functions };
        match parser::parse(source, &scope) {
            Ok(Some(tree)) => {
                let mut paths = Vec::new();
                collect_references(&tree, &mut paths);
                for (path, position) in paths {
                    let place = self.place_within(node, value, start + position);
                    self.references.push(Reference { path, place });
                }
            }
            Ok(None) => (),
            Err(error) => {
                let error = error.within(source, start);
                self.expression_error(node, value, &error, allowed);
            }
        }
    }

    fn expression_error(
        &mut self,
        node: &Node,
        value: &str,
        error: &ExpressionError,
        allowed: Allowed,
    ) {
        let place = self.place_within(node, value, error.offset);
        let said = |what: &str| error.message.starts_with(what);
        let hint = if said("Unrecognized named-value") {
            format!("here an expression may use {}", list(allowed.contexts.iter().copied()))
        } else if said("Unrecognized function") {
            format!("here an expression may call {}", list(allowed.functions.names()))
        } else if error.message.contains('"') {
            "strings in expressions stand in single quotes".to_owned()
        } else if said("Unexpected end of expression") {
            "something is to follow: a value, or the bracket that closes".to_owned()
        } else if said("the expression is not closed") || said("an expression was expected") {
            "an expression is written `${{ … }}`".to_owned()
        } else {
            "`stead expr 'EXPRESSION'` tries an expression on its own".to_owned()
        };
        self.error_with(place, format!("bad expression: {}", error.message), hint);
    }

    /// Where a character of a scalar stands in the file. The scalar's own place
    /// where that cannot be told: in folded and escaped text.
    fn place_within(&mut self, node: &Node, value: &str, offset: usize) -> Place {
        self.precise_places += 1;
        if self.precise_places > PRECISE_PLACES_MAX {
            return node.place;
        }
        let before: String = value.chars().take(offset).collect();
        let block = matches!(node.kind, Kind::Scalar { block: true, .. });
        let lines = before.matches('\n').count();
        let in_line = before.chars().rev().take_while(|&c| c != '\n').count();
        if block {
            let first = usize::try_from(node.place.line).unwrap_or(0);
            let source = value.lines().nth(lines).unwrap_or_default();
            // The scanner names the first line of the text, or the one with the `|`.
            for line in [first + lines, first + lines + 1] {
                let Some(text) = self.lines.get(line.wrapping_sub(1)) else { continue };
                if text.trim_start() == source.trim_start() && !source.trim().is_empty() {
                    let indent =
                        text.chars().count() - source.chars().count().min(text.chars().count());
                    return at(line, indent + in_line + 1);
                }
            }
            return node.place;
        }
        let line_text = usize::try_from(node.place.line)
            .ok()
            .and_then(|line| self.lines.get(line.wrapping_sub(1)))
            .copied()
            .unwrap_or_default();
        let start = usize::try_from(node.place.column).unwrap_or(1).saturating_sub(1);
        let rest: String = line_text.chars().skip(start).collect();
        let quote = usize::from(rest.starts_with(['"', '\'']));
        let written = rest.chars().skip(quote).collect::<String>();
        if written.starts_with(value.trim_end()) {
            let line = usize::try_from(node.place.line).unwrap_or(0);
            return at(line, start + quote + offset + 1);
        }
        node.place
    }
}

fn at(line: usize, column: usize) -> Place {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Place { line: number(line), column: number(column) }
}

pub(super) fn diagnostic(
    file: &str,
    place: Place,
    mut message: String,
    hint: Option<String>,
    warning: bool,
) -> Diagnostic {
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_MAX) {
        message.truncate(end);
        message.push('…');
    }
    let Place { line, column } = place;
    Diagnostic { file: file.to_owned(), line, column, message, hint, warning }
}
