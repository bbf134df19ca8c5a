//! What the agent holds: every lease that it accepted and has not reported yet.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use steading_proto::v1;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::runner::Signals;
use crate::supervisor::LeaseHandle;

/// Names a lease.
pub(super) type Key = (u64, u32, u64);

pub(super) fn key(lease: &v1::Lease) -> Key {
    (lease.job_id, lease.attempt, lease.epoch)
}

/// One lease that the agent holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) lease: v1::Lease,
    pub(super) signals: Signals,
    /// The coordinator said that the lease is no longer held: what runs ends, and only a
    /// result that was there by then is told, for the record.
    pub(super) refused: CancellationToken,
    /// A step was started.
    started: AtomicBool,
    /// Whether it is given back before it begins, or begins: whoever is first decides.
    decided: AtomicBool,
    /// On CLOCK_BOOTTIME, milliseconds; 0: never acknowledged, so nothing may start.
    deadline_ms: watch::Sender<u64>,
    /// Of the supervisor that runs it.
    supervisor: Mutex<Option<LeaseHandle>>,
}

impl Held {
    pub(super) fn new(lease: v1::Lease) -> Self {
        Self {
            lease,
            signals: Signals::default(),
            refused: CancellationToken::new(),
            started: AtomicBool::new(false),
            decided: AtomicBool::new(false),
            deadline_ms: watch::Sender::new(0),
            supervisor: Mutex::new(None),
        }
    }

    /// The lease lasts until then. Never shortens it.
    pub(super) async fn extend(&self, deadline_ms: u64) {
        let longer = self.deadline_ms.send_if_modified(|known| {
            let longer = deadline_ms > *known;
            *known = deadline_ms.max(*known);
            longer
        });
        if longer {
            self.feed().await;
        }
    }

    /// Waits for the first acknowledgement.
    pub(super) async fn acknowledged(&self) {
        // The sender is in `self`, so waiting cannot fail.
        let _ = self.deadline_ms.subscribe().wait_for(|deadline| *deadline > 0).await;
    }

    /// From now on this supervisor hears of the lease.
    pub(super) async fn supervised_by(&self, supervisor: Option<LeaseHandle>) {
        *self.supervisor.lock().expect("nothing panics while it holds the lock") = supervisor;
        if self.refused.is_cancelled() {
            self.fence().await;
        } else {
            self.feed().await;
        }
    }

    /// The lease is no more: everything is killed. A result that was there by then is
    /// told all the same, for the record.
    pub(super) async fn refuse(&self) {
        self.refused.cancel();
        self.signals.stop.cancel();
        self.fence().await;
    }

    /// The attempt begins: from now on it gives itself back. False where it was given back.
    pub(super) fn begin(&self) -> bool {
        !self.decided.swap(true, Ordering::SeqCst)
    }

    /// It is given back before it begins. False where it has begun.
    pub(super) fn take_back(&self) -> bool {
        !self.decided.swap(true, Ordering::SeqCst)
    }

    /// A step is about to run.
    pub(super) fn mark_started(&self) {
        self.started.store(true, Ordering::SeqCst);
    }

    pub(super) fn was_started(&self) -> bool {
        self.started.load(Ordering::SeqCst)
    }

    async fn feed(&self) {
        let deadline_ms = *self.deadline_ms.borrow();
        if let Some(supervisor) = self.handle()
            && let Err(error) = supervisor.deadline(deadline_ms).await
        {
            tracing::debug!(%error, "deadline does not reach the supervisor");
        }
    }

    async fn fence(&self) {
        if let Some(supervisor) = self.handle()
            && let Err(error) = supervisor.fence().await
        {
            tracing::debug!(%error, "fence does not reach the supervisor");
        }
    }

    fn handle(&self) -> Option<LeaseHandle> {
        self.supervisor.lock().expect("nothing panics while it holds the lock").clone()
    }
}

/// All leases of the agent.
#[derive(Debug, Default)]
pub(super) struct AllHeld {
    by_key: Mutex<BTreeMap<Key, std::sync::Arc<Held>>>,
    /// How many there are.
    count: watch::Sender<usize>,
}

impl AllHeld {
    /// Adds a lease; none where it is held already.
    pub(super) fn add(&self, lease: v1::Lease) -> Option<std::sync::Arc<Held>> {
        let mut held = self.lock();
        if held.contains_key(&key(&lease)) {
            return None;
        }
        let new = std::sync::Arc::new(Held::new(lease));
        held.insert(key(&lease), new.clone());
        self.count.send_replace(held.len());
        Some(new)
    }

    pub(super) fn remove(&self, lease: &v1::Lease) {
        let mut held = self.lock();
        held.remove(&key(lease));
        self.count.send_replace(held.len());
    }

    /// Waits until nothing is held.
    pub(super) async fn emptied(&self) {
        // The sender is in `self`, so waiting cannot fail.
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    pub(super) fn get(&self, lease: &v1::Lease) -> Option<std::sync::Arc<Held>> {
        self.lock().get(&key(lease)).cloned()
    }

    pub(super) fn all(&self) -> Vec<std::sync::Arc<Held>> {
        self.lock().values().cloned().collect()
    }

    pub(super) fn leases(&self) -> Vec<v1::Lease> {
        self.lock().values().map(|held| held.lease).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, std::sync::Arc<Held>>> {
        self.by_key.lock().expect("nothing panics while it holds the lock")
    }
}
