//! Runs jobs: session with the coordinator, workspace, executors.

mod hidden;
pub mod process;
pub mod supervisor;

pub use hidden::hidden_main;
