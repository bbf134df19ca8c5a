//! The replica: makes proposals durable and applies them, in one order for all.
//!
//! [`Replica`] is the handle; behind it one thread owns Raft, the log and the state
//! (`thread`, `node`), another the image and the snapshots (`keeper`). What is
//! acknowledged is in the log of record (`wal`) and synced; everything else on the
//! disk can be made again from it.

mod clock;
mod found;
mod handle;
mod identity;
mod image;
#[cfg(any(test, feature = "testkit"))]
mod image_memory;
mod image_sled;
mod keeper;
mod log;
mod membership;
mod node;
mod open;
mod reads;
mod salvage;
#[cfg(any(test, feature = "testkit"))]
mod sim_dice;
#[cfg(any(test, feature = "testkit"))]
pub mod sim_fs;
#[cfg(feature = "testkit")]
pub mod sim_member;
mod slog_bridge;
mod snapshot;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
mod thread;
pub mod vfs;
pub mod wal;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use steading_core::{Effect, FEATURE_LEVEL, Proposal, Rejection, State};
use steading_model::codec::Encode;
use steading_model::limits::PROPOSAL_BYTES_MAX;
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use found::found;
pub use handle::{Incoming, InstallError, Shipped};
pub(crate) use identity::node_file;
pub use identity::{DirLock, FIRST_REPLICA, IdentityError, Joined, is_member};
pub use image::ImageError;
pub(crate) use image::free_name;
pub use membership::Membership;
pub use node::{Bar, Cadence, GroupStatus, Progress, ReplicaError, Standing};
pub use open::StartError;
pub(crate) use salvage::salvage;
pub use snapshot::SnapshotError;
pub(crate) use wal::Position;

use image_sled::SledStore;
use thread::{GroupView, Input, Thread};

/// Proposals and reads that wait for the thread; more are refused with [`ProposeError::Busy`].
const QUEUE_MAX: usize = 4096;

/// Notices that wait for their consumer; what does not fit becomes one [`Notice::Resync`].
const NOTICES_MAX: usize = 256;

/// Where a replica lives, and how it keeps its files.
#[derive(Clone, Debug)]
pub struct Options {
    /// The replica's own directory. Made where it is missing.
    pub dir: PathBuf,
    /// Size of a segment of the log, bytes.
    pub segment_bytes: u64,
    pub cadence: Cadence,
    /// Who an empty directory becomes in a group that admitted it; a group of its own
    /// where nobody is named.
    pub join: Option<Joined>,
    /// The newest feature level that its version knows.
    pub feature_level: u32,
}

impl Options {
    /// For a coordinator of its own.
    pub const fn server(dir: PathBuf) -> Self {
        let cadence =
            Cadence { checkpoint_entries: 10_000, checkpoint_ms: 30_000, snapshot_bytes: 64 << 20 };
        Self { dir, segment_bytes: 64 << 20, cadence, join: None, feature_level: FEATURE_LEVEL }
    }

    /// For one that lives in another program and starts often: small files.
    pub const fn embedded(dir: PathBuf) -> Self {
        let cadence =
            Cadence { checkpoint_entries: 10_000, checkpoint_ms: 30_000, snapshot_bytes: 16 << 20 };
        Self { dir, segment_bytes: 4 << 20, cadence, join: None, feature_level: FEATURE_LEVEL }
    }
}

/// Batches of messages that wait for their sender; what does not fit is dropped, since
/// Raft says again what matters.
const OUTBOUND_MAX: usize = 1024;

/// What the leader should do, or look for. A hint: whoever misses some asks
/// `State::outstanding`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Effects of accepted proposals, in their order. The view already holds them.
    Effects(Vec<Effect>),
    /// Some were dropped, or this replica has just become the leader: begin with
    /// `view().outstanding()`.
    Resync,
}

/// Why a proposal or a read has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Not accepted here, and nothing happened.
    #[error("this replica is not the leader")]
    NotLeader,
    /// Nothing happened; worth another try.
    #[error("too many proposals are under way")]
    Busy,
    #[error("the proposal has {0} bytes, at most {PROPOSAL_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// Nothing happened.
    #[error("the replica has stopped")]
    Stopped,
    /// A change of the members that cannot be. Nothing happened.
    #[error("the members cannot be changed like this: {0}")]
    Membership(String),
    /// It may have been accepted or not: try again with the same request id.
    #[error("the replica stopped or lost its leadership before the outcome was known")]
    Unknown,
}

/// A handle to the replica; clones are the same.
#[derive(Clone, Debug)]
pub struct Replica {
    input: SyncSender<Input>,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    view: Arc<ArcSwap<State>>,
    changes: watch::Receiver<u64>,
    standing: watch::Receiver<Standing>,
    membership: watch::Receiver<Arc<Membership>>,
    names: Arc<Names>,
}

/// Who the replica is, and where its snapshots are.
#[derive(Debug)]
struct Names {
    joined: Joined,
    snapshots: PathBuf,
}

/// A replica that was started.
#[derive(Debug)]
pub struct Started {
    pub replica: Replica,
    pub thread: ReplicaThread,
    /// They end when the replica has stopped.
    pub notices: mpsc::Receiver<Notice>,
    /// Messages to other members, a batch a round. A group of one has none.
    pub outbound: mpsc::Receiver<Vec<raft::eraftpb::Message>>,
}

/// The replica's thread.
#[derive(Debug)]
pub struct ReplicaThread(JoinHandle<Result<(), ReplicaError>>);

impl ReplicaThread {
    /// Waits until the thread has ended and its files are closed. Blocks: not on a
    /// runtime's thread.
    ///
    /// # Errors
    ///
    /// [`ReplicaError`]: why it ended, if not by [`Replica::stop`].
    pub fn join(self) -> Result<(), ReplicaError> {
        self.0.join().unwrap_or(Err(ReplicaError::Panicked))
    }
}

impl Replica {
    /// Opens the directory (or makes it), replays the log and starts the thread.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn start(options: Options) -> Result<Started, StartError> {
        let lock = DirLock::take(&options.dir)?;
        let image = options.dir.join("image");
        let store = SledStore::open(image.clone())
            .map_err(|source| StartError::Image { path: image, source })?;
        let place = open::Place {
            vfs: Arc::new(vfs::RealFs),
            dir: options.dir.clone(),
            segment_bytes: options.segment_bytes,
            frame_bytes: wal::FRAME_BYTES,
            background: true,
            cadence: options.cadence,
            join: options.join,
        };
        let opened = open::open(&place, Box::new(store), random)?;
        let open::Opened { mut node, keeper, identity } = opened;
        node.set_known_level(options.feature_level)?;
        let names = Names { joined: identity.names(), snapshots: keeper.snapshots.clone() };

        let (input, inputs) = sync_channel(QUEUE_MAX);
        // One job at a time, so this never makes the replica wait.
        let (jobs, job_queue) = sync_channel(1);
        let done = input.clone();
        let keeper_thread =
            spawn("replica-keeper", move || thread::keep(keeper, &job_queue, &done))?;

        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let view = Arc::new(ArcSwap::from_pointee(node.state().clone()));
        let (changes, watching) = watch::channel(node.state().version());
        let (notices, consumer) = mpsc::channel(NOTICES_MAX);
        let (stand, standing) = watch::channel(node.standing());
        let (members, membership) = watch::channel(Arc::new(node.membership()));
        let (outbound, outbox) = mpsc::channel(OUTBOUND_MAX);
        let now = Instant::now();
        let thread = Thread {
            node,
            input: inputs,
            stop: Arc::clone(&stop),
            rounds: Arc::clone(&rounds),
            view: Arc::clone(&view),
            changes,
            notices,
            group: GroupView { standing: stand, membership: members, outbound },
            jobs: Some(jobs),
            keeper: Some(keeper_thread),
            resync: false,
            clock: clock::Clock::default(),
            started: now,
            ticks: 0,
            wrote: now,
            _lock: lock,
        };
        let thread = spawn("replica", move || thread.run())?;
        let names = Arc::new(names);
        let replica =
            Self { input, stop, rounds, view, changes: watching, standing, membership, names };
        let thread = ReplicaThread(thread);
        Ok(Started { replica, thread, notices: consumer, outbound: outbox })
    }

    /// Makes the proposal durable and applies it. The answer comes when the state that
    /// [`Replica::view`] shows holds it.
    ///
    /// # Errors
    ///
    /// [`ProposeError`].
    pub async fn propose(&self, proposal: Proposal) -> Result<Vec<Effect>, ProposeError> {
        let (level, current) = (proposal.feature_level(), self.view.load().feature_level());
        if level > current {
            return Err(Rejection::FeatureLevel { level, current }.into());
        }
        let bytes = proposal.to_bytes();
        if bytes.len() > PROPOSAL_BYTES_MAX {
            return Err(ProposeError::TooLarge(bytes.len()));
        }
        let (waiter, answer) = oneshot::channel();
        self.send(Input::Propose(bytes, waiter))?;
        answer.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// The newest published version of the state.
    pub fn view(&self) -> Arc<State> {
        self.view.load_full()
    }

    /// The version of the published state, whenever it changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Returns once [`Replica::view`] holds everything that was acknowledged before the
    /// call. Only the leader can: it proves that this replica led after the call began.
    ///
    /// # Errors
    ///
    /// [`ProposeError`].
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.read(true).await
    }

    /// Returns once [`Replica::view`] holds everything that was acknowledged before the
    /// call, whichever replica acknowledged it. Any replica can, for it asks the leader; so
    /// it proves nothing of who leads. Ends within two seconds.
    ///
    /// # Errors
    ///
    /// [`ProposeError`]; [`ProposeError::NotLeader`] also if no leader answers in time.
    pub async fn read_barrier_anywhere(&self) -> Result<(), ProposeError> {
        self.read(false).await
    }

    async fn read(&self, lead: bool) -> Result<(), ProposeError> {
        let (reader, answer) = oneshot::channel();
        self.send(Input::Read(reader, lead))?;
        answer.await.unwrap_or(Err(ProposeError::Stopped))
    }

    /// Asks the replica to stop; [`ReplicaThread::join`] waits for it. A leader hands over
    /// first, so its messages must be sent until the thread has ended.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // A full queue wakes it as well.
        let _ = self.input.try_send(Input::Wake);
    }

    fn send(&self, input: Input) -> Result<(), ProposeError> {
        self.input.try_send(input).map_err(|error| match error {
            TrySendError::Full(_) => ProposeError::Busy,
            TrySendError::Disconnected(_) => ProposeError::Stopped,
        })
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|source| StartError::Io { path: PathBuf::from(name), source })
}

fn random() -> Result<[u8; 32], StartError> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StartError::Random)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
