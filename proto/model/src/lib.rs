//! The nouns of the farm as plain Rust: ids, digests, time, limits, and what
//! one piece of work is and how it ended.
//!
//! No I/O, no serialisation framework, no clock. [`codec`] is the one binary
//! encoding of rows and proposals; the wire has its own types in
//! `steading-proto`.

pub mod codec;
mod digest;
mod ids;
pub mod limits;
mod name;
mod spiffe;
mod time;
mod work;

pub use digest::{Digest, DigestFunction, ParseDigestError};
pub use ids::{AgentId, Epoch, Incarnation, JobId, ParseIdError, ReplicaId, RunId};
pub use name::{ParseNameError, Principal, ProjectName, RequestId};
pub use spiffe::{ParseSpiffeError, Role, SpiffeId};
pub use time::Timestamp;
pub use work::{
    Conclusion, FailureClass, ParseConclusionError, Provisioning, Resources, Spot, StepCounts, Work,
};
