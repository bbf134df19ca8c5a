//! What others in the process ask of a member of a group.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raft::eraftpb::{ConfChangeV2, Message, MessageType};
use tokio::sync::{oneshot, watch};

use super::membership::Membership;
use super::node::{Bar, GroupStatus, Staged, Standing};
use super::snapshot::{self, SnapshotError};
use super::thread::{Input, Order};
use super::vfs::RealFs;
use super::wal::Position;
use super::{ProposeError, Replica};

/// How long a transfer of leadership may take. Raft gives up after an election timeout.
const TRANSFER_MAX: Duration = Duration::from_secs(1);

/// A snapshot that is coming in. Removed again unless it is installed.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    path: PathBuf,
}

impl Write for Incoming {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Renamed, if it was installed; else a start removes what stays.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Replica {
    /// Its number in the group.
    pub fn id(&self) -> u64 {
        self.names.joined.replica_id
    }

    pub fn cluster_id(&self) -> &str {
        &self.names.joined.cluster_id
    }

    /// The name of its directory, and so of itself in certificates.
    pub fn storage_id(&self) -> &str {
        &self.names.joined.storage_id
    }

    /// Who leads.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Who belongs to the group, as far as this replica has applied.
    pub fn membership(&self) -> Arc<Membership> {
        Arc::clone(&self.membership.borrow())
    }

    /// The members, whenever they change.
    pub fn membership_changes(&self) -> watch::Receiver<Arc<Membership>> {
        self.membership.clone()
    }

    /// The group as this replica sees it.
    ///
    /// # Errors
    ///
    /// [`ProposeError::Busy`], [`ProposeError::Stopped`].
    pub async fn status(&self) -> Result<GroupStatus, ProposeError> {
        let (asker, answer) = oneshot::channel();
        self.order(Order::Status(asker))?;
        answer.await.map_err(|_| ProposeError::Stopped)
    }

    /// How often it has gone through what there was to do since it started; 0 as long as it
    /// takes in what the log holds. Where there are others it is done several times a second.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Hears a message of another member. Raft says again what is dropped.
    ///
    /// # Errors
    ///
    /// [`ProposeError::Busy`], [`ProposeError::Stopped`].
    pub fn step(&self, message: Message) -> Result<(), ProposeError> {
        self.order(Order::Step(message))
    }

    /// A member cannot be reached at the moment: less is sent to it until it answers.
    pub fn report_unreachable(&self, member: u64) {
        // Said again with the next message that cannot be sent.
        let _ = self.order(Order::Unreachable(member));
    }

    /// How it went with the snapshot of this index. Must be told of every
    /// [`MessageType::MsgSnapshot`]: nothing else is sent to that member before. Where it was
    /// refused it is read again here, and made anew if it rotted.
    pub async fn report_snapshot(&self, member: u64, index: u64, shipped: Shipped) {
        if shipped == Shipped::Refused {
            let dir = self.names.snapshots.clone();
            let check = move || snapshot::check(&RealFs, &snapshot::find(&RealFs, &dir, index)?);
            if let Ok(Err(error)) = tokio::task::spawn_blocking(check).await {
                tracing::error!(index, %error, "the snapshot cannot be sent, it is made anew");
                self.insist(|| Order::SnapshotRotten(index)).await;
            }
        }
        self.insist(|| Order::SnapshotSent(member, shipped == Shipped::Taken)).await;
    }

    /// Orders what has to be known, however busy the replica is.
    async fn insist(&self, order: impl Fn() -> Order) {
        while let Err(ProposeError::Busy) = self.order(order()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether this replica had better not lead, for this reason. One that leads hands over.
    pub fn bar(&self, why: Bar, barred: bool) {
        // Said again by whoever looks after it.
        let _ = self.order(Order::Bar(why, barred));
    }

    /// Hands leadership to `to`, or to the member that is furthest, and returns once this
    /// replica follows another.
    ///
    /// # Errors
    ///
    /// [`ProposeError::NotLeader`] if it does not lead, [`ProposeError::Busy`] if it still
    /// does when the time is over.
    pub async fn transfer(&self, to: Option<u64>) -> Result<(), ProposeError> {
        let mut standing = self.standing.clone();
        let me = self.id();
        if standing.borrow_and_update().leader != Some(me) {
            return Err(ProposeError::NotLeader);
        }
        self.order(Order::Transfer(to))?;
        let other = |now: &Standing| now.leader.is_some_and(|leader| leader != me);
        match tokio::time::timeout(TRANSFER_MAX, standing.wait_for(other)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ProposeError::Stopped),
            Err(_) => Err(ProposeError::Busy),
        }
    }

    /// Changes who belongs to the group, and returns once the change is applied here.
    ///
    /// # Errors
    ///
    /// [`ProposeError::Busy`]: another change is under way, so that nothing happened.
    /// [`ProposeError::Unknown`]: leadership was lost before the outcome was known.
    pub async fn change_membership(&self, change: ConfChangeV2) -> Result<(), ProposeError> {
        let (ended, answer) = oneshot::channel();
        self.order(Order::Change(change, ended))?;
        answer.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// The file of the snapshot that a [`MessageType::MsgSnapshot`] of this index speaks of.
    /// Blocks.
    ///
    /// # Errors
    ///
    /// It is gone: report that the snapshot was not sent, and Raft asks for a newer one.
    pub fn open_snapshot(&self, index: u64) -> io::Result<File> {
        let path = snapshot::find(&RealFs, &self.names.snapshots, index);
        File::open(path.map_err(io::Error::other)?)
    }

    /// Where a snapshot goes that comes in. Blocks.
    ///
    /// # Errors
    ///
    /// The file cannot be made.
    pub fn incoming_snapshot(&self) -> io::Result<Incoming> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = self.names.snapshots.join(format!("{number}{}", snapshot::INCOMING));
        Ok(Incoming { file: File::create(&path)?, path })
    }

    /// Checks a snapshot that came in, whole, puts it in its place and hands it to Raft with
    /// the message that announced it. It is installed when [`Replica::view`] has its state.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]: the file is not what the message says.
    pub async fn install_snapshot(
        &self,
        incoming: Incoming,
        message: Message,
    ) -> Result<(), InstallError> {
        let wanted = message.get_snapshot().get_metadata();
        let at = Position { index: wanted.index, term: wanted.term };
        let dir = self.names.snapshots.clone();
        let staged = tokio::task::spawn_blocking(move || stage(&incoming, &dir, at)).await;
        let staged = staged.map_err(|_| InstallError::Replica(ProposeError::Stopped))??;
        debug_assert_eq!(message.get_msg_type(), MessageType::MsgSnapshot, "the caller checked");
        self.order(Order::Install(Box::new(staged), message)).map_err(InstallError::Replica)
    }

    fn order(&self, order: Order) -> Result<(), ProposeError> {
        self.send(Input::Group(Box::new(order)))
    }
}

/// How it went with a snapshot that was to go to another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shipped {
    Taken,
    /// It was not taken there, or could not be read here.
    Refused,
    /// It got lost on the way.
    Lost,
}

/// Why a snapshot that came in is not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Replica(ProposeError),
}

/// Makes the file durable, checks it and gives it its name. Blocks.
fn stage(incoming: &Incoming, dir: &Path, at: Position) -> Result<Staged, SnapshotError> {
    let failed = |source| SnapshotError::Io { doing: "keep", path: dir.to_owned(), source };
    incoming.file.sync_all().map_err(failed)?;
    let (header, state) = snapshot::stage(&RealFs, dir, &incoming.path, at)?;
    Ok(Staged { header, state })
}
