//! What is derived from the rows to find them fast. Never stored: each index is a
//! function of the rows alone, kept by telling it of every row's old and new
//! value, so that undoing a write or loading an image needs no code of its own.

use imbl::{OrdMap, OrdSet};
use steading_model::limits::PRIORITY_STEP_MS;
use steading_model::{AgentId, JobId, Provisioning, Resources, RunId, Spot, Timestamp};

use crate::proposal::Lease;
use crate::rows::{Agent, Answered, Claim, ClaimKey, Job, JobStatus, RequestKey, Run, Waiter};

/// Jobs that are alike to the dispatcher: where the first of a lane cannot be
/// placed, none of it can.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lane {
    pub(crate) labels: Vec<String>,
    pub(crate) resources: Resources,
    /// The only kind of machine that will do.
    pub(crate) provisioning: Option<Provisioning>,
    /// A matrix that bounds its parallel legs has a lane of its own, which is
    /// full when the bound is reached.
    pub(crate) bounded: Option<(RunId, String)>,
}

impl Lane {
    pub(crate) fn of(job: &Job) -> Self {
        let definition = &job.definition;
        let bounded = definition.max_parallel > 0;
        Self {
            labels: definition.labels.clone(),
            resources: definition.resources,
            provisioning: match definition.spot {
                Some(Spot::Only) => Some(Provisioning::Spot),
                Some(Spot::Never) => Some(Provisioning::OnDemand),
                Some(Spot::Prefer) | None => None,
            },
            bounded: bounded.then(|| (job.run, definition.key.clone())),
        }
    }
}

/// A job's place in the queue. Never changes while it waits, so that ageing costs
/// nothing: everybody ages alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// When it was queued, milliseconds, each step of priority [`PRIORITY_STEP_MS`] earlier.
    pub(crate) turn: i64,
    pub(crate) job: JobId,
}

impl Place {
    pub(crate) fn of(job: &Job) -> Self {
        let queued = i64::try_from(job.queued.as_ms()).unwrap_or(i64::MAX);
        let head_start = i64::from(job.priority).saturating_mul(PRIORITY_STEP_MS);
        Self { turn: queued.saturating_sub(head_start), job: job.id }
    }
}

/// What the leases of an agent take of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) slots: u32,
    /// Summed wide: an agent's own numbers are checked before each grant, but an
    /// index must hold whatever an image says.
    pub(crate) cpu_milli: u64,
    pub(crate) memory_mib: u64,
}

impl Usage {
    fn add(&mut self, job: &Job) {
        let taken = job.definition.resources;
        self.slots += 1;
        self.cpu_milli += u64::from(taken.cpu_milli);
        self.memory_mib += u64::from(taken.memory_mib);
    }

    fn remove(&mut self, job: &Job) {
        let taken = job.definition.resources;
        self.slots -= 1;
        self.cpu_milli -= u64::from(taken.cpu_milli);
        self.memory_mib -= u64::from(taken.memory_mib);
    }
}

/// How a lease takes part in a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Holds,
    /// At this place of the line.
    Waits(u64),
}

/// Which of the lists of runs a run is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Unsealed,
    Open,
    Finished,
}

impl Standing {
    const fn of(run: &Run) -> Self {
        match (run.has_ended(), run.sealed) {
            (true, _) => Self::Finished,
            (false, true) => Self::Open,
            (false, false) => Self::Unsealed,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Index {
    /// Queued jobs that may be placed: their runs are sealed, and nothing waits for a group.
    pub(crate) queue: OrdMap<Lane, OrdSet<Place>>,
    pub(crate) queue_len: usize,
    /// Queued jobs that wait for their groups, or will.
    pub(crate) waiting: OrdSet<(RunId, JobId)>,
    pub(crate) jobs_by_run: OrdSet<(RunId, JobId)>,
    pub(crate) jobs_by_version: OrdSet<(RunId, u64, JobId)>,
    pub(crate) legs: OrdMap<(RunId, String, u32), JobId>,
    pub(crate) leases: OrdSet<(AgentId, JobId)>,
    pub(crate) usage: OrdMap<AgentId, Usage>,
    pub(crate) agents_by_name: OrdMap<String, AgentId>,
    /// Runs that go on.
    pub(crate) open: OrdSet<RunId>,
    /// Of these, the ones still to be sealed, oldest first.
    pub(crate) unsealed: OrdSet<(Timestamp, RunId)>,
    /// Runs that have ended, oldest end first.
    pub(crate) finished: OrdSet<(Timestamp, RunId)>,
    pub(crate) requests_by_age: OrdSet<(Timestamp, RequestKey)>,
    pub(crate) claims_by_lease: OrdMap<Lease, OrdMap<ClaimKey, Part>>,
}

impl Index {
    /// The run's row changed. Its jobs' places are kept by [`Index::set_queued`].
    pub(crate) fn run(&mut self, old: Option<&Run>, new: Option<&Run>) {
        if old.map(Standing::of) == new.map(Standing::of) {
            return;
        }
        if let Some(run) = old {
            match Standing::of(run) {
                Standing::Unsealed => {
                    self.unsealed.remove(&(run.created, run.id));
                    self.open.remove(&run.id);
                }
                Standing::Open => {
                    self.open.remove(&run.id);
                }
                Standing::Finished => {
                    self.finished.remove(&(run.finished, run.id));
                }
            }
        }
        if let Some(run) = new {
            match Standing::of(run) {
                Standing::Unsealed => {
                    self.unsealed.insert((run.created, run.id));
                    self.open.insert(run.id);
                }
                Standing::Open => {
                    self.open.insert(run.id);
                }
                Standing::Finished => {
                    self.finished.insert((run.finished, run.id));
                }
            }
        }
    }

    /// The job's row changed. `startable`: its run has started.
    pub(crate) fn job(&mut self, old: Option<&Job>, new: Option<&Job>, startable: bool) {
        if let Some(job) = old {
            self.jobs_by_version.remove(&(job.run, job.version, job.id));
            self.leave(job, startable);
        }
        if let Some(job) = new {
            self.jobs_by_version.insert((job.run, job.version, job.id));
            self.enter(job, startable);
        }
        match (old, new) {
            (None, Some(job)) => {
                self.jobs_by_run.insert((job.run, job.id));
                self.legs.insert(leg(job), job.id);
            }
            (Some(job), None) => {
                self.jobs_by_run.remove(&(job.run, job.id));
                self.legs.remove(&leg(job));
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    fn enter(&mut self, job: &Job, startable: bool) {
        match job.status {
            JobStatus::Queued if job.waits => {
                self.waiting.insert((job.run, job.id));
            }
            JobStatus::Queued if startable => self.set_queued(job, true),
            JobStatus::Leased { agent, .. } => {
                self.leases.insert((agent, job.id));
                self.usage.entry(agent).or_default().add(job);
            }
            JobStatus::Queued | JobStatus::Done { .. } => {}
        }
    }

    fn leave(&mut self, job: &Job, startable: bool) {
        match job.status {
            JobStatus::Queued if job.waits => {
                self.waiting.remove(&(job.run, job.id));
            }
            JobStatus::Queued if startable => self.set_queued(job, false),
            JobStatus::Leased { agent, .. } => {
                self.leases.remove(&(agent, job.id));
                if let Some(usage) = self.usage.get_mut(&agent) {
                    usage.remove(job);
                    if usage.slots == 0 {
                        self.usage.remove(&agent);
                    }
                }
            }
            JobStatus::Queued | JobStatus::Done { .. } => {}
        }
    }

    /// Puts a job into the queue or takes it out.
    pub(crate) fn set_queued(&mut self, job: &Job, queued: bool) {
        let lane = Lane::of(job);
        if queued {
            self.queue.entry(lane).or_default().insert(Place::of(job));
            self.queue_len += 1;
        } else if let Some(places) = self.queue.get_mut(&lane) {
            if places.remove(&Place::of(job)).is_some() {
                self.queue_len -= 1;
            }
            if places.is_empty() {
                self.queue.remove(&lane);
            }
        }
    }

    pub(crate) fn agent(&mut self, old: Option<&Agent>, new: Option<&Agent>) {
        if let Some(agent) = old {
            self.agents_by_name.remove(&agent.definition.name);
        }
        if let Some(agent) = new {
            self.agents_by_name.insert(agent.definition.name.clone(), agent.id);
        }
    }

    pub(crate) fn claim(&mut self, key: &ClaimKey, old: Option<&Claim>, new: Option<&Claim>) {
        self.set_part(key, old.map(|claim| claim.holder), None);
        self.set_part(key, new.map(|claim| claim.holder), Some(Part::Holds));
    }

    pub(crate) fn waiter(
        &mut self,
        (key, place): &(ClaimKey, u64),
        old: Option<&Waiter>,
        new: Option<&Waiter>,
    ) {
        self.set_part(key, old.map(|waiter| waiter.lease), None);
        self.set_part(key, new.map(|waiter| waiter.lease), Some(Part::Waits(*place)));
    }

    fn set_part(&mut self, key: &ClaimKey, lease: Option<Lease>, part: Option<Part>) {
        let Some(lease) = lease else { return };
        if let Some(part) = part {
            self.claims_by_lease.entry(lease).or_default().insert(key.clone(), part);
        } else if let Some(parts) = self.claims_by_lease.get_mut(&lease) {
            parts.remove(key);
            if parts.is_empty() {
                self.claims_by_lease.remove(&lease);
            }
        }
    }

    pub(crate) fn request(
        &mut self,
        key: &RequestKey,
        old: Option<&Answered>,
        new: Option<&Answered>,
    ) {
        if let Some(answered) = old {
            self.requests_by_age.remove(&(answered.at, key.clone()));
        }
        if let Some(answered) = new {
            self.requests_by_age.insert((answered.at, key.clone()));
        }
    }
}

fn leg(job: &Job) -> (RunId, String, u32) {
    (job.run, job.definition.key.clone(), job.definition.leg)
}
