//! Steps' progress of running attempts: from memory to memory, a hint.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use steading_core::Lease;
use steading_model::RunId;
use steading_model::limits::STEPS_PER_JOB_MAX;
use steading_proto::v1::StepProgress;

/// What agents said of their running steps. Bounded by the live leases.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    runs: BTreeMap<RunId, BTreeMap<Lease, Entry>>,
    /// Counts updates.
    sequence: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// Sorted by their position in the job.
    steps: Vec<StepProgress>,
    /// Of the last update.
    sequence: u64,
}

impl Progress {
    /// Merges what the agent says of its steps.
    pub(crate) fn update(&self, run: RunId, lease: Lease, steps: Vec<StepProgress>) {
        let mut inner = self.lock();
        inner.sequence += 1;
        let sequence = inner.sequence;
        let entry = inner.runs.entry(run).or_default().entry(lease).or_default();
        entry.sequence = sequence;
        for step in steps.into_iter().take(STEPS_PER_JOB_MAX) {
            match entry.steps.binary_search_by_key(&step.index, |known| known.index) {
                Ok(at) => entry.steps[at] = step,
                Err(at) if entry.steps.len() < STEPS_PER_JOB_MAX => entry.steps.insert(at, step),
                Err(_) => (),
            }
        }
    }

    /// What is known of the attempt's steps.
    pub(crate) fn of(&self, run: RunId, lease: Lease) -> Vec<StepProgress> {
        let inner = self.lock();
        let entry = inner.runs.get(&run).and_then(|leases| leases.get(&lease));
        entry.map_or_else(Vec::new, |entry| entry.steps.clone())
    }

    /// Attempts of the run of which something was said after `sequence`, and what to
    /// ask with next.
    pub(crate) fn changed_since(&self, run: RunId, sequence: u64) -> (Vec<Lease>, u64) {
        let inner = self.lock();
        let leases = inner.runs.get(&run).into_iter().flatten();
        let changed = leases.filter(|(_, entry)| entry.sequence > sequence);
        (changed.map(|(lease, _)| *lease).collect(), inner.sequence)
    }

    /// The lease is no more.
    pub(crate) fn ended(&self, run: RunId, lease: Lease) {
        let mut inner = self.lock();
        if let Some(leases) = inner.runs.get_mut(&run) {
            leases.remove(&lease);
            if leases.is_empty() {
                inner.runs.remove(&run);
            }
        }
    }

    /// Forgets everything: agents tell another leader from now on.
    pub(crate) fn clear(&self) {
        self.lock().runs.clear();
    }

    /// The run has ended, and with it all its leases.
    pub(crate) fn run_ended(&self, run: RunId) {
        self.lock().runs.remove(&run);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use steading_model::{Epoch, JobId, Work};

    use super::*;

    #[test]
    fn progress_is_merged_by_step_and_told_once_to_each_who_asks() {
        let progress = Progress::default();
        let run = RunId::from_counter(1);
        let work = Work { job: JobId::from_counter(1), attempt: 1 };
        let lease = Lease { work, epoch: Epoch::from_counter(1) };
        let step = |index, cached| StepProgress { index, cached, ..Default::default() };
        progress.update(run, lease, vec![step(1, false)]);
        progress.update(run, lease, vec![step(0, false), step(1, true)]);
        assert_eq!(progress.of(run, lease), [step(0, false), step(1, true)]);

        let (changed, seen) = progress.changed_since(run, 0);
        assert_eq!(changed, [lease]);
        assert_eq!(progress.changed_since(run, seen).0, []);
        progress.ended(run, lease);
        assert_eq!(progress.of(run, lease), []);
        assert!(progress.lock().runs.is_empty());
    }
}
