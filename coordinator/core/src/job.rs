//! Jobs: added, ended, cancelled.

use std::sync::Arc;

use steading_model::codec::Encode;
use steading_model::limits::{
    JOB_ROW_BYTES_MAX, JOB_ROW_GROWTH_BYTES_MAX, LABELS_MAX, OUTCOME_MESSAGE_BYTES_MAX,
};
use steading_model::{Conclusion, FailureClass, JobId, RunId, StepCounts, Timestamp};

use crate::effect::{Effect, Rejection};
use crate::group::{Member, Step};
use crate::proposal::{NewJob, Outcome};
use crate::rows::{Job, JobStatus, Matrix, Run};
use crate::run::at_most;
use crate::state::{State, Turn};

impl State {
    pub(crate) fn add_job(
        &mut self,
        turn: &mut Turn,
        run: RunId,
        mut job: NewJob,
    ) -> Result<(), Rejection> {
        let decided = job.decided.take();
        at_most("number of labels of a job", job.labels.len(), LABELS_MAX)?;
        let size_max = JOB_ROW_BYTES_MAX - JOB_ROW_GROWTH_BYTES_MAX;
        at_most("size of a job's definition", job.to_bytes().len(), size_max)?;
        let there = self.leg(run, &job.key, job.leg);
        if there.is_some_and(|leg| leg.version == turn.version || !has_bug!(PlanTwice)) {
            return Err(Rejection::JobKeyRepeated(job.key));
        }
        let id = self.meta.counters.job.next();
        self.meta.counters.job = id;
        let matrix = (run, job.key.clone());
        if (job.fail_fast || job.max_parallel > 0) && self.matrices.get(&matrix).is_none() {
            self.matrices.set(&matrix, Some(Arc::new(Matrix::default())));
        }
        let failed = job.fail_fast && self.matrices.get(&matrix).is_some_and(|row| row.failed);
        let waits = job.concurrency.is_some();
        let run_priority = self.run(run).map_or(0, |run| run.definition.priority);
        let row = Job {
            id,
            run,
            priority: job.priority.unwrap_or(run_priority),
            definition: Arc::new(job),
            status: JobStatus::Queued,
            attempts: 0,
            infrastructure_retries: 0,
            agent: None,
            queued: turn.now,
            started: Timestamp::default(),
            finished: Timestamp::default(),
            version: turn.version,
            user_retries: 0,
            preemptions: 0,
            avoid_pool: None,
            waits,
        };
        self.set_job(turn, id, Some(row));
        self.edit_run(turn, run, |run| run.counts.total += 1);
        turn.dispatch = true;
        if let Some(outcome) = decided {
            self.finish_job(turn, id, outcome);
        } else if failed {
            self.cancel_job(turn, id, SIBLING_FAILED);
        } else if waits && self.run(run).is_some_and(Run::is_started) {
            turn.steps.push_back(Step::Join(Member::Job { job: id }));
        }
        Ok(())
    }

    /// Ends a job that has not ended. Its lease must be gone already.
    pub(crate) fn finish_job(&mut self, turn: &mut Turn, id: JobId, mut outcome: Outcome) {
        outcome.message = cut(&outcome.message, OUTCOME_MESSAGE_BYTES_MAX);
        let Some(job) = self.job(id) else { return };
        let (run, definition) = (job.run, Arc::clone(&job.definition));
        let conclusion = outcome.conclusion;
        let steps = outcome.counts;
        self.edit_job(turn, id, |job| {
            job.status = JobStatus::Done { outcome };
            job.finished = turn.now;
            job.waits = false;
        });
        if definition.concurrency.is_some() {
            turn.steps.push_back(Step::Leave(Member::Job { job: id }));
        }
        let fails = conclusion == Conclusion::Failure && !definition.continue_on_error;
        self.edit_run(turn, run, |run| {
            run.counts.end(conclusion, definition.continue_on_error);
            run.needed_ended += u32::from(definition.needed);
            run.steps = run.steps.plus(steps);
        });
        if fails && definition.fail_fast {
            self.fail_matrix(turn, run, &definition.key);
        }
    }

    /// A leg failed: the other legs that fail fast have no point any more.
    fn fail_matrix(&mut self, turn: &mut Turn, run: RunId, key: &str) {
        let matrix = (run, key.to_owned());
        let row = self.matrices.get(&matrix).map(|row| Matrix::clone(row)).unwrap_or_default();
        self.matrices.set(&matrix, Some(Arc::new(Matrix { failed: true, ..row })));
        let first = (run, key.to_owned(), 0);
        let last = (run, key.to_owned(), u32::MAX);
        let legs: Vec<JobId> = self.index.legs.range(first..=last).map(|(_, job)| *job).collect();
        for leg in legs {
            if self.job(leg).is_some_and(|job| job.definition.fail_fast) {
                self.cancel_job(turn, leg, SIBLING_FAILED);
            }
        }
    }

    /// Ends a queued job; asks a leased one to end; leaves the others.
    pub(crate) fn cancel_job(&mut self, turn: &mut Turn, id: JobId, why: &str) {
        let Some(job) = self.job(id) else { return };
        match job.status {
            JobStatus::Queued => self.finish_job(turn, id, cancelled(why)),
            JobStatus::Leased { agent, incarnation, epoch, cancelling: false } => {
                let lease = job.lease();
                self.edit_job(turn, id, |job| {
                    job.status = JobStatus::Leased { agent, incarnation, epoch, cancelling: true };
                });
                let run = self.job(id).map(|job| job.run);
                if let (Some(lease), Some(run)) = (lease, run) {
                    self.edit_run(turn, run, |_| ());
                    turn.effects.push(Effect::Cancel { agent, incarnation, lease });
                }
            }
            JobStatus::Leased { cancelling: true, .. } | JobStatus::Done { .. } => {}
        }
    }
}

const SIBLING_FAILED: &str = "another leg of the matrix failed, and `fail-fast` is on";

pub(crate) fn cancelled(why: &str) -> Outcome {
    Outcome {
        conclusion: Conclusion::Cancelled,
        class: Some(FailureClass::Cancelled),
        result: None,
        counts: StepCounts::default(),
        message: why.to_owned(),
    }
}

/// The longest head of the text that has at most so many bytes.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
