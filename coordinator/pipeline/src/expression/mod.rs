//! The `${{ }}` language: values, contexts, evaluation. Used by the planner, by
//! the agent and by `stead expr`.

mod error;
mod value;

pub use error::{ErrorKind, ExpressionError};
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

/// Evaluates one expression, without `${{ }}` around it.
///
/// # Errors
///
/// Names the kind (lexing, parsing, evaluation) and the position.
pub fn evaluate(
    expression: &str,
    contexts: &Contexts,
    world: &dyn World,
) -> Result<Value, ExpressionError> {
    let _ = (contexts, world);
    Err(ExpressionError::new(ErrorKind::Parsing, 0, format!("not built yet: {expression}")))
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
    evaluate(text, contexts, world)
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
    evaluate(text, contexts, world).map(|value| value.is_truthy())
}
