//! Conformance, cluster, crash and simulation tests: what needs more than one
//! crate. Nothing imports this.

pub mod cluster;
pub mod farm;
pub mod jobs;
pub mod metadata;
pub mod netns;
pub mod other_version;
pub mod replica_kit;
pub mod sim;
pub mod small_disk;
