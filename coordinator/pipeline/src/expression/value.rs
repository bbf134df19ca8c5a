//! Values of the expression language.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A value. Cheap to clone; arrays and objects are equal only to themselves.
#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Bool(bool),
    Number(f64),
    String(Arc<str>),
    Array(Arc<Array>),
    Object(Arc<Object>),
}

/// An array.
#[derive(Clone, Debug, Default)]
pub struct Array {
    pub(crate) items: Vec<Value>,
    /// Came of `.*`: an index selects in every item instead of among them.
    pub(crate) filtered: bool,
}

impl Array {
    /// The items in order.
    pub fn items(&self) -> &[Value] {
        &self.items
    }
}

/// An object. Keeps the order of its keys; looks them up in any case unless it is case-sensitive.
#[derive(Clone, Debug, Default)]
pub struct Object {
    entries: Vec<(Arc<str>, Value)>,
    /// From the key as it is compared to its position.
    index: BTreeMap<String, usize>,
    case_sensitive: bool,
}

impl Object {
    /// An empty object.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty object whose keys differ by case: `env`.
    pub fn case_sensitive() -> Self {
        Self { case_sensitive: true, ..Self::default() }
    }

    /// Sets a key; one that is there keeps its place and its spelling.
    pub fn insert(&mut self, key: &str, value: Value) {
        let folded = self.fold(key);
        match self.index.get(&folded) {
            Some(&at) => self.entries[at].1 = value,
            None => {
                self.index.insert(folded, self.entries.len());
                self.entries.push((key.into(), value));
            }
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(&self.fold(key)).map(|&at| &self.entries[at].1)
    }

    /// Keys and values in order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn fold(&self, key: &str) -> String {
        if self.case_sensitive { key.to_owned() } else { fold_case(key) }
    }
}

/// Upper case, character by character, as .NET's ordinal comparison without case
/// does: characters whose upper case is longer stay as they are.
pub(crate) fn fold_case(text: &str) -> String {
    text.chars().map(fold_char).collect()
}

/// The upper case of a character where that is one character, and not ASCII for
/// what is not.
fn fold_char(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_uppercase();
    }
    // .NET keeps the dotless i and the long s apart from the Latin letters.
    if matches!(c, 'ı' | 'ſ') {
        return c;
    }
    let mut upper = c.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(one), None) => one,
        _ => c,
    }
}

impl Value {
    /// The value of this text.
    pub fn string(text: impl Into<Arc<str>>) -> Self {
        Self::String(text.into())
    }

    /// An array of these items.
    pub fn array(items: Vec<Self>) -> Self {
        Self::Array(Arc::new(Array { items, filtered: false }))
    }

    /// An object.
    pub fn object(object: Object) -> Self {
        Self::Object(Arc::new(object))
    }

    /// An object of strings.
    pub fn strings<K: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut object = Object::new();
        for (key, value) in pairs {
            object.insert(key.as_ref(), Self::string(value.as_ref()));
        }
        Self::object(object)
    }

    /// The kind's name in JSON: Null, Boolean, Number, String, Array, Object.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "Null",
            Self::Bool(_) => "Boolean",
            Self::Number(_) => "Number",
            Self::String(_) => "String",
            Self::Array(_) => "Array",
            Self::Object(_) => "Object",
        }
    }

    /// Reads a JSON value; keys of objects compare in any case.
    pub fn from_json(value: &serde_json::Value) -> Self {
        Self::read_json(value, false)
    }

    /// Reads a JSON value whose outermost object is case-sensitive, as `env` is.
    pub fn from_json_case_sensitive(value: &serde_json::Value) -> Self {
        Self::read_json(value, true)
    }

    fn read_json(value: &serde_json::Value, case_sensitive: bool) -> Self {
        match value {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(bool) => Self::Bool(*bool),
            serde_json::Value::Number(number) => Self::Number(number.as_f64().unwrap_or(f64::NAN)),
            serde_json::Value::String(string) => Self::string(string.as_str()),
            serde_json::Value::Array(items) => {
                Self::array(items.iter().map(Self::from_json).collect())
            }
            serde_json::Value::Object(members) => {
                let mut object =
                    if case_sensitive { Object::case_sensitive() } else { Object::new() };
                for (key, value) in members {
                    object.insert(key, Self::from_json(value));
                }
                Self::object(object)
            }
        }
    }

    /// The value as JSON. Whole numbers are written as integers; what JSON has no
    /// number for (`NaN`, `Infinity`) becomes its name.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(bool) => (*bool).into(),
            Self::Number(number) => number_to_json(*number),
            Self::String(string) => (&**string).into(),
            Self::Array(array) => array.items.iter().map(Self::to_json).collect(),
            Self::Object(object) => serde_json::Value::Object(
                object.entries().map(|(key, value)| (key.to_owned(), value.to_json())).collect(),
            ),
        }
    }

    /// The value as `toJSON` writes it: two spaces a level, numbers as text has them.
    pub fn to_pretty_json(&self) -> String {
        let mut out = String::new();
        self.write_pretty_json(&mut out, 0);
        out
    }

    fn write_pretty_json(&self, out: &mut String, level: usize) {
        let line = |out: &mut String, level: usize| {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", level));
        };
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(_) | Self::Number(_) => out.push_str(&self.to_text()),
            Self::String(string) => out.push_str(&quote(string)),
            Self::Array(array) if array.items.is_empty() => out.push_str("[]"),
            Self::Object(object) if object.is_empty() => out.push_str("{}"),
            Self::Array(array) => {
                for (at, item) in array.items.iter().enumerate() {
                    out.push(if at == 0 { '[' } else { ',' });
                    line(out, level + 1);
                    item.write_pretty_json(out, level + 1);
                }
                line(out, level);
                out.push(']');
            }
            Self::Object(object) => {
                for (at, (key, value)) in object.entries().enumerate() {
                    out.push(if at == 0 { '{' } else { ',' });
                    line(out, level + 1);
                    out.push_str(&quote(key));
                    out.push_str(": ");
                    value.write_pretty_json(out, level + 1);
                }
                line(out, level);
                out.push('}');
            }
        }
    }

    /// Neither null, false, 0, NaN nor the empty string.
    pub fn is_truthy(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(bool) => *bool,
            Self::Number(number) => *number != 0.0 && !number.is_nan(),
            Self::String(string) => !string.is_empty(),
            Self::Array(_) | Self::Object(_) => true,
        }
    }

    /// The value as text, as `${{ }}` puts it into a string.
    pub fn to_text(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Bool(bool) => bool.to_string(),
            Self::Number(number) => super::number::to_text(*number),
            Self::String(string) => string.to_string(),
            Self::Array(_) => "Array".to_owned(),
            Self::Object(_) => "Object".to_owned(),
        }
    }
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Largest whole number that a float holds exactly, and so one written as an integer.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

#[allow(clippy::cast_possible_truncation, reason = "whole and in range")]
fn number_to_json(number: f64) -> serde_json::Value {
    let negative_zero = number == 0.0 && number.is_sign_negative();
    if number.fract() == 0.0 && number.abs() <= WHOLE_MAX && !negative_zero {
        return (number as i64).into();
    }
    serde_json::Number::from_f64(number)
        .map_or_else(|| Value::Number(number).to_text().into(), serde_json::Value::Number)
}
