//! The coordinator: services over the replicated core, and the tasks that do what
//! the core asks for. `server` is the one place where the parts meet.

mod api;
mod auth;
mod away;
pub mod backup;
mod blocking;
mod cache;
mod claims;
mod config;
mod disk;
mod dispatcher;
mod documents;
mod effects;
mod expiry;
mod forward;
mod github;
mod group;
mod identity;
mod join;
mod kept_logs;
mod leadership;
mod leases;
mod logs;
mod mirror;
mod needed;
mod offers;
mod origin;
mod peers;
mod planner;
mod progress;
pub mod recovery;
pub mod replica;
mod retention;
mod retry;
mod run_watch;
mod secrets;
mod server;
mod sessions;
mod submission;
mod unplaceable;
mod watchdog;

pub use config::{Config, GivenCa, ObjectStore};
pub use identity::join_cluster;
pub use leases::{LeaseBook, Look};
pub use retry::keys_to_plan_again;

pub use secrets::SecretsError;
pub use server::Coordinator;
