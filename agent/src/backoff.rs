//! How long to wait before the next try.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use tokio::time::Instant;

/// First wait, milliseconds.
const WAIT_MS_MIN: u64 = 100;

/// Longest wait, milliseconds: how long a coordinator that is back goes unnoticed.
const WAIT_MS_MAX: u64 = 5_000;

/// A call that lasted longer than this had somebody at the other end, who went away then.
const ANSWERING: Duration = Duration::from_secs(10);

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

/// Does it again and again as long as it fails only because the coordinator is away, for
/// at most `wait_max` on end. Whoever must not wait so long drops the future.
///
/// # Errors
///
/// What another try would not change, or the last failure.
pub(crate) async fn patiently<T, E, F>(
    wait_max: Duration,
    is_transient: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> F,
) -> Result<T, E>
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let mut backoff = Backoff::default();
    let mut failing_since = Instant::now();
    loop {
        let began = Instant::now();
        let ended = attempt().await;
        if began.elapsed() > ANSWERING {
            failing_since = Instant::now();
            backoff.reset();
        }
        match ended {
            Err(error) if is_transient(&error) && failing_since.elapsed() < wait_max => {
                tracing::warn!(%error, "the coordinator is away: waiting for it");
                backoff.wait().await;
            }
            ended => return ended,
        }
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

    #[tokio::test(start_paused = true)]
    async fn what_fails_for_a_while_is_repeated_and_not_for_ever() {
        let wait_max = Duration::from_secs(60);
        // (answers that are failures, are they transient) -> tries
        for (failures, transient, want) in [(0, true, 1), (3, true, 4), (3, false, 1)] {
            let mut tries = 0;
            let ended = patiently(
                wait_max,
                |_: &&str| transient,
                || {
                    tries += 1;
                    std::future::ready(if tries > failures { Ok(()) } else { Err("away") })
                },
            );
            assert_eq!(ended.await.is_ok(), want == failures + 1);
            assert_eq!(tries, want);
        }
        let started = Instant::now();
        let never =
            patiently(wait_max, |_: &&str| true, || std::future::ready(Err::<(), _>("away")));
        assert!(never.await.is_err());
        assert!((wait_max..wait_max * 2).contains(&started.elapsed()));
    }
}
