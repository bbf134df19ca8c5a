//! Why a replica had better not lead.

use super::TICK_MS;

/// How long a group without a leader waits for one whose disk has room, ticks: then one that
/// has little is better than none.
const LEADERLESS_TICKS_MAX: u64 = 2_000 / TICK_MS;

/// A reason not to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// The clock is far off the others': it must not stamp.
    Clock,
    /// The disk is nearly full.
    Disk,
}

/// The reasons that there are.
#[derive(Debug, Default)]
pub(super) struct Bars {
    clock: bool,
    disk: bool,
    /// Ticks without a leader.
    leaderless: u64,
    /// To whom leadership was offered last.
    offered: Option<u64>,
}

impl Bars {
    pub(super) const fn set(&mut self, why: Bar, barred: bool) {
        match why {
            Bar::Clock => self.clock = barred,
            Bar::Disk => self.disk = barred,
        }
    }

    pub(super) const fn any(&self) -> bool {
        self.clock || self.disk
    }

    /// Whether it must not stand for election. Asked once a tick.
    pub(super) const fn hold_back(&mut self, leaderless: bool) -> bool {
        self.leaderless = if leaderless { self.leaderless + 1 } else { 0 };
        self.clock || (self.disk && self.leaderless < LEADERLESS_TICKS_MAX)
    }

    /// To whom a leader offers its leadership next: to all of them in turn.
    pub(super) fn next_of(&mut self, others: &[u64]) -> Option<u64> {
        let last = self.offered.and_then(|last| others.iter().position(|id| *id == last));
        let next = last.map_or(0, |last| (last + 1) % others.len());
        self.offered = others.get(next).copied();
        self.offered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_better_than_no_leader_and_a_wrong_clock_is_not() {
        let holds_back_for = |why| {
            let mut bars = Bars::default();
            bars.set(why, true);
            (0..10 * LEADERLESS_TICKS_MAX).take_while(|_| bars.hold_back(true)).count() as u64
        };
        assert_eq!(holds_back_for(Bar::Disk), LEADERLESS_TICKS_MAX - 1);
        assert_eq!(holds_back_for(Bar::Clock), 10 * LEADERLESS_TICKS_MAX);
        let mut bars = Bars::default();
        bars.set(Bar::Disk, true);
        assert!((0..10 * LEADERLESS_TICKS_MAX).all(|_| bars.hold_back(false)), "somebody leads");
        // One reason does not lift the other.
        bars.set(Bar::Clock, false);
        assert!(bars.any());
        bars.set(Bar::Disk, false);
        assert!(!bars.any() && !bars.hold_back(true));
    }

    #[test]
    fn leadership_is_offered_to_all_in_turn() {
        let mut bars = Bars::default();
        let offers: Vec<_> = (0..5).map(|_| bars.next_of(&[3, 1, 2])).collect();
        assert_eq!(offers, [Some(3), Some(1), Some(2), Some(3), Some(1)]);
        assert_eq!(bars.next_of(&[1]), Some(1));
        assert_eq!(bars.next_of(&[]), None);
    }
}
