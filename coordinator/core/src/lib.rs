//! The replicated state machine: pure, synchronous, deterministic.
//!
//! [`State::apply`] is the one way in; what it returns is to be done by others.
//! [`placement::place`] decides who should run what on a version of the state,
//! and its decisions come back as a proposal that is checked like any other.

/// Whether a bug is there on purpose; never in a product. See [`mutation`].
#[cfg(any(test, feature = "testkit"))]
macro_rules! has_bug {
    ($bug:ident) => {
        crate::mutation::is_on(crate::mutation::Mutation::$bug)
    };
}
#[cfg(not(any(test, feature = "testkit")))]
macro_rules! has_bug {
    ($bug:ident) => {
        false
    };
}

mod agent;
mod artifact;
mod attempt;
mod claim;
mod effect;
mod explain;
mod fleet;
mod group;
mod identity;
mod image;
mod index;
mod invariants;
mod job;
mod lease;
mod level;
mod limits;
#[cfg(any(test, feature = "testkit"))]
pub mod mutation;
mod outstanding;
pub mod placement;
mod proposal;
mod reads;
mod refound;
mod replica;
mod retry;
mod rows;
mod run;
mod state;
mod table;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
#[cfg(test)]
mod tests;

pub use attempt::{EndedAttempt, StaleResults};
pub use effect::{Effect, Rejection};
pub use explain::{Explainer, Wait};
pub use group::{Group, GroupKey, Member};
pub use identity::{Authority, Denial, Enrolled, NewToken, Token, serial_subject, subject};
pub use image::ImageError;
pub use level::FEATURE_LEVEL;
pub use proposal::{
    Assignment, Concurrency, Lease, NewAgent, NewJob, NewRun, Outcome, Proposal, Request,
    Resolution,
};
pub use refound::{EPOCHS_GAP, RUNS_GAP};
pub use replica::{FOUNDER, Replica};
pub use rows::{
    Agent, Artifact, Cancel, Claim, ClaimKey, Drain, Job, JobCounts, JobStatus, Matrix, Run, Waiter,
};
pub use state::State;
pub use table::Write;
