//! The image's twin in memory, for the simulator and for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::image::{ImageError, ImageStore, Write};

/// The twin of sled for the simulator: rows in memory, which clones share.
#[derive(Clone, Debug, Default)]
pub struct MemStore(Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>);

impl MemStore {
    /// Runs over the rows as they are on "disk": for tests that damage them.
    pub fn with<T>(&self, run: impl FnOnce(&mut BTreeMap<Vec<u8>, Vec<u8>>) -> T) -> T {
        run(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ImageStore for MemStore {
    fn scan(&self, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), ImageError> {
        self.with(|rows| rows.iter().for_each(|(key, value)| each(key, value)));
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
        Ok(self.with(|rows| rows.get(key).cloned()))
    }

    fn write(&mut self, batch: Vec<Write>) -> Result<(), ImageError> {
        self.with(|rows| {
            for (key, value) in batch {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
        });
        Ok(())
    }

    fn set_aside(&mut self) -> Result<(), ImageError> {
        self.with(BTreeMap::clear);
        Ok(())
    }
}
