//! The network: who can reach whom, how long it takes, and what gets lost on the way.

use std::collections::BTreeMap;

use steading_coordinator::replica::sim_fs::Dice;

use super::queue::{MS, Us};

/// Somebody on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    Replica(usize),
    Agent(usize),
    Client(usize),
}

/// How the network treats a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Of ten thousand.
    pub(crate) lost: u64,
    /// Of ten thousand.
    pub(crate) doubled: u64,
    /// Of ten thousand: takes up to `slow_us`.
    pub(crate) slow: u64,
    pub(crate) slow_us: Us,
    /// What a packet takes otherwise, at most.
    pub(crate) usual_us: Us,
}

impl Weather {
    /// How long the next packet takes.
    pub(crate) const fn delay(&self, dice: &mut Dice) -> Us {
        if dice.chance(self.slow, 10_000) {
            return 1 + dice.below(self.slow_us);
        }
        50 + dice.below(self.usual_us)
    }
}

/// Cuts, and the weather.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) weather: Weather,
    pub(crate) fair: Weather,
    /// Directed cuts, each as often as it was made and not healed.
    cuts: BTreeMap<(Peer, Peer), u32>,
}

impl Net {
    pub(crate) const fn new(weather: Weather) -> Self {
        Self { weather, fair: weather, cuts: BTreeMap::new() }
    }

    pub(crate) fn is_cut(&self, from: Peer, to: Peer) -> bool {
        !self.cuts.is_empty() && self.cuts.contains_key(&(from, to))
    }

    pub(crate) fn cut(&mut self, from: Peer, to: Peer) {
        *self.cuts.entry((from, to)).or_default() += 1;
    }

    pub(crate) fn heal(&mut self, from: Peer, to: Peer) {
        if let Some(cuts) = self.cuts.get_mut(&(from, to)) {
            *cuts -= 1;
            if *cuts == 0 {
                self.cuts.remove(&(from, to));
            }
        }
    }

    /// Every cut is healed and the sky is blue.
    pub(crate) fn calm(&mut self) {
        self.cuts.clear();
        self.weather = Weather { lost: 0, doubled: 0, slow: 0, slow_us: MS, usual_us: MS };
        self.fair = self.weather;
    }
}
