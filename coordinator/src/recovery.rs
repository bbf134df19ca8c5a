//! A group that is made of what is left of another one: of a backup, or of a survivor of
//! a lost majority. Both with the coordinator stopped.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use steading_core::FEATURE_LEVEL;

use crate::backup::{self, Manifest};
use crate::config::ObjectStore;
use crate::identity::{CA_DIR, IDENTITY_DIR};
use crate::origin;
use crate::replica::{DirLock, Position, found, free_name, salvage};

/// Of the new group's log, bytes. The configuration decides once it is started.
const SEGMENT_BYTES: u64 = 64 << 20;

/// How a backup is restored.
#[derive(Clone, Debug)]
pub struct Restore {
    pub file: PathBuf,
    /// Made where it is missing. Holds no coordinator yet.
    pub data_dir: PathBuf,
    /// Where the blobs are, or where a copy of them is.
    pub object_store: Option<ObjectStore>,
    /// The key that was taken with the backup.
    pub keys: Option<PathBuf>,
}

/// A group that was made anew.
#[derive(Clone, Debug)]
pub struct NewGroup {
    pub cluster_id: String,
    /// Runs that go on.
    pub open_runs: usize,
    /// Where what was there before is now.
    pub set_aside: Option<PathBuf>,
}

/// What a stopped replica could go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standpoint {
    pub cluster_id: String,
    pub replica_id: u64,
    /// Of the last entry of its log. The survivor with the largest term, and then the
    /// largest index, is the one to go on from.
    pub term: u64,
    pub index: u64,
    pub open_runs: usize,
}

/// Makes a new group of one from a backup.
///
/// # Errors
///
/// The backup is none, the directory is somebody's, or the origin is another one.
pub async fn restore(restore: Restore) -> anyhow::Result<(Manifest, NewGroup)> {
    let origin = match restore.object_store.clone() {
        Some(setting) => Some(tokio::task::spawn_blocking(move || setting.open()).await??),
        None => None,
    };
    let at = restore.clone();
    let (_lock, manifest, state) = tokio::task::spawn_blocking(move || {
        let lock = DirLock::take(&at.data_dir).context("lock the data directory")?;
        if at.data_dir.join("replica").exists() {
            bail!(
                "`{}` is a coordinator's already: restore into an empty directory",
                at.data_dir.display()
            );
        }
        let (manifest, state) =
            backup::read(&at.file).with_context(|| format!("read `{}`", at.file.display()))?;
        Ok((lock, manifest, state))
    })
    .await??;
    if let (Some(origin), true) = (&origin, manifest.shared_origin) {
        origin::check(origin, &manifest.cluster_id).await?;
    }
    let open_runs = state.open_runs().count();
    let at = Position { index: manifest.index.max(1), term: manifest.term.max(1) };
    let shared = manifest.shared_origin.then(|| manifest.cluster_id.clone());
    let founded = tokio::task::spawn_blocking(move || {
        let data_dir = &restore.data_dir;
        if let Some(keys) = &restore.keys {
            let key = std::fs::read(keys).with_context(|| format!("read `{}`", keys.display()))?;
            write_secret(&data_dir.join("seal.key"), &key)?;
        }
        if let Some(cluster) = &shared {
            origin::expect(data_dir, cluster)?;
        }
        Ok::<_, anyhow::Error>(found(&data_dir.join("replica"), SEGMENT_BYTES, at, state)?)
    })
    .await??;
    if let Some(origin) = &origin {
        origin.adopt(&founded.cluster_id).await?;
    }
    let group = NewGroup { cluster_id: founded.cluster_id, open_runs, set_aside: None };
    Ok((manifest, group))
}

/// What a stopped coordinator holds. Changes nothing. Blocks.
///
/// # Errors
///
/// The directory is in use, or nothing in it can be trusted.
pub fn standpoint(data_dir: &Path) -> anyhow::Result<Standpoint> {
    let _lock = lock_existing(data_dir)?;
    let salvaged = salvage(&data_dir.join("replica"), SEGMENT_BYTES)?;
    Ok(Standpoint {
        cluster_id: salvaged.cluster_id,
        replica_id: salvaged.replica_id,
        term: salvaged.last.term,
        index: salvaged.last.index,
        open_runs: salvaged.state.open_runs().count(),
    })
}

/// Makes a new group of one from what a stopped coordinator of a group without a majority
/// holds. What the lost ones alone had is lost. Blocks.
///
/// # Errors
///
/// As [`standpoint`].
pub fn recover(data_dir: &Path) -> anyhow::Result<NewGroup> {
    let _lock = lock_existing(data_dir)?;
    let dir = data_dir.join("replica");
    let salvaged = salvage(&dir, SEGMENT_BYTES)?;
    let level = salvaged.state.feature_level();
    if level > FEATURE_LEVEL {
        bail!(
            "its group is of feature level {level}, this version knows {FEATURE_LEVEL}: use a newer one"
        );
    }
    let open_runs = salvaged.state.open_runs().count();
    // Before the new group is there: it must not come up with the old one's CA.
    for name in [CA_DIR, IDENTITY_DIR] {
        let of_old = data_dir.join(name);
        if of_old.exists() {
            std::fs::rename(&of_old, free_name(&of_old))
                .with_context(|| format!("set `{}` aside", of_old.display()))?;
        }
    }
    let founded = found(&dir, SEGMENT_BYTES, salvaged.last, salvaged.state)?;
    let set_aside = founded.set_aside;
    Ok(NewGroup { cluster_id: founded.cluster_id, open_runs, set_aside })
}

fn lock_existing(data_dir: &Path) -> anyhow::Result<DirLock> {
    if !data_dir.join("replica").is_dir() {
        bail!("`{}` holds no coordinator", data_dir.display());
    }
    DirLock::take(data_dir).context("stop the coordinator first")
}

fn write_secret(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let written = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    let written = written.and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.with_context(|| format!("write `{}`", path.display()))
}
