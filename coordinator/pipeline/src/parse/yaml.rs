//! YAML into a tree with positions. Bounded in size, depth and what aliases unfold to.

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};

use crate::expression::{Value, fold_case};

/// Deepest nesting of collections. What GitHub accepts.
const DEPTH_MAX: usize = 50;

/// Most nodes, those that aliases repeat counted as often as they are repeated.
/// No file of [`steading_model::limits::PIPELINE_BYTES_MAX`] that people write has half as many.
const NODES_MAX: usize = 300_000;

/// Most bytes of text, counted like [`NODES_MAX`]. What GitHub accepts.
const TEXT_BYTES_MAX: usize = 10 << 20;

/// A place in a file; line and column count from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// A value and where it begins.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) place: Place,
    /// Nodes below and this one.
    nodes: usize,
    /// Bytes of text in them.
    bytes: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Scalar {
        /// Resolved by YAML 1.2's core schema: never an array or object.
        value: Value,
        /// Written as a literal block (`|`): its lines are lines of the file.
        block: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<(Node, Node)>),
}

/// Why a text is no tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct YamlError {
    pub(super) place: Place,
    pub(super) message: String,
    pub(super) hint: Option<&'static str>,
}

impl Node {
    /// The text of a scalar, numbers and booleans as GitHub writes them.
    pub(super) fn text(&self) -> Option<String> {
        match &self.kind {
            Kind::Scalar { value, .. } => Some(value.to_text()),
            Kind::Sequence(_) | Kind::Mapping(_) => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Scalar { value: Value::Null, .. })
    }

    /// What it is, for messages.
    pub(super) fn describe(&self) -> &'static str {
        match &self.kind {
            Kind::Scalar { value: Value::Null, .. } => "nothing",
            Kind::Scalar { value: Value::Bool(_), .. } => "a boolean",
            Kind::Scalar { value: Value::Number(_), .. } => "a number",
            Kind::Scalar { .. } => "a string",
            Kind::Sequence(_) => "a sequence",
            Kind::Mapping(_) => "a mapping",
        }
    }
}

/// Reads one document; `None` where there is nothing but comments.
///
/// # Errors
///
/// The first thing that is wrong, and where.
pub(super) fn read(text: &str) -> Result<Option<Node>, YamlError> {
    let mut builder = Builder::default();
    // The scanner ends the last line of a block even where the file does not.
    let open_end = if text.ends_with('\n') { usize::MAX } else { text.chars().count() };
    for event in Parser::new_from_str(text) {
        let (mut event, span) = event.map_err(|error| YamlError {
            place: place(error.marker()),
            message: format!("this is not YAML: {}", error.info()),
            hint: Some(
                "look for wrong indentation and for an open quote or bracket, here and just before",
            ),
        })?;
        if let Event::Scalar(text, ScalarStyle::Literal | ScalarStyle::Folded, ..) = &mut event
            && span.end.index() >= open_end
            && text.ends_with('\n')
        {
            text.to_mut().pop();
        }
        builder.event(event, span)?;
    }
    Ok(builder.root)
}

fn place(marker: &Marker) -> Place {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Place { line: number(marker.line()), column: number(marker.col()).saturating_add(1) }
}

fn fail(place: Place, message: impl Into<String>) -> YamlError {
    YamlError { place, message: message.into(), hint: None }
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    root: Option<Node>,
    documents: usize,
    nodes: usize,
    bytes: usize,
}

/// A collection whose end has not come.
struct Open {
    place: Place,
    anchor: usize,
    contents: Contents,
}

enum Contents {
    Sequence(Vec<Node>),
    Mapping { entries: Vec<(Node, Node)>, key: Option<Node>, keys: BTreeSet<String> },
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), YamlError> {
        let place = place(&span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(fail(place, "a second document begins here, only one is allowed"));
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = resolve(&text, style, tag.as_deref(), place)?;
                let block = style == ScalarStyle::Literal;
                let bytes = text.len();
                self.put(
                    Node { kind: Kind::Scalar { value, block }, place, nodes: 1, bytes },
                    anchor,
                )
            }
            Event::SequenceStart(anchor, tag) => {
                check_tag(tag.as_deref(), "seq", place)?;
                self.open(place, anchor, Contents::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                check_tag(tag.as_deref(), "map", place)?;
                let (entries, keys) = (Vec::new(), BTreeSet::new());
                self.open(place, anchor, Contents::Mapping { entries, key: None, keys })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let mut node = node.ok_or_else(|| YamlError {
                    place,
                    message: "the alias stands inside what it names".to_owned(),
                    hint: Some("an alias can only repeat what ends before it"),
                })?;
                node.place = place;
                self.put(node, 0)
            }
        }
    }

    fn open(&mut self, place: Place, anchor: usize, contents: Contents) -> Result<(), YamlError> {
        if self.open.len() == DEPTH_MAX {
            let message = format!("nested deeper than {DEPTH_MAX} levels");
            return Err(fail(place, message));
        }
        self.open.push(Open { place, anchor, contents });
        Ok(())
    }

    fn close(&mut self) -> Result<(), YamlError> {
        let Some(Open { place, anchor, contents }) = self.open.pop() else {
            return Ok(());
        };
        let (kind, nodes, bytes) = match contents {
            Contents::Sequence(items) => {
                let (nodes, bytes) = sum(items.iter());
                (Kind::Sequence(items), nodes, bytes)
            }
            Contents::Mapping { entries, .. } => {
                let (nodes, bytes) = sum(entries.iter().flat_map(|(key, value)| [key, value]));
                (Kind::Mapping(entries), nodes, bytes)
            }
        };
        // What is inside was counted when it was put there.
        self.nodes -= nodes.min(self.nodes);
        self.bytes -= bytes.min(self.bytes);
        self.put(Node { kind, place, nodes: nodes + 1, bytes }, anchor)
    }

    /// Puts a finished node where it belongs.
    fn put(&mut self, node: Node, anchor: usize) -> Result<(), YamlError> {
        let place = node.place;
        self.nodes += node.nodes;
        self.bytes += node.bytes;
        if self.nodes > NODES_MAX || self.bytes > TEXT_BYTES_MAX {
            return Err(YamlError {
                place,
                message: format!(
                    "too large: more than {NODES_MAX} values or {TEXT_BYTES_MAX} bytes of text"
                ),
                hint: Some("aliases count as often as they repeat a value"),
            });
        }
        if anchor > 0 {
            // An anchor keeps a copy, and copies of copies are how small files grow large.
            self.nodes += node.nodes;
            self.bytes += node.bytes;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.contents) {
            None => self.root = Some(node),
            Some(Contents::Sequence(items)) => items.push(node),
            Some(Contents::Mapping { entries, key, keys }) => match key.take() {
                Some(name) => entries.push((name, node)),
                None => {
                    check_key(&node, keys)?;
                    *key = Some(node);
                }
            },
        }
        Ok(())
    }
}

fn sum<'a>(nodes: impl Iterator<Item = &'a Node>) -> (usize, usize) {
    nodes.fold((0, 0), |(count, bytes), node| (count + node.nodes, bytes + node.bytes))
}

/// Keys are scalars and differ in more than case.
fn check_key(key: &Node, keys: &mut BTreeSet<String>) -> Result<(), YamlError> {
    let Some(text) = key.text() else {
        return Err(fail(key.place, format!("{} is no key, want a string", key.describe())));
    };
    if !keys.insert(fold_case(&text)) {
        return Err(YamlError {
            place: key.place,
            message: format!("`{text}` is already defined in this mapping"),
            hint: Some("a key may stand once, in whatever case"),
        });
    }
    Ok(())
}

/// `tag:yaml.org,2002:` and what follows it.
fn core_tag(tag: &Tag) -> Option<&str> {
    const CORE: &str = "tag:yaml.org,2002:";
    if tag.handle == CORE {
        return Some(&tag.suffix);
    }
    // A verbatim tag has no handle.
    tag.suffix.strip_prefix(CORE).filter(|_| tag.handle.is_empty())
}

fn check_tag(tag: Option<&Tag>, wanted: &str, place: Place) -> Result<(), YamlError> {
    match tag {
        Some(tag) if core_tag(tag) != Some(wanted) => Err(unknown_tag(tag, place)),
        _ => Ok(()),
    }
}

fn unknown_tag(tag: &Tag, place: Place) -> YamlError {
    let message = format!("the tag `{}{}` is not supported", tag.handle, tag.suffix);
    YamlError { place, message, hint: Some("leave it away, or quote the value") }
}

/// The value of a scalar by the core schema of YAML 1.2, or by its tag.
fn resolve(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    place: Place,
) -> Result<Value, YamlError> {
    let Some(tag) = tag else {
        return Ok(if style == ScalarStyle::Plain {
            core_value(text)
        } else {
            Value::string(text)
        });
    };
    let value = core_value(text);
    let name = core_tag(tag);
    let fits = match (name, &value) {
        (Some("str"), _) => return Ok(Value::string(text)),
        // `!` alone: a string.
        (None, _) if tag.handle.is_empty() && tag.suffix == "!" => return Ok(Value::string(text)),
        (Some("null"), Value::Null) | (Some("bool"), Value::Bool(_)) => true,
        (Some("float"), Value::Number(_)) => true,
        (Some("int"), Value::Number(number)) => number.fract() == 0.0,
        (Some("null" | "bool" | "float" | "int"), _) => false,
        _ => return Err(unknown_tag(tag, place)),
    };
    if fits {
        return Ok(value);
    }
    let name = name.unwrap_or_default();
    Err(fail(place, format!("`{text}` is not of the type `!!{name}`")))
}

fn core_value(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" => Value::Number(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Value::Number(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Value::Number(f64::NEG_INFINITY),
        _ => core_number(text).map_or_else(|| Value::string(text), Value::Number),
    }
}

/// Decimal, hexadecimal, octal or with a fraction, as the core schema writes them:
/// neither space around it nor the names of what is no number.
fn core_number(text: &str) -> Option<f64> {
    let begins = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !begins.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let number = Value::string(text).to_number();
    (!number.is_nan() && !text.contains(char::is_whitespace)).then_some(number)
}
