//! Plans: from a submission and the results so far to the jobs to create.
//!
//! The core says when a plan is due and refuses all but the one that names its
//! revision; the planner computes, and never leaves a due run without an answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use steading_core::{Concurrency, NewJob, Outcome, Proposal, Rejection, Run, State};
use steading_model::limits::{GROUP_NAME_BYTES_MAX, JOBS_PER_PROPOSAL_MAX};
use steading_model::{Conclusion, Digest, DigestFunction, FailureClass, JobId, RunId, StepCounts};
use steading_pipeline::job::EndedJob;
use steading_pipeline::{Group, PlannedJob, Verdict};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::documents::{DocumentError, Documents, Parsed};
use crate::replica::{ProposeError, Replica};

/// Plans computed at once. They take a core each.
const PLANS_AT_ONCE: usize = 2;
/// Before a proposal is tried again that the replica had no room for.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Before a plan is tried again for which the store or the origin was away, and for how
/// long: then the run ends with the reason.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
const AWAY_MAX: Duration = Duration::from_secs(600);
/// Longest name of a job, bytes; the rest is cut. It is part of a bounded row.
const JOB_NAME_BYTES_MAX: usize = 100;
/// Under which key a run tells that it could not be planned.
const PLAN_FAILURE_KEY: &str = "plan";

/// What the next plan is made of, or rather what it came to.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) jobs: Vec<NewJob>,
    pub(crate) complete: bool,
}

/// What has ended, and what was created, of one version of the state.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) ended: BTreeMap<String, Vec<EndedJob>>,
    pub(crate) created: BTreeSet<String>,
}

/// Runs whose plan is due.
#[derive(Debug)]
pub(crate) struct Planner {
    replica: Replica,
    documents: Arc<Documents>,
    /// Bounded by the open runs.
    due: Mutex<BTreeSet<RunId>>,
    wake: Notify,
}

impl Planner {
    pub(crate) fn new(replica: Replica, documents: Arc<Documents>) -> Self {
        Self { replica, documents, due: Mutex::default(), wake: Notify::new() }
    }

    /// A plan of the run is due.
    pub(crate) fn due(&self, run: RunId) {
        self.lock().insert(run);
        self.wake.notify_one();
    }

    /// Plans are another leader's to make.
    pub(crate) fn forget(&self) {
        self.lock().clear();
    }

    /// Plans what is due until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut plans: JoinSet<(RunId, bool)> = JoinSet::new();
        let mut running: BTreeSet<RunId> = BTreeSet::new();
        // Those that are tried again, and since when; bounded by the open runs.
        let mut later: JoinSet<RunId> = JoinSet::new();
        let mut away: BTreeMap<RunId, Instant> = BTreeMap::new();
        loop {
            while plans.len() < PLANS_AT_ONCE {
                // One plan a run at a time: what became due meanwhile stays in line.
                let Some(run) = self.take_due(&running) else {
                    break;
                };
                running.insert(run);
                let planner = Arc::clone(&self);
                let patient = away.get(&run).is_none_or(|since| since.elapsed() < AWAY_MAX);
                plans.spawn(async move { (run, planner.plan_until_settled(run, patient).await) });
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.wake.notified() => (),
                Some(ended) = plans.join_next() => match ended {
                    Ok((run, settled)) => {
                        running.remove(&run);
                        if settled {
                            away.remove(&run);
                        } else {
                            away.entry(run).or_insert_with(Instant::now);
                            later.spawn(async move { tokio::time::sleep(AWAY_PAUSE).await; run });
                        }
                    }
                    Err(error) => return Err(anyhow::Error::new(error).context("plan a run")),
                },
                Some(Ok(run)) = later.join_next() => self.due(run),
            }
        }
    }

    /// False: what the plan needs is away. Who is not `patient` calls that a failure.
    async fn plan_until_settled(&self, run: RunId, patient: bool) -> bool {
        loop {
            let state = self.replica.view();
            let Some(row) = state.run(run).filter(|row| row.is_plan_due()) else {
                return true;
            };
            let (revision, seen, before) = (row.revision, row.needed_ended, row.needed_planned);
            let Some(planned) = self.plan(&state, run, patient).await else { return false };
            match self.extend(run, revision, before, seen, planned).await {
                // A newer version is there, or was accepted just now: look again.
                Ok(()) | Err(ProposeError::Rejected(Rejection::PlanRevision { .. })) => (),
                Err(ProposeError::Rejected(
                    Rejection::RunEnded | Rejection::RunUnknown | Rejection::PlanComplete,
                )) => return true,
                Err(ProposeError::Rejected(rejection)) => {
                    let planned = failed_plan(&rejection.to_string());
                    let Some(revision) = self.replica.view().run(run).map(|run| run.revision)
                    else {
                        return true;
                    };
                    if let Err(error) = self.extend(run, revision, before, seen, planned).await {
                        tracing::error!(%run, %error, "cannot tell that a run cannot be planned");
                        return true;
                    }
                }
                Err(ProposeError::Busy) => tokio::time::sleep(BUSY_PAUSE).await,
                // The next leader finds the plan due again.
                Err(error) => {
                    tracing::warn!(%run, %error, "a plan was not proposed");
                    return true;
                }
            }
        }
    }

    async fn plan(&self, state: &Arc<State>, run: RunId, patient: bool) -> Option<Planned> {
        let (documents, state) = (Arc::clone(&self.documents), Arc::clone(state));
        let planned = tokio::task::spawn_blocking(move || {
            let row = state.run(run)?;
            Some(plan_run(&documents, &state, row))
        });
        Some(match planned.await {
            Ok(Some(Ok(planned))) => planned,
            Ok(None) => failed_plan("the run is gone"),
            Ok(Some(Err(error))) if patient && error.is_transient() => {
                tracing::warn!(%run, %error, "a run cannot be planned for now");
                return None;
            }
            Ok(Some(Err(error))) => {
                tracing::error!(%run, %error, "a run cannot be planned");
                failed_plan(&error.to_string())
            }
            Err(error) => {
                tracing::error!(%run, %error, "the planner failed");
                failed_plan("the planner failed; this is a defect of the farm, see its log")
            }
        })
    }

    /// Proposes a plan. A large one goes in chunks of whole keys, of which only the last
    /// says how much it has seen: a leader that dies in between leaves the plan due.
    async fn extend(
        &self,
        run: RunId,
        mut revision: u32,
        before: u32,
        seen: u32,
        planned: Planned,
    ) -> Result<(), ProposeError> {
        let mut chunks = by_keys(planned.jobs, JOBS_PER_PROPOSAL_MAX);
        let last = chunks.pop().unwrap_or_default();
        for jobs in chunks {
            self.replica
                .propose(Proposal::ExtendRun { run, revision, seen: before, jobs, complete: false })
                .await?;
            revision += 1;
        }
        let complete = planned.complete;
        self.replica
            .propose(Proposal::ExtendRun { run, revision, seen, jobs: last, complete })
            .await?;
        Ok(())
    }

    fn take_due(&self, running: &BTreeSet<RunId>) -> Option<RunId> {
        let mut due = self.lock();
        let run = due.iter().find(|run| !running.contains(run)).copied()?;
        due.take(&run)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<RunId>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Plans a run on this version of the state. Blocks.
fn plan_run(documents: &Documents, state: &State, run: &Run) -> Result<Planned, DocumentError> {
    let parsed = documents.submission(&run.definition.submission)?;
    let results = results_of(documents, state, run.id)?;
    let mut github = parsed.github.clone();
    if mentions_run_id(&parsed)
        && let Some(github) = github.as_object_mut()
    {
        let number = run.id.counter().to_string();
        github.insert("run_id".to_owned(), number.clone().into());
        github.insert("run_number".to_owned(), number.into());
    }
    plan(documents, &parsed, &github, &results, run.cancel.is_some())
}

/// The first plan of a submission, before it is a run. Blocks.
pub(crate) fn first_plan(documents: &Documents, parsed: &Parsed) -> Result<Planned, DocumentError> {
    if mentions_run_id(parsed) {
        // The run's number is known once it is admitted: its first plan comes then.
        return Ok(Planned { jobs: Vec::new(), complete: false });
    }
    plan(documents, parsed, &parsed.github, &Results::default(), false)
}

/// Whether the planner itself may have to know which run it is. Mostly it need not,
/// and then equal submissions have equal job specs.
fn mentions_run_id(parsed: &Parsed) -> bool {
    let text = &parsed.submission.pipeline;
    ["github.run_id", "github.run_number", "github['run", "toJSON(github)", "toJson(github)"]
        .iter()
        .any(|mention| text.contains(mention))
}

fn plan(
    documents: &Documents,
    parsed: &Parsed,
    github: &serde_json::Value,
    results: &Results,
    cancelled: bool,
) -> Result<Planned, DocumentError> {
    let submission = submission(parsed, github, cancelled);
    let plan = steading_pipeline::plan(&submission, &results.ended, &results.created);
    let specs: Vec<Option<Bytes>> = plan.jobs.iter().map(spec_bytes).collect();
    let digests = documents.put_many(specs.iter().flatten().map(Bytes::as_ref))?;
    let mut digests = digests.into_iter();
    let mut jobs = Vec::with_capacity(plan.jobs.len());
    for (job, spec) in plan.jobs.into_iter().zip(specs) {
        let digest = spec.as_ref().and_then(|_| digests.next());
        if let (Some(digest), Some(bytes)) = (digest, spec) {
            documents.know_spec(digest, bytes);
        }
        jobs.push(new_job(job, digest));
    }
    Ok(Planned { jobs, complete: plan.complete })
}

fn spec_bytes(job: &PlannedJob) -> Option<Bytes> {
    match &job.verdict {
        Verdict::Run(spec) => {
            let bytes = serde_json::to_vec(spec).expect("text and JSON values are always written");
            Some(bytes.into())
        }
        Verdict::Skip | Verdict::Fail(_) => None,
    }
}

fn new_job(job: PlannedJob, spec: Option<Digest>) -> NewJob {
    let decided = match job.verdict {
        Verdict::Run(_) => None,
        Verdict::Skip => Some(outcome(Conclusion::Skipped, None, String::new())),
        Verdict::Fail(why) => Some(outcome(Conclusion::Failure, Some(FailureClass::Config), why)),
    };
    NewJob {
        key: job.key,
        leg: job.leg,
        name: cut(job.name, JOB_NAME_BYTES_MAX),
        spec: spec.unwrap_or_else(no_spec),
        labels: job.labels,
        resources: job.resources,
        needed: job.needed,
        fail_fast: job.fail_fast,
        max_parallel: job.max_parallel,
        continue_on_error: job.continue_on_error,
        decided,
        priority: Some(job.priority),
        spot: job.spot,
        deadline_ms: job.deadline_ms,
        user_retries: job.retries,
        concurrency: job.concurrency.map(concurrency),
    }
}

/// The concurrency group of the run. `stand_in` is the run's id to expressions: they use
/// it to tell runs apart, and the run has none yet.
pub(crate) fn run_concurrency(
    parsed: &Parsed,
    stand_in: &str,
) -> Result<Option<Concurrency>, String> {
    let mut github = parsed.github.clone();
    if let Some(github) = github.as_object_mut() {
        for name in ["run_id", "run_number"] {
            github.insert(name.to_owned(), stand_in.into());
        }
    }
    let submission = submission(parsed, &github, false);
    Ok(steading_pipeline::run_group(&submission)?.map(concurrency))
}

/// A long name is told apart by its digest: names are kept in bounded rows.
fn concurrency(group: Group) -> Concurrency {
    let Group { mut name, cancel_in_progress, queue_all } = group;
    if name.len() > GROUP_NAME_BYTES_MAX {
        let digest = steading_cas::hash::digest_of(DigestFunction::Blake3, name.as_bytes());
        let digest = format!("…{:.32}", digest.to_string());
        name = cut(name, GROUP_NAME_BYTES_MAX - digest.len()) + &digest;
    }
    Concurrency { group: name, cancel_in_progress, queue_all }
}

fn submission<'a>(
    parsed: &'a Parsed,
    github: &'a serde_json::Value,
    cancelled: bool,
) -> steading_pipeline::Submission<'a> {
    steading_pipeline::Submission {
        pipeline: &parsed.pipeline,
        source: &parsed.submission.source,
        github,
        inputs: &parsed.inputs,
        vars: &parsed.vars,
        env: &parsed.env,
        cancelled,
    }
}

/// A run that cannot be planned further ends with a failed job that says why.
fn failed_plan(why: &str) -> Planned {
    let why = format!("the run cannot be planned further: {why}");
    let job = NewJob {
        key: PLAN_FAILURE_KEY.to_owned(),
        // Beyond every leg that a pipeline's own `plan` may have.
        leg: steading_model::limits::MATRIX_LEGS_MAX as u32,
        name: PLAN_FAILURE_KEY.to_owned(),
        spec: no_spec(),
        labels: Vec::new(),
        resources: Default::default(),
        needed: false,
        fail_fast: false,
        max_parallel: 0,
        continue_on_error: false,
        decided: Some(outcome(Conclusion::Failure, Some(FailureClass::Config), why)),
        priority: None,
        spot: None,
        deadline_ms: 0,
        user_retries: 0,
        concurrency: None,
    };
    Planned { jobs: vec![job], complete: true }
}

fn outcome(conclusion: Conclusion, class: Option<FailureClass>, message: String) -> Outcome {
    Outcome { conclusion, class, result: None, counts: StepCounts::default(), message }
}

/// The digest of nothing: a job that never runs has no spec.
fn no_spec() -> Digest {
    steading_cas::hash::digest_of(DigestFunction::Blake3, b"")
}

fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

/// What the planner is told: the created keys, and of those whose legs have all ended
/// how each ended.
fn results_of(documents: &Documents, state: &State, run: RunId) -> Result<Results, DocumentError> {
    let mut results = Results::default();
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for job in state.jobs_of(run) {
        let definition = &job.definition;
        if !results.created.contains(&definition.key) {
            results.created.insert(definition.key.clone());
        }
        let Some(outcome) = job.outcome() else {
            open.insert(&definition.key);
            continue;
        };
        if !definition.needed || open.contains(definition.key.as_str()) {
            continue;
        }
        let ended = ended_job(documents, job.id, definition, outcome);
        results.ended.entry(definition.key.clone()).or_default().push(ended?);
    }
    results.ended.retain(|key, _| !open.contains(key.as_str()));
    Ok(results)
}

fn ended_job(
    documents: &Documents,
    job: JobId,
    definition: &NewJob,
    outcome: &Outcome,
) -> Result<EndedJob, DocumentError> {
    let result = outcome.result.as_ref().map(|digest| documents.result(digest)).transpose();
    let mut conclusion = outcome.conclusion;
    let outputs = match result {
        Ok(result) => result.map_or_else(BTreeMap::new, |result| result.outputs.clone()),
        Err(error @ (DocumentError::Missing { .. } | DocumentError::Unreadable { .. })) => {
            // Others would be planned with outputs that are not those of the job. As a
            // failure it is seen, and what depends on it does not start.
            tracing::error!(%job, %error, "the result of a needed job is lost");
            conclusion = Conclusion::Failure;
            BTreeMap::new()
        }
        Err(error) => return Err(error),
    };
    Ok(EndedJob {
        leg: definition.leg,
        conclusion,
        class: outcome.class,
        continue_on_error: definition.continue_on_error,
        outputs,
    })
}

/// Cuts a plan into chunks that hold whole keys, each within the bound.
pub(crate) fn by_keys(jobs: Vec<NewJob>, max: usize) -> Vec<Vec<NewJob>> {
    let mut chunks: Vec<Vec<NewJob>> = Vec::new();
    let mut rest = jobs.into_iter().peekable();
    while let Some(first) = rest.next() {
        let mut key = vec![first];
        while let Some(leg) = rest.next_if(|next| next.key == key[0].key) {
            key.push(leg);
        }
        match chunks.last_mut() {
            Some(chunk) if chunk.len() + key.len() <= max => chunk.extend(key),
            _ => chunks.push(key),
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_plan_is_cut_between_keys() {
        let plan = |keys: &[(&str, u32)]| {
            let legs = keys.iter().flat_map(|(key, legs)| (0..*legs).map(move |leg| (*key, leg)));
            legs.map(|(key, leg)| NewJob {
                key: key.to_owned(),
                leg,
                ..failed_plan("").jobs.remove(0)
            })
            .collect::<Vec<_>>()
        };
        for (keys, want) in [
            (&[][..], &[][..]),
            (&[("a", 3)], &[3]),
            (&[("a", 3), ("b", 1)], &[4]),
            (&[("a", 3), ("b", 2), ("c", 2)], &[3, 4]),
            (&[("a", 4), ("b", 4)], &[4, 4]),
        ] {
            let chunks = by_keys(plan(keys), 4);
            let lens: Vec<usize> = chunks.iter().map(Vec::len).collect();
            assert_eq!(lens, want, "{keys:?}");
        }
    }

    #[test]
    fn a_name_is_cut_between_characters() {
        assert_eq!(cut("häh".to_owned(), 2), "h");
        assert_eq!(cut("häh".to_owned(), 3), "hä");
        assert_eq!(cut("häh".to_owned(), 9), "häh");
    }
}
