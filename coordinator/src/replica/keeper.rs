//! What is slow and need not be waited for: checkpoints of the image, snapshots,
//! and removing log segments that a snapshot has made superfluous.

use std::path::PathBuf;
use std::sync::Arc;

use steading_core::State;

use super::image::{Image, ImageMeta, Write};
use super::snapshot::{self, Header};
use super::vfs::Vfs;
use super::wal::{self, Position};

/// One thing to do.
#[derive(Debug)]
pub(crate) enum Job {
    Checkpoint {
        meta: ImageMeta,
        writes: Writes,
    },
    Snapshot {
        header: Header,
        state: Box<State>,
    },
    Remove(Vec<PathBuf>),
    /// The log begins with this staged snapshot now.
    Adopt(Position),
}

/// What a checkpoint writes.
#[derive(Debug)]
pub(crate) enum Writes {
    /// What changed since the last checkpoint, which succeeded.
    Changes(Vec<Write>),
    /// Everything, into an empty image.
    All(Box<State>),
}

/// How it ended. Failures are logged here; what they mean is decided by the node.
#[derive(Debug)]
pub(crate) enum Kept {
    Checkpoint {
        done: bool,
    },
    /// `covered`: the log is not needed up to there.
    Snapshot {
        made: Option<Header>,
        covered: Option<Position>,
    },
    Removed,
}

/// Owns the image and the snapshots.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) snapshots: PathBuf,
    pub(crate) image: Image,
}

impl Keeper {
    /// Does one job. Never fails: without image and snapshots the log still has it all.
    pub(crate) fn run(&mut self, job: Job) -> Kept {
        match job {
            Job::Checkpoint { meta, writes } => {
                Kept::Checkpoint { done: self.checkpoint(&meta, writes) }
            }
            Job::Snapshot { header, state } => self.snapshot(header, &state),
            Job::Adopt(at) => {
                if let Err(error) = snapshot::adopt(&*self.vfs, &self.snapshots, at) {
                    tracing::error!(%error, "a received snapshot counts only after the next start");
                }
                Kept::Removed
            }
            Job::Remove(paths) => {
                if let Err(error) = wal::remove_segments(&*self.vfs, &paths) {
                    tracing::warn!(%error, "old log segments stay until the next snapshot");
                }
                Kept::Removed
            }
        }
    }

    fn checkpoint(&mut self, meta: &ImageMeta, writes: Writes) -> bool {
        let written = match writes {
            Writes::Changes(writes) => self.image.write(meta, writes),
            Writes::All(state) => self.image.empty().and_then(|()| {
                let rows = state.rows().map(|(key, value)| (key, Some(value)));
                self.image.write(meta, rows.collect())
            }),
        };
        match written {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "checkpoint failed, the image is set aside and made again");
                if let Err(error) = self.image.set_aside() {
                    tracing::error!(%error, "image cannot be set aside");
                }
                false
            }
        }
    }

    fn snapshot(&self, header: Header, state: &State) -> Kept {
        match self.try_snapshot(&header, state) {
            Ok(covered) => Kept::Snapshot { made: Some(header), covered },
            Err(error) => {
                tracing::error!(%error, "snapshot failed, the log is kept");
                Kept::Snapshot { made: None, covered: None }
            }
        }
    }

    fn try_snapshot(
        &self,
        header: &Header,
        state: &State,
    ) -> Result<Option<Position>, snapshot::SnapshotError> {
        snapshot::write(&*self.vfs, &self.snapshots, header, state)?;
        snapshot::prune(&*self.vfs, &self.snapshots, header.at)
    }
}
