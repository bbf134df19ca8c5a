//! What is remembered of attempts that were not the last, and of results that came too
//! late to count.

use std::sync::Arc;

use steading_model::codec::record;
use steading_model::{AgentId, Conclusion, Epoch, FailureClass, JobId, Timestamp};

use crate::effect::Rejection;
use crate::job::cut;
use crate::limits::ATTEMPTS_KEPT_MAX;
use crate::proposal::{Lease, Outcome};
use crate::state::{State, Turn};
use crate::table::Row;

/// Longest line that says how an attempt ended, bytes; the rest is cut.
const MESSAGE_BYTES_MAX: usize = 120;

/// An attempt after which there was another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedAttempt {
    pub agent: Option<AgentId>,
    /// `None` where nothing was tried: the lease came back before it was started.
    pub class: Option<FailureClass>,
    pub message: String,
    pub started: Timestamp,
    pub ended: Timestamp,
}

record! { EndedAttempt { agent, class, message, started, ended } }

impl Row for EndedAttempt {
    /// Job and number of the attempt.
    type Key = (JobId, u64);
    const TABLE: u8 = 14;
}

/// Results of a job that were refused, because the lease was no longer the reporter's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleResults {
    pub count: u32,
    /// Of the last one.
    pub attempt: u32,
    pub epoch: Epoch,
    pub conclusion: Conclusion,
    pub at: Timestamp,
}

record! { StaleResults { count, attempt, epoch, conclusion, at } }

impl Row for StaleResults {
    type Key = JobId;
    const TABLE: u8 = 15;
}

impl State {
    /// The attempts of the job that were followed by another, oldest first; of many the
    /// last [`steading_model::limits::ATTEMPTS_KEPT_MAX`].
    pub fn earlier_attempts(&self, job: JobId) -> impl Iterator<Item = (u64, &EndedAttempt)> {
        let range = self.attempts.range((job, 0)..=(job, u64::MAX));
        range.map(|((_, attempt), row)| (*attempt, row.as_ref()))
    }

    /// Results of the job that came too late.
    pub fn stale_results(&self, job: JobId) -> Option<&StaleResults> {
        self.stale.get(&job).map(Arc::as_ref)
    }

    /// Keeps what becomes of the job's current attempt, which is to be followed by another.
    pub(crate) fn remember_attempt(&mut self, turn: &Turn, id: JobId, outcome: Option<&Outcome>) {
        let Some(job) = self.job(id) else { return };
        let number = u64::from(job.attempts);
        let row = EndedAttempt {
            agent: job.agent,
            class: outcome.and_then(|outcome| outcome.class),
            message: outcome.map_or_else(String::new, |o| cut(&o.message, MESSAGE_BYTES_MAX)),
            started: job.started,
            ended: turn.now,
        };
        self.attempts.set(&(id, number), Some(Arc::new(row)));
        if let Some(oldest) = number.checked_sub(ATTEMPTS_KEPT_MAX) {
            let oldest = (id, oldest);
            if self.attempts.get(&oldest).is_some() {
                self.attempts.set(&oldest, None);
            }
        }
    }

    /// Notes that a result was refused. One that was taken and is only told again is none.
    pub(crate) fn record_stale(
        &mut self,
        turn: &Turn,
        lease: Lease,
        outcome: &Outcome,
    ) -> Result<(), Rejection> {
        let id = lease.work.job;
        let job = self.job(id).ok_or(Rejection::JobUnknown)?;
        let never = lease.work.attempt > job.attempts || lease.epoch > self.meta.counters.epoch;
        let taken = job.outcome().is_some_and(|taken| {
            lease.work.attempt == job.attempts
                && taken.conclusion == outcome.conclusion
                && taken.result == outcome.result
        });
        if never || taken || job.lease() == Some(lease) {
            return Err(Rejection::NotStale);
        }
        let count = self.stale_results(id).map_or(0, |stale| stale.count);
        let row = StaleResults {
            count: count.saturating_add(1),
            attempt: lease.work.attempt,
            epoch: lease.epoch,
            conclusion: outcome.conclusion,
            at: turn.now,
        };
        self.stale.set(&id, Some(Arc::new(row)));
        Ok(())
    }

    /// Forgets the job with all that is remembered of it.
    pub(crate) fn forget_job(&mut self, turn: &Turn, id: JobId) {
        self.set_job(turn, id, None);
        let attempts: Vec<u64> = self.earlier_attempts(id).map(|(number, _)| number).collect();
        for number in attempts {
            self.attempts.set(&(id, number), None);
        }
        if self.stale.get(&id).is_some() {
            self.stale.set(&id, None);
        }
    }
}
