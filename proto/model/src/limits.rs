//! Every bound that two crates must agree on, with its unit and its reason.

/// Longest name that a client may choose, bytes. Names are keys of the replicated state.
pub const NAME_BYTES_MAX: usize = 200;

/// Largest pipeline file, bytes. What GitHub accepts.
pub const PIPELINE_BYTES_MAX: usize = 1 << 20;

/// Largest event payload, bytes.
pub const EVENT_BYTES_MAX: usize = 1 << 20;

/// Most jobs in one run, all matrix legs counted.
pub const JOBS_PER_RUN_MAX: usize = 10_000;

/// Most legs of one matrix. What GitHub accepts.
pub const MATRIX_LEGS_MAX: usize = 256;

/// Most steps in one job. What GitHub accepts, rounded down.
pub const STEPS_PER_JOB_MAX: usize = 1_000;

/// Most jobs in one proposal; larger runs are admitted in chunks and then sealed.
/// At 1 KiB a job a chunk stays below [`PROPOSAL_BYTES_MAX`].
pub const JOBS_PER_PROPOSAL_MAX: usize = 256;

/// Largest encoded proposal, bytes.
pub const PROPOSAL_BYTES_MAX: usize = 512 << 10;

/// Largest encoded job row, bytes. Whatever is longer is named by digest.
pub const JOB_ROW_BYTES_MAX: usize = 1 << 10;

/// Of [`JOB_ROW_BYTES_MAX`], what a job needs besides its definition, bytes: its
/// lease and times, and its outcome with [`OUTCOME_MESSAGE_BYTES_MAX`].
pub const JOB_ROW_GROWTH_BYTES_MAX: usize = 480;

/// Longest name of a pool, bytes. A job's row may hold one.
pub const POOL_NAME_BYTES_MAX: usize = 64;

/// Longest name of a concurrency group, bytes; longer ones are told apart by a digest.
pub const GROUP_NAME_BYTES_MAX: usize = 100;

/// Of a job's attempts, how many are remembered besides the last.
pub const ATTEMPTS_KEPT_MAX: u64 = 16;

/// Most who wait in line for one concurrency group, where its members queue.
pub const GROUP_PENDING_MAX: usize = 100;

/// Longest line that says how a job ended, bytes; the rest is cut.
pub const OUTCOME_MESSAGE_BYTES_MAX: usize = 200;

/// Largest definition of a run (its names, mostly), bytes.
pub const RUN_DEFINITION_BYTES_MAX: usize = 4 << 10;

/// Longest reason for a cancel, bytes; the rest is cut.
pub const CANCEL_REASON_BYTES_MAX: usize = 200;

/// Most runs in the state, finished ones counted: beyond it no run is admitted.
pub const RUNS_MAX: usize = 100_000;

/// Most jobs in the state, finished ones counted: at a KiB or less each they must
/// fit into memory.
pub const JOBS_MAX: usize = 2_000_000;

/// Most replicas that the state knows, removed ones counted. Beyond it the longest
/// removed is forgotten.
pub const REPLICAS_MAX: usize = 32;

/// Most agents that the state knows. Beyond it the longest retired is forgotten.
pub const AGENTS_MAX: usize = 10_000;

/// Largest encoded agent, bytes.
pub const AGENT_ROW_BYTES_MAX: usize = 16 << 10;

/// Most artifacts of one run.
pub const ARTIFACTS_PER_RUN_MAX: usize = 2_000;

/// Most claims that one lease holds or waits for. Steps run one after another, so
/// that one is the rule.
pub const CLAIMS_PER_LEASE_MAX: usize = 64;

/// Most runs that one proposal retires.
pub const RUNS_PER_RETIREMENT_MAX: usize = 256;

/// How much longer than another a job must have waited to go before it, for each step
/// that its priority is smaller by, milliseconds. So the longest that the highest priority
/// can keep a job waiting is bounded.
pub const PRIORITY_STEP_MS: i64 = 60_000;

/// Most labels that a job may ask for, or an agent may have.
pub const LABELS_MAX: usize = 32;

/// Most assignments in one proposal.
pub const ASSIGNMENTS_PER_PROPOSAL_MAX: usize = 512;

/// Infrastructure retries of one job. A job that kills every agent it lands on must end.
pub const INFRASTRUCTURE_RETRIES_MAX: u32 = 5;

/// How long a lease lasts in the leader's memory, milliseconds, counted from the
/// acknowledged renewal.
pub const LEASE_MS: u64 = 15_000;

/// How long the agent counts on its lease, milliseconds from the *sending* of the
/// accept or renewal that was acknowledged. Shorter than [`LEASE_MS`] by what
/// covers a clock-rate error of 5 % and a second to stop the processes.
pub const LEASE_AGENT_MS: u64 = 12_000;

/// How often an agent renews, milliseconds: a lease survives two lost renewals.
pub const RENEW_PERIOD_MS: u64 = 3_000;

/// How long a job whose deadline passed stays frozen before it is killed, milliseconds.
pub const FROZEN_MS_MAX: u64 = 600_000;

/// From TERM to KILL, milliseconds.
pub const KILL_GRACE_MS: u64 = 3_000;

/// How long a request id is remembered, milliseconds.
pub const REQUEST_ID_TTL_MS: u64 = 24 * 3_600_000;

/// Most remembered request ids. A full table refuses instead of forgetting early.
pub const REQUEST_IDS_MAX: usize = 1_000_000;

/// Most finished runs that the state keeps; the oldest is retired first.
pub const FINISHED_RUNS_MAX: usize = 10_000;

/// Most waiters of one claim.
pub const CLAIM_WAITERS_MAX: usize = 10_000;

/// Largest log of one step, bytes; what comes after is dropped, and that is said.
pub const STEP_LOG_BYTES_MAX: u64 = 256 << 20;

/// Largest log chunk in one message, bytes.
pub const LOG_CHUNK_BYTES_MAX: usize = 256 << 10;

/// Blobs up to this many bytes travel in batches, larger ones are streamed.
/// Below tonic's 4 MiB with room for the framing.
pub const BATCH_BYTES_MAX: usize = 3 << 20;

/// Largest string that a job output may be, bytes. What GitHub accepts.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Largest step summary, bytes. What GitHub accepts.
pub const SUMMARY_BYTES_MAX: usize = 1 << 20;

/// The log stream of what belongs to no step: set-up, the end of the job.
pub const JOB_LOG_STREAM: u32 = 65_535;

/// How long a member's certificate lasts, milliseconds.
pub const CERTIFICATE_MS: u64 = 24 * 3_600_000;

/// Longest life of a join token, milliseconds.
pub const TOKEN_MS_MAX: u64 = 30 * 24 * 3_600_000;

/// Most keys that one join token lets in. Each is remembered with the token.
pub const TOKEN_USES_MAX: u32 = 500;

/// Most join tokens that are not over.
pub const TOKENS_MAX: usize = 1_000;

/// Most members whose certificates may still be good.
pub const MEMBERS_MAX: usize = 50_000;

/// Most entries of the deny-list. A full one refuses instead of forgetting.
pub const DENIED_MAX: usize = 10_000;

/// Most CAs of coordinators, retired ones counted; those are forgotten first.
pub const AUTHORITIES_MAX: usize = 64;

/// Largest row of one CA, bytes: its certificate and the five above it.
pub const AUTHORITY_BYTES_MAX: usize = 16 << 10;
