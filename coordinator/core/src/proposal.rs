//! What enters the replicated core: the closed list of everything that can
//! change it. Numbers in the encodings are for ever; what a kind means is never
//! changed, a new kind is added instead (see CONTRIBUTING, "add a proposal").

use std::collections::BTreeMap;

use steading_model::codec::{record, variants};
use steading_model::{
    AgentId, Conclusion, Digest, Epoch, FailureClass, Incarnation, JobId, Principal, ProjectName,
    Provisioning, RequestId, Resources, Role, RunId, Spot, StepCounts, Work,
};

use crate::identity::NewToken;

/// Everything that can happen to the farm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proposal {
    /// Accepts a run with its first jobs. `sealed: false`: more follow by [`Proposal::AppendJobs`],
    /// and nothing of the run starts before it is sealed.
    AdmitRun { run: NewRun, jobs: Vec<NewJob>, sealed: bool, complete: bool },
    /// The next chunk of a run that is not sealed. `offset` is the number of jobs
    /// admitted so far; any other is refused, so that a doubled chunk changes nothing.
    AppendJobs { run: RunId, offset: u32, jobs: Vec<NewJob>, sealed: bool },
    /// What the planner made of the results so far. `revision` must be the run's
    /// (it counts accepted plans, and cancels); `seen` is how many needed jobs had ended
    /// in the version that was planned on, so that later endings leave another plan due.
    /// A large plan comes in chunks of whole keys, all but the last with `seen` as it was
    /// before and not `complete`.
    ExtendRun { run: RunId, revision: u32, seen: u32, jobs: Vec<NewJob>, complete: bool },
    /// Somebody wants the run to end. Queued jobs end at once, leased ones are asked to;
    /// the planner is asked again, so that what runs `always()` still does. A run that is
    /// not sealed ends with it. Another cancel of the run changes nothing.
    CancelRun { run: RunId, request: Request, reason: String },
    /// A start of the agent of this name, made when nothing of an earlier start is left.
    /// Ends the earlier incarnation's leases as `agent_lost`.
    RegisterAgent { agent: NewAgent },
    /// The agent left on purpose: it takes no more work.
    RetireAgent { agent: AgentId, incarnation: Incarnation },
    /// The dispatcher's decisions, each re-checked on its own: what no longer holds
    /// is dropped with [`crate::Effect::NotAssigned`], the rest is granted.
    Assign { assignments: Vec<Assignment> },
    /// Leases whose time is over in the leader's memory. Those whose epoch is no
    /// longer current are passed over.
    ExpireLeases { leases: Vec<Lease> },
    /// The agent gives a lease back, its processes gone (or never started). Of the farm's
    /// own classes: tried again, counted only if it was started. Of the others: not
    /// started, tried again and counted, for another agent may be able to; started, the
    /// end of the job.
    ReleaseLease { lease: Lease, class: FailureClass, started: bool },
    /// The end of an attempt, once its result is durable.
    CompleteAttempt { lease: Lease, outcome: Outcome },
    /// Wants to execute an action that the cache does not have.
    ClaimAction { scope: ProjectName, action: Digest, lease: Lease },
    /// The claimant is done with the action.
    ResolveClaim { scope: ProjectName, action: Digest, lease: Lease, resolution: Resolution },
    /// A named output of the run. The last upload of a name wins.
    RecordArtifact { lease: Lease, name: String, root: Digest, files: u32, bytes: u64 },
    /// Forgets finished runs, and ones whose submitter never sealed them. Others named
    /// here are passed over. See `State::runs_to_retire`.
    RetireRuns { runs: Vec<RunId> },
    /// Lets a run that has ended go on from what failed or was cancelled. `again`: keys
    /// that depended on these, which are planned anew. `revision` must be the run's.
    RetryRun { run: RunId, request: Request, revision: u32, again: Vec<String> },
    /// Ends queued jobs that no agent that is known could ever run. Others named here are
    /// passed over. See `State::unplaceable`.
    GiveUp { jobs: Vec<JobId> },
    /// A result was refused because the lease was over: remembered for people.
    RecordStale { lease: Lease, outcome: Outcome },
    /// The agent gives back, in one step, leases of which nothing was started: they are
    /// queued again and not counted. Those that it does not hold are passed over. With a
    /// window it leaves when that is over, and takes no more work until it registers again.
    HandBack {
        agent: AgentId,
        incarnation: Incarnation,
        leases: Vec<Lease>,
        window_ms: Option<u64>,
        preempted: bool,
    },
    /// Somebody wants the agent of this name to get no more work, or to get some again:
    /// then it is not drained any longer either.
    CordonAgent { name: String, cordoned: bool },
    /// Somebody wants the agent of this name empty: it gets no more work, what it has not
    /// started is given back, and what runs after `deadline_ms` is stopped and given back.
    /// Without a deadline it may take as long as it takes. A repetition of the same
    /// request changes nothing.
    DrainAgent { name: String, request: RequestId, deadline_ms: Option<u64> },
    /// The agent of this name is never to come back. What it runs is stopped; its leases
    /// end when it gives them back, or are not prolonged any more.
    RemoveAgent { name: String },
    /// Makes a directory a member of the group, under a new id. Repeated for one that is
    /// known, it changes no more than [`Proposal::UpdateReplica`] does.
    AdmitReplica { storage_id: String, endpoint: String, level: u32 },
    /// What a member says of itself, at every start. Also how the founder becomes known.
    UpdateReplica { replica: u64, storage_id: String, endpoint: String, level: u32 },
    /// Somebody wants the member out of the group: raft's configuration follows.
    /// `force`: also where that makes the number of voters even.
    RemoveReplica { replica: u64, force: bool },
    /// All replicas know this level: its kinds of proposals may be used. See `level`.
    SetFeatureLevel { level: u32 },
    /// The leader's hash chain after the entry `index` of the log. It changes nothing; a
    /// replica that has another one stops.
    CompareChain { index: u64, chain: [u8; 32] },
    /// Changes nothing. Of level 2, which no released version knows: for tests of upgrades.
    Probe { note: String },
    /// A join token. Its secret stays with who asked for it.
    CreateToken { token: NewToken },
    /// Nobody joins with it any more.
    RevokeToken { id: String },
    /// Somebody with a key wants to join. `secret`: SHA-256 of what the joiner said;
    /// `key`: of its public key. Repeated for the same key, it is answered again.
    RedeemToken { id: String, secret: [u8; 32], key: [u8; 32], name: String },
    /// A member gets a new certificate for its key.
    RenewMember { role: Role, name: String, key: [u8; 32] },
    /// The CA of a coordinator, DER, and those above it.
    AddAuthority { storage_id: String, certificate: Vec<u8>, ancestors: Vec<Vec<u8>> },
    /// Nobody believes `subject` any more: see [`crate::subject`].
    Deny { subject: String, reason: String, by: Principal },
    /// Takes a denial back.
    Allow { subject: String },
    /// A new group goes on from the state of another one: see `refound`. Applied once,
    /// before the group has a log; never proposed.
    FoundAnew { cluster_id: String },
}

variants! { Proposal {
    1 = AdmitRun { run, jobs, sealed, complete },
    2 = AppendJobs { run, offset, jobs, sealed },
    3 = ExtendRun { run, revision, seen, jobs, complete },
    4 = CancelRun { run, request, reason },
    5 = RegisterAgent { agent },
    6 = RetireAgent { agent, incarnation },
    7 = Assign { assignments },
    8 = ExpireLeases { leases },
    9 = ReleaseLease { lease, class, started },
    10 = CompleteAttempt { lease, outcome },
    11 = ClaimAction { scope, action, lease },
    12 = ResolveClaim { scope, action, lease, resolution },
    13 = RecordArtifact { lease, name, root, files, bytes },
    14 = RetireRuns { runs },
    40 = RetryRun { run, request, revision, again },
    41 = GiveUp { jobs },
    42 = RecordStale { lease, outcome },
    20 = SetFeatureLevel { level },
    21 = CompareChain { index, chain },
    29 = Probe { note },
    24 = AdmitReplica { storage_id, endpoint, level },
    25 = UpdateReplica { replica, storage_id, endpoint, level },
    26 = RemoveReplica { replica, force },
    30 = CreateToken { token },
    31 = RevokeToken { id },
    32 = RedeemToken { id, secret, key, name },
    33 = RenewMember { role, name, key },
    34 = AddAuthority { storage_id, certificate, ancestors },
    36 = Deny { subject, reason, by },
    37 = Allow { subject },
    50 = HandBack { agent, incarnation, leases, window_ms, preempted },
    51 = CordonAgent { name, cordoned },
    52 = DrainAgent { name, request, deadline_ms },
    53 = RemoveAgent { name },
    60 = FoundAnew { cluster_id },
} }

/// Makes a client's mutation idempotent: (project, principal, id) has one effect.
/// Another body under the same id is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub project: ProjectName,
    pub principal: Principal,
    pub id: RequestId,
    /// Digest of the request's body.
    pub body: Digest,
}

record! { Request { project, principal, id, body } }

/// A run as it is admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRun {
    pub request: Request,
    /// The workflow's name, for people.
    pub name: String,
    /// The pipeline's file name, for people.
    pub file: String,
    /// Names the submission: pipeline, event, inputs, ref, sha, source, sealed
    /// secrets. What the planner reads again for every plan.
    pub submission: Digest,
    /// The dialect that the run was planned with.
    pub dialect: String,
    /// Larger first.
    pub priority: i32,
    /// Held from the run's start to its end.
    pub concurrency: Option<Concurrency>,
}

record! { NewRun { request, name, file, submission, dialect, priority, concurrency } }

/// What a run or a job has in common with others of its project: one of them goes on,
/// one waits, and a newer one takes the place of the one that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concurrency {
    /// In lower case: groups whose names differ in case are one. At most
    /// [`steading_model::limits::GROUP_NAME_BYTES_MAX`].
    pub group: String,
    /// Who goes on is cancelled.
    pub cancel_in_progress: bool,
    /// All who wait stay in line, instead of the newest alone.
    pub queue_all: bool,
}

record! { Concurrency { group, cancel_in_progress, queue_all } }

/// A job as the planner made it. All its needs have ended: it may start at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// The key under `jobs:`. The legs of one matrix share it.
    pub key: String,
    /// Position among the legs of the key, from 0.
    pub leg: u32,
    /// For people: `test (linux, 1.95)`.
    pub name: String,
    /// Names the job's spec. Zero-sized digest for a job that never runs.
    pub spec: Digest,
    /// The agent must have all of these.
    pub labels: Vec<String>,
    pub resources: Resources,
    /// Other jobs need this one, so that its end leaves a plan due.
    pub needed: bool,
    /// A failing leg cancels the other legs of the key.
    pub fail_fast: bool,
    /// Most legs of the key that run at once; 0 is no bound.
    pub max_parallel: u32,
    /// A failure of this job does not fail the run.
    pub continue_on_error: bool,
    /// Decided by the planner: skipped, or impossible to start. Such a job never runs.
    pub decided: Option<Outcome>,
    /// The run's where it is not said.
    pub priority: Option<i32>,
    /// No wish where it is not said.
    pub spot: Option<Spot>,
    /// By when it should have ended, milliseconds from when it was queued; 0 is no deadline.
    pub deadline_ms: u64,
    /// How often it is tried again after a failure of its own.
    pub user_retries: u32,
    /// Held from when the job may start to its end, retries and all.
    pub concurrency: Option<Concurrency>,
}

record! { NewJob {
    key, leg, name, spec, labels, resources, needed, fail_fast, max_parallel,
    continue_on_error, decided, priority, spot, deadline_ms, user_retries, concurrency,
} }

/// How an attempt ended, as its agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub conclusion: Conclusion,
    /// Why it did not succeed.
    pub class: Option<FailureClass>,
    /// Names the `JobResult`; durable before this is proposed.
    pub result: Option<Digest>,
    pub counts: StepCounts,
    /// One line for people, at most 200 bytes are kept.
    pub message: String,
}

record! { Outcome { conclusion, class, result, counts, message } }

/// An agent as it registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAgent {
    pub name: String,
    pub pool: String,
    pub provisioning: Provisioning,
    pub labels: Vec<String>,
    /// Jobs that it runs at once.
    pub slots: u32,
    pub resources: Resources,
    /// Where other agents read its store; empty where they cannot.
    pub cache_endpoint: String,
    /// What else it says of itself (version, zone, machine type).
    pub properties: BTreeMap<String, String>,
    /// Drawn by the agent for this registration, so that one that was sent twice and comes
    /// late is not taken for another start. 0: not said.
    pub start: u64,
}

record! { NewAgent {
    name, pool, provisioning, labels, slots, resources, cache_endpoint, properties, start,
} }

/// One decision of the dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub job: JobId,
    pub agent: AgentId,
    pub incarnation: Incarnation,
}

record! { Assignment { job, agent, incarnation } }

/// Names a lease: the work and the epoch under which it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lease {
    pub work: Work,
    pub epoch: Epoch,
}

record! { Lease { work, epoch } }

/// How a claim ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The result is in the action cache.
    Published,
    /// The action ended with an exit code other than zero. Told to all who wait, stored for none.
    Failed { detail: Digest },
    /// The claimant gives up without a result: the next who waits takes over.
    Abandoned,
}

variants! { Resolution { 0 = Published, 1 = Failed { detail }, 2 = Abandoned } }
