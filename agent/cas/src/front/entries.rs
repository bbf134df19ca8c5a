//! Results of actions that were read or written not long ago.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use steading_model::{Digest, DigestFunction};

use crate::actions::ActionEntry;

/// What the kept results may weigh, bytes of their encoding.
const BYTES_MAX: usize = 32 << 20;

/// How long a result is believed without a look into the origin: another coordinator may
/// have written a newer one there.
const FRESH: Duration = Duration::from_secs(10);

/// What an entry weighs besides its result, bytes.
const ENTRY_BYTES: usize = 200;

/// Results in memory.
#[derive(Debug, Default)]
pub(super) struct Entries(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    rows: HashMap<Key, (Instant, ActionEntry)>,
    bytes: usize,
}

type Key = (String, DigestFunction, Digest);

impl Entries {
    pub(super) fn get(
        &self,
        scope: &str,
        function: DigestFunction,
        action: &Digest,
    ) -> Option<ActionEntry> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, entry) = table.rows.get(&(scope.to_owned(), function, *action))?;
        (since.elapsed() < FRESH).then(|| entry.clone())
    }

    pub(super) fn insert(
        &self,
        scope: &str,
        function: DigestFunction,
        action: &Digest,
        entry: &ActionEntry,
    ) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (scope.to_owned(), function, *action);
        // Its age counts from when it was read, not from when it was last wanted.
        if table
            .rows
            .get(&key)
            .is_some_and(|(since, known)| since.elapsed() < FRESH && known == entry)
        {
            return;
        }
        table.remove(&key);
        let bytes = weight(entry);
        if table.bytes + bytes > BYTES_MAX {
            // They are young: whatever is wanted again is read again.
            *table = Table::default();
        }
        table.bytes += bytes;
        table.rows.insert(key, (Instant::now(), entry.clone()));
    }

    pub(super) fn remove(&self, scope: &str, function: DigestFunction, action: &Digest) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.remove(&(scope.to_owned(), function, *action));
    }
}

impl Table {
    fn remove(&mut self, key: &Key) {
        if let Some((_, entry)) = self.rows.remove(key) {
            self.bytes -= weight(&entry);
        }
    }
}

fn weight(entry: &ActionEntry) -> usize {
    prost::Message::encoded_len(&entry.result) + entry.writer.len() + ENTRY_BYTES
}
