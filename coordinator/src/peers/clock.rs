//! Whether this replica's clock is fit to stamp entries: how far those of its peers are
//! ahead, as pings show it. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// How far a clock may be off the median of the group's, milliseconds.
pub(crate) const CLOCK_OFF_MS_MAX: i64 = 1_000;

/// A round trip above this tells too little of a clock, milliseconds.
pub(crate) const ROUND_TRIP_MS_MAX: u64 = 500;

/// How far a peer's clock is ahead of ours, if the ping was quick enough to tell. It read
/// its clock somewhere between the two times; half way is half the round trip off at most.
pub(crate) fn ahead_ms(sent_ms: u64, peer_ms: u64, received_ms: u64) -> Option<i64> {
    // Ours may have been set back in between.
    let round_trip = received_ms.checked_sub(sent_ms)?;
    if round_trip > ROUND_TRIP_MS_MAX {
        return None;
    }
    let here = i64::try_from(sent_ms + round_trip / 2).ok()?;
    i64::try_from(peer_ms).ok()?.checked_sub(here)
}

/// Whose clock is off the median of the group's, `me` among them. `ahead_ms`: by how
/// much each peer's is ahead of ours.
pub(crate) fn who_is_off(me: u64, ahead_ms: &BTreeMap<u64, i64>) -> BTreeSet<u64> {
    let mut clocks = ahead_ms.clone();
    clocks.insert(me, 0);
    let off = |(id, clock): (&u64, &i64)| is_off(*clock, clocks.values()).then_some(*id);
    clocks.iter().filter_map(off).collect()
}

/// Of two clocks in the middle the one nearer to it counts: a lone peer proves nothing
/// against it.
fn is_off<'a>(clock: i64, all: impl Iterator<Item = &'a i64>) -> bool {
    let mut all: Vec<i64> = all.map(|other| other.saturating_sub(clock)).collect();
    all.sort_unstable();
    let middle = match all.len() % 2 {
        1 => all[all.len() / 2],
        _ => nearer(all[all.len() / 2 - 1], all[all.len() / 2]),
    };
    middle.saturating_abs() > CLOCK_OFF_MS_MAX
}

fn nearer(a: i64, b: i64) -> i64 {
    if a.saturating_abs() <= b.saturating_abs() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_if_most_others_say_so() {
        check(&[], &[]);
        check(&[999_999], &[]);
        check(&[0, 999_999], &[3]);
        check(&[999_999, 999_999], &[1]);
        check(&[-999_999, -999_999], &[1]);
        check(&[-999_999, 999_999], &[2, 3]);
        check(&[1_001, 1_001], &[1]);
        check(&[1_000, 1_000], &[]);
        check(&[1_001, 1_001, 0], &[]);
        check(&[5_000, 5_000, 5_000], &[1]);
        check(&[5_000, 5_000, 0, 0], &[2, 3]);
        check(&[i64::MIN, i64::MIN], &[1]);
    }

    #[test]
    fn only_a_quick_ping_tells_of_a_clock() {
        assert_eq!(ahead_ms(1_000, 1_010, 1_020), Some(0));
        assert_eq!(ahead_ms(1_000, 5_010, 1_020), Some(4_000));
        assert_eq!(ahead_ms(5_000, 1_010, 5_020), Some(-4_000));
        assert_eq!(ahead_ms(1_000, 1_010, 1_600), None);
        assert_eq!(ahead_ms(1_000, 1_010, 900), None);
        assert_eq!(ahead_ms(0, u64::MAX, 0), None);
    }

    /// We are 1, the peers 2, 3 and so on.
    fn check(ahead_ms: &[i64], want: &[u64]) {
        let ahead = (2..).zip(ahead_ms.iter().copied()).collect();
        assert_eq!(who_is_off(1, &ahead), want.iter().copied().collect(), "{ahead_ms:?}");
    }
}
