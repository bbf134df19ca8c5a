//! Why a replica had better not lead.

use std::cmp::Ordering::{Equal, Greater, Less};

use super::TICK_MS;

/// How long a group without a leader waits for one whose disk has room, ticks: then one that
/// has little is better than none.
const LEADERLESS_TICKS_MAX: u64 = 2_000 / TICK_MS;

/// How long one without a leader waits for another whose clock is right, ticks. It stamps
/// nothing later than what it knows, and hands over as soon as another may lead.
const CLOCKLESS_TICKS_MAX: u64 = 10_000 / TICK_MS;

/// How long a leader on a full disk that has offered its lead to everybody, and was left with
/// it, keeps it before it asks again, ticks: while an offer is open, nothing is proposed.
const REFUSED_TICKS: u64 = 8_000 / TICK_MS;

/// A reason not to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// The clock is far off the others': it must not stamp.
    Clock,
    /// The disk is nearly full.
    Disk,
}

/// What to do about an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// As everybody does.
    Freely,
    /// Not yet.
    HoldBack,
    /// From now on, but not in step with others that held back for as long.
    NowOrLater,
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
    /// The tick before which it is not offered again.
    next_offer: u64,
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

    /// Whether it must not say what time it is.
    pub(super) const fn clock(&self) -> bool {
        self.clock
    }

    /// Whether it may stand for election. Asked once a tick.
    pub(super) fn stand(&mut self, leaderless: bool) -> Stand {
        self.leaderless = if leaderless { self.leaderless + 1 } else { 0 };
        let patience = match (self.clock, self.disk) {
            (true, _) => CLOCKLESS_TICKS_MAX,
            (false, true) => LEADERLESS_TICKS_MAX,
            (false, false) => return Stand::Freely,
        };
        match self.leaderless.cmp(&patience) {
            Less => Stand::HoldBack,
            Equal => Stand::NowOrLater,
            Greater => Stand::Freely,
        }
    }

    /// To whom a leader offers its leadership next: to all of them in turn.
    pub(super) fn next_of(&mut self, others: &[u64], tick: u64) -> Option<u64> {
        if tick < self.next_offer || others.is_empty() {
            return None;
        }
        let last = self.offered.and_then(|last| others.iter().position(|id| *id == last));
        let next = last.map_or(0, |last| (last + 1) % others.len());
        if next + 1 == others.len() {
            self.next_offer = tick + REFUSED_TICKS;
        }
        self.offered = others.get(next).copied();
        self.offered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_wrong_is_better_than_no_leader_and_a_full_disk_sooner() {
        let patience = |why| {
            let mut bars = Bars::default();
            bars.set(why, true);
            let asked: Vec<_> = (0..1_000).map(|_| bars.stand(true)).collect();
            let patience = asked.iter().take_while(|stand| **stand == Stand::HoldBack).count();
            assert_eq!(asked[patience], Stand::NowOrLater);
            assert!(asked[patience + 1..].iter().all(|stand| *stand == Stand::Freely));
            patience as u64 + 1
        };
        assert_eq!(patience(Bar::Disk), LEADERLESS_TICKS_MAX);
        assert_eq!(patience(Bar::Clock), CLOCKLESS_TICKS_MAX);
        let mut bars = Bars::default();
        bars.set(Bar::Disk, true);
        let mut led = (0..10 * LEADERLESS_TICKS_MAX).map(|_| bars.stand(false));
        assert!(led.all(|stand| stand == Stand::HoldBack), "somebody leads");
        // One reason does not lift the other.
        bars.set(Bar::Clock, false);
        assert_eq!(bars.stand(true), Stand::HoldBack);
        bars.set(Bar::Disk, false);
        assert!(!bars.any() && bars.stand(true) == Stand::Freely);
    }

    #[test]
    fn leadership_is_offered_to_all_in_turn_and_then_kept_for_a_while() {
        let mut bars = Bars::default();
        let offers = |bars: &mut Bars, ids: &[u64], ticks: std::ops::Range<u64>| {
            ticks.filter_map(|tick| Some((tick, bars.next_of(ids, tick)?))).collect::<Vec<_>>()
        };
        let round = |at| vec![(at, 3), (at + 1, 1), (at + 2, 2)];
        let second = 2 + REFUSED_TICKS;
        assert_eq!(offers(&mut bars, &[3, 1, 2], 0..second), round(0));
        assert_eq!(offers(&mut bars, &[3, 1, 2], second..2 * REFUSED_TICKS), round(second));
        let third = second + 2 + REFUSED_TICKS;
        assert_eq!(offers(&mut bars, &[1], third..third + 2), [(third, 1)]);
        assert_eq!(bars.next_of(&[], u64::MAX), None);
    }
}
