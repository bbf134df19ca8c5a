//! Runs jobs: session with the coordinator, workspace, executors.

mod agents;
mod backoff;
mod blocking;
pub mod cached;
mod cluster;
mod config;
mod connect;
mod hidden;
mod identity;
pub mod limits;
pub mod logs;
mod passable;
pub mod preemption;
pub mod process;
pub mod runner;
pub mod sandbox;
mod session;
pub mod supervisor;
pub mod uids;
mod workspace;

pub use agents::Agents;
pub use cluster::{Any, Cluster, Dial};
pub use config::{BlobsSetting, Config, LEAVE_WINDOW_MS_DEFAULT, RunAs};
pub use connect::{EndpointError, connect, dial};
pub use hidden::hidden_main;
pub use identity::{identity, keep_identity};
pub use passable::{closed_to_others, command_to_open};
pub use session::{run, run_until};
pub use workspace::Workspace;
