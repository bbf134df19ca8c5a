//! The replicated state machine: pure, synchronous, deterministic.

mod effect;
mod proposal;

pub use effect::{Effect, Rejection};
pub use proposal::{
    Assignment, Lease, NewAgent, NewJob, NewRun, Outcome, Proposal, Request, Resolution,
};
