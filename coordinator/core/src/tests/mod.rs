//! The core as stories, and as what must hold for any sequence of proposals.

mod absurd;
mod agents;
mod claims;
mod explain;
mod fleet;
mod groups;
mod identities;
mod image;
mod leases;
mod level;
mod placement;
mod properties;
mod reads;
mod refound;
mod replicas;
mod retry;
mod runs;
