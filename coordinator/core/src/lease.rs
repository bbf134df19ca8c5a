//! Leases: granted, lost, given back, reported.

use std::sync::Arc;

use steading_model::limits::{ASSIGNMENTS_PER_PROPOSAL_MAX, INFRASTRUCTURE_RETRIES_MAX};
use steading_model::{AgentId, Conclusion, FailureClass, Incarnation, JobId, StepCounts, Work};

use crate::effect::{Effect, Rejection};
use crate::job::cancelled;
use crate::proposal::{Assignment, Lease, Outcome};
use crate::rows::{Job, JobStatus, Matrix};
use crate::run::at_most;
use crate::state::{State, Turn};

impl State {
    pub(crate) fn assign(
        &mut self,
        turn: &mut Turn,
        assignments: &[Assignment],
    ) -> Result<(), Rejection> {
        let max = ASSIGNMENTS_PER_PROPOSAL_MAX;
        at_most("number of assignments in a proposal", assignments.len(), max)?;
        for assignment in assignments {
            // The dispatcher chose on a version that may be stale by now. The choice is
            // checked here, where every replica gets the same answer.
            match self.check_assignment(assignment) {
                Ok(()) => self.grant(turn, assignment),
                Err(why) => turn.effects.push(Effect::NotAssigned {
                    job: assignment.job,
                    agent: assignment.agent,
                    why,
                }),
            }
        }
        Ok(())
    }

    fn check_assignment(&self, assignment: &Assignment) -> Result<(), Rejection> {
        let job = self.job(assignment.job).ok_or(Rejection::JobNotQueued)?;
        if !job.is_queued() {
            return Err(Rejection::JobNotQueued);
        }
        let run = self.run(job.run).ok_or(Rejection::RunUnknown)?;
        if !run.sealed {
            return Err(Rejection::RunNotSealed);
        }
        if run.waits || job.waits {
            return Err(Rejection::GroupTaken);
        }
        let agent = self.agent(assignment.agent).ok_or(Rejection::AgentUnknown)?;
        if agent.incarnation != assignment.incarnation {
            return Err(Rejection::IncarnationStale);
        }
        if agent.retired {
            return Err(Rejection::AgentRetired);
        }
        if !agent.takes_work() {
            return Err(Rejection::AgentCordoned);
        }
        let labels = &agent.definition.labels;
        if let Some(missing) = job.definition.labels.iter().find(|label| !labels.contains(label)) {
            return Err(Rejection::LabelMissing(missing.clone()));
        }
        let provisioning = agent.definition.provisioning;
        if job.definition.spot.is_some_and(|spot| !spot.admits(provisioning)) {
            return Err(Rejection::SpotPolicy);
        }
        if !job.definition.resources.fits(self.room(agent)) || self.free_slots(agent) == 0 {
            return Err(Rejection::AgentFull);
        }
        if self.is_at_max_parallel(job) {
            return Err(Rejection::MaxParallel);
        }
        Ok(())
    }

    /// Whether as many legs of the job's key are leased as may be.
    pub(crate) fn is_at_max_parallel(&self, job: &Job) -> bool {
        let max = job.definition.max_parallel;
        let leased = || {
            let matrix = self.matrices.get(&(job.run, job.definition.key.clone()));
            matrix.map_or(0, |matrix| matrix.leased)
        };
        max > 0 && leased() >= max
    }

    fn grant(&mut self, turn: &mut Turn, assignment: &Assignment) {
        let Assignment { job: id, agent, incarnation } = *assignment;
        // Counted, not drawn at random: never used again, so that a late report of an
        // old attempt cannot pass for a report of the new one.
        let epoch = if has_bug!(ReuseId) {
            let in_use = self.leased().filter_map(Job::lease).map(|lease| lease.epoch);
            in_use.max().unwrap_or_default().next()
        } else {
            self.meta.counters.epoch.next()
        };
        self.meta.counters.epoch = epoch;
        self.edit_job(turn, id, |job| {
            job.status = JobStatus::Leased { agent, incarnation, epoch, cancelling: false };
            job.attempts += 1;
            job.agent = Some(agent);
            job.started = turn.now;
        });
        self.count_leased(turn, id, true);
        if let Some(lease) = self.job(id).and_then(Job::lease) {
            turn.effects.push(Effect::Offer { agent, incarnation, lease });
        }
    }

    pub(crate) fn expire_leases(
        &mut self,
        turn: &mut Turn,
        leases: &[Lease],
    ) -> Result<(), Rejection> {
        let max = ASSIGNMENTS_PER_PROPOSAL_MAX;
        at_most("number of leases in a proposal", leases.len(), max)?;
        for &lease in leases {
            if self.leased_job(lease).is_some() {
                self.lose(turn, lease, "its agent fell silent for longer than its lease");
            }
        }
        Ok(())
    }

    /// Ends a lease that is held, by no doing of the job's.
    pub(crate) fn lose(&mut self, turn: &mut Turn, lease: Lease, why: &str) {
        let cancelling = self.is_cancelling(lease);
        let Some((agent, incarnation)) = self.end_lease(turn, lease) else { return };
        turn.effects.push(Effect::Revoke { agent, incarnation, lease });
        if cancelling {
            self.finish_job(turn, lease.work.job, cancelled(WAS_CANCELLED));
        } else {
            self.retry_or_finish(turn, lease.work, failure(FailureClass::AgentLost, why));
        }
    }

    /// Ends a lease that another group gave: not the job's doing, and not counted.
    pub(crate) fn end_with_its_group(&mut self, turn: &mut Turn, lease: Lease) {
        let cancelling = self.is_cancelling(lease);
        if self.end_lease(turn, lease).is_none() {
            return;
        }
        match cancelling {
            true => self.finish_job(turn, lease.work.job, cancelled(WAS_CANCELLED)),
            false => self.requeue(turn, lease.work.job),
        }
    }

    pub(crate) fn release_lease(
        &mut self,
        turn: &mut Turn,
        lease: Lease,
        class: FailureClass,
        started: bool,
    ) -> Result<(), Rejection> {
        let cancelling = self.is_cancelling(lease);
        self.end_lease(turn, lease).ok_or(Rejection::LeaseStale)?;
        let job = lease.work.job;
        match (started, class) {
            _ if cancelling => self.finish_job(turn, job, cancelled(WAS_CANCELLED)),
            // Nothing was tried, so nothing is counted.
            (false, class) if class.is_infrastructure() => self.requeue(turn, job),
            // This agent cannot do it, another may. Counted, so that a job that no agent
            // wants ends some day.
            (false, class) => {
                self.retry_or_finish(turn, lease.work, failure(class, "no agent could start it"));
            }
            (true, FailureClass::Cancelled) => {
                self.finish_job(turn, job, cancelled(WAS_CANCELLED));
            }
            (true, class) => {
                let outcome = failure(class, "its agent gave it back");
                if class.is_infrastructure() {
                    self.retry_or_finish(turn, lease.work, outcome);
                } else {
                    self.finish_job(turn, job, outcome);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn complete_attempt(
        &mut self,
        turn: &mut Turn,
        lease: Lease,
        outcome: Outcome,
    ) -> Result<(), Rejection> {
        let cancelling = self.is_cancelling(lease);
        self.end_lease(turn, lease).ok_or(Rejection::LeaseStale)?;
        let failed = outcome.conclusion == Conclusion::Failure;
        let farms_fault = failed && outcome.class.is_some_and(FailureClass::is_infrastructure);
        if !farms_fault {
            self.user_retry_or_finish(turn, lease.work, outcome, failed && !cancelling);
        } else if cancelling {
            let outcome = Outcome {
                conclusion: Conclusion::Cancelled,
                class: Some(FailureClass::Cancelled),
                ..outcome
            };
            self.finish_job(turn, lease.work.job, outcome);
        } else {
            self.retry_or_finish(turn, lease.work, outcome);
        }
        Ok(())
    }

    /// Frees what the lease holds, and tells who held it. The caller says at once
    /// what becomes of the job, which still looks leased.
    pub(crate) fn end_lease(
        &mut self,
        turn: &mut Turn,
        lease: Lease,
    ) -> Option<(AgentId, Incarnation)> {
        let job = match self.leased_job(lease) {
            None if has_bug!(SkipEpochCheck) => self.job(lease.work.job)?,
            job => job?,
        };
        let JobStatus::Leased { agent, incarnation, .. } = job.status else { return None };
        self.count_leased(turn, lease.work.job, false);
        self.leave_claims(turn, lease);
        turn.dispatch = true;
        let others = self.leases_of(agent).filter(|job| job.lease() != Some(lease));
        if others.count() == 0 {
            self.deny_removed(turn, agent);
        }
        Some((agent, incarnation))
    }

    fn count_leased(&mut self, turn: &Turn, id: JobId, more: bool) {
        let count = |leased: u32| if more { leased + 1 } else { leased.saturating_sub(1) };
        let Some(job) = self.job(id) else { return };
        let matrix = (job.run, job.definition.key.clone());
        let run = job.run;
        if let Some(row) = self.matrices.get(&matrix) {
            let row = Matrix { leased: count(row.leased), ..Matrix::clone(row) };
            self.matrices.set(&matrix, Some(Arc::new(row)));
        }
        self.edit_run(turn, run, |run| run.counts.leased = count(run.counts.leased));
    }

    /// After the end of a lease: another attempt as long as the farm may still try,
    /// else the end of the job.
    fn retry_or_finish(&mut self, turn: &mut Turn, work: Work, outcome: Outcome) {
        let Some(job) = self.job(work.job) else { return };
        if job.infrastructure_retries < INFRASTRUCTURE_RETRIES_MAX {
            let preempted = outcome.class == Some(FailureClass::Preempted);
            let pool = job.agent.filter(|_| preempted).and_then(|agent| self.agent(agent));
            let pool = pool.map(|agent| agent.definition.pool.clone());
            self.remember_attempt(turn, work.job, Some(&outcome));
            self.edit_job(turn, work.job, |job| {
                job.infrastructure_retries += 1;
                job.preemptions += u32::from(preempted);
                job.avoid_pool = pool.or(job.avoid_pool.take());
            });
            self.requeue(turn, work.job);
        } else {
            let message = format!("{} (attempt {}, the last one)", outcome.message, work.attempt);
            self.finish_job(turn, work.job, Outcome { message, ..outcome });
        }
    }

    /// After a report: another attempt if the job failed and its pipeline gives it one,
    /// else the end of the job.
    fn user_retry_or_finish(
        &mut self,
        turn: &mut Turn,
        work: Work,
        outcome: Outcome,
        failed: bool,
    ) {
        let Some(job) = self.job(work.job) else { return };
        let left = job.user_retries < job.definition.user_retries;
        if failed && left && outcome.class != Some(FailureClass::Config) {
            self.remember_attempt(turn, work.job, Some(&outcome));
            self.edit_job(turn, work.job, |job| job.user_retries += 1);
            self.requeue(turn, work.job);
        } else {
            self.finish_job(turn, work.job, outcome);
        }
    }

    pub(crate) fn requeue(&mut self, turn: &mut Turn, id: JobId) {
        self.edit_job(turn, id, |job| job.status = JobStatus::Queued);
        turn.dispatch = true;
    }
}

pub(crate) const WAS_CANCELLED: &str = "it was cancelled";

fn failure(class: FailureClass, why: &str) -> Outcome {
    Outcome {
        conclusion: Conclusion::Failure,
        class: Some(class),
        result: None,
        counts: StepCounts::default(),
        message: why.to_owned(),
    }
}
