//! One member of a simulated group: the real node, log and keeper without threads
//! and clocks, told what time it is and what came in. For the simulator.

mod group;

use std::collections::VecDeque;
use std::sync::Arc;

use raft::StateRole;
use raft::eraftpb::{Message, MessageType};
use steading_core::{Effect, Proposal, State};
use steading_model::Timestamp;
use steading_model::codec::Encode;
use tokio::sync::{mpsc, oneshot};

pub use self::group::Kept;
pub use super::identity::Joined;

use super::ProposeError;
use super::image::ImageStore;
use super::keeper::{Job, Keeper};
use super::node::{Bar, ELECTION_TICKS, Node, Output, ReplicaError, Staged};
use super::open::{Opened, Place, StartError, open};
use super::sim_fs::Dice;
use super::snapshot::{self, SnapshotError};
use super::testkit::{Answer, Layout};
use super::wal::Position;

/// Most batches of messages that go out while a leader writes. Where that is full, as the
/// product's own line may be, they go with the others, once all is written.
const EARLY_MAX: usize = 4;

/// Bytes of entries that a member keeps in memory for others that lag: some dozen entries,
/// so that those that stood still or were cut off for a while are given snapshots.
const LAGGING_BYTES: u64 = 4 << 10;

/// A message to another member, and the snapshot that it speaks of.
#[derive(Clone, Debug)]
pub struct Letter {
    message: Message,
    snapshot: Option<Arc<Vec<u8>>>,
}

impl Letter {
    /// The member that it is for.
    pub const fn to(&self) -> u64 {
        self.message.to
    }

    /// Whether it brings a snapshot, so that its sender is to hear whether it arrived.
    pub const fn is_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// The same, its snapshot damaged on the way: a part is missing, or different.
    #[must_use]
    pub fn damaged(mut self, dice: &mut Dice) -> Self {
        if let Some(bytes) = self.snapshot.as_ref().filter(|bytes| !bytes.is_empty()) {
            let mut bytes = Vec::clone(bytes);
            let at = dice.below(bytes.len() as u64) as usize;
            match dice.below(3) {
                0 => bytes.truncate(at),
                1 => bytes[at] ^= 1 << dice.below(8),
                _ => drop(bytes.drain(at / 2..=at)),
            }
            self.snapshot = Some(Arc::new(bytes));
        }
        self
    }

    /// What it says, in a few words.
    pub fn kind(&self) -> String {
        let message = &self.message;
        let (entries, reject) = (message.entries.len(), if message.reject { " no" } else { "" });
        let (term, index) = (message.term, message.index);
        format!(
            "{:?} t{term} i{index} +{entries} c{}{reject}",
            message.get_msg_type(),
            message.commit
        )
    }
}

/// What came of a round. Numbers are the caller's.
#[derive(Debug, Default)]
pub struct Happened {
    pub letters: Vec<Letter>,
    pub answers: Vec<(u64, Answer)>,
    pub reads: Vec<(u64, Result<(), ProposeError>)>,
    /// Of a leader's accepted proposals.
    pub effects: Vec<Effect>,
    pub applied: bool,
    /// The state was replaced by a snapshot's.
    pub installed: bool,
    /// The same, while the keeper had something of the earlier state at hand.
    pub installed_at_work: bool,
    /// Index, time and proposals of every wave that was applied.
    pub waves: Vec<(u64, Timestamp, Vec<Proposal>)>,
}

/// A member. Its thread's work, step by step.
#[derive(Debug)]
pub struct Member {
    node: Node,
    keeper: Keeper,
    /// What the keeper is at.
    job: Option<Job>,
    output: Output,
    /// Where a leader's messages go while it writes.
    early: mpsc::Sender<Vec<Message>>,
    sent_early: mpsc::Receiver<Vec<Message>>,
    answers: VecDeque<(u64, oneshot::Receiver<Answer>)>,
    reads: VecDeque<(u64, oneshot::Receiver<Result<(), ProposeError>>)>,
    /// Of the elections' chances: Raft's own are not replayed.
    seed: u64,
    ticks: u64,
    /// What a snapshot made it stop for.
    failed: Option<ReplicaError>,
    /// A change of the members that it waits for.
    change: Option<oneshot::Receiver<Result<(), ProposeError>>>,
    /// A snapshot took the place of the state.
    installed: bool,
    installed_at_work: bool,
}

impl Member {
    /// Opens the directory, which becomes that of `joined` where it is empty. `seed` decides
    /// its elections' timing.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn open(
        layout: &Layout,
        store: Box<dyn ImageStore>,
        joined: Option<Joined>,
        seed: u64,
    ) -> Result<Self, StartError> {
        let place = Place {
            vfs: layout.vfs.clone(),
            dir: layout.dir.clone(),
            segment_bytes: layout.segment_bytes,
            frame_bytes: layout.frame_bytes,
            background: false,
            cadence: layout.cadence,
            join: joined,
        };
        let Opened { node, keeper, .. } = open(&place, store, || Ok([7; 32]))?;
        let (early, sent_early) = mpsc::channel(EARLY_MAX);
        let mut member = Self {
            node,
            keeper,
            job: None,
            output: Output::default(),
            early,
            sent_early,
            answers: VecDeque::new(),
            reads: VecDeque::new(),
            seed,
            ticks: 0,
            failed: None,
            change: None,
            installed: false,
            installed_at_work: false,
        };
        member.node.raw().mut_store().keep_for_lagging(LAGGING_BYTES);
        member.draw_election();
        Ok(member)
    }

    /// Time passed: one tick.
    pub fn tick(&mut self) {
        self.ticks += 1;
        if !self.node.is_timeless() {
            self.node.tick();
        }
        self.draw_election();
    }

    /// A message of another member came in. One that makes no sense is dropped.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]: a snapshot came in and could not be kept. Nothing happened.
    pub fn step(&mut self, letter: Letter) -> Result<(), SnapshotError> {
        let Letter { message, snapshot } = letter;
        match snapshot {
            None => self.node.step(message),
            Some(bytes) => {
                let staged = self.take_snapshot(&message, &bytes)?;
                let (before, at) = (self.node.applied().index, staged.header.at.index);
                self.open_early();
                self.failed = self.node.install(staged, message, &mut self.output).err();
                let installed = before < at && self.node.applied().index >= at;
                self.installed |= installed;
                self.installed_at_work |= installed && self.job.is_some();
            }
        }
        self.draw_election();
        Ok(())
    }

    /// As it comes in from another replica: written, synced, read back, staged.
    fn take_snapshot(&self, message: &Message, bytes: &[u8]) -> Result<Staged, SnapshotError> {
        let metadata = message.get_snapshot().get_metadata();
        let at = Position { index: metadata.index, term: metadata.term };
        let (vfs, dir) = (&*self.keeper.vfs, &self.keeper.snapshots);
        let coming = dir.join(format!("0{}", snapshot::INCOMING));
        let failed = |doing| {
            let path = coming.clone();
            move |source| SnapshotError::Io { doing, path, source }
        };
        let mut file = vfs.create(&coming).map_err(failed("make"))?;
        file.write_at(0, bytes).map_err(failed("write"))?;
        file.sync_all().map_err(failed("sync"))?;
        let (header, state) = snapshot::stage(vfs, dir, &coming, at)?;
        Ok(Staged { header, state })
    }

    /// The file of the snapshot that a message speaks of.
    fn snapshot_for(&self, message: &Message) -> Option<Arc<Vec<u8>>> {
        let index = message.get_snapshot().get_metadata().index;
        let path = snapshot::find(&*self.keeper.vfs, &self.keeper.snapshots, index).ok()?;
        let file = self.keeper.vfs.open(&path).ok()?;
        super::vfs::read_all(&*file).ok().map(Arc::new)
    }

    /// A snapshot that was sent arrived, or did not.
    pub fn snapshot_sent(&mut self, to: u64, arrived: bool) {
        self.node.snapshot_sent(to, arrived);
    }

    /// Makes a wave of the proposals; `clock` is this machine's.
    pub fn propose(&mut self, clock: Timestamp, wave: Vec<(u64, Proposal)>) {
        let mut waiting = Vec::with_capacity(wave.len());
        for (number, proposal) in wave {
            let (waiter, answer) = oneshot::channel();
            self.answers.push_back((number, answer));
            waiting.push((proposal.to_bytes(), waiter));
        }
        self.node.propose(clock, waiting, &mut self.output);
    }

    /// Hands leadership over, if it is this one's.
    pub fn transfer(&mut self, to: u64) {
        self.node.transfer(Some(to));
    }

    /// Asks for barriers.
    pub fn read(&mut self, numbers: impl IntoIterator<Item = u64>) {
        let mut readers = Vec::new();
        for number in numbers {
            let (reader, answer) = oneshot::channel();
            self.reads.push_back((number, answer));
            readers.push(reader);
        }
        self.node.read(readers);
    }

    /// Does everything that is ready.
    ///
    /// # Errors
    ///
    /// [`ReplicaError`]: the replica stops, and nobody gets an answer.
    pub fn process(&mut self) -> Result<Happened, ReplicaError> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        self.open_early();
        self.node.process(&mut self.output)?;
        self.draw_election();
        let output = std::mem::take(&mut self.output);
        let mut happened = Happened {
            letters: self.letters(output.messages),
            effects: output.effects,
            applied: output.applied,
            installed: std::mem::take(&mut self.installed),
            installed_at_work: std::mem::take(&mut self.installed_at_work),
            waves: output.waves,
            ..Happened::default()
        };
        if !output.answers.is_empty() {
            output.answers.into_iter().for_each(|(waiter, answer)| drop(waiter.send(answer)));
            happened.answers = ready(&mut self.answers);
        }
        for (ended, answer) in output.changes {
            // Who does not wait any more does not want to know.
            let _ = ended.send(answer);
        }
        if !output.reads.is_empty() {
            output.reads.into_iter().for_each(|(reader, answer)| drop(reader.send(answer)));
            happened.reads = ready(&mut self.reads);
        }
        Ok(happened)
    }

    /// What went out before it was written here: on its way also where the write failed.
    pub fn sent_early(&mut self) -> Vec<Letter> {
        let mut messages = Vec::new();
        while let Ok(batch) = self.sent_early.try_recv() {
            messages.extend(batch);
        }
        self.letters(messages)
    }

    /// As the replica's thread has it: who is alone has nobody to send to.
    fn open_early(&mut self) {
        self.output.early = (!self.node.is_alone()).then(|| self.early.clone());
    }

    fn letters(&mut self, messages: Vec<Message>) -> Vec<Letter> {
        let mut letters = Vec::with_capacity(messages.len());
        for message in messages {
            if message.get_msg_type() != MessageType::MsgSnapshot {
                letters.push(Letter { message, snapshot: None });
                continue;
            }
            match self.snapshot_for(&message) {
                None => self.node.snapshot_sent(message.to, false),
                snapshot => letters.push(Letter { message, snapshot }),
            }
        }
        letters
    }

    /// Nothing came for a while: the log is sealed.
    ///
    /// # Errors
    ///
    /// [`ReplicaError`]: the replica stops.
    pub fn seal(&mut self) -> Result<(), ReplicaError> {
        if self.node.wants_seal() { self.node.seal() } else { Ok(()) }
    }

    /// Begins one thing that is due for image, snapshots and old segments, or ends the one
    /// that it began: much may happen in between, as with the keeper's thread. Whether there
    /// is something to end now.
    pub fn keep(&mut self, clock_ms: u64) -> bool {
        match self.job.take() {
            Some(job) => self.node.kept(self.keeper.run(job)),
            None => self.job = self.node.due(clock_ms),
        }
        self.job.is_some()
    }

    /// The state.
    pub const fn state(&self) -> &State {
        self.node.state()
    }

    /// Index of the last applied entry.
    pub const fn applied(&self) -> u64 {
        self.node.applied().index
    }

    /// The term, and the member that leads it as far as this one knows.
    pub fn standing(&self) -> (u64, Option<u64>) {
        let standing = self.node.standing();
        (standing.term, standing.leader)
    }

    /// The term in which it leads, with everything before it applied, as far as it knows.
    pub fn leads(&self) -> Option<u64> {
        let standing = self.node.standing();
        standing.leads.then_some(standing.term)
    }

    /// Whether it takes itself for the leader.
    pub fn is_leader(&mut self) -> bool {
        self.node.raw().raft.state == StateRole::Leader
    }

    /// Whether its disk is nearly full, so that it had better not lead.
    pub fn bar_disk(&mut self, full: bool) {
        self.node.bar(Bar::Disk, full && !self.node.is_alone());
    }

    /// Raft draws a new timeout whenever it resets its elections; from the seed, so that it
    /// is replayed.
    fn draw_election(&mut self) {
        let mixed = (self.seed
            ^ self.ticks.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ self.node.standing().term << 32)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let ticks = ELECTION_TICKS + (mixed >> 33) as usize % ELECTION_TICKS;
        self.node.set_election_timeout(ticks);
    }
}

/// Takes what has been answered out of the line.
fn ready<T>(line: &mut VecDeque<(u64, oneshot::Receiver<T>)>) -> Vec<(u64, T)> {
    let mut ready = Vec::new();
    line.retain_mut(|(number, answer)| match answer.try_recv() {
        Ok(answer) => {
            ready.push((*number, answer));
            false
        }
        Err(oneshot::error::TryRecvError::Empty) => true,
        Err(oneshot::error::TryRecvError::Closed) => false,
    });
    ready
}
