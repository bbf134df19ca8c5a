//! Small blobs of several callers behind one sync.

use std::collections::VecDeque;
use std::sync::PoisonError;

use bytes::Bytes;
use steading_model::{Digest, DigestFunction};
use tokio::sync::oneshot;

use super::{Store, StoreError};
use crate::blobs::off_thread;

/// Most callers whose blobs share one sync.
const CALLERS_MAX: usize = 256;

/// Blobs of one caller, and where the answer goes.
#[derive(Debug)]
struct Waiting {
    function: DigestFunction,
    blobs: Vec<(Digest, Bytes)>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// Callers that wait for the next sync. Bounded by how many there are.
#[derive(Debug, Default)]
pub(super) struct Group {
    waiting: VecDeque<Waiting>,
    /// Somebody puts, and takes who came meanwhile before he stops.
    active: bool,
}

impl Store {
    /// As [`Store::put_hashed`], off the caller's thread. What comes while the disk is
    /// busy shares the next sync.
    pub(crate) async fn put_grouped(
        &self,
        function: DigestFunction,
        blobs: Vec<(Digest, Bytes)>,
    ) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        let first = {
            let mut group = self.group();
            group.waiting.push_back(Waiting { function, blobs, done });
            !std::mem::replace(&mut group.active, true)
        };
        if first {
            let store = self.clone();
            // Not waited for: it goes on with what others want when this caller has its
            // answer. Dropping its sender tells of a panic.
            drop(tokio::task::spawn_blocking(move || store.put_waiting()));
        }
        match answer.await {
            Ok(answer) => answer,
            // Whoever put for all panicked, or the runtime is going down.
            Err(_) => off_thread(|| panic!("the put of several callers' blobs panicked")).await,
        }
    }

    /// Puts until nobody waits.
    fn put_waiting(&self) {
        let _rest = Rest(self);
        loop {
            let batch: Vec<Waiting> = {
                let mut group = self.group();
                let count = group.waiting.len().min(CALLERS_MAX);
                if count == 0 {
                    group.active = false;
                    return;
                }
                group.waiting.drain(..count).collect()
            };
            self.put_batch(batch);
        }
    }

    fn put_batch(&self, batch: Vec<Waiting>) {
        let together = batch.len() > 1 && batch.iter().all(|one| one.function == batch[0].function);
        if together {
            let blobs = batch.iter().flat_map(|one| &one.blobs);
            let blobs = blobs.map(|(digest, bytes)| (*digest, &bytes[..]));
            if self.put_hashed(batch[0].function, blobs).is_ok() {
                for one in batch {
                    // Who does not wait any more does not want to know.
                    let _ = one.done.send(Ok(()));
                }
                return;
            }
        }
        // Alone, so that each one hears of its own failure.
        for one in batch {
            let blobs = one.blobs.iter().map(|(digest, bytes)| (*digest, &bytes[..]));
            let _ = one.done.send(self.put_hashed(one.function, blobs));
        }
    }

    fn group(&self) -> std::sync::MutexGuard<'_, Group> {
        self.0.shared.group.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// After a panic nobody puts any more: the next caller does, and who waited is told.
struct Rest<'a>(&'a Store);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut group = self.0.group();
            group.active = false;
            group.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::StoreOptions;
    use super::*;
    use crate::hash::digest_of;

    const FUNCTION: DigestFunction = DigestFunction::Blake3;

    #[tokio::test]
    async fn what_several_callers_put_at_once_is_there_when_each_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { bytes_max: 1 << 30, durable: true };
        let store = Store::open(dir.path(), options).unwrap();
        let mut callers = tokio::task::JoinSet::new();
        for number in 0..40_u8 {
            let store = store.clone();
            callers.spawn(async move {
                // Some put the same.
                let bytes = Bytes::from(vec![number % 30; 100]);
                let digest = digest_of(FUNCTION, &bytes);
                store.put_grouped(FUNCTION, vec![(digest, bytes.clone())]).await.unwrap();
                assert_eq!(store.get(FUNCTION, &digest).unwrap(), Some(bytes));
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        assert!(!store.group().active);
    }
}
