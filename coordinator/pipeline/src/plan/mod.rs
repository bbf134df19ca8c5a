//! From a pipeline and the results so far to the jobs to create next.

use std::collections::{BTreeMap, BTreeSet};

use steading_model::Resources;

use crate::job::{EndedJob, JobSpec};
use crate::pipeline::Pipeline;

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

/// Plans. `ended` holds the legs that have ended, by job key; `created` the keys
/// whose jobs exist already. The same arguments give the same plan everywhere.
pub fn plan(
    submission: &Submission<'_>,
    ended: &BTreeMap<String, Vec<EndedJob>>,
    created: &BTreeSet<String>,
) -> Plan {
    let _ = (submission, ended, created);
    Plan::default()
}
