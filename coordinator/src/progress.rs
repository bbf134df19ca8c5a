//! Steps' progress of running attempts: from memory to memory, a hint.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use steading_core::Lease;
use steading_model::limits::STEPS_PER_JOB_MAX;
use steading_proto::v1::StepProgress;

/// What agents said of their running steps.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    inner: Mutex<BTreeMap<Lease, Vec<StepProgress>>>,
}

impl Progress {
    /// Merges what the agent says of its steps.
    pub(crate) fn update(&self, lease: Lease, steps: Vec<StepProgress>) {
        let mut inner = self.lock();
        let known = inner.entry(lease).or_default();
        for step in steps.into_iter().take(STEPS_PER_JOB_MAX) {
            match known.binary_search_by_key(&step.index, |known| known.index) {
                Ok(at) => known[at] = step,
                Err(at) if known.len() < STEPS_PER_JOB_MAX => known.insert(at, step),
                Err(_) => (),
            }
        }
    }

    /// What is known of the attempt's steps.
    pub(crate) fn of(&self, lease: Lease) -> Vec<StepProgress> {
        self.lock().get(&lease).cloned().unwrap_or_default()
    }

    /// The lease is no more.
    pub(crate) fn ended(&self, lease: Lease) {
        self.lock().remove(&lease);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Lease, Vec<StepProgress>>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
