//! Runs: admitted, extended, cancelled, ended, forgotten.

use std::sync::Arc;

use steading_model::codec::Encode;
use steading_model::limits::{
    CANCEL_REASON_BYTES_MAX, JOBS_MAX, JOBS_PER_PROPOSAL_MAX, JOBS_PER_RUN_MAX, REQUEST_ID_TTL_MS,
    RUN_DEFINITION_BYTES_MAX, RUNS_MAX, RUNS_PER_RETIREMENT_MAX,
};
use steading_model::{Conclusion, JobId, Principal, RunId, StepCounts, Timestamp};

use crate::effect::{Effect, Rejection};
use crate::group::{Member, Step};
use crate::job::cut;
use crate::limits::{REQUEST_IDS_MAX, REQUESTS_FORGOTTEN_MAX};
use crate::proposal::{NewJob, NewRun, Request};
use crate::rows::{Answered, Cancel, JobCounts, Run};
use crate::state::{State, Turn};

impl State {
    pub(crate) fn admit_run(
        &mut self,
        turn: &mut Turn,
        run: NewRun,
        jobs: Vec<NewJob>,
        sealed: bool,
        complete: bool,
    ) -> Result<(), Rejection> {
        if let Some(run) = self.repeated(turn.now, &run.request)? {
            turn.effects.push(Effect::Admitted { run, repeated: true });
            return Ok(());
        }
        at_most("size of the run's definition", run.to_bytes().len(), RUN_DEFINITION_BYTES_MAX)?;
        at_most("number of runs in the farm", self.runs.len() + 1, RUNS_MAX)?;
        let id = self.meta.counters.run.next();
        self.meta.counters.run = id;
        self.remember(turn.now, &run.request, id)?;
        turn.effects.push(Effect::Admitted { run: id, repeated: false });
        let waits = run.concurrency.is_some();
        let row = Run {
            id,
            definition: Arc::new(run),
            sealed: false,
            complete,
            revision: 0,
            needed_planned: 0,
            needed_ended: 0,
            cancel: None,
            counts: JobCounts::default(),
            steps: StepCounts::default(),
            artifacts: 0,
            conclusion: None,
            created: turn.now,
            finished: Timestamp::default(),
            version: turn.version,
            stalled: false,
            waits,
            replan: false,
            retries: 0,
        };
        self.set_run(turn, id, Some(row));
        self.add_jobs(turn, id, jobs)?;
        if sealed {
            self.seal(turn, id);
        }
        Ok(())
    }

    pub(crate) fn append_jobs(
        &mut self,
        turn: &mut Turn,
        id: RunId,
        offset: u32,
        jobs: Vec<NewJob>,
        sealed: bool,
    ) -> Result<(), Rejection> {
        let run = self.open_run(id)?;
        if run.sealed {
            return Err(Rejection::RunSealed);
        }
        if offset != run.counts.total {
            return Err(Rejection::ChunkOffset { given: offset, admitted: run.counts.total });
        }
        self.add_jobs(turn, id, jobs)?;
        if sealed {
            self.seal(turn, id);
        }
        Ok(())
    }

    pub(crate) fn extend_run(
        &mut self,
        turn: &mut Turn,
        id: RunId,
        revision: u32,
        seen: u32,
        jobs: Vec<NewJob>,
        complete: bool,
    ) -> Result<(), Rejection> {
        let run = self.open_run(id)?;
        if !run.sealed {
            return Err(Rejection::RunNotSealed);
        }
        if revision != run.revision && !has_bug!(PlanTwice) {
            return Err(Rejection::PlanRevision { given: revision, current: run.revision });
        }
        if run.complete {
            return Err(Rejection::PlanComplete);
        }
        at_most("number of ended jobs seen", seen as usize, run.needed_ended as usize)?;
        self.edit_run(turn, id, |run| {
            run.revision += 1;
            run.needed_planned = run.needed_planned.max(seen);
            run.complete = complete;
            // A plan in chunks may end after any of them; an empty one was the whole.
            run.replan &= !complete && !jobs.is_empty();
            run.stalled = jobs.is_empty() && run.counts.unfinished() == 0;
        });
        self.add_jobs(turn, id, jobs)
    }

    pub(crate) fn cancel_run(
        &mut self,
        turn: &mut Turn,
        id: RunId,
        request: &Request,
        reason: &str,
    ) -> Result<(), Rejection> {
        if self.repeated(turn.now, request)?.is_some() {
            return Ok(());
        }
        let run = self.open_run(id)?;
        let first = run.cancel.is_none();
        self.remember(turn.now, request, id)?;
        if first {
            let principal = Some(request.principal.clone());
            self.cancel_open_run(turn, id, principal, reason);
        }
        Ok(())
    }

    /// Cancels a run that goes on and was not cancelled. `principal` is `None` where the
    /// farm does it by itself.
    pub(crate) fn cancel_open_run(
        &mut self,
        turn: &mut Turn,
        id: RunId,
        principal: Option<Principal>,
        reason: &str,
    ) {
        let Some(run) = self.run(id) else { return };
        let (started, sealed) = (run.is_started(), run.sealed);
        let by_farm = principal.is_none();
        let cancel = Cancel {
            principal: principal.unwrap_or_else(|| run.definition.request.principal.clone()),
            reason: cut(reason, CANCEL_REASON_BYTES_MAX),
            at: turn.now,
            by_farm,
        };
        self.edit_run(turn, id, |run| {
            run.cancel = Some(cancel);
            // A plan that is being made does not know of the cancel yet, and would
            // start jobs as if nothing had happened.
            run.revision += 1;
            // Of a run that is not sealed, or waits, nothing has started, so nothing is
            // left to clean up: it ends here, whatever its submitter still wanted to add.
            run.complete |= !started;
        });
        let why = if by_farm { reason } else { "the run was cancelled" };
        let jobs: Vec<JobId> = self.job_ids(id).collect();
        for job in jobs {
            self.cancel_job(turn, job, why);
        }
        if !sealed {
            self.seal(turn, id);
        }
    }

    pub(crate) fn retire_runs(&mut self, turn: &mut Turn, runs: &[RunId]) -> Result<(), Rejection> {
        at_most("number of runs to retire", runs.len(), RUNS_PER_RETIREMENT_MAX)?;
        for &id in runs {
            // Two leaders may have chosen the same ones; and what goes on is not forgotten.
            let ended = self.run(id).is_some_and(Run::has_ended);
            if ended || self.is_abandoned(turn.now, id) {
                self.forget_run(turn, id);
            }
        }
        Ok(())
    }

    fn forget_run(&mut self, turn: &Turn, id: RunId) {
        let jobs: Vec<JobId> = self.job_ids(id).collect();
        for job in jobs {
            self.forget_job(turn, job);
        }
        let of_run = |key: &(RunId, String)| (key.0 == id).then(|| key.clone());
        let from = (id, String::new());
        let matrices = self.matrices.range(from.clone()..);
        let matrices: Vec<_> = matrices.map_while(|(key, _)| of_run(key)).collect();
        for key in matrices {
            self.matrices.set(&key, None);
        }
        let artifacts = self.artifacts.range(from..);
        let artifacts: Vec<_> = artifacts.map_while(|(key, _)| of_run(key)).collect();
        for key in artifacts {
            self.artifacts.set(&key, None);
        }
        self.set_run(turn, id, None);
    }

    /// Lets the jobs of a run start.
    fn seal(&mut self, turn: &mut Turn, id: RunId) {
        self.edit_run(turn, id, |run| run.sealed = true);
        self.start_run(turn, id);
        turn.dispatch = true;
    }

    fn add_jobs(&mut self, turn: &mut Turn, id: RunId, jobs: Vec<NewJob>) -> Result<(), Rejection> {
        at_most("number of jobs in a proposal", jobs.len(), JOBS_PER_PROPOSAL_MAX)?;
        at_most("number of jobs in the farm", self.jobs.len() + jobs.len(), JOBS_MAX)?;
        let total = self.run(id).map_or(0, |run| run.counts.total as usize);
        at_most("number of jobs in the run", total + jobs.len(), JOBS_PER_RUN_MAX)?;
        for job in jobs {
            self.add_job(turn, id, job)?;
        }
        Ok(())
    }

    /// Ends the run when nothing is left. Called for every run that an accepted proposal
    /// wrote.
    pub(crate) fn end_if_over(&mut self, turn: &mut Turn, id: RunId) {
        let Some(run) = self.run(id) else { return };
        let goes_on = run.has_ended() || !run.sealed || run.is_plan_due();
        if goes_on || run.counts.unfinished() > 0 {
            return;
        }
        // A stalled run has not done what it was asked to, and no plan will make that
        // good. It must not wait for ever.
        let stuck = !run.complete;
        let conclusion = match run.counts {
            counts if counts.failing > 0 || stuck => Conclusion::Failure,
            _ if run.cancel.is_some() => Conclusion::Cancelled,
            counts if counts.cancelled > 0 => Conclusion::Cancelled,
            _ => Conclusion::Success,
        };
        self.edit_run(turn, id, |run| {
            run.conclusion = Some(conclusion);
            run.finished = turn.now;
            run.complete = true;
        });
        turn.steps.push_back(Step::Leave(Member::Run { run: id }));
    }

    /// Tells of a change of the run, and asks for its next plan. Called once for every
    /// run that an accepted proposal wrote, when all is written.
    pub(crate) fn tell_of_run(&self, turn: &mut Turn, id: RunId) {
        let Some(run) = self.run(id) else { return };
        let before = self.runs.before(&id);
        turn.effects.push(Effect::RunChanged { run: id });
        if run.is_plan_due() {
            let asked = before.is_some_and(|old| old.is_plan_due() && old.revision == run.revision);
            if !asked {
                turn.effects.push(Effect::PlanRun { run: id, revision: run.revision });
            }
        } else if run.has_ended() && !before.is_some_and(|old| old.has_ended()) {
            turn.effects.push(Effect::RunFinished { run: id });
        }
    }

    fn open_run(&self, id: RunId) -> Result<&Run, Rejection> {
        match self.run(id) {
            None => Err(Rejection::RunUnknown),
            Some(run) if run.has_ended() => Err(Rejection::RunEnded),
            Some(run) => Ok(run),
        }
    }

    /// What the request was answered with, if it came before.
    pub(crate) fn repeated(
        &self,
        now: Timestamp,
        request: &Request,
    ) -> Result<Option<RunId>, Rejection> {
        let key = (request.project.clone(), request.principal.clone(), request.id.clone());
        self.answered(now, key, &request.body)
    }

    pub(crate) fn remember(
        &mut self,
        now: Timestamp,
        request: &Request,
        run: RunId,
    ) -> Result<(), Rejection> {
        // A few each time, so that no proposal pays for all that ended in a quiet night.
        let oldest = self.index.requests_by_age.iter().take(REQUESTS_FORGOTTEN_MAX);
        let expired = oldest.take_while(|(at, _)| now.since_ms(*at) >= REQUEST_ID_TTL_MS);
        let expired: Vec<_> = expired.map(|(_, key)| key.clone()).collect();
        for key in expired {
            self.set_request(&key, None);
        }
        let key = (request.project.clone(), request.principal.clone(), request.id.clone());
        if self.requests.get(&key).is_none() && self.requests.len() >= REQUEST_IDS_MAX {
            return Err(Rejection::RequestIdsFull);
        }
        self.set_request(&key, Some(Answered { body: request.body, run, at: now }));
        Ok(())
    }
}

pub(crate) fn at_most(what: &'static str, given: usize, max: usize) -> Result<(), Rejection> {
    if given <= max {
        return Ok(());
    }
    Err(Rejection::Limit { what, given: given as u64, max: max as u64 })
}
