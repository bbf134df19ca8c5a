//! What must hold, checked on every wave that any replica applies: one state of the
//! auditor's own goes through the one history that there may be.

use std::collections::{BTreeMap, BTreeSet};

use steading_core::{Effect, Job, JobStatus, Lease, Member, Proposal, Rejection, State};
use steading_model::{AgentId, Conclusion, Incarnation, JobId, RunId, Timestamp, Work};

use super::tally::{Seen, Tally};

/// The row of counters, which a rejection changes too.
const META_KEY: &[u8] = &[0];

/// The history, and what was promised to those outside.
#[derive(Debug)]
pub(crate) struct Audit {
    pub(crate) state: State,
    /// Index of the last entry that any replica applied.
    pub(crate) last: u64,
    /// By index: the state behind it. Its versions share what did not change.
    states: BTreeMap<u64, State>,
    /// What clients were told: their request id made this run.
    admitted: BTreeMap<String, RunId>,
    acknowledged: BTreeMap<String, (RunId, u64)>,
    /// Successes whose report was acknowledged: the job's run, where it was not forgotten by
    /// then, and the last entry that anybody had applied.
    reported: BTreeMap<JobId, (Option<RunId>, u64)>,
    completed: BTreeSet<Work>,
    succeeded: BTreeSet<JobId>,
    planned: BTreeSet<(RunId, u32)>,
    legs: BTreeSet<(RunId, String, u32)>,
    incarnations: BTreeMap<String, Incarnation>,
    /// Every epoch that was granted, and the last before the present proposal.
    epochs: BTreeSet<u64>,
    epoch: u64,
    /// Runs that were forgotten because there were enough of them.
    retired: BTreeSet<RunId>,
    run: u64,
    job: u64,
    pub(crate) tally: Tally,
}

impl Audit {
    pub(crate) fn new(genesis: State) -> Self {
        Self {
            states: BTreeMap::from([(0, genesis.clone())]),
            state: genesis,
            last: 0,
            admitted: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            reported: BTreeMap::new(),
            completed: BTreeSet::new(),
            succeeded: BTreeSet::new(),
            planned: BTreeSet::new(),
            legs: BTreeSet::new(),
            incarnations: BTreeMap::new(),
            epochs: BTreeSet::new(),
            epoch: 0,
            retired: BTreeSet::new(),
            run: 0,
            job: 0,
            tally: Tally::default(),
        }
    }

    /// A replica applied this wave. The first one to do so writes history.
    pub(crate) fn wave(
        &mut self,
        index: u64,
        now: Timestamp,
        proposals: Vec<Proposal>,
    ) -> Result<(), String> {
        if index <= self.last {
            return Ok(());
        }
        self.last = index;
        for proposal in proposals {
            self.proposal(now, proposal)?;
        }
        drop(self.state.take_writes());
        self.states.insert(index, self.state.clone());
        Ok(())
    }

    /// A replica stands at `index` with this chain.
    pub(crate) fn compare(&mut self, index: u64, chain: [u8; 32]) -> Result<(), String> {
        self.last = self.last.max(index);
        // An empty directory knows nothing yet.
        if index == 0 || self.at(index).chain() == chain {
            return Ok(());
        }
        Err(format!("a replica has another history up to entry {index} than was applied before"))
    }

    /// A replica that started, or went over to a snapshot, stands at `index` with this state.
    pub(crate) fn same(&self, index: u64, state: &State) -> Result<(), String> {
        ensure(index == 0 || self.at(index) == state, || {
            format!("a replica has the history up to entry {index}, but not its state")
        })
    }

    fn at(&self, index: u64) -> &State {
        self.states.range(..=index).next_back().map_or(&self.state, |(_, state)| state)
    }

    fn proposal(&mut self, now: Timestamp, proposal: Proposal) -> Result<(), String> {
        let before = self.state.clone();
        self.epoch = self.epochs.last().copied().unwrap_or(0);
        let outcome = self.state.apply(now, proposal.clone());
        ensure(self.state.now() >= before.now(), || "log time went back".into())?;
        match outcome {
            Err(rejection) => self.refused(&before, &proposal, &rejection),
            Ok(effects) => self
                .accepted(&before, &proposal, &effects)
                .map_err(|error| format!("{error}, by {proposal:?}")),
        }
    }

    fn refused(
        &mut self,
        before: &State,
        proposal: &Proposal,
        rejection: &Rejection,
    ) -> Result<(), String> {
        self.tally.saw(Seen::Refused);
        if matches!(proposal, Proposal::CompleteAttempt { .. }) {
            self.tally.saw(Seen::StaleReports);
        }
        let rows = |state: &State| state.rows().filter(|(key, _)| key != META_KEY).collect();
        let (was, is): (Vec<_>, Vec<_>) = (rows(before), rows(&self.state));
        ensure(was == is && before.version() == self.state.version(), || {
            format!("`{rejection}` was the answer, and yet something changed, by {proposal:?}")
        })
    }

    fn accepted(
        &mut self,
        before: &State,
        proposal: &Proposal,
        effects: &[Effect],
    ) -> Result<(), String> {
        self.tally.saw(Seen::Accepted);
        ensure(self.state.version() == before.version() + 1, || "versions do not count".into())?;
        let held = |lease: &Lease| {
            ensure(before.leased_job(*lease).is_some(), || {
                format!("{}, {} is not held and was heard", lease.work, lease.epoch)
            })
        };
        match proposal {
            Proposal::AdmitRun { run, .. } => {
                self.admit(run.request.id.as_str(), effects)?;
            }
            Proposal::ExtendRun { run, revision, .. } => {
                self.tally.saw(Seen::Replans);
                let current = before.run(*run).map(|run| run.revision);
                ensure(current == Some(*revision), || {
                    format!("{run} is at {current:?} and was planned at {revision}")
                })?;
                let first = self.planned.insert((*run, *revision));
                ensure(first, || format!("{run} was planned twice at {revision}"))?;
            }
            Proposal::CompleteAttempt { lease, .. } => {
                self.tally.saw(Seen::Completed);
                held(lease)?;
                let first = self.completed.insert(lease.work);
                ensure(first, || format!("{} was completed twice", lease.work))?;
            }
            Proposal::ReleaseLease { lease, .. }
            | Proposal::ClaimAction { lease, .. }
            | Proposal::RecordArtifact { lease, .. }
            | Proposal::ResolveClaim { lease, .. } => held(lease)?,
            Proposal::HandBack { agent, incarnation, leases, .. } => {
                for lease in leases {
                    self.handed_back(before, (*agent, *incarnation), *lease)?;
                }
            }
            Proposal::RegisterAgent { .. } => {
                self.tally.saw(Seen::Registered);
                self.register(effects)?;
            }
            Proposal::ExpireLeases { leases } => {
                let live = leases.iter().filter(|lease| before.leased_job(**lease).is_some());
                self.tally.saw_many(Seen::Expired, live.count() as u64);
            }
            Proposal::CancelRun { .. } => self.tally.saw(Seen::Cancels),
            Proposal::RetryRun { run, again, .. } => self.retried(before, *run, again)?,
            Proposal::RetireRuns { runs } => {
                let gone = runs.iter().filter(|run| self.state.run(**run).is_none());
                let before = self.retired.len();
                self.retired.extend(gone);
                self.tally.saw_many(Seen::Retired, (self.retired.len() - before) as u64);
            }
            _ => (),
        }
        for effect in effects {
            if let Effect::RunChanged { run } = effect {
                self.run_changed(before, *run)?;
            }
        }
        Ok(())
    }

    fn admit(&mut self, id: &str, effects: &[Effect]) -> Result<(), String> {
        for effect in effects {
            let Effect::Admitted { run, repeated } = effect else { continue };
            if *repeated {
                let known = self.admitted.get(id);
                ensure(known == Some(run), || format!("`{id}` made {known:?}, and now {run}"))?;
            } else {
                self.tally.saw(Seen::Runs);
                ensure(run.counter() > self.run, || format!("{run} was there already"))?;
                self.run = run.counter();
                let first = self.admitted.insert(id.to_owned(), *run).is_none();
                ensure(first, || format!("`{id}` had two effects"))?;
            }
        }
        Ok(())
    }

    /// Whoever gives back what it has not started takes nothing away from the job, and can
    /// give back only what it holds.
    fn handed_back(
        &mut self,
        before: &State,
        holder: (AgentId, Incarnation),
        lease: Lease,
    ) -> Result<(), String> {
        let Some(was) = before.leased_job(lease) else { return Ok(()) };
        let id = was.id;
        let is = self.state.job(id).ok_or_else(|| format!("{id} was handed back and is gone"))?;
        let held = matches!(was.status, JobStatus::Leased { agent, incarnation, .. }
            if (agent, incarnation) == holder);
        if !held {
            return ensure(is == was, || {
                format!("{id} was handed back by another than its holder")
            });
        }
        self.tally.saw(Seen::HandedBack);
        let retries = |job: &Job| (job.user_retries, job.infrastructure_retries);
        ensure(retries(is) == retries(was), || format!("the way back of {id} was counted"))?;
        let cancelled =
            is.outcome().is_some_and(|outcome| outcome.conclusion == Conclusion::Cancelled);
        let right = if before.is_cancelling(lease) { cancelled } else { is.is_queued() };
        ensure(right, || format!("{id} was handed back, and is {:?}", is.status))
    }

    fn register(&mut self, effects: &[Effect]) -> Result<(), String> {
        for effect in effects {
            let Effect::Registered { agent, incarnation } = effect else { continue };
            let row = self.state.agent(*agent).ok_or("an agent registered and is not there")?;
            let name = row.definition.name.clone();
            let before = self.incarnations.insert(name, *incarnation);
            ensure(before.is_none_or(|before| before <= *incarnation), || {
                format!("{agent} is of {incarnation} after {before:?}")
            })?;
        }
        Ok(())
    }

    /// Every job of the run that was written.
    fn run_changed(&mut self, before: &State, run: RunId) -> Result<(), String> {
        let retries = |state: &State| state.run(run).map(|row| row.retries);
        let goes_on = retries(before) < retries(&self.state) && retries(before).is_some();
        let changed: Vec<Job> =
            self.state.jobs_of_changed_since(run, before.version()).cloned().collect();
        for job in changed {
            let was = before.job(job.id);
            let outcome = was.and_then(Job::outcome);
            if goes_on && outcome.is_some() && outcome != job.outcome() {
                self.tried_again(before, &job)?;
            } else {
                self.job_changed(was, &job)?;
            }
        }
        let ended = before.run(run).and_then(|run| run.conclusion);
        let now = self.state.run(run).and_then(|run| run.conclusion);
        let may = ended.is_none() || self.state.run(run).is_none() || ended == now || goes_on;
        ensure(may, || format!("{run} had ended, and goes on"))
    }

    /// An ended run goes on. What is planned anew is forgotten, whatever became of it.
    fn retried(&mut self, before: &State, run: RunId, again: &[String]) -> Result<(), String> {
        let gone: Vec<&Job> =
            before.jobs_of(run).filter(|job| self.state.job(job.id).is_none()).collect();
        if before.run(run).map(|run| run.retries) != self.state.run(run).map(|run| run.retries) {
            self.tally.saw(Seen::Retried);
        }
        for job in gone {
            let outcome = job.outcome().map(|outcome| outcome.conclusion);
            let failed = matches!(outcome, Some(Conclusion::Failure | Conclusion::Cancelled));
            let anew = again.contains(&job.definition.key);
            ensure(anew || (failed && job.definition.spec.size == 0), || {
                format!("{} had ended with {outcome:?}, and is forgotten", job.id)
            })?;
            self.legs.remove(&(run, job.definition.key.clone(), job.definition.leg));
            self.reported.remove(&job.id);
        }
        Ok(())
    }

    /// A job of a run that goes on: it had failed, or was cancelled, and waits for its turn; or
    /// makes room in its group for another.
    fn tried_again(&self, before: &State, job: &Job) -> Result<(), String> {
        let was = before.job(job.id).and_then(Job::outcome).map(|outcome| outcome.conclusion);
        let failed = matches!(was, Some(Conclusion::Failure | Conclusion::Cancelled));
        let is = job.outcome().map(|outcome| outcome.conclusion);
        let waits = job.is_queued() || is == Some(Conclusion::Cancelled);
        let right = failed && waits && !self.succeeded.contains(&job.id);
        ensure(right, || format!("{} had ended with {was:?}, and is {:?}", job.id, job.status))
    }

    /// Who holds a lease in a concurrency group has it alone.
    fn alone_in_groups(state: &State) -> Result<(), String> {
        let mut holders = BTreeMap::new();
        for job in state.leased() {
            let run = Member::Run { run: job.run };
            for member in [run, Member::Job { job: job.id }] {
                let Some((group, _)) = state.group_of(member) else { continue };
                let holder = *holders.entry(group.clone()).or_insert(member);
                ensure(holder == member, || format!("{holder} and {member} share {group:?}"))?;
            }
        }
        Ok(())
    }

    fn job_changed(&mut self, before: Option<&Job>, job: &Job) -> Result<(), String> {
        let id = job.id;
        if before.is_none() {
            ensure(id.counter() > self.job, || format!("{id} was there already"))?;
            self.job = id.counter();
            let leg = (job.run, job.definition.key.clone(), job.definition.leg);
            ensure(self.legs.insert(leg), || format!("{id} is planned twice"))?;
        }
        let done = before.and_then(Job::outcome);
        ensure(done.is_none() || done == job.outcome(), || format!("{id} had ended"))?;
        let lease_before = before.and_then(Job::lease);
        match &job.status {
            JobStatus::Queued => Ok(()),
            JobStatus::Leased { epoch, .. } if lease_before == job.lease() => {
                let known = self.epochs.contains(&epoch.counter());
                ensure(known, || format!("{epoch} was never granted"))
            }
            JobStatus::Leased { epoch, .. } => {
                self.tally.saw(Seen::Assigned);
                // Those of one proposal come in the order of its decisions.
                let new = epoch.counter() > self.epoch && self.epochs.insert(epoch.counter());
                ensure(new, || format!("{epoch} was granted before"))?;
                let attempts = before.map_or(0, |job| job.attempts);
                ensure(job.attempts == attempts + 1, || format!("attempts of {id} do not count"))?;
                ensure(lease_before.is_none(), || format!("{id} has two leases"))
            }
            JobStatus::Done { outcome } => {
                let success = outcome.conclusion == Conclusion::Success;
                let first = !success || done.is_some() || self.succeeded.insert(id);
                ensure(first, || format!("{id} succeeded twice"))
            }
        }
    }

    /// A client was told that its request made this run.
    pub(crate) fn acknowledge(&mut self, id: &str, run: RunId) -> Result<(), String> {
        let known = self.acknowledged.insert(id.to_owned(), (run, self.last));
        ensure(known.is_none_or(|(known, _)| known == run), || {
            format!("`{id}` was answered with {run} and with {known:?}")
        })
    }

    /// An agent was told that its report of a success is recorded.
    pub(crate) fn reported(&mut self, lease: Lease) {
        let run = self.state.job(lease.work.job).map(|job| job.run);
        self.reported.insert(lease.work.job, (run, self.last));
    }

    /// Everything that was promised, in a state that has applied `index`.
    pub(crate) fn check(&self, state: &State, index: u64) -> Result<(), String> {
        state.check_invariants()?;
        Self::alone_in_groups(state)?;
        for (id, (run, at)) in self.acknowledged.iter().filter(|(_, (_, at))| *at <= index) {
            let known = self.admitted.get(id);
            ensure(known == Some(run), || format!("`{id}` was answered with {run} at {at}"))?;
            let there = state.run(*run).is_some() || self.retired.contains(run);
            ensure(there, || format!("acknowledged {run} is lost"))?;
        }
        for (id, (run, _)) in self.reported.iter().filter(|(_, (_, at))| *at <= index) {
            // A success ends its job for good, also one that was being cancelled: no other
            // outcome takes its place, no other attempt, and only its run takes it away.
            let kept = match state.job(*id) {
                Some(job) => job.outcome().is_some_and(|it| it.conclusion == Conclusion::Success),
                None => run.is_none_or(|run| self.retired.contains(&run)),
            };
            ensure(kept, || format!("the acknowledged success of {id} is lost"))?;
        }
        Ok(())
    }
}

pub(crate) fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
