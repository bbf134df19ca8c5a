//! Wakes those who watch a run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use steading_model::RunId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::leadership::Leadership;
use crate::replica::Replica;

/// Least time between two looks at what a replica that does not lead was told.
const COALESCE: Duration = Duration::from_millis(30);

/// One channel per run that somebody watches.
#[derive(Debug, Default)]
pub(crate) struct RunWatch {
    runs: Mutex<BTreeMap<RunId, watch::Sender<u64>>>,
}

impl RunWatch {
    /// Changes whenever something of the run may have changed: rows or progress.
    /// Read the state after this call, and again after each change.
    pub(crate) fn subscribe(&self, run: RunId) -> watch::Receiver<u64> {
        let mut runs = self.lock();
        runs.entry(run).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// Something of the run changed.
    pub(crate) fn changed(&self, run: RunId) {
        let mut runs = self.lock();
        let Some(sender) = runs.get(&run) else {
            return;
        };
        if sender.receiver_count() == 0 {
            runs.remove(&run);
        } else {
            sender.send_modify(|count| *count += 1);
        }
    }

    /// Changes were missed: everything may have changed.
    pub(crate) fn all_changed(&self) {
        let mut runs = self.lock();
        runs.retain(|_, sender| sender.receiver_count() > 0);
        for sender in runs.values() {
            sender.send_modify(|count| *count += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RunId, watch::Sender<u64>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes everybody who watches here while this replica follows another one: which runs
/// changed is told to the leader alone.
pub(crate) async fn follow(
    replica: Replica,
    leadership: Leadership,
    watch: Arc<RunWatch>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut changes = replica.changes();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => if changed.is_err() {
                anyhow::bail!("the replica has stopped by itself; its log says why");
            }
        }
        if leadership.term().is_err() {
            watch.all_changed();
            stop.run_until_cancelled(tokio::time::sleep(COALESCE)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_watchers_of_the_run_wake_and_nobody_is_remembered_for_ever() {
        let watch = RunWatch::default();
        let (one, two) = (RunId::from_counter(1), RunId::from_counter(2));
        let (first, second) = (watch.subscribe(one), watch.subscribe(two));
        watch.changed(one);
        assert!(first.has_changed().unwrap());
        assert!(!second.has_changed().unwrap());
        watch.all_changed();
        assert!(second.has_changed().unwrap());
        drop((first, second));
        watch.changed(one);
        watch.all_changed();
        assert!(watch.lock().is_empty());
    }
}
