//! The expression cases that others wrote, kind for kind and value for value.

use std::fs;
use std::path::PathBuf;

use serde_json::Value as Json;
use steading_pipeline::expression::{Contexts, ExpressionError, Status, Value, World, evaluate};

#[test]
fn every_case_of_the_expression_corpus_has_its_kind_and_value() {
    let Some(folder) = corpora() else {
        println!("skipped: STEADING_CORPORA is not set");
        return;
    };
    let (mut passed, mut failures) = (0, Vec::new());
    for (place, case) in cases(folder.join("expressions")) {
        match check(&case) {
            Ok(()) => passed += 1,
            Err(why) => failures.push(format!("{place}: {}: {why}", case["expr"])),
        }
    }
    println!("expression corpus: {passed} of {} cases pass", passed + failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(passed > 0, "no case was found");
}

fn check(case: &Json) -> Result<(), String> {
    let expression = case["expr"].as_str().expect("every case has an expression");
    let contexts = Contexts::from_json(&case["contexts"]);
    let outcome = evaluate(expression, &contexts, &Quiet);
    let same = match &outcome {
        Ok(value) => same_value(value, &case["result"]),
        Err(error) => same_error(error, &case["err"]),
    };
    if same { Ok(()) } else { Err(format!("got {outcome:?}, want {case}")) }
}

fn same_value(value: &Value, wanted: &Json) -> bool {
    wanted["kind"] == value.kind() && same_json(&value.to_json(), &wanted["value"])
}

/// As JSON, but 1 and 1.0 are one number.
fn same_json(left: &Json, right: &Json) -> bool {
    match (left, right) {
        (Json::Number(left), Json::Number(right)) => left.as_f64() == right.as_f64(),
        (Json::Array(left), Json::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(l, r)| same_json(l, r))
        }
        (Json::Object(left), Json::Object(right)) => {
            left.len() == right.len()
                && left.iter().zip(right).all(|((lk, lv), (rk, rv))| lk == rk && same_json(lv, rv))
        }
        _ => left == right,
    }
}

/// The corpus leaves the ends of some messages away.
fn same_error(error: &ExpressionError, wanted: &Json) -> bool {
    let message = wanted["value"].as_str().unwrap_or("-");
    wanted["kind"] == error.kind.as_str() && error.to_string().starts_with(message)
}

fn cases(folder: PathBuf) -> Vec<(String, Json)> {
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("the corpus can be listed")
        .map(|entry| entry.expect("the corpus can be listed").path())
        .collect();
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a corpus file can be read");
        let groups: Json = serde_json::from_str(&text).expect("a corpus file is JSON");
        for (group, members) in groups.as_object().expect("a corpus file is an object") {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            for (at, case) in members.as_array().into_iter().flatten().enumerate() {
                cases.push((format!("{name}, {group}, {at}"), case.clone()));
            }
        }
    }
    cases
}

#[allow(clippy::disallowed_methods, reason = "a test finds the corpora through the environment")]
fn corpora() -> Option<PathBuf> {
    std::env::var("STEADING_CORPORA").ok().map(PathBuf::from)
}

/// No status, no files.
struct Quiet;

impl World for Quiet {
    fn status(&self) -> Status {
        Status::Success
    }

    fn hash_files(&self, _: &[String]) -> Result<String, String> {
        Ok(String::new())
    }
}
