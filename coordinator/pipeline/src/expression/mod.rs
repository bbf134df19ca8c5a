//! The `${{ }}` language: values, contexts, evaluation. Used by the planner, by
//! the agent and by `stead expr`.

mod error;
mod evaluator;
pub(crate) mod function;
mod lexer;
mod number;
pub(crate) mod parser;
pub(crate) mod template;
mod value;

use evaluator::{Evaluator, Memory};
use function::Functions;
pub(crate) use lexer::is_word;
use parser::Scope;
use template::{ConditionText, Piece};

pub use error::{ErrorKind, ExpressionError};
pub(crate) use value::fold_case;
pub use value::{Array, Object, Value};

/// How what came before went, for `success()`, `failure()` and `cancelled()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    #[default]
    Success,
    Failure,
    Cancelled,
}

/// What the functions of an expression see of the world.
pub trait World {
    /// Of the job on an agent; of all needs, direct or not, in the planner.
    fn status(&self) -> Status;

    /// `hashFiles(patterns…)`: the digest in hexadecimal, empty when nothing matches.
    ///
    /// # Errors
    ///
    /// A sentence for the person who wrote the expression.
    fn hash_files(&self, patterns: &[String]) -> Result<String, String>;

    /// `cancelled()`.
    fn cancelled(&self) -> bool {
        self.status() == Status::Cancelled
    }

    /// `success(JOB…)`, which only the planner can answer for named jobs.
    fn success(&self, jobs: &[String]) -> bool {
        let _ = jobs;
        self.status() == Status::Success
    }

    /// `failure(JOB…)`.
    fn failure(&self, jobs: &[String]) -> bool {
        let _ = jobs;
        self.status() == Status::Failure
    }
}

/// The named contexts of an evaluation. A name that was never set is no name:
/// using it is an error, so set `Value::Null` or an empty object for what is empty.
#[derive(Clone, Debug, Default)]
pub struct Contexts {
    named: Vec<(String, Value)>,
}

impl Contexts {
    /// No contexts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a context, replacing one of the same name (in any case).
    pub fn set(&mut self, name: &str, value: Value) {
        match self.named.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value,
            None => self.named.push((name.to_owned(), value)),
        }
    }

    /// The context of this name, in any case.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let found = self.named.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    /// The names, as they were set.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(|(name, _)| name.as_str())
    }

    /// One context for each member of a JSON object. `env` becomes case-sensitive.
    pub fn from_json(object: &serde_json::Value) -> Self {
        let mut contexts = Self::new();
        for (name, value) in object.as_object().into_iter().flatten() {
            let value = if name.eq_ignore_ascii_case("env") {
                Value::from_json_case_sensitive(value)
            } else {
                Value::from_json(value)
            };
            contexts.set(name, value);
        }
        contexts
    }
}

/// Bytes that one lone expression may take. GitHub's own bound.
const EXPRESSION_BYTES_MAX: usize = 1 << 20;

/// Bytes that an expression in a pipeline may take, and bytes of the text it stands
/// in. Ten times GitHub's bound of an output, and its own bound of a whole template.
const TEMPLATE_BYTES_MAX: usize = 10 << 20;

/// Evaluates one expression, without `${{ }}` around it. An empty one is null.
///
/// # Errors
///
/// Names the kind (lexing, parsing, evaluation) and the position.
pub fn evaluate(
    expression: &str,
    contexts: &Contexts,
    world: &dyn World,
) -> Result<Value, ExpressionError> {
    evaluate_within(expression, contexts, world, EXPRESSION_BYTES_MAX)
}

fn evaluate_within(
    expression: &str,
    contexts: &Contexts,
    world: &dyn World,
    bytes_max: usize,
) -> Result<Value, ExpressionError> {
    match parse(expression, contexts)? {
        None => Ok(Value::Null),
        Some(tree) => evaluate_tree(expression, &tree, contexts, world, bytes_max),
    }
}

fn parse(expression: &str, contexts: &Contexts) -> Result<Option<parser::Expr>, ExpressionError> {
    let is_context = |name: &str| contexts.get(name).is_some();
    parser::parse(expression, &Scope { is_context: &is_context, functions: Functions::ALL })
}

fn evaluate_tree(
    expression: &str,
    tree: &parser::Expr,
    contexts: &Contexts,
    world: &dyn World,
    bytes_max: usize,
) -> Result<Value, ExpressionError> {
    let evaluator = Evaluator { contexts, world, memory: Memory::new(bytes_max) };
    evaluator.evaluate(tree).map_err(|error| error.within(expression, 0))
}

/// Evaluates a text with any number of `${{ }}`. Exactly one that is the whole text
/// keeps its type; all else is a string.
///
/// # Errors
///
/// As [`evaluate`].
pub fn interpolate(
    text: &str,
    contexts: &Contexts,
    world: &dyn World,
) -> Result<Value, ExpressionError> {
    let pieces = template::pieces(text)?;
    let value = |source: &str, start| {
        evaluate_within(source, contexts, world, TEMPLATE_BYTES_MAX)
            .map_err(|error| error.within(source, start))
    };
    if let [Piece::Expression { source, start }] = pieces.as_slice() {
        return value(source, *start);
    }
    let mut whole = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => whole.push_str(text),
            Piece::Expression { source, start } => {
                whole.push_str(&value(source, start)?.to_text());
            }
        }
        if whole.len() > TEMPLATE_BYTES_MAX {
            let message = format!("the text is longer than {TEMPLATE_BYTES_MAX} bytes");
            return Err(ExpressionError::evaluation(message));
        }
    }
    Ok(Value::string(whole))
}

fn mixed_asks_for_status(text: &str, contexts: &Contexts) -> Result<bool, ExpressionError> {
    for piece in template::pieces(text)? {
        if let Piece::Expression { source, start } = piece {
            let tree = parse(source, contexts).map_err(|error| error.within(source, start))?;
            if tree.is_some_and(|tree| tree.asks_for_status()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Evaluates an `if:`. `${{ }}` is optional; without a status function anywhere
/// in it, `success()` is asked first; empty means `success()`.
///
/// # Errors
///
/// As [`evaluate`].
pub fn condition(
    text: &str,
    contexts: &Contexts,
    world: &dyn World,
) -> Result<bool, ExpressionError> {
    let (source, start) = match template::condition_text(text)? {
        ConditionText::Empty => return Ok(world.success(&[])),
        ConditionText::Expression { source, start } => (source, start),
        ConditionText::Mixed => {
            let starts = mixed_asks_for_status(text, contexts)? || world.success(&[]);
            return Ok(starts && interpolate(text, contexts, world)?.is_truthy());
        }
    };
    let value = || {
        let Some(tree) = parse(source, contexts)? else {
            return Ok(world.success(&[]));
        };
        if !tree.asks_for_status() && !world.success(&[]) {
            return Ok(false);
        }
        let value = evaluate_tree(source, &tree, contexts, world, TEMPLATE_BYTES_MAX)?;
        Ok(value.is_truthy())
    };
    value().map_err(|error: ExpressionError| error.within(source, start))
}

#[cfg(test)]
mod tests;
