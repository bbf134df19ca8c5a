//! What must hold in every state. Slow: for tests, the simulator and `doctor`.

use std::collections::{BTreeMap, BTreeSet};

use steading_model::codec::Encode;
use steading_model::limits::JOB_ROW_BYTES_MAX;
use steading_model::{Conclusion, RunId};

use crate::group::Member;
use crate::index::Part;
use crate::rows::{Job, JobCounts, JobStatus, Run};
use crate::state::State;

impl State {
    /// Checks that the rows agree with each other and the indices with the rows.
    ///
    /// # Errors
    ///
    /// Says what is wrong. Any error is a bug, or a damaged image.
    pub fn check_invariants(&self) -> Result<(), String> {
        let again = Self::from_rows(self.rows()).map_err(|error| error.to_string())?;
        ensure(again == *self, || "rows or indices differ from what they are built from".into())?;
        for (_, run) in self.runs.iter() {
            self.check_run(run)?;
        }
        let mut epochs = BTreeSet::new();
        for (_, job) in self.jobs.iter() {
            self.check_job(job)?;
            if let Some(lease) = job.lease() {
                ensure(epochs.insert(lease.epoch), || format!("{} is held twice", lease.epoch))?;
            }
        }
        self.check_agents()?;
        self.check_replicas()?;
        self.check_claims()?;
        self.check_groups()?;
        let remembered = self.attempts.iter().map(|((job, _), _)| job);
        for job in remembered.chain(self.stale.iter().map(|(job, _)| job)) {
            ensure(self.job(*job).is_some(), || format!("{job} is gone, but remembered"))?;
        }
        for ((run, name), artifact) in self.artifacts.iter() {
            let job = self.job(artifact.job).is_some_and(|job| job.run == *run);
            ensure(job, || format!("artifact `{name}` of {run} has no job"))?;
        }
        for ((run, key), _) in self.matrices.iter() {
            ensure(self.run(*run).is_some(), || format!("matrix `{key}` of {run} has no run"))?;
        }
        Ok(())
    }

    fn check_run(&self, run: &Run) -> Result<(), String> {
        let id = run.id;
        ensure(id <= self.meta.counters.run, || format!("{id} was never counted"))?;
        ensure(run.version <= self.version(), || format!("{id} is of a later version"))?;
        let mut counts = JobCounts::default();
        let mut needed_ended = 0;
        let mut legs: BTreeMap<&str, u32> = BTreeMap::new();
        for job in self.jobs_of(id) {
            count(&mut counts, job);
            let leased = u32::from(job.lease().is_some());
            *legs.entry(&job.definition.key).or_default() += leased;
            needed_ended += u32::from(job.definition.needed && job.outcome().is_some());
            ensure(job.version <= run.version, || format!("{} is newer than its run", job.id))?;
        }
        ensure(counts == run.counts, || format!("{id} counts {:?}, not {counts:?}", run.counts))?;
        ensure(needed_ended == run.needed_ended, || format!("{id} miscounts needed jobs"))?;
        ensure(run.needed_planned <= run.needed_ended, || format!("{id} planned on the future"))?;
        for (key, leased) in legs {
            self.check_matrix(id, key, leased)?;
        }
        let artifacts = self.artifacts_of(id).count();
        ensure(artifacts == run.artifacts as usize, || format!("{id} miscounts artifacts"))?;
        ensure(run.sealed || counts.leased == 0, || format!("{id} runs before it is sealed"))?;
        let over = run.sealed && counts.unfinished() == 0 && !run.is_plan_due();
        ensure(over == run.has_ended(), || format!("{id} is stuck, or ended too early"))
    }

    fn check_matrix(&self, run: RunId, key: &str, leased: u32) -> Result<(), String> {
        let Some(matrix) = self.matrices.get(&(run, key.to_owned())) else { return Ok(()) };
        ensure(matrix.leased == leased, || format!("`{key}` of {run} miscounts its leases"))?;
        let legs = self.jobs_of(run).filter(|job| job.definition.key == key);
        for job in legs {
            let max = job.definition.max_parallel;
            let leased_here = job.lease().is_some();
            let within = max == 0 || !leased_here || leased <= max;
            ensure(within || self.max_parallel_differs(run, key), || {
                format!("`{key}` of {run} runs {leased} legs, at most {max} are allowed")
            })?;
            let goes_on = job.is_queued() && matrix.failed && job.definition.fail_fast;
            ensure(!goes_on, || format!("{} waits though its matrix failed", job.id))?;
        }
        Ok(())
    }

    /// Whether legs of the key name different bounds, which only a broken planner does.
    fn max_parallel_differs(&self, run: RunId, key: &str) -> bool {
        let legs = self.jobs_of(run).filter(|job| job.definition.key == key);
        let bounds: BTreeSet<u32> = legs.map(|job| job.definition.max_parallel).collect();
        bounds.len() > 1
    }

    fn check_job(&self, job: &Job) -> Result<(), String> {
        let id = job.id;
        ensure(id <= self.meta.counters.job, || format!("{id} was never counted"))?;
        let bytes = job.to_bytes().len();
        ensure(bytes <= JOB_ROW_BYTES_MAX, || format!("the row of {id} has {bytes} bytes"))?;
        ensure(job.definition.decided.is_none(), || format!("{id} is decided, but not done"))?;
        match &job.status {
            JobStatus::Queued => Ok(()),
            JobStatus::Leased { agent, incarnation, epoch, .. } => {
                ensure(*epoch <= self.meta.counters.epoch, || {
                    format!("{epoch} was never counted")
                })?;
                ensure(job.attempts > 0, || format!("{id} is leased without an attempt"))?;
                let current = self.agent(*agent).map(|agent| agent.incarnation);
                ensure(current == Some(*incarnation), || {
                    format!("{id} is leased to a dead {incarnation} of {agent}")
                })
            }
            JobStatus::Done { outcome } => {
                let success = outcome.conclusion == Conclusion::Success;
                ensure(!success || job.finished >= job.queued, || format!("{id} ended too early"))
            }
        }
    }

    fn check_replicas(&self) -> Result<(), String> {
        let mut storage_ids = BTreeSet::new();
        for replica in self.replicas() {
            let id = replica.id;
            ensure(id <= self.meta.counters.replica, || format!("replica {id} was never counted"))?;
            let first = storage_ids.insert(&replica.storage_id);
            ensure(first, || format!("replica {id} has the directory of another"))?;
        }
        Ok(())
    }

    fn check_agents(&self) -> Result<(), String> {
        for agent in self.agents() {
            let usage = self.index.usage.get(&agent.id).copied().unwrap_or_default();
            let has = &agent.definition;
            let fits = usage.slots <= has.slots
                && usage.cpu_milli <= u64::from(has.resources.cpu_milli)
                && usage.memory_mib <= u64::from(has.resources.memory_mib);
            ensure(fits, || format!("{} is overfull: {usage:?}", agent.id))?;
            for job in self.leases_of(agent.id) {
                let spot = job.definition.spot;
                let admitted = spot.is_none_or(|spot| spot.admits(has.provisioning));
                ensure(admitted, || format!("{} runs on the wrong kind of machine", job.id))?;
            }
            let labels = self.leases_of(agent.id).flat_map(|job| &job.definition.labels);
            for label in labels {
                ensure(has.labels.contains(label), || format!("{} lacks `{label}`", agent.id))?;
            }
        }
        Ok(())
    }

    /// A group has one holder, which goes on, and holds it to its end; whoever could go on
    /// but for its group stands in line for it.
    fn check_groups(&self) -> Result<(), String> {
        let mut members: BTreeMap<Member, bool> = BTreeMap::new();
        for (key, group) in self.groups.iter() {
            let name = &key.1;
            for member in group.pending.iter().chain([&group.holder]) {
                let holds = *member == group.holder;
                let twice = members.insert(*member, holds).is_some();
                ensure(!twice, || format!("{member} is in two places of `{name}`"))?;
                let of = self.group_of(*member).map(|(key, _)| key);
                ensure(of.as_ref() == Some(key), || format!("{member} does not name `{name}`"))?;
            }
            for member in group.pending.iter().skip(1) {
                let queues = self.group_of(*member).is_some_and(|(_, wants)| wants.queue_all);
                ensure(queues, || format!("{member} stands behind others for `{name}`"))?;
            }
        }
        for (id, run) in self.runs.iter() {
            let wants = run.definition.concurrency.is_some();
            let goes_on = run.sealed && !run.has_ended();
            let want = (wants && goes_on).then_some(!run.waits);
            let found = members.remove(&Member::Run { run: *id });
            ensure(found == want, || format!("{id} is {found:?} in its group, not {want:?}"))?;
        }
        for (id, job) in self.jobs.iter() {
            let wants = job.definition.concurrency.is_some();
            let started = self.run(job.run).is_some_and(Run::is_started);
            let goes_on = started && job.outcome().is_none();
            let want = (wants && goes_on).then_some(!job.waits);
            let found = members.remove(&Member::Job { job: *id });
            ensure(found == want, || format!("{id} is {found:?} in its group, not {want:?}"))?;
        }
        ensure(members.is_empty(), || format!("{members:?} left a group"))
    }

    fn check_claims(&self) -> Result<(), String> {
        for ((scope, action), claim) in self.claims.iter() {
            let waiters = self.waiters(scope, action).count();
            ensure(waiters == claim.waiters as usize, || "a claim miscounts its waiters".into())?;
        }
        for (lease, parts) in &self.index.claims_by_lease {
            ensure(self.leased_job(*lease).is_some(), || format!("{} left a claim", lease.work))?;
            for (key, part) in parts {
                let claim = self.claims.get(key);
                ensure(claim.is_some(), || format!("{} waits for no claim", lease.work))?;
                let holds = claim.is_some_and(|claim| claim.holder == *lease);
                ensure(holds == (*part == Part::Holds), || "a claimant waits for itself".into())?;
            }
        }
        Ok(())
    }
}

fn count(counts: &mut JobCounts, job: &Job) {
    counts.total += 1;
    match &job.status {
        JobStatus::Queued => {}
        JobStatus::Leased { .. } => counts.leased += 1,
        JobStatus::Done { outcome } => {
            counts.end(outcome.conclusion, job.definition.continue_on_error);
        }
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
