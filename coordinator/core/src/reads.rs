//! What can be asked of a state. Nothing here is slower than the answer is long.

use std::sync::Arc;

use steading_model::limits::{FINISHED_RUNS_MAX, REQUEST_ID_TTL_MS};
use steading_model::{
    AgentId, Digest, JobId, Principal, ProjectName, RequestId, RunId, Timestamp, Work,
};

use crate::effect::Rejection;
use crate::proposal::Lease;
use crate::rows::{Agent, Artifact, Claim, Job, JobStatus, Run};
use crate::state::State;

impl State {
    /// Number of accepted proposals. Rows carry the version of their last change.
    pub fn version(&self) -> u64 {
        self.meta.version
    }

    /// Number of applied proposals, refused ones counted.
    pub fn applied(&self) -> u64 {
        self.meta.applied
    }

    /// Hash over every proposal, its outcome and its writes. Equal on equal replicas.
    pub fn chain(&self) -> [u8; 32] {
        self.meta.chain
    }

    /// The time of the last applied proposal.
    pub fn now(&self) -> Timestamp {
        self.meta.now
    }

    pub fn run(&self, run: RunId) -> Option<&Run> {
        self.runs.get(&run).map(Arc::as_ref)
    }

    /// Number of runs, finished ones counted.
    pub fn runs_len(&self) -> usize {
        self.runs.len()
    }

    /// Newest first.
    pub fn runs_newest_first(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().rev().map(|(_, run)| run.as_ref())
    }

    /// Newest first, from the newest that is older than `run`: for the next page.
    pub fn runs_older_than(&self, run: RunId) -> impl Iterator<Item = &Run> {
        self.runs.range(..run).rev().map(|(_, run)| run.as_ref())
    }

    /// Runs that have not ended, oldest first.
    pub fn open_runs(&self) -> impl Iterator<Item = &Run> {
        self.index.open.iter().filter_map(|run| self.run(*run))
    }

    /// Which run the request was answered with.
    ///
    /// # Errors
    ///
    /// [`Rejection::RequestBodyDiffers`] if it had another body. What the proposal
    /// would answer, for callers that want to save the work before it.
    pub fn answered(
        &self,
        now: Timestamp,
        request: (ProjectName, Principal, RequestId),
        body: &Digest,
    ) -> Result<Option<RunId>, Rejection> {
        match self.requests.get(&request) {
            Some(answered) if now.since_ms(answered.at) < REQUEST_ID_TTL_MS => {
                if answered.body == *body {
                    Ok(Some(answered.run))
                } else {
                    Err(Rejection::RequestBodyDiffers)
                }
            }
            Some(_) | None => Ok(None),
        }
    }

    pub fn job(&self, job: JobId) -> Option<&Job> {
        self.jobs.get(&job).map(Arc::as_ref)
    }

    /// The jobs of a run by id.
    pub fn jobs_of(&self, run: RunId) -> impl Iterator<Item = &Job> {
        self.job_ids(run).filter_map(|job| self.job(job))
    }

    /// The jobs of a run whose last change is of a later version, oldest change first.
    pub fn jobs_of_changed_since(&self, run: RunId, version: u64) -> impl Iterator<Item = &Job> {
        let last = (run, u64::MAX, JobId::from_counter(u64::MAX));
        let first = (run, version.saturating_add(1), JobId::default());
        // `version` of all ones has nothing after it, and would make the range empty
        // backwards.
        let range = (version < u64::MAX).then(|| self.index.jobs_by_version.range(first..=last));
        range.into_iter().flatten().filter_map(|(_, _, job)| self.job(*job))
    }

    /// The jobs of a run that have ended, by id.
    pub fn ended_jobs_of(&self, run: RunId) -> impl Iterator<Item = &Job> {
        self.jobs_of(run).filter(|job| job.outcome().is_some())
    }

    /// One leg of a key of a run.
    pub fn leg(&self, run: RunId, key: &str, leg: u32) -> Option<&Job> {
        self.index.legs.get(&(run, key.to_owned(), leg)).and_then(|job| self.job(*job))
    }

    /// Jobs that wait for an agent, those of unsealed runs not counted.
    pub fn queue_len(&self) -> usize {
        self.index.queue_len
    }

    /// Queued jobs in the order in which they are placed.
    pub fn queued(&self) -> Vec<&Job> {
        let mut places: Vec<_> = self.index.queue.values().flatten().collect();
        places.sort_unstable();
        places.into_iter().filter_map(|place| self.job(place.job)).collect()
    }

    pub fn agent(&self, agent: AgentId) -> Option<&Agent> {
        self.agents.get(&agent).map(Arc::as_ref)
    }

    pub fn agent_by_name(&self, name: &str) -> Option<&Agent> {
        self.index.agents_by_name.get(name).and_then(|agent| self.agent(*agent))
    }

    /// By name, from the first behind this one.
    pub fn agents_by_name_after(&self, name: &str) -> impl Iterator<Item = &Agent> {
        let after = (std::ops::Bound::Excluded(name.to_owned()), std::ops::Bound::Unbounded);
        self.index.agents_by_name.range(after).filter_map(|(_, agent)| self.agent(*agent))
    }

    /// By id.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents.iter().map(|(_, agent)| agent.as_ref())
    }

    /// The jobs that the agent holds leases of, by id.
    pub fn leases_of(&self, agent: AgentId) -> impl Iterator<Item = &Job> {
        let last = JobId::from_counter(u64::MAX);
        let range = self.index.leases.range((agent, JobId::default())..=(agent, last));
        range.filter_map(|(_, job)| self.job(*job))
    }

    /// Every leased job, by agent.
    pub fn leased(&self) -> impl Iterator<Item = &Job> {
        self.index.leases.iter().filter_map(|(_, job)| self.job(*job))
    }

    /// The current lease of this work.
    pub fn lease(&self, work: Work) -> Option<Lease> {
        self.job(work.job).and_then(Job::lease).filter(|lease| lease.work == work)
    }

    /// The job whose current lease this is: what fences a stale report.
    pub fn leased_job(&self, lease: Lease) -> Option<&Job> {
        self.job(lease.work.job).filter(|job| job.lease() == Some(lease))
    }

    /// Whether the lease is held and its job was asked to end.
    pub fn is_cancelling(&self, lease: Lease) -> bool {
        let job = self.leased_job(lease);
        job.is_some_and(|job| matches!(job.status, JobStatus::Leased { cancelling: true, .. }))
    }

    /// By name.
    pub fn artifacts_of(&self, run: RunId) -> impl Iterator<Item = (&str, &Artifact)> {
        let from = self.artifacts.range((run, String::new())..);
        from.take_while(move |((of, _), _)| *of == run)
            .map(|((_, name), row)| (name.as_str(), row.as_ref()))
    }

    pub fn claim(&self, scope: &ProjectName, action: &Digest) -> Option<&Claim> {
        self.claims.get(&(scope.clone(), *action)).map(Arc::as_ref)
    }

    /// Who waits for the claim, first come first.
    pub fn waiters(&self, scope: &ProjectName, action: &Digest) -> impl Iterator<Item = Lease> {
        let key = (scope.clone(), *action);
        let range = (key.clone(), 0)..=(key, u64::MAX);
        self.waiters.range(range).map(|(_, waiter)| waiter.lease)
    }

    /// Runs that [`crate::Proposal::RetireRuns`] may name now, `max` at most: finished
    /// ones beyond the last `keep`, oldest end first, and ones whose submitter
    /// was gone for so long before sealing them that it cannot come back.
    pub fn runs_to_retire(&self, keep: usize, max: usize) -> Vec<RunId> {
        let surplus = self.index.finished.len().saturating_sub(keep.min(FINISHED_RUNS_MAX));
        let finished = self.index.finished.iter().take(surplus).map(|(_, run)| *run);
        let abandoned = self.index.unsealed.iter().map(|(_, run)| *run);
        let abandoned = abandoned.take_while(|run| self.is_abandoned(self.now(), *run));
        finished.chain(abandoned).take(max).collect()
    }

    /// Whether the run was never sealed, and the request that would go on with it
    /// is forgotten.
    pub(crate) fn is_abandoned(&self, now: Timestamp, run: RunId) -> bool {
        self.run(run).is_some_and(|run| {
            !run.sealed && !run.has_ended() && now.since_ms(run.created) >= REQUEST_ID_TTL_MS
        })
    }

    pub(crate) fn job_ids(&self, run: RunId) -> impl Iterator<Item = JobId> {
        let last = JobId::from_counter(u64::MAX);
        self.index.jobs_by_run.range((run, JobId::default())..=(run, last)).map(|(_, job)| *job)
    }
}
