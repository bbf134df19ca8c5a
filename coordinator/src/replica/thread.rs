//! The thread that owns the node: it gathers a wave, lets the node work, and tells
//! everybody. Nothing but the disk makes it wait while there is work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use raft::eraftpb::{ConfChangeV2, Message, MessageType};
use steading_core::State;
use steading_model::codec::Encode;
use tokio::sync::{mpsc, oneshot, watch};

use super::clock::Clock;
use super::identity::DirLock;
use super::keeper::{Job, Keeper, Kept};
use super::membership::Membership;
use super::node::{
    Bar, Ended, GroupStatus, Node, Output, ReplicaError, Staged, Standing, TICK_MS, Waiter,
};
use super::reads::Reader_;
use super::{Notice, ProposeError};

/// Most proposals in one entry.
const WAVE_PROPOSALS_MAX: usize = 1024;

/// Bytes of proposals after which an entry is closed; one more proposal may fit in.
const WAVE_BYTES_MAX: usize = 1 << 20;

/// Most messages of other members that are heard in one round.
const WAVE_ORDERS_MAX: usize = 1024;

/// How long the log is idle before its last write is sealed.
const SEAL_AFTER: Duration = Duration::from_millis(50);

/// How long a leader that stops waits for another one.
const HAND_OVER: Duration = Duration::from_secs(1);

/// How often a consumer of notices that fell behind is looked at again.
const RESYNC_PERIOD: Duration = Duration::from_millis(5);

/// Longest sleep of a member of a group of one.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Most ticks that are caught up after a stall: fewer than an election takes, so
/// that a slow disk does not look like a dead leader.
const TICKS_CAUGHT_UP_MAX: u32 = 4;

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Input {
    Propose(Vec<u8>, Waiter),
    /// A read, and whether only this replica's own leadership will do.
    Read(Reader_, bool),
    Kept(Kept),
    Group(Box<Order>),
    /// Look at the stop flag.
    Wake,
}

/// What concerns the group.
#[derive(Debug)]
pub(crate) enum Order {
    Step(Message),
    Install(Box<Staged>, Message),
    Unreachable(u64),
    SnapshotSent(u64, bool),
    SnapshotRotten(u64),
    Transfer(Option<u64>),
    Bar(Bar, bool),
    Change(ConfChangeV2, Ended),
    Status(oneshot::Sender<GroupStatus>),
}

/// What others see of the group.
#[derive(Debug)]
pub(crate) struct GroupView {
    pub(crate) standing: watch::Sender<Standing>,
    pub(crate) membership: watch::Sender<Arc<Membership>>,
    /// Messages to other members, a batch a round.
    pub(crate) outbound: mpsc::Sender<Vec<Message>>,
}

/// Everything that the thread owns.
#[derive(Debug)]
pub(crate) struct Thread {
    pub(crate) node: Node,
    pub(crate) input: Receiver<Input>,
    pub(crate) stop: Arc<AtomicBool>,
    /// Counts what it has done.
    pub(crate) rounds: Arc<AtomicU64>,
    pub(crate) view: Arc<ArcSwap<State>>,
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) notices: mpsc::Sender<Notice>,
    pub(crate) group: GroupView,
    /// `None` once the replica stops.
    pub(crate) jobs: Option<SyncSender<Job>>,
    pub(crate) keeper: Option<JoinHandle<()>>,
    /// The consumer of notices missed some, or has to begin.
    pub(crate) resync: bool,
    /// Stamped by the leader into entries.
    pub(crate) clock: Clock,
    pub(crate) started: Instant,
    pub(crate) ticks: u64,
    pub(crate) wrote: Instant,
    /// Held as long as files may be written.
    pub(crate) _lock: DirLock,
}

#[derive(Default)]
struct Wave {
    proposals: Vec<(Vec<u8>, Waiter)>,
    reads: Vec<Reader_>,
    reads_anywhere: Vec<Reader_>,
    kept: Option<Kept>,
    orders: Vec<Order>,
}

impl Thread {
    /// Runs until it is stopped or something fails.
    pub(crate) fn run(mut self) -> Result<(), ReplicaError> {
        let outcome = self.serve();
        if let Err(error) = &outcome {
            tracing::error!(error = %chain(error), "replica stops");
        }
        // In this order: the keeper may wait for room in the queue of inputs.
        self.jobs = None;
        let (_, closed) = std::sync::mpsc::sync_channel(1);
        drop(std::mem::replace(&mut self.input, closed));
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        outcome
    }

    fn serve(&mut self) -> Result<(), ReplicaError> {
        // The election of a single voter, and what the log holds.
        self.round(Wave::default())?;
        loop {
            self.rounds.fetch_add(1, Ordering::Relaxed);
            let wave = self.gather();
            if self.stop.load(Ordering::Acquire) {
                return self.finish(wave);
            }
            self.round(wave)?;
        }
    }

    /// Whoever leads hands over first, so that nobody has to wait for an election.
    fn finish(&mut self, mut wave: Wave) -> Result<(), ReplicaError> {
        let until = Instant::now() + HAND_OVER;
        loop {
            for (_, waiter) in wave.proposals.drain(..) {
                let _ = waiter.send(Err(ProposeError::Stopped));
            }
            for reader in wave.reads.drain(..).chain(wave.reads_anywhere.drain(..)) {
                let _ = reader.send(Err(ProposeError::Stopped));
            }
            if !self.node.transfer(None) || Instant::now() >= until {
                break;
            }
            self.round(wave)?;
            wave = self.gather();
        }
        self.node.seal()
    }

    /// Waits for something to do, and takes what else is there.
    fn gather(&mut self) -> Wave {
        let mut wave = Wave::default();
        let mut bytes = 0;
        let mut next = match self.input.try_recv() {
            Ok(input) => Some(input),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => self.wait(),
        };
        while let Some(input) = next {
            match input {
                Input::Propose(proposal, waiter) => {
                    bytes += proposal.len();
                    wave.proposals.push((proposal, waiter));
                }
                Input::Read(reader, true) => wave.reads.push(reader),
                Input::Read(reader, false) => wave.reads_anywhere.push(reader),
                Input::Kept(kept) => wave.kept = Some(kept),
                Input::Group(order) => wave.orders.push(*order),
                Input::Wake => (),
            }
            let full = wave.proposals.len() >= WAVE_PROPOSALS_MAX
                || bytes >= WAVE_BYTES_MAX
                || wave.orders.len() >= WAVE_ORDERS_MAX;
            if full || wave.kept.is_some() {
                break;
            }
            next = self.input.try_recv().ok();
        }
        wave
    }

    fn wait(&mut self) -> Option<Input> {
        match self.input.recv_timeout(self.patience()) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            // Every handle is gone, so nobody will ever ask for anything.
            Err(RecvTimeoutError::Disconnected) => {
                self.stop.store(true, Ordering::Release);
                None
            }
        }
    }

    /// How long nothing needs to be done unless something comes in.
    fn patience(&self) -> Duration {
        let mut patience = SLEEP_MAX;
        if !self.node.is_timeless() {
            let next = Duration::from_millis(TICK_MS * (self.ticks + 1));
            patience = patience.min(next.saturating_sub(self.started.elapsed()));
        }
        if self.node.wants_seal() {
            patience = patience.min(SEAL_AFTER.saturating_sub(self.wrote.elapsed()));
        }
        if self.resync {
            patience = patience.min(RESYNC_PERIOD);
        }
        match self.node.due_in_ms(self.clock_ms()) {
            Some(due) => patience.min(Duration::from_millis(due)),
            None => patience,
        }
    }

    fn round(&mut self, mut wave: Wave) -> Result<(), ReplicaError> {
        let early = (!self.node.is_alone()).then(|| self.group.outbound.clone());
        let mut output = Output { early, ..Output::default() };
        if let Some(kept) = wave.kept {
            self.node.kept(kept);
        }
        self.tick();
        for order in wave.orders {
            self.obey(order, &mut output)?;
        }
        if let Some(proposal) = self.node.own_proposal() {
            // Nobody waits for its outcome.
            wave.proposals.push((proposal.to_bytes(), oneshot::channel().0));
        }
        let wrote = !wave.proposals.is_empty();
        if wrote {
            let now = self.clock.now();
            self.node.propose(now, wave.proposals, &mut output);
        }
        if !wave.reads.is_empty() {
            self.node.read(wave.reads);
        }
        if !wave.reads_anywhere.is_empty() {
            self.node.read_anywhere(wave.reads_anywhere);
        }
        self.node.process(&mut output)?;
        if wrote || output.applied {
            self.wrote = Instant::now();
        }
        self.tell(output);
        if self.node.wants_seal() && self.wrote.elapsed() >= SEAL_AFTER {
            self.node.seal()?;
        }
        self.keep();
        Ok(())
    }

    fn obey(&mut self, order: Order, output: &mut Output) -> Result<(), ReplicaError> {
        match order {
            Order::Step(message) => self.node.step(message),
            Order::Install(staged, message) => self.node.install(*staged, message, output)?,
            Order::Unreachable(member) => self.node.unreachable(member),
            Order::SnapshotSent(member, ok) => self.node.snapshot_sent(member, ok),
            Order::SnapshotRotten(index) => self.node.snapshot_rotten(index),
            Order::Transfer(to) => {
                self.node.transfer(to);
            }
            Order::Bar(why, barred) => self.node.bar(why, barred),
            Order::Change(change, ended) => self.node.change_members(&change, ended, output),
            Order::Status(asker) => {
                // Who does not wait any more does not want to know.
                let _ = asker.send(self.node.status());
            }
        }
        Ok(())
    }

    fn tick(&mut self) {
        if self.node.is_timeless() {
            return;
        }
        let due = self.started.elapsed().as_millis() as u64 / TICK_MS;
        let missed = due.saturating_sub(self.ticks);
        for _ in 0..missed.min(u64::from(TICKS_CAUGHT_UP_MAX)) {
            self.node.tick();
        }
        self.ticks = due;
    }

    /// Publishes the state first: whoever gets an answer must find it there.
    fn tell(&mut self, output: Output) {
        self.send(output.messages);
        if output.applied {
            self.view.store(Arc::new(self.node.state().clone()));
            let version = self.node.state().version();
            self.changes.send_if_modified(|last| std::mem::replace(last, version) != version);
        }
        for (waiter, answer) in output.answers {
            // Who does not wait any more does not want to know.
            let _ = waiter.send(answer);
        }
        for (reader, answer) in output.reads {
            let _ = reader.send(answer);
        }
        if output.members {
            self.group.membership.send_replace(Arc::new(self.node.membership()));
        }
        for (ended, answer) in output.changes {
            let _ = ended.send(answer);
        }
        let standing = self.node.standing();
        self.group.standing.send_if_modified(|last| std::mem::replace(last, standing) != standing);
        self.resync |= output.leads;
        if self.resync {
            self.resync = self.is_full(Notice::Resync);
        } else if !output.effects.is_empty() {
            self.resync = self.is_full(Notice::Effects(output.effects));
        }
    }

    /// Raft says again what does not arrive, so nothing waits for room.
    fn send(&mut self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        let Err(error) = self.group.outbound.try_send(messages) else { return };
        for message in error.into_inner() {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.node.snapshot_sent(message.to, false);
            } else {
                self.node.unreachable(message.to);
            }
        }
    }

    /// Sends a notice; whether there was no room for it. A consumer that is gone needs none.
    fn is_full(&self, notice: Notice) -> bool {
        matches!(self.notices.try_send(notice), Err(mpsc::error::TrySendError::Full(_)))
    }

    fn keep(&mut self) {
        let clock_ms = self.clock_ms();
        let Some(jobs) = &self.jobs else { return };
        if let Some(job) = self.node.due(clock_ms)
            && let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = jobs.try_send(job)
        {
            tracing::error!("nobody keeps the image and snapshots any more, the log will grow");
        }
    }

    fn clock_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// Serves the thread's slow jobs until it has no more.
pub(crate) fn keep(mut keeper: Keeper, jobs: &Receiver<Job>, done: &SyncSender<Input>) {
    while let Ok(job) = jobs.recv() {
        if done.send(Input::Kept(keeper.run(job))).is_err() {
            return;
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
