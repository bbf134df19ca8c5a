//! Bugs on purpose, for the simulator, which must find each. Only with the feature
//! `testkit`; a product has none of this.

use std::cell::Cell;

/// One bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// What is acknowledged was written, but not synced.
    AcknowledgeBeforeSync,
    /// Reports of whoever had the job once are believed.
    SkipEpochCheck,
    /// A proposal that is refused leaves what it had done so far.
    ApplyRejectionPartially,
    /// Epochs are counted from those in use, not from those ever used.
    ReuseId,
    /// Renewals, and all else that asks for it, are answered without asking the group who leads.
    StaleLeaderRenews,
    /// A plan is accepted whatever revision it was made for.
    PlanTwice,
}

thread_local! {
    static ON: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Runs with the bug, on this thread only.
pub fn with<T>(mutation: Option<Mutation>, run: impl FnOnce() -> T) -> T {
    let before = ON.replace(mutation);
    let result = run();
    ON.set(before);
    result
}

/// Whether this bug is there.
pub fn is_on(mutation: Mutation) -> bool {
    ON.get() == Some(mutation)
}
