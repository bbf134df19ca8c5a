//! Clients: they submit, ask twice, cancel, and make mistakes.

use std::collections::BTreeMap;

use steading_core::{Effect, Proposal, Rejection, State};
use steading_model::{Conclusion, Digest, JobId, RunId};

use super::audit::ensure;
use super::calls::{Answered, Call, Purpose};
use super::dag;
use super::net::Peer;
use super::queue::{MS, S, Us};
use super::world::{Event, World};

/// Never.
const NO_END: Us = Us::MAX;

/// Somebody with pipelines.
#[derive(Debug, Default)]
pub(crate) struct Client {
    pub(crate) target: usize,
    pub(crate) calls: BTreeMap<u64, Call>,
    submitted: u64,
    runs: Vec<RunId>,
    seen: BTreeMap<RunId, Seen>,
}

/// What a client saw of a run, at whichever replica.
#[derive(Debug, Default)]
struct Seen {
    version: u64,
    /// How often it was tried again.
    retries: u32,
    conclusion: Option<Conclusion>,
    ended: BTreeMap<JobId, Conclusion>,
}

impl Client {
    /// Whether it waits for no answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }
}

impl Seen {
    /// Takes in what is newer than what was seen, as a watch does.
    fn look(&mut self, state: &State, id: RunId) -> Result<(), String> {
        let Some(run) = state.run(id).filter(|run| run.version > self.version) else {
            return Ok(());
        };
        if run.retries != self.retries {
            // All that was an end is none any more.
            *self = Self { retries: run.retries, ..Self::default() };
        }
        for job in state.jobs_of_changed_since(id, self.version) {
            let ended = job.outcome().map(|outcome| outcome.conclusion);
            let before = self.ended.get(&job.id).copied();
            ensure(before.is_none() || before == ended, || {
                format!("a watcher saw {} end with {before:?}, and then {ended:?}", job.id)
            })?;
            self.ended.extend(ended.map(|conclusion| (job.id, conclusion)));
        }
        let before = self.conclusion;
        ensure(before.is_none() || before == run.conclusion, || {
            format!("a watcher saw {id} end with {before:?}, and then {:?}", run.conclusion)
        })?;
        (self.version, self.conclusion) = (run.version, run.conclusion);
        Ok(())
    }
}

impl World {
    /// A client does the next thing.
    pub(crate) fn client(&mut self, client: usize) {
        if !self.stormy {
            return;
        }
        let next = 50 * MS + self.dice.below(2 * S);
        self.queue.push(self.now + next, Event::Client { client });
        self.watch(client);
        match self.dice.below(10) {
            0 | 1 => return self.cancel_some_run(client),
            2 | 3 => return self.retry_some_run(client),
            _ => (),
        }
        let open = self.audit.state.open_runs().count();
        if open < self.plan.open_runs_max && self.clients[client].calls.len() < 4 {
            self.submit(client);
        }
    }

    fn submit(&mut self, client: usize) {
        self.clients[client].submitted += 1;
        let id = format!("c{client}-{}", self.clients[client].submitted);
        let number = self.dice.below(u64::MAX >> 11);
        let run = dag::new_run(number, &id, self.dice.below(3) as i32);
        let mut planned = dag::first_plan(&run.submission);
        let good = !self.dice.chance(1, 12);
        if !good && let Some(job) = planned.jobs.first().cloned() {
            // The same leg twice: refused, after the run was half admitted.
            planned.jobs.push(job);
        }
        let sealed = !good || self.dice.chance(7, 8);
        let jobs = if sealed { planned.jobs } else { Vec::new() };
        let proposal = Proposal::AdmitRun { run, jobs, sealed, complete: planned.complete };
        let who = Peer::Client(client);
        let times = if self.dice.chance(1, 6) { 2 } else { 1 };
        for _ in 0..times {
            let purpose = Purpose::Submit { id: id.clone(), good };
            self.ask(who, purpose, proposal.clone(), NO_END);
            self.clients[client].target = self.dice.below(self.hosts.len() as u64) as usize;
        }
    }

    /// Looks at its runs at some replica, which may lag behind the one it looked at before.
    fn watch(&mut self, client: usize) {
        let replica = self.dice.below(self.hosts.len() as u64) as usize;
        let Some(member) = &self.hosts[replica].member else { return };
        let this = &mut self.clients[client];
        let mut looked = Ok(());
        for run in &this.runs {
            let seen = this.seen.entry(*run).or_default();
            looked = looked.and(seen.look(member.state(), *run));
        }
        this.seen.retain(|run, _| this.runs.contains(run));
        self.ensure(looked);
    }

    fn cancel_some_run(&mut self, client: usize) {
        let runs = &self.clients[client].runs;
        if runs.is_empty() {
            return;
        }
        let run = runs[self.dice.below(runs.len() as u64) as usize];
        self.number += 1;
        let body = Digest { hash: [2; 32], size: run.counter() };
        let request = dag::request(&format!("x{client}-{}", self.number), body);
        let proposal = Proposal::CancelRun { run, request, reason: "no more".into() };
        self.ask(Peer::Client(client), Purpose::Cancel, proposal, NO_END);
    }

    /// As a leader would that was asked to: it knows the pipeline, and what became of it.
    fn retry_some_run(&mut self, client: usize) {
        let runs = &self.clients[client].runs;
        let ended = |run: &&RunId| {
            let row = self.audit.state.run(**run);
            row.is_some_and(|row| row.conclusion.is_some_and(|it| it != Conclusion::Success))
        };
        let Some(run) = runs.iter().find(ended).copied() else { return };
        let Some(row) = self.audit.state.run(run) else { return };
        let (revision, again) = (row.revision, dag::keys_to_plan_again(&self.audit.state, row));
        let body = Digest { hash: [3; 32], size: run.counter() };
        let request = dag::request(&format!("r{}-{}", run.counter(), row.retries), body);
        let proposal = Proposal::RetryRun { run, request, revision, again };
        let times = if self.dice.chance(1, 4) { 2 } else { 1 };
        for _ in 0..times {
            self.ask(Peer::Client(client), Purpose::Retry, proposal.clone(), NO_END);
        }
    }

    pub(crate) fn client_answered(&mut self, client: usize, call: Call, answer: Answered) {
        match (call.purpose, answer) {
            (Purpose::Submit { id, good }, Ok(effects)) => {
                let admitted = effects.iter().find_map(|effect| match effect {
                    Effect::Admitted { run, .. } => Some(*run),
                    _ => None,
                });
                let Some(run) = admitted else {
                    return self.ensure(Err(format!("`{id}` was accepted without an answer")));
                };
                if !good {
                    return self.ensure(Err(format!("`{id}` is wrong and was accepted")));
                }
                let acknowledged = self.audit.acknowledge(&id, run);
                self.ensure(acknowledged);
                self.admitted(client, id, run, &call.proposal);
            }
            (Purpose::Submit { id, good: true }, Err(rejection)) => {
                self.ensure(Err(format!("`{id}` was refused: {rejection}")));
            }
            (Purpose::Retry, Err(rejection)) => {
                let fine = matches!(
                    rejection,
                    // Somebody else retried it, or it was forgotten.
                    Rejection::RunGoesOn
                        | Rejection::PlanRevision { .. }
                        | Rejection::NothingToRetry
                        | Rejection::RunUnknown
                );
                if !fine {
                    self.ensure(Err(format!("a retry was refused: {rejection}")));
                }
            }
            (Purpose::Append { id }, Err(rejection)) => {
                let fine = matches!(
                    rejection,
                    Rejection::RunSealed | Rejection::RunEnded | Rejection::RunUnknown
                );
                if !fine {
                    self.ensure(Err(format!("the jobs of `{id}` were refused: {rejection}")));
                }
            }
            _ => (),
        }
    }

    fn admitted(&mut self, client: usize, id: String, run: RunId, proposal: &Proposal) {
        let runs = &mut self.clients[client].runs;
        if !runs.contains(&run) {
            runs.push(run);
            if runs.len() > 8 {
                runs.remove(0);
            }
        }
        if let Proposal::AdmitRun { run: new, sealed: false, .. } = proposal {
            let jobs = dag::first_plan(&new.submission).jobs;
            let append = Proposal::AppendJobs { run, offset: 0, jobs, sealed: true };
            self.ask(Peer::Client(client), Purpose::Append { id }, append, NO_END);
        }
    }
}
