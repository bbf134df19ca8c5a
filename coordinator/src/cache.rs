//! A small cache bounded by weight, least recently used out first.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Values by key. Shared; every call is short.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    inner: Mutex<Inner<K, V>>,
    weight_max: usize,
}

#[derive(Debug)]
struct Inner<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    by_use: BTreeMap<u64, K>,
    uses: u64,
    weight: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    used: u64,
    weight: usize,
}

impl<K: Ord + Copy, V: Clone> Cache<K, V> {
    /// Holds values whose weights sum up to `weight_max` at most.
    pub(crate) fn new(weight_max: usize) -> Self {
        let inner = Inner { entries: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0, weight: 0 };
        Self { inner: Mutex::new(inner), weight_max }
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let mut guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = &mut *guard;
        let entry = inner.entries.get_mut(key)?;
        inner.uses += 1;
        inner.by_use.remove(&entry.used);
        inner.by_use.insert(inner.uses, *key);
        entry.used = inner.uses;
        Some(entry.value.clone())
    }

    /// What weighs more than the cache holds is not kept.
    pub(crate) fn insert(&self, key: K, value: V, weight: usize) {
        if weight > self.weight_max {
            return;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.remove(&key);
        inner.uses += 1;
        let used = inner.uses;
        inner.by_use.insert(used, key);
        inner.weight += weight;
        inner.entries.insert(key, Entry { value, used, weight });
        while inner.weight > self.weight_max {
            let Some((_, oldest)) = inner.by_use.first_key_value() else {
                break;
            };
            let oldest = *oldest;
            inner.remove(&oldest);
        }
    }
}

impl<K: Ord + Copy, V> Inner<K, V> {
    fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_use.remove(&entry.used);
            self.weight -= entry.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first_and_the_weight_stays_bounded() {
        let cache = Cache::new(10);
        for (key, weight) in [(1, 4), (2, 4), (3, 100)] {
            cache.insert(key, key * 10, weight);
        }
        assert_eq!(cache.get(&3), None);
        assert_eq!(cache.get(&1), Some(10));
        cache.insert(4, 40, 4);
        assert_eq!(cache.get(&2), None);
        assert_eq!((cache.get(&1), cache.get(&4)), (Some(10), Some(40)));
        cache.insert(1, 11, 10);
        assert_eq!((cache.get(&1), cache.get(&4)), (Some(11), None));
    }
}
