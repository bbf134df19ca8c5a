//! `stead expr`: one expression, its kind and its value.

use serde_json::{Map, Value as Json};
use steading_pipeline::expression::{self, Contexts, Status, Value, World};

use crate::args;
use crate::exit::{Ended, Failure};
use crate::out;

/// Evaluates the expression and prints `{"kind","value"}`.
///
/// # Errors
///
/// [`Failure::Usage`] for contexts that are no JSON object, and for an expression
/// that is wrong or cannot be evaluated.
pub fn run(args: &args::Expr) -> Result<Ended, Failure> {
    let contexts = match &args.contexts {
        None => Map::new(),
        Some(path) => {
            let shown = path.display();
            let bytes = std::fs::read(path)
                .map_err(|error| Failure::usage(format!("cannot read `{shown}`: {error}")))?;
            match serde_json::from_slice(&bytes) {
                Ok(Json::Object(contexts)) => contexts,
                Ok(_) => return Err(Failure::usage(format!("`{shown}` is no JSON object"))),
                Err(error) => {
                    return Err(Failure::usage(format!("`{shown}` is no JSON: {error}")));
                }
            }
        }
    };
    let answer = evaluate(&args.expression, &contexts)?;
    out::line(answer)?;
    Ok(Ended::Success)
}

fn evaluate(text: &str, contexts: &Map<String, Json>) -> Result<String, Failure> {
    let mut known = Contexts::default();
    for (name, value) in contexts {
        known.set(name, Value::from_json(value));
    }
    let value = expression::evaluate(text, &known, &Here).map_err(Failure::usage)?;
    let kind = match &value {
        Value::Null => "Null",
        Value::Bool(_) => "Boolean",
        Value::Number(_) => "Number",
        Value::String(_) => "String",
        Value::Array(_) => "Array",
        Value::Object(_) => "Object",
    };
    Ok(serde_json::json!({ "kind": kind, "value": value.to_json() }).to_string())
}

/// A world in which nothing has failed, and which has no workspace.
#[derive(Debug)]
struct Here;

impl World for Here {
    fn status(&self) -> Status {
        Status::Success
    }

    fn hash_files(&self, _: &[String]) -> Result<String, String> {
        Err("`hashFiles` needs the workspace of a job".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_has_a_kind_and_a_value() {
        let contexts = serde_json::json!({ "a": { "b": [1, "x"] } });
        let table = [
            ("1 + 1", None),
            ("a.b[1]", Some(r#"{"kind":"String","value":"x"}"#)),
            ("a.b", Some(r#"{"kind":"Array","value":[1,"x"]}"#)),
            ("!a.c", Some(r#"{"kind":"Boolean","value":true}"#)),
            ("a.c", Some(r#"{"kind":"Null","value":null}"#)),
            ("1.5", Some(r#"{"kind":"Number","value":1.5}"#)),
        ];
        for (text, want) in table {
            let got = evaluate(text, contexts.as_object().unwrap());
            assert_eq!(got.ok().as_deref(), want, "{text}");
        }
    }
}
