//! What a stopped replica holds, without its group.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use steading_core::{FEATURE_LEVEL, State};

use super::identity::{Identity, IdentityError};
use super::image::Image;
use super::image_sled::SledStore;
use super::node::{Cadence, ReplicaError, decode_wave};
use super::open::{Place, StartError, open_log, read_image, read_snapshot};
use super::vfs::RealFs;
use super::wal::{self, Position, Record};

/// Kind of an entry that holds proposals; the others change the membership.
const NORMAL: u8 = 0;

/// What was found in a replica's directory.
#[derive(Debug)]
pub(crate) struct Salvaged {
    pub(crate) cluster_id: String,
    pub(crate) replica_id: u64,
    /// The last entry of the log. Of several survivors the one with the largest term, and
    /// then the largest index, has everything that was acknowledged and that any of them has.
    pub(crate) last: Position,
    /// With every entry of the log applied, also those of which this replica never heard
    /// that they are committed: they may have been acknowledged.
    pub(crate) state: State,
}

/// Reads the directory of a replica that does not run. It stays as it is, but for a torn
/// end of the log, which a start would wipe as well.
///
/// # Errors
///
/// [`StartError`].
pub(crate) fn salvage(dir: &Path, segment_bytes: u64) -> Result<Salvaged, StartError> {
    let vfs = Arc::new(RealFs);
    let missing = || IdentityError::Io {
        doing: "read",
        path: dir.join("node.json"),
        source: std::io::ErrorKind::NotFound.into(),
    };
    Identity::load(&*vfs, dir)?.ok_or_else(missing)?;
    let place = Place {
        vfs: vfs.clone(),
        dir: dir.to_owned(),
        segment_bytes,
        frame_bytes: wal::FRAME_BYTES,
        background: false,
        join: None,
        cadence: Cadence { checkpoint_entries: 0, checkpoint_ms: 0, snapshot_bytes: 0 },
    };
    let (identity, wal, recovered) = open_log(&place, super::random)?;
    drop(wal);
    let path: PathBuf = dir.join("image");
    let store =
        SledStore::open(path.clone()).map_err(|source| StartError::Image { path, source })?;
    let mut image = Image::new(Box::new(store));
    let (meta, mut state) = match read_image(&mut image, &recovered)? {
        Some(found) => found,
        None => read_snapshot(&*vfs, &dir.join("snapshots"), &recovered, &identity)?,
    };
    let mut last = meta.applied;
    for record in recovered.entries {
        let Record::Entry { at, kind, data, .. } = record else { continue };
        if at.index <= meta.applied.index {
            continue;
        }
        last = at;
        if kind != NORMAL || data.is_empty() {
            continue;
        }
        let undecodable = |source| ReplicaError::Entry { index: at.index, source };
        let (now, proposals) = decode_wave(&data, FEATURE_LEVEL).map_err(undecodable)?;
        for proposal in proposals {
            // Refused ones change nothing.
            let _ = state.apply(now, proposal);
        }
    }
    drop(state.take_writes());
    let Identity { cluster_id, replica_id, .. } = identity;
    Ok(Salvaged { cluster_id, replica_id, last, state })
}
