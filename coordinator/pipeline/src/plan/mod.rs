//! From a pipeline and the results so far to the jobs to create next.

mod concurrency;
mod leg;
mod matrix;
mod results;

use std::collections::{BTreeMap, BTreeSet};

use steading_model::limits::JOBS_PER_RUN_MAX;
use steading_model::{Conclusion, Resources, Spot};

use crate::expression::{self, Value};
use crate::job::{EndedJob, JobSpec};
use crate::pipeline::{Job, Pipeline};
pub use concurrency::Group;
use leg::{Planner, place};
use results::{Ancestors, Results};

/// What was submitted, and all that the planner may know besides results.
#[derive(Clone, Debug)]
pub struct Submission<'a> {
    pub pipeline: &'a Pipeline,
    /// Root `Directory` of the source in the CAS, `HASH/SIZE`.
    pub source: &'a str,
    /// The `github` context. An object.
    pub github: &'a serde_json::Value,
    /// The `inputs` context, typed. An object.
    pub inputs: &'a serde_json::Value,
    /// The `vars` context. An object.
    pub vars: &'a serde_json::Value,
    /// `--env K=V` of the submission: a layer over the pipeline's `env`.
    pub env: &'a [(String, String)],
    /// The run is being cancelled: only what says `always()` or `cancelled()` starts.
    pub cancelled: bool,
}

/// What to create now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub jobs: Vec<PlannedJob>,
    /// Every key of the pipeline has its jobs now.
    pub complete: bool,
}

/// One job to create. All its needs have ended.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedJob {
    pub key: String,
    pub leg: u32,
    pub name: String,
    pub labels: Vec<String>,
    pub resources: Resources,
    /// Other jobs need this one.
    pub needed: bool,
    pub fail_fast: bool,
    /// 0 is no bound.
    pub max_parallel: u32,
    pub continue_on_error: bool,
    pub priority: i32,
    pub spot: Option<Spot>,
    /// By when it should have ended, milliseconds from when it could start; 0 is no deadline.
    pub deadline_ms: u64,
    /// How often it is tried again after a failure of its own.
    pub retries: u32,
    pub concurrency: Option<Group>,
    pub verdict: Verdict,
}

/// What to do with a planned job.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Run(Box<JobSpec>),
    /// Its `if` said no.
    Skip,
    /// It cannot start, and why.
    Fail(String),
}

/// Plans. `created` holds the keys whose jobs exist already, `ended` of those the
/// ones *all* of whose legs have ended. The same arguments give the same plan everywhere.
///
/// A key that is skipped, or cannot start, has ended at once, so that what needs
/// it is in the same plan.
pub fn plan(
    submission: &Submission<'_>,
    ended: &BTreeMap<String, Vec<EndedJob>>,
    created: &BTreeSet<String>,
) -> Plan {
    let mut results = Results::new(submission.pipeline, ended);
    let planner = Planner::new(submission);
    let needed: BTreeSet<&str> = submission
        .pipeline
        .jobs
        .iter()
        .flat_map(|job| job.needs.iter().map(|need| need.key.as_str()))
        .collect();
    let mut open: Vec<&Job> =
        submission.pipeline.jobs.iter().filter(|job| !created.contains(&job.key)).collect();
    let mut jobs = Vec::new();
    loop {
        let (ready, waiting): (Vec<&Job>, Vec<&Job>) =
            open.into_iter().partition(|job| results.has_all(&job.needs));
        open = waiting;
        if ready.is_empty() {
            break;
        }
        for job in ready {
            let mut legs = plan_job(&planner, &results, job, JOBS_PER_RUN_MAX - jobs.len());
            for leg in &mut legs {
                leg.needed = needed.contains(job.key.as_str());
            }
            results.decide(job, &legs);
            jobs.extend(legs);
        }
    }
    Plan { jobs, complete: open.is_empty() }
}

/// The concurrency group of the whole run. `github` must tell runs apart wherever the
/// pipeline does, or they would share what each means to have for itself.
///
/// # Errors
///
/// What is wrong with `concurrency`, with its place.
pub fn run_group(submission: &Submission<'_>) -> Result<Option<Group>, String> {
    let Some(wants) = &submission.pipeline.concurrency else { return Ok(None) };
    let planner = Planner::new(submission);
    planner.group(wants, &planner.contexts(&Value::Null))
}

/// The legs of a job whose needs have ended; at least one.
fn plan_job(
    planner: &Planner<'_>,
    results: &Results<'_>,
    job: &Job,
    room: usize,
) -> Vec<PlannedJob> {
    let needs = results.needs_context(&job.needs);
    let contexts = planner.contexts(&needs);
    let ancestors = Ancestors::new(results, job, planner.submission.cancelled);
    let condition = job.condition.as_ref().map_or("", |text| text.value.as_str());
    match expression::condition(condition, &contexts, &ancestors) {
        Ok(false) => return vec![planner.decided(job, Verdict::Skip)],
        Ok(true) => (),
        Err(error) => {
            let at = job.condition.clone().unwrap_or_default();
            let why = format!("{}: `if`: {error}", place(&planner.submission.pipeline.file, &at));
            return vec![planner.decided(job, Verdict::Fail(why))];
        }
    }
    let legs = planner.legs(job, &contexts, &needs).and_then(|legs| {
        if legs.len() > room {
            return Err(format!("the run has more than {JOBS_PER_RUN_MAX} jobs"));
        }
        Ok(legs)
    });
    legs.unwrap_or_else(|why| vec![planner.decided(job, Verdict::Fail(why))])
}

impl Verdict {
    /// How a job ends that never runs.
    const fn conclusion(&self) -> Option<Conclusion> {
        match self {
            Self::Run(_) => None,
            Self::Skip => Some(Conclusion::Skipped),
            Self::Fail(_) => Some(Conclusion::Failure),
        }
    }
}

#[cfg(test)]
mod tests;
