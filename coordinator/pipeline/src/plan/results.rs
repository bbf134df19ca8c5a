//! How the jobs before a job ended: one result a key, however many legs it had.

use std::collections::{BTreeMap, BTreeSet};

use steading_model::Conclusion;

use super::PlannedJob;
use crate::expression::{Object, Status, Value, World};
use crate::job::EndedJob;
use crate::pipeline::{Job, Need, Pipeline};

/// The result of a key.
#[derive(Debug)]
struct JobResult {
    conclusion: Conclusion,
    outputs: BTreeMap<String, String>,
}

/// The results of all keys that have ended.
#[derive(Debug)]
pub(super) struct Results<'a> {
    jobs: BTreeMap<&'a str, &'a Job>,
    ended: BTreeMap<&'a str, JobResult>,
}

impl<'a> Results<'a> {
    pub(super) fn new(pipeline: &'a Pipeline, ended: &'a BTreeMap<String, Vec<EndedJob>>) -> Self {
        let jobs = pipeline.jobs.iter().map(|job| (job.key.as_str(), job)).collect();
        let ended = ended.iter().map(|(key, legs)| (key.as_str(), summarise(legs))).collect();
        Self { jobs, ended }
    }

    /// Whether all of these have ended.
    pub(super) fn has_all(&self, needs: &[Need]) -> bool {
        needs.iter().all(|need| self.ended.contains_key(need.key.as_str()))
    }

    /// Notes a key that ends in being planned, because none of its legs runs.
    pub(super) fn decide(&mut self, job: &'a Job, legs: &[PlannedJob]) {
        let conclusions: Option<Vec<_>> = legs
            .iter()
            .map(|leg| Some((leg.verdict.conclusion()?, leg.continue_on_error)))
            .collect();
        if let Some(conclusions) = conclusions {
            let conclusion = summary(conclusions.into_iter());
            self.ended.insert(&job.key, JobResult { conclusion, outputs: BTreeMap::new() });
        }
    }

    /// The `needs` context of a job.
    pub(super) fn needs_context(&self, needs: &[Need]) -> Value {
        let mut context = Object::new();
        for need in needs {
            let Some(result) = self.ended.get(need.key.as_str()) else { continue };
            let mut member = Object::new();
            member.insert("result", Value::string(result.conclusion.as_str()));
            member.insert("outputs", Value::strings(&result.outputs));
            context.insert(&need.key, Value::object(member));
        }
        Value::object(context)
    }
}

/// One result of several legs. Of an output that several wrote, the last leg's wins
/// that wrote anything.
fn summarise(legs: &[EndedJob]) -> JobResult {
    let conclusion = summary(legs.iter().map(|leg| (leg.conclusion, leg.continue_on_error)));
    let mut by_leg: Vec<&EndedJob> = legs.iter().collect();
    by_leg.sort_by_key(|leg| leg.leg);
    let mut outputs = BTreeMap::new();
    for (name, value) in by_leg.into_iter().flat_map(|leg| &leg.outputs) {
        if !value.is_empty() || !outputs.contains_key(name) {
            outputs.insert(name.clone(), value.clone());
        }
    }
    JobResult { conclusion, outputs }
}

/// A failure that may be counts as a success. Then the worst of the legs; skipped only
/// if all are.
fn summary(legs: impl Iterator<Item = (Conclusion, bool)>) -> Conclusion {
    let conclusions: BTreeSet<Conclusion> = legs
        .map(|(conclusion, continue_on_error)| match conclusion {
            Conclusion::Failure if continue_on_error => Conclusion::Success,
            other => other,
        })
        .collect();
    let worst_first =
        [Conclusion::Failure, Conclusion::Cancelled, Conclusion::Success, Conclusion::Skipped];
    worst_first.into_iter().find(|one| conclusions.contains(one)).unwrap_or(Conclusion::Skipped)
}

/// What a job's `if` sees: all that it needs, directly or not.
#[derive(Debug)]
pub(super) struct Ancestors<'a> {
    results: BTreeMap<&'a str, Conclusion>,
    cancelled: bool,
}

impl<'a> Ancestors<'a> {
    pub(super) fn new(results: &'a Results<'_>, job: &'a Job, cancelled: bool) -> Self {
        let mut ancestors = BTreeMap::new();
        let mut open: Vec<&Need> = job.needs.iter().collect();
        while let Some(need) = open.pop() {
            let key = need.key.as_str();
            let Some(result) = results.ended.get(key) else { continue };
            if ancestors.insert(key, result.conclusion).is_none() {
                open.extend(results.jobs.get(key).iter().flat_map(|job| &job.needs));
            }
        }
        Self { results: ancestors, cancelled }
    }

    /// The results of these jobs, or of all.
    fn of(&self, jobs: &[String]) -> impl Iterator<Item = Conclusion> {
        let named =
            |key: &str| jobs.is_empty() || jobs.iter().any(|job| job.eq_ignore_ascii_case(key));
        self.results.iter().filter(move |(key, _)| named(key)).map(|(_, result)| *result)
    }
}

impl World for Ancestors<'_> {
    fn status(&self) -> Status {
        if self.cancelled {
            Status::Cancelled
        } else if self.of(&[]).any(|result| result == Conclusion::Failure) {
            Status::Failure
        } else {
            Status::Success
        }
    }

    fn hash_files(&self, _: &[String]) -> Result<String, String> {
        Err("`hashFiles` needs the files, which only a step has".to_owned())
    }

    fn success(&self, jobs: &[String]) -> bool {
        !self.cancelled && self.of(jobs).all(|result| result == Conclusion::Success)
    }

    fn failure(&self, jobs: &[String]) -> bool {
        self.of(jobs).any(|result| result == Conclusion::Failure)
    }
}
