//! How long to wait before the next try.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// First wait, milliseconds.
const WAIT_MS_MIN: u64 = 100;

/// Longest wait, milliseconds: how long a coordinator that is back goes unnoticed.
const WAIT_MS_MAX: u64 = 5_000;

/// Doubles from try to try, with jitter, so that a fleet does not come back as one.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// Waits before the next try.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    /// It worked: the next failure starts from the beginning.
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }

    fn next(&mut self) -> Duration {
        let ms = WAIT_MS_MIN.checked_shl(self.tries).unwrap_or(WAIT_MS_MAX).min(WAIT_MS_MAX);
        self.tries = (self.tries + 1).min(16);
        // Every `RandomState` has its own keys, which is all the randomness needed here.
        let random = RandomState::new().build_hasher().finish();
        Duration::from_millis(ms / 2 + random % (ms / 2 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_bound_and_start_again() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..20).map(|_| backoff.next().as_millis() as u64).collect();
        assert!((50..=100).contains(&waits[0]) && waits.iter().all(|&ms| ms <= WAIT_MS_MAX));
        assert!(waits[19] >= WAIT_MS_MAX / 2);
        backoff.reset();
        assert!(backoff.next().as_millis() <= 100);
    }
}
