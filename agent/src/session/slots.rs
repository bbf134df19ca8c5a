//! The places where jobs run, each with a warm supervisor.

use std::sync::Mutex;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::process::SupervisorError;
use crate::supervisor::Supervisor;

/// One place.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) index: u32,
    supervisor: Option<Supervisor>,
}

impl Slot {
    /// The supervisor, started if there is none.
    pub(super) fn supervisor(
        &mut self,
        start: impl FnOnce() -> Result<Supervisor, SupervisorError>,
    ) -> Result<&mut Supervisor, SupervisorError> {
        if self.supervisor.is_none() {
            self.supervisor = Some(start()?);
        }
        Ok(self.supervisor.as_mut().expect("it was put there"))
    }

    /// Kills what the job left running; see [`Supervisor::end_job`].
    pub(super) async fn end_job(&mut self) -> Result<u32, SupervisorError> {
        match &mut self.supervisor {
            Some(supervisor) => supervisor.end_job().await,
            None => Ok(0),
        }
    }

    /// Ends a supervisor that is of no more use, and with it all that it ran.
    pub(super) async fn discard(&mut self) {
        if let Some(supervisor) = self.supervisor.take()
            && let Err(error) = supervisor.stop().await
        {
            tracing::warn!(%error, "supervisor cannot be waited for");
        }
    }
}

/// All places of the agent.
#[derive(Debug)]
pub(super) struct Slots {
    free: Mutex<Vec<Slot>>,
    permits: Semaphore,
}

impl Slots {
    pub(super) fn new(count: u32) -> Self {
        // The lowest is taken first, so that few jobs use few places.
        let free = (0..count).rev().map(|index| Slot { index, supervisor: None }).collect();
        Self { free: Mutex::new(free), permits: Semaphore::new(count as usize) }
    }

    /// Waits for a free place.
    pub(super) async fn take(&self) -> (Slot, SemaphorePermit<'_>) {
        let permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let slot = self.lock().pop().expect("there are as many places as permits");
        (slot, permit)
    }

    /// Gives a place back.
    pub(super) fn give(&self, slot: Slot, permit: SemaphorePermit<'_>) {
        self.lock().push(slot);
        drop(permit);
    }

    /// Ends all supervisors. What they run ends with them.
    pub(super) async fn stop(&self) {
        let slots = std::mem::take(&mut *self.lock());
        for mut slot in slots {
            slot.discard().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Slot>> {
        self.free.lock().expect("nothing panics while it holds the lock")
    }
}
