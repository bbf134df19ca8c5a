//! What happened, as a hash for comparing two replays, and in words for people.

use std::collections::VecDeque;

use super::queue::Us;

/// Lines that are remembered.
const LINES_MAX: usize = 120;

/// Longest line, bytes.
const LINE_BYTES_MAX: usize = 220;

/// The story of a world.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    told: Option<VecDeque<String>>,
}

impl Trace {
    /// `tell`: keep the last lines too.
    pub(crate) fn new(tell: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, told: tell.then(VecDeque::new) }
    }

    /// Takes a number into the hash.
    pub(crate) const fn note(&mut self, number: u64) {
        self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(0x0100_0000_01b3);
    }

    /// Tells a line, if anybody listens.
    pub(crate) fn tell(&mut self, now: Us, line: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            if told.len() == LINES_MAX {
                told.pop_front();
            }
            let mut line = line();
            let end = (0..=LINE_BYTES_MAX.min(line.len())).rfind(|at| line.is_char_boundary(*at));
            line.truncate(end.unwrap_or(0));
            told.push_back(format!("{:>10.3} ms  {line}", now as f64 / 1000.0));
        }
    }

    pub(crate) const fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn lines(self) -> Vec<String> {
        self.told.map(Vec::from).unwrap_or_default()
    }
}
