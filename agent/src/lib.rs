//! Runs jobs: session with the coordinator, workspace, executors.

mod agents;
mod backoff;
mod blocking;
pub mod cached;
mod config;
mod connect;
mod hidden;
pub mod logs;
pub mod process;
pub mod runner;
pub mod sandbox;
mod session;
pub mod supervisor;
mod workspace;

pub use agents::Agents;
pub use config::{BlobsSetting, Config, RunAs};
pub use connect::{EndpointError, connect};
pub use hidden::hidden_main;
pub use session::run;
pub use workspace::Workspace;
