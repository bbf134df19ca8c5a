//! A run that has ended goes on: from what failed or was cancelled.
//!
//! What succeeded stays as it is. What failed or was cancelled is queued again, as the
//! next attempt of the same job, with all its retries. What depended on these is forgotten
//! and planned anew, for the planner must see how they end this time; only the proposer
//! knows the pipeline, so it names the keys, and the run's revision, which counts retries
//! too: between the two nothing of an ended run changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use steading_model::limits::JOBS_PER_RUN_MAX;
use steading_model::{Conclusion, JobId, RunId, StepCounts, Timestamp};

use crate::effect::Rejection;
use crate::proposal::Request;
use crate::rows::{Job, JobCounts, JobStatus, Matrix};
use crate::run::at_most;
use crate::state::{State, Turn};

impl State {
    pub(crate) fn retry_run(
        &mut self,
        turn: &mut Turn,
        id: RunId,
        request: &Request,
        revision: u32,
        again: &[String],
    ) -> Result<(), Rejection> {
        if self.repeated(turn.now, request)?.is_some() {
            return Ok(());
        }
        at_most("number of keys to plan again", again.len(), JOBS_PER_RUN_MAX)?;
        let run = self.run(id).ok_or(Rejection::RunUnknown)?;
        if !run.has_ended() {
            return Err(Rejection::RunGoesOn);
        }
        if run.revision != revision {
            return Err(Rejection::PlanRevision { given: revision, current: run.revision });
        }
        let again: BTreeSet<&String> = again.iter().collect();
        let is_again = |job: &Job| again.contains(&job.definition.key);
        let (mut forgotten, mut queued) = (Vec::new(), Vec::new());
        for job in self.jobs_of(id) {
            let failed = job.outcome().is_some_and(|outcome| {
                matches!(outcome.conclusion, Conclusion::Failure | Conclusion::Cancelled)
            });
            // One that never had a spec was found impossible, which only a plan can change.
            let has_spec = job.definition.spec.size > 0;
            if is_again(job) || (failed && !has_spec) {
                forgotten.push(job.id);
            } else if failed {
                queued.push(job.id);
            }
        }
        let nothing = forgotten.is_empty() && queued.is_empty();
        if nothing && run.conclusion == Some(Conclusion::Success) {
            return Err(Rejection::NothingToRetry);
        }
        self.remember(turn.now, request, id)?;
        self.reopen(turn, id);
        self.forget_jobs(turn, id, &forgotten);
        for job in queued {
            self.queue_again(turn, job);
        }
        self.count_anew(turn, id);
        self.start_run(turn, id);
        turn.dispatch = true;
        Ok(())
    }

    fn reopen(&mut self, turn: &Turn, id: RunId) {
        self.edit_run(turn, id, |run| {
            run.conclusion = None;
            run.finished = Timestamp::default();
            run.cancel = None;
            run.complete = false;
            run.stalled = false;
            run.replan = true;
            run.revision += 1;
            run.retries += 1;
            run.needed_planned = 0;
            run.waits = run.definition.concurrency.is_some();
        });
        let from = (id, String::new());
        let matrices = self.matrices.range(from..).map(|(key, _)| key.clone());
        let matrices: Vec<_> = matrices.take_while(|(run, _)| *run == id).collect();
        for key in matrices {
            self.matrices.set(&key, Some(Arc::new(Matrix::default())));
        }
    }

    /// Forgets jobs of a run, and the artifacts that they recorded.
    fn forget_jobs(&mut self, turn: &Turn, id: RunId, jobs: &[JobId]) {
        let jobs: BTreeSet<&JobId> = jobs.iter().collect();
        let artifacts = self.artifacts_of(id).filter(|(_, artifact)| jobs.contains(&artifact.job));
        let artifacts: Vec<String> = artifacts.map(|(name, _)| name.to_owned()).collect();
        for name in artifacts {
            self.artifacts.set(&(id, name), None);
        }
        for job in jobs {
            self.forget_job(turn, *job);
        }
    }

    fn queue_again(&mut self, turn: &Turn, id: JobId) {
        let outcome = self.job(id).and_then(Job::outcome).cloned();
        if self.job(id).is_some_and(|job| job.attempts > 0) {
            self.remember_attempt(turn, id, outcome.as_ref());
        }
        self.edit_job(turn, id, |job| {
            job.status = JobStatus::Queued;
            job.waits = job.definition.concurrency.is_some();
            job.infrastructure_retries = 0;
            job.user_retries = 0;
            job.preemptions = 0;
            job.avoid_pool = None;
            job.queued = turn.now;
            job.finished = Timestamp::default();
        });
    }

    /// Counts the jobs of an open run of which nothing is leased.
    fn count_anew(&mut self, turn: &Turn, id: RunId) {
        let mut counts = JobCounts::default();
        let mut steps = StepCounts::default();
        let mut needed_ended = 0;
        for job in self.jobs_of(id) {
            counts.total += 1;
            let Some(outcome) = job.outcome() else { continue };
            counts.end(outcome.conclusion, job.definition.continue_on_error);
            needed_ended += u32::from(job.definition.needed);
            steps = steps.plus(outcome.counts);
        }
        let artifacts = u32::try_from(self.artifacts_of(id).count()).unwrap_or(u32::MAX);
        self.edit_run(turn, id, |run| {
            run.counts = counts;
            run.steps = steps;
            run.needed_ended = needed_ended;
            run.artifacts = artifacts;
        });
    }
}
