//! Who this replica is: `node.json`, written last when a replica is made, so
//! that a directory without it holds nothing that was ever acknowledged.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::vfs::{RealFs, Vfs, read_all};
use super::wal::LogId;

/// The one format of the directory that this version reads.
const FORMAT: u32 = 1;

const FILE: &str = "node.json";

/// The replica's own folder, in its coordinator's data directory.
const DIR: &str = "replica";

/// The id of the replica that founded the group.
pub const FIRST_REPLICA: u64 = 1;

/// Where the coordinator of this data directory says which replica it is.
pub(crate) fn node_file(data_dir: &Path) -> PathBuf {
    data_dir.join(DIR).join(FILE)
}

/// Whether the coordinator of this data directory belongs to a group: it founded or joined
/// one, and goes on with it whenever it starts.
pub fn is_member(data_dir: &Path) -> bool {
    node_file(data_dir).exists()
}

/// Why a directory is not this replica's.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is used by another process; stop that one first", path.display())]
    Locked { path: PathBuf },
    #[error("`{}` cannot be read: put back a copy of the data directory", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{}` is of format {format}, this version reads {FORMAT}", path.display())]
    Format { path: PathBuf, format: u32 },
}

/// Names a replica and the group that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Random; minted with the group.
    pub cluster_id: String,
    /// Never used twice in a group: an empty disk is a new replica.
    pub replica_id: u64,
    /// Random; minted with this directory. Also names the log.
    pub storage_id: String,
    pub format: u32,
}

/// Who a directory is to be in a group that admitted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub cluster_id: String,
    pub replica_id: u64,
    pub storage_id: String,
}

impl Identity {
    /// One that a group admitted.
    pub(crate) fn joined(joined: &Joined) -> Self {
        let Joined { cluster_id, replica_id, storage_id } = joined.clone();
        Self { cluster_id, replica_id, storage_id, format: FORMAT }
    }

    /// The names without the format.
    pub(crate) fn names(&self) -> Joined {
        let Self { cluster_id, replica_id, storage_id, .. } = self.clone();
        Joined { cluster_id, replica_id, storage_id }
    }

    /// The first replica of a new group, from 32 random bytes.
    pub(crate) fn first(random: [u8; 32]) -> Self {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            cluster_id: hex(&random[..16]),
            replica_id: FIRST_REPLICA,
            storage_id: hex(&random[16..]),
            format: FORMAT,
        }
    }

    /// The id that this replica's log carries in every frame.
    pub(crate) fn log_id(&self) -> LogId {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(self.storage_id.as_bytes()).as_bytes()[..16]);
        LogId(id)
    }

    /// Reads `node.json`; `None` where there is none.
    ///
    /// # Errors
    ///
    /// [`IdentityError`].
    pub(crate) fn load(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(FILE);
        let file = match vfs.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        let bytes = read_all(&*file).map_err(io_error("read", &path))?;
        let identity: Self = serde_json::from_slice(&bytes)
            .map_err(|source| IdentityError::Damaged { path: path.clone(), source })?;
        match identity.format {
            FORMAT => Ok(Some(identity)),
            format => Err(IdentityError::Format { path, format }),
        }
    }

    /// Writes `node.json`, durable when this returns.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Io`].
    pub(crate) fn store(&self, vfs: &dyn Vfs, dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(FILE);
        let tmp = dir.join("node.json.tmp");
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|source| IdentityError::Damaged { path: path.clone(), source })?;
        let mut file = vfs.create(&tmp).map_err(io_error("make", &tmp))?;
        file.write_at(0, &bytes).map_err(io_error("write", &tmp))?;
        file.sync_all().map_err(io_error("sync", &tmp))?;
        vfs.rename(&tmp, &path).map_err(io_error("rename", &tmp))?;
        vfs.sync_dir(dir).map_err(io_error("sync", dir))
    }
}

/// Keeps other processes out of a directory for as long as it lives.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "holds the lock")] File);

impl DirLock {
    /// Takes the lock of `dir`, making the directory where it is missing.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Locked`] if another process has it, [`IdentityError::Io`].
    pub fn take(dir: &Path) -> Result<Self, IdentityError> {
        RealFs.create_dir(dir).map_err(io_error("make", dir))?;
        let path = dir.join("LOCK");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(IdentityError::Locked { path }),
            Err(TryLockError::Error(error)) => Err(io_error("lock", &path)(error)),
        }
    }
}

/// For `map_err`: what was being done, and to what.
fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    move |source| IdentityError::Io { doing, path: path.to_owned(), source }
}
