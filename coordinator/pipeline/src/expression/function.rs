//! The functions, and what each needs.

use std::ops::RangeInclusive;

use super::World;
use super::error::ExpressionError;
use super::evaluator::{Memory, loosely_equal};
use super::parser::ARGUMENTS_MAX;
use super::value::{Value, fold_case};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Case,
    Contains,
    EndsWith,
    Format,
    FromJson,
    Join,
    StartsWith,
    ToJson,
    HashFiles,
    Always,
    Cancelled,
    Failure,
    Success,
}

impl Function {
    pub(crate) const fn is_status(self) -> bool {
        matches!(self, Self::Always | Self::Cancelled | Self::Failure | Self::Success)
    }
}

/// Which functions an expression may use besides those that are always there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Functions {
    pub(crate) hash_files: bool,
    pub(crate) status: StatusFunctions,
}

/// Which status functions there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StatusFunctions {
    #[default]
    None,
    /// Of a step: no arguments.
    Step,
    /// Of a job: `success` and `failure` take job ids.
    Job,
}

impl Functions {
    /// All of them, for where the text was checked before.
    pub(crate) const ALL: Self = Self { hash_files: true, status: StatusFunctions::Job };

    /// How those that there are are written.
    pub(crate) fn names(self) -> impl Iterator<Item = &'static str> {
        const KNOWN: [&str; 13] = [
            "always",
            "cancelled",
            "case",
            "contains",
            "endsWith",
            "failure",
            "format",
            "fromJSON",
            "hashFiles",
            "join",
            "startsWith",
            "success",
            "toJSON",
        ];
        KNOWN.into_iter().filter(move |name| self.find(name).is_some())
    }

    /// The function of this name, in any case, and how many arguments it takes.
    pub(super) fn find(self, name: &str) -> Option<(Function, RangeInclusive<usize>)> {
        const ANY: usize = ARGUMENTS_MAX;
        let jobs = if self.status == StatusFunctions::Job { ANY } else { 0 };
        let (function, arity) = match name.to_ascii_lowercase().as_str() {
            "case" => (Function::Case, 3..=ANY),
            "contains" => (Function::Contains, 2..=2),
            "endswith" => (Function::EndsWith, 2..=2),
            "format" => (Function::Format, 1..=ANY),
            "fromjson" => (Function::FromJson, 1..=1),
            "join" => (Function::Join, 1..=2),
            "startswith" => (Function::StartsWith, 2..=2),
            "tojson" => (Function::ToJson, 1..=1),
            "hashfiles" => (Function::HashFiles, 1..=ANY),
            "always" => (Function::Always, 0..=0),
            "cancelled" => (Function::Cancelled, 0..=0),
            "failure" => (Function::Failure, 0..=jobs),
            "success" => (Function::Success, 0..=jobs),
            _ => return None,
        };
        let there = match function {
            Function::HashFiles => self.hash_files,
            _ if function.is_status() => self.status != StatusFunctions::None,
            _ => true,
        };
        there.then_some((function, arity))
    }
}

/// Calls a function other than `case`, which chooses among arguments before they are evaluated.
pub(super) fn call(
    function: Function,
    arguments: &[Value],
    world: &dyn World,
    memory: &Memory,
) -> Result<Value, ExpressionError> {
    let argument = |at: usize| arguments.get(at).unwrap_or(&Value::Null);
    let texts = || arguments.iter().map(Value::to_text).collect::<Vec<_>>();
    let value = match function {
        Function::Contains => Value::Bool(contains(argument(0), argument(1))),
        Function::StartsWith => {
            Value::Bool(in_any_case(argument(0), argument(1), |text, part| text.starts_with(part)))
        }
        Function::EndsWith => {
            Value::Bool(in_any_case(argument(0), argument(1), |text, part| text.ends_with(part)))
        }
        Function::Format => {
            let format = argument(0).to_text();
            Value::string(format_text(&format, arguments.get(1..).unwrap_or(&[]), memory)?)
        }
        Function::Join => Value::string(join(argument(0), arguments.get(1), memory)?),
        Function::ToJson => Value::string(argument(0).to_pretty_json()),
        Function::FromJson => from_json(&argument(0).to_text())?,
        Function::HashFiles => {
            Value::string(world.hash_files(&texts()).map_err(ExpressionError::evaluation)?)
        }
        Function::Always => Value::Bool(true),
        Function::Cancelled => Value::Bool(world.cancelled()),
        Function::Failure => Value::Bool(world.failure(&texts())),
        Function::Success => Value::Bool(world.success(&texts())),
        Function::Case => Value::Null,
    };
    Ok(value)
}

fn contains(search: &Value, item: &Value) -> bool {
    match search {
        Value::Array(array) => array.items().iter().any(|member| loosely_equal(item, member)),
        _ => in_any_case(search, item, |text, part| text.contains(part)),
    }
}

/// Whether `test` holds for both as text in one case; never for arrays and objects.
fn in_any_case(text: &Value, part: &Value, test: fn(&str, &str) -> bool) -> bool {
    let primitive = text.is_primitive() && part.is_primitive();
    primitive && test(&fold_case(&text.to_text()), &fold_case(&part.to_text()))
}

/// `{0}` stands for the first argument; `{{` and `}}` for one brace.
fn format_text(
    format: &str,
    arguments: &[Value],
    memory: &Memory,
) -> Result<String, ExpressionError> {
    let invalid = || {
        let message = format!("The following format string is invalid: {format}");
        ExpressionError::evaluation(message)
    };
    let mut text = String::new();
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            text.push_str(brace);
            rest = after;
            continue;
        }
        if brace == "}" {
            return Err(invalid());
        }
        let (index, after) = rest.split_once('}').ok_or_else(invalid)?;
        // A digit must come first; a `{` cannot stand between.
        if index.is_empty() || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let argument = index.parse().ok().and_then(|index: usize| arguments.get(index));
        let argument = argument.ok_or_else(|| {
            ExpressionError::evaluation(format!(
                "The following format string references more arguments than were supplied: {format}"
            ))
        })?;
        text.push_str(&argument.to_text());
        memory.check_text(&text)?;
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

/// Items of an array as text, with a separator (`,` unless given) between them.
fn join(
    items: &Value,
    separator: Option<&Value>,
    memory: &Memory,
) -> Result<String, ExpressionError> {
    let Value::Array(array) = items else {
        return Ok(if items.is_primitive() { items.to_text() } else { String::new() });
    };
    let separator = match separator {
        Some(separator) if separator.is_primitive() => separator.to_text(),
        _ => ",".to_owned(),
    };
    let mut text = String::new();
    for (at, item) in array.items().iter().enumerate() {
        if at > 0 {
            text.push_str(&separator);
        }
        text.push_str(&item.to_text());
        memory.check_text(&text)?;
    }
    Ok(text)
}

fn from_json(text: &str) -> Result<Value, ExpressionError> {
    let parsed = serde_json::from_str(text).map_err(|error| {
        let message = if text.trim().is_empty() {
            "fromJSON: the text is empty, want JSON".to_owned()
        } else {
            format!("fromJSON: {error}")
        };
        ExpressionError::evaluation(message)
    })?;
    Ok(Value::from_json(&parsed))
}
