//! Tries that failed, by where they came from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Failed tries of one address within [`WINDOW`]; after them it is refused unheard.
const FAILURES_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered. Where more fail, all are refused until some are forgotten.
const ADDRESSES_MAX: usize = 4_096;

/// Slows down who guesses.
#[derive(Debug, Default)]
pub(super) struct Limiter(Mutex<BTreeMap<IpAddr, (Instant, u32)>>);

impl Limiter {
    /// Whether this address may try.
    pub(super) fn may_try(&self, address: IpAddr) -> bool {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, failures)) = failed.get(&address) {
            return since.elapsed() >= WINDOW || *failures < FAILURES_MAX;
        }
        if failed.len() >= ADDRESSES_MAX {
            failed.retain(|_, (since, _)| since.elapsed() < WINDOW);
        }
        failed.len() < ADDRESSES_MAX
    }

    /// A try from this address failed.
    pub(super) fn failed(&self, address: IpAddr) {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = failed.entry(address).or_insert_with(|| (Instant::now(), 0));
        if entry.0.elapsed() >= WINDOW {
            *entry = (Instant::now(), 0);
        }
        entry.1 += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_fails_too_often_waits() {
        let limiter = Limiter::default();
        let [one, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        for _ in 0..FAILURES_MAX {
            assert!(limiter.may_try(one));
            limiter.failed(one);
        }
        assert!(!limiter.may_try(one));
        assert!(limiter.may_try(other));
        tokio::time::advance(WINDOW).await;
        assert!(limiter.may_try(one));
        limiter.failed(one);
        assert!(limiter.may_try(one));
    }
}
