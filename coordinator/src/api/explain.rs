//! `ExplainJob`, and the sentences that watches tell of jobs that wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use steading_core::{Explainer, Job, JobStatus, State};
use steading_model::{AgentId, Conclusion, Incarnation, JobId, RunId};
use steading_pipeline::Pipeline;
use steading_proto::v1;

use crate::leadership::Leadership;
use crate::sessions::Sessions;

/// Who is connected, as far as this replica can know.
#[derive(Clone, Debug)]
pub(crate) struct Waits {
    sessions: Arc<Sessions>,
    leadership: Leadership,
}

impl Waits {
    pub(crate) fn new(sessions: &Arc<Sessions>, leadership: &Leadership) -> Self {
        Self { sessions: Arc::clone(sessions), leadership: leadership.clone() }
    }

    /// The connected agents. Only the leader knows them; elsewhere all who are registered
    /// are taken to be.
    pub(super) fn connected(&self, state: &State) -> BTreeSet<(AgentId, Incarnation)> {
        if self.leadership.standing().leads {
            return self.sessions.connected();
        }
        state.agents().map(|agent| (agent.id, agent.incarnation)).collect()
    }

    /// The agents that declined what they were offered. Only the leader knows them.
    pub(super) fn declined(&self) -> BTreeMap<AgentId, String> {
        match self.leadership.standing().leads {
            true => self.sessions.declined(),
            false => BTreeMap::new(),
        }
    }

    /// Says of each job that waits for what may never come what that is.
    pub(super) fn fill(&self, state: &State, jobs: &mut [v1::Job]) {
        let (connected, declined) = (self.connected(state), self.declined());
        let mut explainer = Explainer::new(state, &connected).declined(&declined);
        for job in jobs.iter_mut().filter(|job| job.status() == v1::job::Status::Queued) {
            let row = state.job(JobId::from_counter(job.job_id));
            job.waiting = row.map_or_else(String::new, |row| worth_telling(&mut explainer, row));
        }
    }

    /// The sentences of the run's jobs that have one.
    pub(super) fn of_run(&self, state: &State, run: RunId) -> BTreeMap<JobId, String> {
        let (connected, declined) = (self.connected(state), self.declined());
        let mut explainer = Explainer::new(state, &connected).declined(&declined);
        let told = state.jobs_of(run).filter(|job| job.is_queued());
        let told = told.map(|job| (job.id, worth_telling(&mut explainer, job)));
        told.filter(|(_, sentence)| !sentence.is_empty()).collect()
    }
}

fn worth_telling(explainer: &mut Explainer<'_>, job: &Job) -> String {
    let wait = explainer.wait(job).filter(|wait| wait.is_worth_telling());
    wait.map_or_else(String::new, |wait| wait.to_string())
}

/// Explains the jobs of the run that `named` names, and those that are to be planned.
pub(super) fn explain(
    state: &State,
    (connected, declined): (&BTreeSet<(AgentId, Incarnation)>, &BTreeMap<AgentId, String>),
    run: RunId,
    pipeline: Option<&Pipeline>,
    named: &str,
) -> Vec<v1::JobExplanation> {
    let mut explainer = Explainer::new(state, connected).declined(declined);
    let wants = |key: &str, name: &str, id: Option<JobId>| {
        let is_id = id.is_some_and(|id| named == id.to_string() || named == counter(id));
        named.is_empty() || key.eq_ignore_ascii_case(named) || name == named || is_id
    };
    let jobs = state
        .jobs_of(run)
        .filter(|job| wants(&job.definition.key, &job.definition.name, Some(job.id)));
    let mut explained: Vec<_> = jobs.map(|job| of_job(state, &mut explainer, job)).collect();
    let goes_on = state.run(run).is_some_and(|run| !run.complete);
    let unplanned = pipeline.into_iter().flat_map(|pipeline| &pipeline.jobs).filter(|job| {
        goes_on && wants(&job.key, &job.key, None) && key_of(state, run, &job.key).is_none()
    });
    explained.extend(unplanned.map(|job| v1::JobExplanation {
        key: job.key.clone(),
        name: job.key.clone(),
        state: not_planned(state, run, job),
        ..Default::default()
    }));
    explained
}

fn counter(id: JobId) -> String {
    id.counter().to_string()
}

fn key_of<'a>(state: &'a State, run: RunId, key: &str) -> Option<&'a Job> {
    state.jobs_of(run).find(|job| job.definition.key == key)
}

fn not_planned(state: &State, run: RunId, job: &steading_pipeline::Job) -> String {
    let open = job.needs.iter().filter(|need| {
        let mut legs = state.jobs_of(run).filter(|job| job.definition.key == need.key).peekable();
        legs.peek().is_none() || legs.any(|leg| leg.outcome().is_none())
    });
    let open: Vec<&str> = open.map(|need| need.key.as_str()).collect();
    match open.as_slice() {
        [] => "it is about to be planned".to_owned(),
        open => format!("it is planned when what it needs has ended: {}", open.join(", ")),
    }
}

fn of_job(state: &State, explainer: &mut Explainer<'_>, job: &Job) -> v1::JobExplanation {
    let agent = job.agent.and_then(|agent| state.agent(agent));
    let agent = agent.map_or("an agent that is gone", |agent| agent.definition.name.as_str());
    let wait = explainer.explain(job);
    let sentence = match (&job.status, &wait) {
        (JobStatus::Queued, Some(wait)) => format!("it waits: {wait}"),
        (JobStatus::Queued, None) => "it waits".to_owned(),
        (JobStatus::Leased { cancelling: true, .. }, _) => {
            format!("attempt {} is being cancelled at {agent}", job.attempts)
        }
        (JobStatus::Leased { .. }, _) => format!("attempt {} runs at {agent}", job.attempts),
        (JobStatus::Done { outcome }, _) => {
            let class = outcome.class.filter(|_| outcome.conclusion != Conclusion::Success);
            let class = class.map_or_else(String::new, |class| format!(" ({class})"));
            let place = match job.attempts {
                0 => String::new(),
                attempts => format!(", attempt {attempts} at {agent}"),
            };
            let message = match outcome.message.as_str() {
                "" => String::new(),
                message => format!(": {message}"),
            };
            format!("{}{class}{place}{message}", outcome.conclusion)
        }
    };
    let cancel = state.run(job.run).and_then(|run| run.cancel.as_ref());
    let stale = state.stale_results(job.id);
    v1::JobExplanation {
        job_id: job.id.counter(),
        key: job.definition.key.clone(),
        name: job.definition.name.clone(),
        state: sentence,
        hopeless: wait.is_some_and(|wait| wait.is_hopeless()),
        attempts: attempts(state, job),
        stale_results: stale.map_or(0, |stale| stale.count),
        stale_attempt: stale.map_or(0, |stale| stale.attempt),
        stale_ms: stale.map_or(0, |stale| stale.at.as_ms()),
        cancel_reason: cancel.map_or_else(String::new, |cancel| cancel.reason.clone()),
    }
}

fn attempts(state: &State, job: &Job) -> Vec<v1::EndedAttempt> {
    let name = |agent: AgentId| state.agent(agent).map(|agent| agent.definition.name.clone());
    let attempts = state.earlier_attempts(job.id).map(|(number, row)| v1::EndedAttempt {
        attempt: u32::try_from(number).unwrap_or(u32::MAX),
        agent: row.agent.and_then(name).unwrap_or_default(),
        failure_class: row.class.map_or(v1::FailureClass::Unspecified, Into::into).into(),
        message: row.message.clone(),
        started_ms: row.started.as_ms(),
        ended_ms: row.ended.as_ms(),
    });
    attempts.collect()
}
