//! Runs jobs: session with the coordinator, workspace, executors.

mod backoff;
pub mod cached;
mod config;
mod hidden;
pub mod logs;
pub mod process;
pub mod runner;
pub mod sandbox;
mod session;
pub mod supervisor;

pub use config::{BlobsSetting, Config, RunAs};
pub use hidden::hidden_main;
pub use session::run;
