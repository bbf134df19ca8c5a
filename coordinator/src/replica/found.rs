//! A new group of one that goes on from a state: how a backup comes back, and how a
//! survivor goes on alone.
//!
//! Everything is made beside the replica's directory and takes its place at the end, by
//! one exchange of names: a power cut leaves what was there, or all of the new.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use steading_core::{FEATURE_LEVEL, Proposal, State};

use super::identity::{FIRST_REPLICA, Identity};
use super::image::free_name;
use super::membership::Membership;
use super::open::StartError;
use super::snapshot::{self, Header};
use super::vfs::{RealFs, Vfs};
use super::wal::{self, Position, Promise, Wal, WalOptions};

/// A group that was just made.
#[derive(Clone, Debug)]
pub(crate) struct Founded {
    /// Names the new group.
    pub(crate) cluster_id: String,
    /// Where the directory of the old group is now, if there was one.
    pub(crate) set_aside: Option<PathBuf>,
}

/// Makes `dir` the directory of the one replica of a new group, which goes on from `state`,
/// the state after `at` of another group. What is there now is set aside.
///
/// # Errors
///
/// [`StartError`]; then `dir` is as it was.
pub(crate) fn found(
    dir: &Path,
    segment_bytes: u64,
    at: Position,
    mut state: State,
) -> Result<Founded, StartError> {
    let vfs: Arc<dyn Vfs> = Arc::new(RealFs);
    let identity = Identity::first(super::random()?);
    let proposal = Proposal::FoundAnew { cluster_id: identity.cluster_id.clone() };
    state.apply(state.now(), proposal).map_err(|why| StartError::Unfit { why })?;
    drop(state.take_writes());

    let new = dir.with_extension("new");
    match std::fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&new)(error)),
        // Of a try that was cut off.
        _ => (),
    }
    let snapshots = new.join("snapshots");
    for dir in [&new, &snapshots] {
        vfs.create_dir(dir).map_err(io_error(dir))?;
    }
    let base = Position { index: at.index + 1, term: at.term + 1 };
    let options = WalOptions {
        dir: new.join("wal"),
        id: identity.log_id(),
        segment_bytes,
        frame_bytes: wal::FRAME_BYTES,
        background: false,
    };
    let promise = Promise { term: base.term, vote: 0, commit: base.index };
    drop(Wal::create(Arc::clone(&vfs), options, base, promise)?);
    let membership = Membership::single(FIRST_REPLICA);
    // All members of the new group begin with this chain, whoever made it.
    let (chain, hashed_by) = (state.chain(), FEATURE_LEVEL);
    let header = Header { at: base, membership, chain, hashed_by };
    snapshot::write(&*vfs, &snapshots, &header, &state)?;
    identity.store(&*vfs, &new)?;

    let set_aside = take_place(&*vfs, &new, dir)?;
    Ok(Founded { cluster_id: identity.cluster_id, set_aside })
}

/// Puts `new` where `dir` is.
fn take_place(vfs: &dyn Vfs, new: &Path, dir: &Path) -> Result<Option<PathBuf>, StartError> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    let set_aside = if dir.exists() {
        renameat2(AT_FDCWD, new, AT_FDCWD, dir, RenameFlags::RENAME_EXCHANGE)
            .map_err(|error| io_error(dir)(error.into()))?;
        let old = free_name(dir);
        std::fs::rename(new, &old).map_err(io_error(new))?;
        Some(old)
    } else {
        std::fs::rename(new, dir).map_err(io_error(new))?;
        None
    };
    vfs.sync_dir(parent).map_err(io_error(parent))?;
    Ok(set_aside)
}

/// For `map_err`: what could not be used.
fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io { path: path.to_owned(), source }
}
