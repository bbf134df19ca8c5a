//! The workflow files that others wrote: accepted or refused as they say, and
//! the parts that the model keeps are the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value as Json;
use steading_pipeline::expression::{Contexts, Status, World, interpolate};
use steading_pipeline::job::StepKind;
use steading_pipeline::{Pipeline, parse};

/// What a file came to.
enum Outcome {
    Pass,
    /// Something that is not built, or an option of the other reader.
    OutOfScope(String),
    Fail(String),
}

#[test]
fn every_workflow_of_the_corpus_is_read_as_its_authors_say() {
    let Some(folder) = corpora() else {
        println!("skipped: STEADING_CORPORA is not set");
        return;
    };
    let (mut passed, mut failures) = (0, Vec::new());
    let mut out_of_scope: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files(folder.join("workflow-reader")) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).expect("a corpus file can be read");
        match check(&name, &text) {
            Outcome::Pass => passed += 1,
            Outcome::OutOfScope(why) => out_of_scope.entry(why).or_default().push(name),
            Outcome::Fail(why) => failures.push(format!("{name}: {why}")),
        }
    }
    let aside: usize = out_of_scope.values().map(Vec::len).sum();
    println!("workflow corpus: {passed} pass, {} fail, {aside} out of scope:", failures.len());
    for (why, names) in &out_of_scope {
        println!("  {} × {why}: {}", names.len(), names.join(", "));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(passed > 0, "no file was found");
}

fn check(name: &str, text: &str) -> Outcome {
    let parts: Vec<&str> = text.split("\n---\n").collect();
    let [options, workflow, .., expected] = parts.as_slice() else {
        return Outcome::Fail("want options, a workflow and a result".to_owned());
    };
    for option in ["max-depth", "max-result-size", "max-file-size", "max-job-limit"] {
        if options.contains(option) {
            return Outcome::OutOfScope(format!("option `{option}` of the other reader"));
        }
    }
    let expected: Json = serde_json::from_str(expected).expect("the result is JSON");
    let refused = !expected["errors"].is_null();
    match (parse(name, workflow.as_bytes(), None), refused) {
        (Ok(parsed), false) => match differences(&parsed.pipeline, &expected) {
            None => Outcome::Pass,
            Some(why) => Outcome::Fail(why),
        },
        (Ok(_), true) => accepted(&expected["errors"]),
        (Err(errors), refused) => {
            let mut built = errors.iter().filter(|error| !error.warning);
            let built = built.find(|error| !error.message.ends_with("not supported yet"));
            match (built, refused) {
                (Some(error), false) if error.message.starts_with("this is not YAML") => {
                    Outcome::OutOfScope("YAML that only the other reader takes".to_owned())
                }
                (None, _) => Outcome::OutOfScope(errors[0].message.clone()),
                (Some(_), true) => Outcome::Pass,
                (Some(error), false) => Outcome::Fail(format!("refused: {error}")),
            }
        }
    }
}

/// Where we accept what the other reader refuses on purpose.
fn accepted(errors: &Json) -> Outcome {
    let message = errors[0]["Message"].as_str().unwrap_or_default();
    if message.contains("Anchors are not currently supported") {
        return Outcome::OutOfScope("anchors are allowed".to_owned());
    }
    Outcome::Fail(format!("accepted, want {errors}"))
}

/// Jobs, needs, steps with their ids, scripts and actions.
fn differences(pipeline: &Pipeline, expected: &Json) -> Option<String> {
    let jobs = expected["jobs"].as_array()?;
    if jobs.len() != pipeline.jobs.len() {
        return Some(format!("{} jobs, want {}", pipeline.jobs.len(), jobs.len()));
    }
    for (job, wanted) in pipeline.jobs.iter().zip(jobs) {
        if wanted["id"] != job.key.as_str() {
            return Some(format!("job `{}`, want {}", job.key, wanted["id"]));
        }
        let needs: Vec<&str> = job.needs.iter().map(|need| need.key.as_str()).collect();
        let wanted_needs = wanted["needs"].as_array().cloned().unwrap_or_default();
        if Json::from(needs.clone()) != Json::from(wanted_needs) {
            return Some(format!("`{}` needs {needs:?}, want {}", job.key, wanted["needs"]));
        }
        let steps = wanted["steps"].as_array().cloned().unwrap_or_default();
        if steps.len() != job.steps.len() {
            return Some(format!("{} steps, want {}", job.steps.len(), steps.len()));
        }
        for (step, wanted) in job.steps.iter().zip(&steps) {
            if wanted["id"] != step.id.as_str() {
                return Some(format!("step `{}`, want {}", step.id, wanted["id"]));
            }
            let (what, text) = match &step.kind {
                StepKind::Run { script, .. } => ("run", &script.value),
                StepKind::Uses { action, .. } => ("uses", action),
            };
            // An expression is written as its own form there, or as the constant that it is.
            let text = match interpolate(text, &Contexts::new(), &Quiet) {
                Ok(value) => value.to_text(),
                Err(_) => text.clone(),
            };
            if wanted[what].is_string() && wanted[what] != text.as_str() {
                return Some(format!("{what} {text:?}, want {}", wanted[what]));
            }
        }
    }
    None
}

fn files(folder: PathBuf) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("the corpus can be listed")
        .map(|entry| entry.expect("the corpus can be listed").path())
        .collect();
    files.sort();
    files
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
