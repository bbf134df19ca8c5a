//! Runs jobs: session with the coordinator, workspace, executors.

pub mod cached;
mod hidden;
pub mod process;
pub mod sandbox;
pub mod supervisor;

pub use hidden::hidden_main;
