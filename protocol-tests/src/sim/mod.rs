//! The simulator: a whole farm in one thread and in virtual time. Real replicas with the
//! real log on a disk that forgets, the real core; around them the coordinator's shell,
//! agents and clients as they behave, a network that loses, doubles, delays and cuts, and
//! a seed that decides it all, so that a seed replays exactly.
//!
//! [`run`] plays one seed. What must hold is checked by [`audit`] on every wave that is
//! applied, and by [`world`] on every start and thaw of a job; the rest at the end, when
//! faults have stopped and everything must have come to its end.

mod agent;
mod audit;
mod calls;
mod client;
mod dag;
mod faults;
mod host;
mod members;
mod mutation;
mod net;
mod plan;
mod queue;
mod shell;
mod tally;
mod trace;
mod world;

pub use mutation::{Mutation, with as with_mutation};
pub use plan::{Focus, Options};
pub use tally::{Seen, Tally};

use std::fmt;

use world::World;

/// A world that ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of everything that happened: equal for equal worlds.
    pub hash: u64,
    /// Events.
    pub steps: u64,
    /// Virtual time, milliseconds.
    pub virtual_ms: u64,
    pub tally: Tally,
}

/// A world in which something happened that must not.
#[derive(Clone, Debug)]
pub struct Violation {
    pub seed: u64,
    pub what: String,
    pub steps: u64,
    pub hash: u64,
    /// The faults that had happened by then, by their place in the seed's schedule.
    pub faults: Vec<(usize, String)>,
    /// The last lines of the story, if it was told.
    pub story: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, step {}: {}", self.seed, self.steps, self.what)?;
        for line in &self.story {
            writeln!(f, "  {line}")?;
        }
        for (place, fault) in &self.faults {
            writeln!(f, "  fault {place}: {fault}")?;
        }
        Ok(())
    }
}

/// Plays one world to its end.
///
/// # Errors
///
/// The [`Violation`], if something happened that must not.
pub fn run(options: &Options) -> Result<Report, Box<Violation>> {
    World::new(options.clone()).play()
}

/// Leaves out every fault without which the violation happens all the same, and tells the
/// story of what is left. At most `tries` worlds are played.
pub fn minimise(options: &Options, found: Box<Violation>, tries: usize) -> Box<Violation> {
    let mut options = options.clone();
    let mut best = found;
    let mut left: Vec<usize> = best.faults.iter().map(|(place, _)| *place).collect();
    for _ in 0..tries {
        let Some(place) = left.pop() else { break };
        options.without.push(place);
        match run(&options) {
            Err(violation) => {
                left.retain(|place| violation.faults.iter().any(|(other, _)| other == place));
                best = violation;
            }
            Ok(_) => {
                options.without.pop();
            }
        }
    }
    options.tell = true;
    run(&options).err().unwrap_or(best)
}
