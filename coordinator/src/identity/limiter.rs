//! Tries that failed, by where they came from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use steading_proto::tls::block;
use tokio::time::Instant;

/// Failed tries of one address within [`WINDOW`]; after them it is refused unheard.
const FAILURES_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered, an IPv6 network as one. Where more fail, those that did
/// not are heard all the same: nobody guesses a token, and they must not be kept out.
const ADDRESSES_MAX: usize = 4_096;

/// Slows down who guesses.
#[derive(Debug, Default)]
pub(super) struct Limiter(Mutex<BTreeMap<IpAddr, (Instant, u32)>>);

impl Limiter {
    /// Whether this address may try.
    pub(super) fn may_try(&self, address: IpAddr) -> bool {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() >= ADDRESSES_MAX {
            failed.retain(|_, (since, _)| since.elapsed() < WINDOW);
        }
        let known = failed.get(&block(address));
        known.is_none_or(|(since, failures)| since.elapsed() >= WINDOW || *failures < FAILURES_MAX)
    }

    /// A try from this address failed.
    pub(super) fn failed(&self, address: IpAddr) {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let address = block(address);
        if failed.len() >= ADDRESSES_MAX && !failed.contains_key(&address) {
            return;
        }
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

    #[test]
    fn who_has_many_addresses_keeps_nobody_else_out() {
        let v6 = |bits: u128| IpAddr::from(std::net::Ipv6Addr::from(bits));
        let limiter = Limiter::default();
        for number in 0..=ADDRESSES_MAX as u32 {
            limiter.failed(v6((0x2001_0db8_0000_0000_u128 + u128::from(number)) << 64));
        }
        assert!(limiter.may_try(IpAddr::from([10, 0, 0, 1])));
        // All addresses of a network are one.
        let of_network = |host: u128| v6((0x2001_0db8_ffff_0000_u128 << 64) + host);
        let limiter = Limiter::default();
        for host in 0..u128::from(FAILURES_MAX) {
            assert!(limiter.may_try(of_network(host)));
            limiter.failed(of_network(host));
        }
        assert!(!limiter.may_try(of_network(u128::from(FAILURES_MAX))));
    }
}
