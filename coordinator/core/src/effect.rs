//! What the core asks to be done. Effects are hints: delivered at least once,
//! idempotent, and derived again by `State::outstanding` for a new leader.
//! Some also carry the answer that the proposer waits for.

use steading_model::{AgentId, Digest, Incarnation, JobId, ProjectName, Role, RunId};

use crate::proposal::{Lease, Resolution};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answer to `AdmitRun`, and to its repetition (`repeated`), which changed nothing.
    Admitted { run: RunId, repeated: bool },
    /// Answer to `RegisterAgent`.
    Registered { agent: AgentId, incarnation: Incarnation },
    /// Answer to `RedeemToken`: who the joiner is from now on.
    Redeemed { role: Role, name: String },
    /// There may be work that can be placed.
    Dispatch,
    /// Offer this lease to its agent.
    Offer { agent: AgentId, incarnation: Incarnation, lease: Lease },
    /// An assignment no longer held; `why` is for the log.
    NotAssigned { job: JobId, agent: AgentId, why: Rejection },
    /// Tell the agent that its lease is no more; its processes must go.
    Revoke { agent: AgentId, incarnation: Incarnation, lease: Lease },
    /// Tell the agent to cancel the lease's job gracefully; it still reports the end.
    Cancel { agent: AgentId, incarnation: Incarnation, lease: Lease },
    /// Tell the agent whether it is to be empty, as its row says.
    Empty { agent: AgentId, incarnation: Incarnation },
    /// Plan the run again and propose `ExtendRun` with this revision.
    PlanRun { run: RunId, revision: u32 },
    /// A row of the run changed: wake those who watch it.
    RunChanged { run: RunId },
    /// The run reached its end.
    RunFinished { run: RunId },
    /// Answer to `ClaimAction`, now or when an earlier claimant gave up: execute it.
    ClaimGranted { scope: ProjectName, action: Digest, lease: Lease },
    /// Answer to `ClaimAction`: another lease executes it; `ClaimGranted` or
    /// `ClaimResolved` follows.
    ClaimWaits { scope: ProjectName, action: Digest, lease: Lease, holder: Lease },
    /// The claim that `waiters` wait for ended with this.
    ClaimResolved {
        scope: ProjectName,
        action: Digest,
        waiters: Vec<Lease>,
        resolution: Resolution,
    },
}

/// Why a proposal changed nothing. The `Display` of each is what a person reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("run is not known")]
    RunUnknown,
    #[error("run has ended")]
    RunEnded,
    #[error("run is already sealed")]
    RunSealed,
    #[error("run is not sealed")]
    RunNotSealed,
    #[error("chunk begins at job {given}, the run has {admitted}")]
    ChunkOffset { given: u32, admitted: u32 },
    #[error("plan is of revision {given}, the run is at {current}")]
    PlanRevision { given: u32, current: u32 },
    #[error("every job of the run is planned already")]
    PlanComplete,
    #[error("request id was used with another body")]
    RequestBodyDiffers,
    #[error("too many request ids are remembered")]
    RequestIdsFull,
    #[error("job key `{0}` is in the run already")]
    JobKeyRepeated(String),
    #[error("a limit is exceeded: {what} is {given}, at most {max}")]
    Limit { what: &'static str, given: u64, max: u64 },
    #[error("job is not waiting for an agent")]
    JobNotQueued,
    #[error("key of the job runs as many legs as it may")]
    MaxParallel,
    #[error("run still goes on")]
    RunGoesOn,
    #[error("nothing of the run failed or was cancelled")]
    NothingToRetry,
    #[error("job is not known")]
    JobUnknown,
    #[error("result does not come too late")]
    NotStale,
    #[error("another one has the concurrency group")]
    GroupTaken,
    #[error("agent is not known")]
    AgentUnknown,
    #[error("agent has left and takes no more work")]
    AgentRetired,
    #[error("agent is cordoned, drained or leaving, and gets no work")]
    AgentCordoned,
    #[error("agent was removed and may not come back: use another name")]
    AgentRemoved,
    #[error("incarnation is not the agent's current one")]
    IncarnationStale,
    #[error("agent holds a lease")]
    AgentBusy,
    #[error("agent has no room")]
    AgentFull,
    #[error("agent lacks label `{0}`")]
    LabelMissing(String),
    #[error("job does not run on machines of this kind")]
    SpotPolicy,
    #[error("lease is not held under this epoch")]
    LeaseStale,
    #[error("claim is not held by this lease")]
    ClaimNotHeld,
    #[error("too many wait for this claim")]
    ClaimFull,
    #[error("replica is not known")]
    ReplicaUnknown,
    #[error("replica was removed from the group; begin with an empty directory")]
    ReplicaRemoved,
    #[error("replica and directory do not belong together")]
    ReplicaDiffers,
    #[error("feature level {level} cannot be used or set, the group is at {current}")]
    FeatureLevel { level: u32, current: u32 },
    #[error("replica is the last one of the group")]
    ReplicaLast,
    #[error("token is not known")]
    TokenUnknown,
    #[error("another token has this id")]
    TokenDiffers,
    #[error("token is over")]
    TokenExpired,
    #[error("token was used as often as it may be")]
    TokenUsedUp,
    #[error("token is bound to another name")]
    TokenName,
    #[error("name has other characters than letters, digits, `-`, `_` and `.`")]
    MemberName,
    #[error("name belongs to another key")]
    MemberDiffers,
    #[error("it was denied to the cluster")]
    Denied,
    #[error("it is not denied")]
    NotDenied,
}
