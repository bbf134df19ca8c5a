//! How long to wait before the next try.

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use tokio::time::Instant;

/// First wait, milliseconds.
const WAIT_MS_MIN: u64 = 20;

/// Longest wait at first, milliseconds: an election takes a quarter of a second to half a
/// one, and what comes after it should not wait as long again.
const WAIT_MS_MAX_AT_FIRST: u64 = 250;

/// How long that is, milliseconds: longer than an election that has to be repeated.
const AT_FIRST_MS: u64 = 10_000;

/// Longest wait after that, milliseconds: how long a coordinator that is back goes
/// unnoticed, and jobs stay frozen for nothing. A refused connection a second costs neither
/// side anything.
const WAIT_MS_MAX: u64 = 1_000;

/// A call that lasted longer than this had somebody at the other end, who went away then.
pub(crate) const ANSWERING: Duration = Duration::from_secs(10);

/// Doubles from try to try, with jitter, so that a fleet does not come back as one.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
    /// When the first wait of the row began.
    since: Option<Instant>,
}

impl Backoff {
    /// Waits before the next try.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    /// Waits before the next try, not longer than until `sooner`.
    pub(crate) async fn wait_or(&mut self, sooner: impl Future<Output = ()>) {
        tokio::select! {
            () = sooner => (),
            () = self.wait() => (),
        }
    }

    /// It worked: the next failure starts from the beginning.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    fn next(&mut self) -> Duration {
        let since = *self.since.get_or_insert_with(Instant::now);
        let ms = WAIT_MS_MIN << self.tries;
        let ms = if since.elapsed().as_millis() < u128::from(AT_FIRST_MS) {
            // What is doubled here is what counts once the first time is over.
            if ms < WAIT_MS_MAX_AT_FIRST {
                self.tries += 1;
            }
            ms.min(WAIT_MS_MAX_AT_FIRST)
        } else {
            self.tries = (self.tries + 1).min(8);
            ms.min(WAIT_MS_MAX)
        };
        Duration::from_millis(ms / 2 + random() % (ms / 2 + 1))
    }
}

/// Any number: every `RandomState` has its own keys. Not for secrets.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
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

    #[tokio::test(start_paused = true)]
    async fn waits_are_short_at_first_and_grow_while_nobody_answers() {
        let mut backoff = Backoff::default();
        let began = Instant::now();
        let mut last = Duration::ZERO;
        let mut tries = 0;
        while began.elapsed() < Duration::from_millis(AT_FIRST_MS) {
            let before = Instant::now();
            backoff.wait().await;
            last = before.elapsed();
            assert!(last <= Duration::from_millis(WAIT_MS_MAX_AT_FIRST + 2), "{last:?}");
            tries += 1;
            assert!(tries > 1 || last <= Duration::from_millis(WAIT_MS_MIN + 2), "{last:?}");
        }
        assert!(last >= Duration::from_millis(WAIT_MS_MAX_AT_FIRST / 2));
        let later: Vec<u128> = (0..10).map(|_| backoff.next().as_millis()).collect();
        assert!(later.iter().all(|&ms| ms <= u128::from(WAIT_MS_MAX)));
        assert!(later[9] >= u128::from(WAIT_MS_MAX / 2));
        backoff.reset();
        assert!(backoff.next().as_millis() <= u128::from(WAIT_MS_MIN));
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
