//! Bounds of the replicated tables, small under test, where full tables are part of
//! the story.

use steading_model::limits;

/// Expired request ids that one remembered request clears away. More than one, so that
/// the table shrinks faster than it grows.
pub(crate) const REQUESTS_FORGOTTEN_MAX: usize = 64;

pub(crate) const REQUEST_IDS_MAX: usize = if cfg!(test) { 8 } else { limits::REQUEST_IDS_MAX };

pub(crate) const AUTHORITIES_MAX: usize = if cfg!(test) { 4 } else { limits::AUTHORITIES_MAX };

pub(crate) const TOKENS_MAX: usize = if cfg!(test) { 3 } else { limits::TOKENS_MAX };

pub(crate) const DENIED_MAX: usize = if cfg!(test) { 3 } else { limits::DENIED_MAX };

pub(crate) const MEMBERS_MAX: usize = if cfg!(test) { 3 } else { limits::MEMBERS_MAX };

pub(crate) const REPLICAS_MAX: usize = if cfg!(test) { 4 } else { limits::REPLICAS_MAX };

pub(crate) const AGENTS_MAX: usize = if cfg!(test) { 4 } else { limits::AGENTS_MAX };

pub(crate) const CLAIM_WAITERS_MAX: usize = if cfg!(test) { 3 } else { limits::CLAIM_WAITERS_MAX };

pub(crate) const ARTIFACTS_PER_RUN_MAX: usize =
    if cfg!(test) { 3 } else { limits::ARTIFACTS_PER_RUN_MAX };

pub(crate) const GROUP_PENDING_MAX: usize = if cfg!(test) { 3 } else { limits::GROUP_PENDING_MAX };

pub(crate) const ATTEMPTS_KEPT_MAX: u64 = if cfg!(test) { 3 } else { limits::ATTEMPTS_KEPT_MAX };
