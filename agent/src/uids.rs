//! Ranges of user ids for jobs, of which no two agents of a machine use the same: jobs of
//! two agents under one uid could signal and read each other.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context as _;

/// Where the locks are that all agents of a machine see. Root's alone.
pub const LOCKS: &str = "/run/steading-uids";

/// First user id that is taken by itself: above what `useradd` hands out.
const FIRST: u32 = 70_000;

/// User ids that one lock stands for: more than an agent has slots.
const RANGE: u32 = 1_000;

/// Ranges that are tried.
const RANGES_MAX: u32 = 50;

/// A range that this process holds.
#[derive(Debug)]
pub struct Uids {
    base: u32,
    _locks: Vec<File>,
}

impl Uids {
    /// A range with `count` ids from `base` on; without one, the first that is free.
    ///
    /// # Errors
    ///
    /// Another agent has it, or the locks in `dir` cannot be used.
    pub fn take(dir: &Path, base: Option<u32>, count: u32) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make `{}`", dir.display()))?;
        if let Some(base) = base {
            let ranges = base / RANGE..=base.saturating_add(count.saturating_sub(1)) / RANGE;
            let locks: Option<Vec<File>> =
                ranges.map(|range| lock(dir, range)).collect::<anyhow::Result<_>>()?;
            let locks = locks.with_context(|| {
                format!("another agent of this machine uses the user ids from {base} on")
            })?;
            return Ok(Self { base, _locks: locks });
        }
        for range in FIRST / RANGE..FIRST / RANGE + RANGES_MAX {
            if let Some(lock) = lock(dir, range)? {
                return Ok(Self { base: range * RANGE, _locks: vec![lock] });
            }
        }
        anyhow::bail!(
            "{RANGES_MAX} agents of this machine use all user ids that there are for jobs"
        )
    }

    /// The first of the ids.
    pub const fn base(&self) -> u32 {
        self.base
    }
}

/// None: another one holds it.
fn lock(dir: &Path, range: u32) -> anyhow::Result<Option<File>> {
    let path = dir.join((range * RANGE).to_string());
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("cannot write `{}`", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock `{}`", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_agents_have_the_same_ids() {
        let dir = tempfile::tempdir().unwrap();
        let first = Uids::take(dir.path(), None, 8).unwrap();
        let second = Uids::take(dir.path(), None, 8).unwrap();
        assert_eq!((first.base(), second.base()), (70_000, 71_000));
        // A range may reach into the next one.
        let refused = Uids::take(dir.path(), Some(69_995), 8).unwrap_err();
        assert!(refused.to_string().contains("another agent"), "{refused}");
        assert_eq!(Uids::take(dir.path(), Some(61_000), 8).unwrap().base(), 61_000);
        drop(first);
        assert_eq!(Uids::take(dir.path(), None, 8).unwrap().base(), 70_000);
    }
}
