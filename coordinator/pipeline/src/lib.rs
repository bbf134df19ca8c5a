//! The pipeline language: parse, expressions, plan. Pure: no I/O, no clock, no
//! randomness, no tokio. What GitHub Actions calls a workflow is a pipeline here.
//!
//! [`parse`] turns a file into a [`Pipeline`] or into [`Diagnostic`]s with positions;
//! [`plan`] says, from the results so far, which jobs to create next;
//! [`expression`] is the `${{ }}` language, which the agent uses as well.

mod diagnostic;
pub mod expression;
pub mod job;
mod parse;
mod pipeline;
mod plan;

pub use diagnostic::Diagnostic;
pub use parse::{Parsed, parse};
pub use pipeline::{
    Concurrency, Defaults, EventFilter, Input, InputKind, Job, Need, Node, Pipeline, RunsOn,
    Strategy, Trigger,
};
pub use plan::{Group, Plan, PlannedJob, Submission, Verdict, plan, run_group};
