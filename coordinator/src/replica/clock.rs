//! The clock on the wall, as far as it can be believed.
//!
//! What the leader stamps stays in the log for ever, and time in it never goes back: one
//! entry of next year would end every request id and every deadline of this one. So a
//! clock that jumps ahead is not followed for [`DOUBT_MS`]: in a group the others notice
//! within that time that it differs from theirs, and take the lead from its replica.
//! Where nobody does (the others jumped as well, or there are none) it was set right.

use std::time::SystemTime;

use nix::time::{ClockId, clock_gettime};
use steading_model::Timestamp;

/// How far the clock may be ahead of where it was and the time that passed since,
/// milliseconds: it is adjusted a little all the time.
const JUMP_MS: u64 = 1_000;

/// How long a jump is not believed, milliseconds: some rounds of the peers' comparison and a
/// hand-over.
const DOUBT_MS: u64 = 10_000;

/// A reading, with when it was taken on the clock that nobody sets and that runs on while
/// the machine sleeps.
#[derive(Clone, Copy, Debug)]
struct Reading {
    wall_ms: u64,
    boot_ms: u64,
}

/// The clock on the wall.
#[derive(Debug, Default)]
pub(super) struct Clock {
    believed: Option<Reading>,
    /// When the jump that is not believed yet was seen, on the other clock.
    jumped_ms: Option<u64>,
}

impl Clock {
    /// What to stamp now.
    pub(super) fn now(&mut self) -> Timestamp {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME);
        let wall_ms = wall.map_or(0, |wall| wall.as_millis() as u64);
        let boot_ms = boot.map_or(0, |boot| {
            let (seconds, nanoseconds) = (boot.tv_sec().max(0), boot.tv_nsec().max(0));
            seconds as u64 * 1_000 + nanoseconds as u64 / 1_000_000
        });
        Timestamp::from_ms(self.read(Reading { wall_ms, boot_ms }))
    }

    fn read(&mut self, new: Reading) -> u64 {
        let expected = self.believed.map_or(new.wall_ms, |believed| {
            believed.wall_ms.saturating_add(new.boot_ms.saturating_sub(believed.boot_ms))
        });
        if new.wall_ms > expected.saturating_add(JUMP_MS) {
            let jumped = *self.jumped_ms.get_or_insert_with(|| {
                let by_ms = new.wall_ms - expected;
                tracing::warn!(by_ms, "the clock jumped ahead: not believed for ten seconds");
                new.boot_ms
            });
            if new.boot_ms.saturating_sub(jumped) < DOUBT_MS {
                return expected;
            }
        }
        // Also one that was set back: the log's time waits for it.
        *self = Self { believed: Some(new), jumped_ms: None };
        new.wall_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_ahead_is_believed_when_nobody_contradicts() {
        check(&[(0, 1_000_000, 1_000_000), (100, 1_000_100, 1_000_100)]);
        // Adjusted by less than a second, again and again.
        check(&[(0, 1_000, 1_000), (100, 2_000, 2_000), (200, 3_000, 3_000)]);
        check(&[
            (0, 1_000, 1_000),
            (100, 90_000_000, 1_100),
            (9_000, 90_008_900, 10_000),
            (10_200, 90_010_100, 90_010_100),
            (10_300, 90_010_200, 90_010_200),
        ]);
    }

    #[test]
    fn a_jump_that_is_taken_back_never_was() {
        check(&[
            (0, 1_000, 1_000),
            (100, 90_000_000, 1_100),
            (5_000, 6_000, 6_000),
            // The next one is doubted from its own beginning.
            (9_000, 90_000_000, 10_000),
            (18_000, 90_009_000, 19_000),
            (19_100, 90_010_100, 90_010_100),
        ]);
    }

    #[test]
    fn a_clock_that_was_set_back_is_followed_and_a_machine_that_slept_has_not_jumped() {
        check(&[(0, 100_000, 100_000), (100, 40_000, 40_000), (200, 40_100, 40_100)]);
        check(&[(0, 1_000, 1_000), (30_000_000, 30_001_000, 30_001_000)]);
    }

    /// Plays readings (other clock, wall, what is stamped).
    fn check(story: &[(u64, u64, u64)]) {
        let mut clock = Clock::default();
        for &(boot_ms, wall_ms, want) in story {
            assert_eq!(clock.read(Reading { wall_ms, boot_ms }), want, "at {boot_ms}");
        }
    }
}
