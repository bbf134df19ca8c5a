//! Runs the steps of one job.

mod commands;
mod files;
mod mask;

pub use mask::Secrets;
