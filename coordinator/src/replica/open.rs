//! Starting a replica from its directory, in the order that loses nothing:
//! the log first, then the image or a snapshot that the log reaches, then Raft.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use steading_core::State;

use super::identity::{FIRST_REPLICA, Identity, IdentityError, Joined};
use super::image::{Image, ImageMeta, ImageStore};
use super::keeper::Keeper;
use super::log::Log;
use super::membership::Membership;
use super::node::{Cadence, Node, ReplicaError};
use super::snapshot::{self, SnapshotError};
use super::vfs::Vfs;
use super::wal::{Position, Promise, Record, Recovered, Wal, WalError, WalOptions};

/// Where a new group's log begins: behind a snapshot that nobody ever took. So a
/// new member never replays from nothing, and always learns who is in the group.
const GENESIS: Position = Position { index: 1, term: 1 };

/// Where the log of a member begins that has heard of nothing. What it hears first is a
/// snapshot, for the leader's log begins at [`GENESIS`] or behind it.
const NOTHING: Position = Position { index: 0, term: 0 };

/// Why a replica does not start. It has changed nothing that it refuses to use.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    #[error("cannot use `{}`", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("no image can be kept in `{}`", path.display())]
    Image {
        path: PathBuf,
        #[source]
        source: super::image::ImageError,
    },
    #[error(
        "the log ends at entry {last}, but the {what} holds entry {held}: entries that were acknowledged are gone. \
         Nothing was changed. Put back a copy of the whole data directory"
    )]
    LogBehind { what: &'static str, held: u64, last: u64 },
    #[error(
        "the log begins behind entry {base}, and neither the image nor any snapshot reaches that far. \
         Nothing was changed. Put back a copy of the whole data directory"
    )]
    NothingToStartFrom { base: u64 },
    #[error(
        "`{}` has a log but no `node.json`, so whose it is cannot be told. \
         Put the file back, or remove the directory to begin anew",
        dir.display()
    )]
    NoIdentity { dir: PathBuf },
    #[error(
        "`{}` is another replica's, and a replica never takes the place of another. \
         Use an empty directory: it joins as a new replica",
        dir.display()
    )]
    AnotherReplica { dir: PathBuf },
    #[error("the state cannot be that of a new group")]
    Unfit {
        #[source]
        why: steading_core::Rejection,
    },
    #[error("the system has no random numbers")]
    Random,
}

/// What [`open`] needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) dir: PathBuf,
    pub(crate) segment_bytes: u64,
    pub(crate) frame_bytes: usize,
    /// Whether log segments are made ahead in a thread.
    pub(crate) background: bool,
    pub(crate) cadence: Cadence,
    /// Whose the directory becomes if it is empty; a group of its own if nobody's.
    pub(crate) join: Option<Joined>,
}

/// A replica that goes on from what its directory holds.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) node: Node,
    pub(crate) keeper: Keeper,
    pub(crate) identity: Identity,
}

/// Opens what is in the directory, or makes a group of one, or a member that knows
/// nothing yet of its group.
///
/// # Errors
///
/// [`StartError`].
pub(crate) fn open(
    place: &Place,
    store: Box<dyn ImageStore>,
    mut random: impl FnMut() -> Result<[u8; 32], StartError>,
) -> Result<Opened, StartError> {
    let vfs = &place.vfs;
    let snapshots = place.dir.join("snapshots");
    for dir in [&place.dir, &snapshots] {
        vfs.create_dir(dir).map_err(io_error(dir))?;
    }
    let (identity, wal, recovered) = open_log(place, &mut random)?;
    snapshot::settle(&**vfs, &snapshots, recovered.base)?;
    let mut image = Image::new(store);
    let from_image = read_image(&mut image, &recovered)?;
    let newest = snapshot::list(&**vfs, &snapshots)?.first().map_or(0, |(at, _)| at.index);
    let current = from_image.is_some();
    let (meta, state) = match from_image {
        Some(found) => found,
        None => read_snapshot(&**vfs, &snapshots, &recovered, &identity)?,
    };
    tracing::debug!(
        entries = recovered.entries.len(),
        applied = meta.applied.index,
        torn = recovered.torn,
        image = current,
        "log.opened"
    );
    let log = Log::new(wal, recovered, meta.applied, newest, (&meta.membership).into());
    let mut node = Node::new(identity.replica_id, log, state, &meta, current, place.cadence)?;
    node.set_start(random()?.first_chunk().map_or(0, |start| u64::from_le_bytes(*start)));
    Ok(Opened { node, keeper: Keeper { vfs: Arc::clone(vfs), snapshots, image }, identity })
}

/// The log, made where there is none.
pub(super) fn open_log(
    place: &Place,
    random: impl FnOnce() -> Result<[u8; 32], StartError>,
) -> Result<(Identity, Wal, Recovered), StartError> {
    let vfs = &place.vfs;
    let options = |identity: &Identity| WalOptions {
        dir: place.dir.join("wal"),
        id: identity.log_id(),
        segment_bytes: place.segment_bytes,
        frame_bytes: place.frame_bytes,
        background: place.background,
    };
    if let Some(identity) = Identity::load(&**vfs, &place.dir)? {
        if let Some(joined) = &place.join
            && *joined != identity.names()
        {
            return Err(StartError::AnotherReplica { dir: place.dir.clone() });
        }
        let (wal, recovered) = Wal::open(Arc::clone(vfs), options(&identity))?;
        return Ok((identity, wal, recovered));
    }
    let (identity, base) = match &place.join {
        Some(joined) => (Identity::joined(joined), NOTHING),
        None => (Identity::first(random()?), GENESIS),
    };
    clear_unfinished(place)?;
    let promise = Promise { term: base.term, vote: 0, commit: base.index };
    let wal = Wal::create(Arc::clone(vfs), options(&identity), base, promise)?;
    // From here on there is something to lose.
    identity.store(&**vfs, &place.dir)?;
    let recovered = Recovered { base, entries: Vec::new(), promise, torn: false };
    Ok((identity, wal, recovered))
}

/// Removes what a first start left that was cut off before its `node.json`.
fn clear_unfinished(place: &Place) -> Result<(), StartError> {
    let (vfs, wal) = (&place.vfs, place.dir.join("wal"));
    vfs.create_dir(&wal).map_err(io_error(&wal))?;
    let names = vfs.list(&wal).map_err(io_error(&wal))?;
    let snapshots = vfs.list(&place.dir.join("snapshots")).map_err(io_error(&place.dir))?;
    // A first start makes one segment; a log that was used has a second one sooner or
    // later, and a snapshot. What it has at once is a second frame.
    for name in &names {
        let path = wal.join(name);
        let file = vfs.open(&path).map_err(io_error(&path))?;
        let bytes = super::vfs::read_all(&*file).map_err(io_error(&path))?;
        let in_use = super::wal::holds_more_than_its_first_frame(&bytes);
        if names.len() > 1 || !snapshots.is_empty() || in_use {
            return Err(StartError::NoIdentity { dir: place.dir.clone() });
        }
        vfs.remove(&path).map_err(io_error(&path))?;
        vfs.sync_dir(&wal).map_err(io_error(&wal))?;
    }
    Ok(())
}

/// What the image holds, if it is whole and the log goes on from it.
pub(super) fn read_image(
    image: &mut Image,
    recovered: &Recovered,
) -> Result<Option<(ImageMeta, State)>, StartError> {
    let loaded = match image.load() {
        Ok(Some(loaded)) => loaded,
        Ok(None) => return Ok(None),
        Err(error) => {
            tracing::warn!(%error, "image is damaged: it is set aside and made again from snapshot and log");
            if let Err(error) = image.set_aside() {
                tracing::error!(%error, "image cannot be set aside");
            }
            return Ok(None);
        }
    };
    // Too old to go on from (a restored copy, say): a snapshot reaches further.
    let reachable = reaches(recovered, loaded.0.applied, "image")?;
    Ok(reachable.then_some(loaded))
}

/// The newest snapshot that is whole and that the log goes on from; or nothing at
/// all, where the log goes back to the beginning.
pub(super) fn read_snapshot(
    vfs: &dyn Vfs,
    dir: &Path,
    recovered: &Recovered,
    identity: &Identity,
) -> Result<(ImageMeta, State), StartError> {
    for (_, path) in snapshot::list(vfs, dir)? {
        match snapshot::load(vfs, &path) {
            Ok((header, state)) => {
                if reaches(recovered, header.at, "snapshot")? {
                    let snapshot::Header { at: applied, membership, chain, hashed_by } = header;
                    return Ok((ImageMeta { applied, membership, chain, hashed_by }, state));
                }
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "snapshot is damaged, an older one is tried");
            }
        }
    }
    let membership = match recovered.base {
        // Nobody else's log begins there: a member alone with an empty state would be a
        // second group of the same name.
        GENESIS if identity.replica_id == FIRST_REPLICA => Membership::single(FIRST_REPLICA),
        NOTHING => Membership::default(),
        base => return Err(StartError::NothingToStartFrom { base: base.index }),
    };
    let state = State::default();
    let (applied, chain) = (recovered.base, state.chain());
    let meta = ImageMeta { applied, membership, chain, hashed_by: 0 };
    Ok((meta, state))
}

/// Whether the log goes on from `held`.
fn reaches(recovered: &Recovered, held: Position, what: &'static str) -> Result<bool, StartError> {
    if held.index < recovered.base.index {
        return Ok(false);
    }
    let behind = held.index - recovered.base.index;
    let there = match behind.checked_sub(1) {
        None => Some(recovered.base),
        Some(offset) => match recovered.entries.get(offset as usize) {
            Some(Record::Entry { at, .. }) => Some(*at),
            _ => None,
        },
    };
    if there == Some(held) {
        return Ok(true);
    }
    let last = recovered.base.index + recovered.entries.len() as u64;
    Err(StartError::LogBehind { what, held: held.index, last })
}

/// For `map_err`: what could not be used.
fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::Io { path: path.to_owned(), source }
}
