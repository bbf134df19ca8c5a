//! The coordinator: services over the replicated core, and the tasks that do what
//! the core asks for. `server` is the one place where the parts meet.

mod auth;
mod config;
mod leases;
mod logs;
mod progress;
pub mod replica;
mod secrets;
mod server;

pub use config::Config;
pub use secrets::SecretsError;
pub use server::Coordinator;
