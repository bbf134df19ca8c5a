//! Which blobs the origin is known to hold, so that it is not asked for each one again.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use steading_model::{Digest, DigestFunction};

/// Blobs of one generation; there are two. About 60 bytes each.
const GENERATION_MAX: usize = 200_000;

/// A generation's time. Somebody may remove objects: what was there long ago is asked
/// for again.
const GENERATION_AGE: Duration = Duration::from_secs(300);

type Key = (DigestFunction, Digest);

/// Blobs that were seen in the origin, or put there, not long ago.
#[derive(Debug)]
pub(super) struct Known(Mutex<Generations>);

#[derive(Debug)]
struct Generations {
    young: HashSet<Key>,
    old: HashSet<Key>,
    since: Instant,
}

impl Default for Known {
    fn default() -> Self {
        let since = Instant::now();
        Self(Mutex::new(Generations { young: HashSet::new(), old: HashSet::new(), since }))
    }
}

impl Known {
    pub(super) fn holds(&self, function: DigestFunction, digest: &Digest) -> bool {
        if digest.size == 0 {
            return true;
        }
        let mut generations = self.lock();
        generations.turn();
        let key = (function, *digest);
        generations.young.contains(&key) || generations.old.contains(&key)
    }

    pub(super) fn insert(&self, function: DigestFunction, digest: &Digest) {
        let mut generations = self.lock();
        generations.turn();
        generations.young.insert((function, *digest));
    }

    pub(super) fn remove(&self, function: DigestFunction, digest: &Digest) {
        let mut generations = self.lock();
        let key = (function, *digest);
        generations.young.remove(&key);
        generations.old.remove(&key);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn turn(&mut self) {
        if self.young.len() < GENERATION_MAX && self.since.elapsed() < GENERATION_AGE {
            return;
        }
        self.old = std::mem::take(&mut self.young);
        self.since = Instant::now();
    }
}
