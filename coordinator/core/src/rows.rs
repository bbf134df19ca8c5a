//! The rows of the state: what is remembered of runs, jobs, agents, claims,
//! requests and artifacts. Additive, like everything that is encoded.

use std::sync::Arc;

use steading_model::codec::{record, variants};
use steading_model::{
    AgentId, Conclusion, Digest, Epoch, Incarnation, JobId, Principal, ProjectName, RequestId,
    RunId, StepCounts, Timestamp, Work,
};

use crate::proposal::{Lease, NewAgent, NewJob, NewRun, Outcome};
use crate::table::Row;

/// One accepted submission of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub id: RunId,
    pub definition: Arc<NewRun>,
    /// All jobs of the first plan are here. Nothing starts before.
    pub sealed: bool,
    /// Every job of the pipeline is planned: no plan is ever due again.
    pub complete: bool,
    /// What the next plan must name. Counts accepted plans, and cancels, so that
    /// no plan made before a cancel is accepted after it.
    pub revision: u32,
    /// How many of the needed jobs had ended when the last accepted plan was made.
    pub needed_planned: u32,
    /// How many of the needed jobs have ended.
    pub needed_ended: u32,
    pub cancel: Option<Cancel>,
    pub counts: JobCounts,
    /// Summed over the jobs' last attempts.
    pub steps: StepCounts,
    /// Artifacts recorded so far.
    pub artifacts: u32,
    /// Set once, when the run ends.
    pub conclusion: Option<Conclusion>,
    pub created: Timestamp,
    /// Zero while the run goes on.
    pub finished: Timestamp,
    /// State version of the last change of the run, its jobs or its artifacts.
    pub version: u64,
    /// A plan was made on the end of every job, and neither added one nor said that it
    /// was the last.
    pub stalled: bool,
    /// Waits for its concurrency group: nothing of it starts.
    pub waits: bool,
    /// A plan is due whatever has ended: the run was retried.
    pub replan: bool,
    /// How often somebody had it go on after its end.
    pub retries: u32,
}

record! { Run {
    id, definition, sealed, complete, revision, needed_planned, needed_ended, cancel, counts,
    steps, artifacts, conclusion, created, finished, version, stalled, waits, replan,
    retries,
} }

impl Run {
    /// Whether the planner is to be asked: jobs that others need have ended since
    /// the last plan, or nothing is left whose end could ask for one (the first plan
    /// was empty, or a leader died between the chunks of a large one).
    pub const fn is_plan_due(&self) -> bool {
        let unplanned_end = self.needed_ended > self.needed_planned;
        let nothing_to_wait_for = self.counts.unfinished() == 0 && !self.stalled;
        self.sealed
            && !self.complete
            && self.conclusion.is_none()
            && (self.replan || unplanned_end || nothing_to_wait_for)
    }

    /// Whether its jobs may be placed.
    pub const fn is_started(&self) -> bool {
        self.sealed && !self.waits
    }

    pub const fn has_ended(&self) -> bool {
        self.conclusion.is_some()
    }
}

/// Somebody's wish that a run end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancel {
    /// Who wished it; the run's own submitter where it was the farm.
    pub principal: Principal,
    /// At most [`steading_model::limits::CANCEL_REASON_BYTES_MAX`].
    pub reason: String,
    pub at: Timestamp,
    /// Nobody asked for it: a newer run made this one superfluous, or it closed a cycle
    /// of waits.
    pub by_farm: bool,
}

record! { Cancel { principal, reason, at, by_farm } }

/// Jobs of a run by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobCounts {
    pub total: u32,
    pub leased: u32,
    pub succeeded: u32,
    pub failed: u32,
    pub cancelled: u32,
    pub skipped: u32,
    /// Of the failed ones, those that fail the run.
    pub failing: u32,
}

record! { JobCounts { total, leased, succeeded, failed, cancelled, skipped, failing } }

impl JobCounts {
    /// Counts a job that ended.
    pub(crate) const fn end(&mut self, conclusion: Conclusion, continue_on_error: bool) {
        match conclusion {
            Conclusion::Success => self.succeeded += 1,
            Conclusion::Cancelled => self.cancelled += 1,
            Conclusion::Skipped => self.skipped += 1,
            Conclusion::Failure => {
                self.failed += 1;
                self.failing += !continue_on_error as u32;
            }
        }
    }

    /// Jobs that have ended, however.
    pub const fn done(&self) -> u32 {
        let ran = self.succeeded.saturating_add(self.failed);
        ran.saturating_add(self.cancelled).saturating_add(self.skipped)
    }

    /// Jobs that are queued or leased.
    pub const fn unfinished(&self) -> u32 {
        self.total.saturating_sub(self.done())
    }

    /// Jobs that wait for an agent.
    pub const fn queued(&self) -> u32 {
        self.unfinished().saturating_sub(self.leased)
    }
}

/// One job of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub id: JobId,
    pub run: RunId,
    /// As the planner made it; `decided` is moved to `status`.
    pub definition: Arc<NewJob>,
    /// The run's, so that the queue needs one row only.
    pub priority: i32,
    pub status: JobStatus,
    /// Attempts made so far, and so the number of the last one.
    pub attempts: u32,
    /// Of these, how many ended by the farm's own fault. Bounded.
    pub infrastructure_retries: u32,
    /// Who held the last attempt.
    pub agent: Option<AgentId>,
    /// When the job was first queued. Kept over retries, so that a retried job is
    /// at the head of its queue again.
    pub queued: Timestamp,
    /// When the last attempt was granted; zero while there was none.
    pub started: Timestamp,
    /// Zero while the job goes on.
    pub finished: Timestamp,
    /// State version of the last change.
    pub version: u64,
    /// Of the attempts, how many ended by the job's own fault and were followed by another.
    pub user_retries: u32,
    /// Of the attempts, how many lost their machine to somebody who pays more.
    pub preemptions: u32,
    /// The pool that the last of these was in: the next attempt goes elsewhere where it can.
    pub avoid_pool: Option<String>,
    /// Waits for its concurrency group.
    pub waits: bool,
}

record! { Job {
    id, run, definition, priority, status, attempts, infrastructure_retries, agent, queued,
    started, finished, version, user_retries, preemptions, avoid_pool, waits,
} }

impl Job {
    /// The current lease.
    pub const fn lease(&self) -> Option<Lease> {
        match self.status {
            JobStatus::Leased { epoch, .. } => {
                Some(Lease { work: Work { job: self.id, attempt: self.attempts }, epoch })
            }
            JobStatus::Queued | JobStatus::Done { .. } => None,
        }
    }

    /// How the job ended.
    pub const fn outcome(&self) -> Option<&Outcome> {
        match &self.status {
            JobStatus::Done { outcome } => Some(outcome),
            JobStatus::Queued | JobStatus::Leased { .. } => None,
        }
    }

    pub const fn is_queued(&self) -> bool {
        matches!(self.status, JobStatus::Queued)
    }
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobStatus {
    /// Waits for an agent.
    Queued,
    /// An agent may report it. `cancelling`: it was asked to end the job.
    Leased { agent: AgentId, incarnation: Incarnation, epoch: Epoch, cancelling: bool },
    /// Ended. Absorbs: nothing changes it any more.
    Done { outcome: Outcome },
}

variants! { JobStatus {
    0 = Queued,
    1 = Leased { agent, incarnation, epoch, cancelling },
    2 = Done { outcome },
} }

/// What the legs of a matrix share. Only keys that fail fast or bound their
/// parallel legs have one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matrix {
    /// A leg failed: the others are cancelled, also those that come later.
    pub failed: bool,
    /// Legs that are leased.
    pub leased: u32,
}

record! { Matrix { failed, leased } }

/// A registered agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub id: AgentId,
    pub definition: Arc<NewAgent>,
    /// The current one.
    pub incarnation: Incarnation,
    /// Left on purpose; takes no more work until it registers again.
    pub retired: bool,
    /// When the current incarnation registered.
    pub registered: Timestamp,
    pub version: u64,
    /// Somebody wants it to get no more work. Outlasts its incarnations.
    pub cordoned: bool,
    /// Somebody wants it empty. Outlasts its incarnations.
    pub drain: Option<Drain>,
    /// When its machine goes away, as it said; zero where it said nothing.
    pub leaves: Timestamp,
    /// Never to come back.
    pub removed: bool,
    /// Starts before the current one, the latest last; bounded.
    pub earlier_starts: Vec<u64>,
}

record! { Agent {
    id, definition, incarnation, retired, registered, version, cordoned, drain, leaves, removed,
    earlier_starts,
} }

impl Agent {
    /// Whether it may be given work.
    pub fn takes_work(&self) -> bool {
        let leaves = self.leaves > Timestamp::default();
        !self.retired && !self.cordoned && self.drain.is_none() && !leaves && !self.removed
    }
}

/// Somebody's wish that an agent be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    pub request: RequestId,
    pub since: Timestamp,
    /// When what still runs is stopped; none: never.
    pub deadline: Option<Timestamp>,
}

record! { Drain { request, since, deadline } }

/// Names a claim: cache scope and action.
pub type ClaimKey = (ProjectName, Digest);

/// The right to execute one action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub holder: Lease,
    /// When `holder` got it.
    pub since: Timestamp,
    /// How many wait.
    pub waiters: u32,
    /// The place in the line that the next waiter gets.
    pub next_place: u64,
}

record! { Claim { holder, since, waiters, next_place } }

/// One who waits for a claim. A row of its own, so that a long line is not written
/// again for each who joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub lease: Lease,
}

record! { Waiter { lease } }

/// Names a request: an id means something for its project and principal only.
pub(crate) type RequestKey = (ProjectName, Principal, RequestId);

/// A remembered request, and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    /// Digest of the request's body.
    pub(crate) body: Digest,
    pub(crate) run: RunId,
    pub(crate) at: Timestamp,
}

record! { Answered { body, run, at } }

/// A named output of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Root `Directory` in the CAS.
    pub root: Digest,
    pub files: u32,
    pub bytes: u64,
    /// The job that recorded it.
    pub job: JobId,
    pub at: Timestamp,
}

record! { Artifact { root, files, bytes, job, at } }

impl Row for Run {
    type Key = RunId;
    const TABLE: u8 = 1;
}

impl Row for Job {
    type Key = JobId;
    const TABLE: u8 = 2;
}

impl Row for Matrix {
    type Key = (RunId, String);
    const TABLE: u8 = 3;
}

impl Row for Agent {
    type Key = AgentId;
    const TABLE: u8 = 4;
}

impl Row for Claim {
    type Key = ClaimKey;
    const TABLE: u8 = 5;
}

impl Row for Waiter {
    type Key = (ClaimKey, u64);
    const TABLE: u8 = 6;
}

impl Row for Answered {
    type Key = RequestKey;
    const TABLE: u8 = 7;
}

impl Row for Artifact {
    type Key = (RunId, String);
    const TABLE: u8 = 8;
}
