//! From bytes to a [`Pipeline`]: YAML, then every key by name, then what spans keys.

mod allowed;
mod concurrency;
mod extension;
mod graph;
mod job;
mod lint;
mod names;
mod reader;
mod reference;
mod step;
mod trigger;
mod yaml;

use std::collections::BTreeSet;

use steading_model::limits::{JOBS_PER_RUN_MAX, PIPELINE_BYTES_MAX};

use crate::Diagnostic;
use crate::pipeline::Pipeline;
use job::ParsedJob;
use reader::{Fields, Reader, diagnostic};
use yaml::{Node, Place};

/// Where the overlay of a repository is, for messages.
const OVERLAY_FILE: &str = ".steading/overlay.yml";

/// A pipeline, and what to say about it all the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub pipeline: Pipeline,
    pub warnings: Vec<Diagnostic>,
}

/// Parses and validates a pipeline file; `overlay` is the text of `.steading/overlay.yml`.
///
/// # Errors
///
/// What is wrong, in the order of the file, and after it the warnings: the pipeline
/// cannot run.
pub fn parse(
    file: &str,
    pipeline: &[u8],
    overlay: Option<&[u8]>,
) -> Result<Parsed, Vec<Diagnostic>> {
    let text = decode(file, pipeline)?;
    let root = tree(file, text)?.ok_or_else(|| {
        let start = Place { line: 1, column: 1 };
        vec![diagnostic(file, start, "the file is empty".to_owned(), Some(SHAPE.to_owned()), false)]
    })?;
    let mut reader = Reader::new(file, text);
    let (mut parsed, mut jobs, secrets) = workflow(&mut reader, &root);
    if let Some(overlay) = overlay {
        let text = decode(OVERLAY_FILE, overlay)?;
        if let Some(root) = tree(OVERLAY_FILE, text)? {
            let mut overlay = Reader::new(OVERLAY_FILE, text);
            extension::apply_overlay(&mut overlay, &root, file, &mut parsed, &mut jobs);
            reader.errors.append(&mut overlay.errors);
        }
    }
    extension::check_cached_steps(&mut reader, &secrets, &jobs);
    file.clone_into(&mut parsed.file);
    parsed.jobs = jobs.into_iter().map(finish).collect();
    graph::check(&mut reader, &mut parsed.jobs);
    if reader.errors.is_empty() {
        Ok(Parsed { pipeline: parsed, warnings: reader.into_warnings() })
    } else {
        Err(reader.into_errors())
    }
}

fn finish(parsed: ParsedJob) -> crate::pipeline::Job {
    let mut job = parsed.job;
    job.steps = parsed.steps.into_iter().map(|step| step.spec).collect();
    job
}

/// The text, if it is one and small enough.
fn decode<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str, Vec<Diagnostic>> {
    if bytes.len() > PIPELINE_BYTES_MAX {
        let message =
            format!("the file has {} bytes, at most {PIPELINE_BYTES_MAX} are allowed", bytes.len());
        return Err(vec![diagnostic(file, Place::default(), message, None, false)]);
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let place = Place {
            line: number(before.matches('\n').count() + 1),
            column: number(before.chars().rev().take_while(|&c| c != '\n').count() + 1),
        };
        let hint = Some("save the file as UTF-8".to_owned());
        vec![diagnostic(file, place, "this is not UTF-8".to_owned(), hint, false)]
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn tree(file: &str, text: &str) -> Result<Option<Node>, Vec<Diagnostic>> {
    yaml::read(text).map_err(|error| {
        let hint = error.hint.map(str::to_owned);
        vec![diagnostic(file, error.place, error.message, hint, false)]
    })
}

const KNOWN: &[&str] = &[
    "name",
    "run-name",
    "description",
    "on",
    "env",
    "defaults",
    "permissions",
    "concurrency",
    "jobs",
    "x-steading",
];

/// What a pipeline has at least.
const SHAPE: &str =
    "a pipeline has at least `on: push` and `jobs: {NAME: {runs-on: …, steps: […]}}`";

/// The whole file: the pipeline without its jobs, the jobs, and the secrets that its `env` uses.
fn workflow(reader: &mut Reader<'_>, root: &Node) -> (Pipeline, Vec<ParsedJob>, BTreeSet<String>) {
    let mut pipeline = Pipeline::default();
    let Some(fields) = reader.fields(root, "a pipeline", KNOWN, &[]) else {
        return (pipeline, Vec::new(), BTreeSet::new());
    };
    for name in ["on", "jobs"] {
        if fields.get(name).is_none() {
            reader.error_with(root.place, format!("`{name}` is missing"), SHAPE);
        }
    }
    pipeline.name = fields.get("name").and_then(|node| reader.literal(node, "`name`"));
    pipeline.run_name =
        fields.get("run-name").and_then(|node| reader.text(node, "`run-name`", allowed::WORKFLOW));
    pipeline.on = fields.get("on").map(|node| trigger::read(reader, node)).unwrap_or_default();
    let first = reader.references.len();
    pipeline.env = fields
        .get("env")
        .map(|node| step::env(reader, node, allowed::WORKFLOW_ENV))
        .unwrap_or_default();
    let secrets = lint::secrets(&reader.references[first..]);
    pipeline.defaults =
        fields.get("defaults").map(|node| job::defaults(reader, node, false)).unwrap_or_default();
    if let Some(node) = fields.get("permissions") {
        job::permissions(reader, node);
    }
    pipeline.concurrency = fields
        .get("concurrency")
        .and_then(|node| concurrency::read(reader, node, allowed::WORKFLOW));
    let mut jobs = jobs(reader, &fields);
    if let Some(node) = fields.get("x-steading") {
        extension::apply_to_pipeline(reader, node, &mut pipeline, &mut jobs);
    }
    (pipeline, jobs, secrets)
}

fn jobs(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Vec<ParsedJob> {
    let Some(node) = fields.get("jobs") else { return Vec::new() };
    let Some(entries) = reader.mapping(node, "`jobs`") else { return Vec::new() };
    if entries.is_empty() {
        reader.error_with(node.place, "`jobs` has no job", SHAPE);
    }
    if entries.len() > JOBS_PER_RUN_MAX {
        let message = format!("{} jobs, at most {JOBS_PER_RUN_MAX} are allowed", entries.len());
        reader.error(node.place, message);
        return Vec::new();
    }
    entries.iter().filter_map(|(key, value)| job::read(reader, key, value)).collect()
}

#[cfg(test)]
mod tests;
