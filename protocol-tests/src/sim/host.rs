//! A machine with a replica: its disk, its clock, its process, and what that process
//! does with what comes in.

mod life;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use steading_coordinator::replica::sim_fs::SimFs;
use steading_coordinator::replica::sim_member::{Happened, Joined, Kept, Letter, Member};
use steading_coordinator::replica::testkit::{Layout, MemStore};
use steading_coordinator::replica::{Cadence, ReplicaError};
use steading_core::Proposal;
use steading_model::Timestamp;

use super::calls::Call;
use super::net::Peer;
use super::queue::{MS, S, Us};
use super::shell::{Out, Say, Shell, View};
use super::tally::Seen;
use super::world::{Event, Flow, Packet, World};

/// Rounds that one event may lead to: a proposal's effects ask for another proposal, and so on.
const ROUNDS_MAX: usize = 8;

/// Ticks between two looks at the group.
const GROUP_TICKS: u32 = 4;

/// Ticks between two looks at the room on its disk.
const DISK_TICKS: u32 = 20;

/// What the keeper takes for something, ticks: one of these at most.
const KEEPER_TICKS: [u64; 3] = [1, 20, 600];

/// Most ticks that are made up for after a standstill, as the replica's thread has it.
const TICKS_CAUGHT_UP_MAX: u32 = 4;

/// The wall's time when the world began, milliseconds.
const WALL_MS: i64 = 1_700_000_000_000;

/// What comes in.
#[derive(Debug)]
pub(crate) enum Input {
    Tick,
    Letter(Letter),
    Ask { from: Peer, call: u64, proposal: Proposal },
    Say { conn: u64, say: Say },
    Closed { conn: u64 },
    Transfer { to: u64 },
    SnapshotSent { to: u64, arrived: bool },
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Host {
    /// The member's number in the group.
    pub(crate) id: u64,
    /// Names its directory.
    pub(crate) storage_id: String,
    /// Who the directory was made for; a founder's for nobody.
    pub(crate) joined: Option<Joined>,
    /// Nobody yet: it has to be admitted.
    pub(crate) is_empty: bool,
    /// Nobody any more.
    pub(crate) is_gone: bool,
    /// Once it has left, with an empty directory.
    pub(crate) comes_back: bool,
    /// It is to be taken out as soon as another can take its place.
    pub(crate) leaves: bool,
    /// A bit flipped since it was started; the last entry before.
    pub(crate) flipped: Option<u64>,
    /// The snapshot in which one flipped. It may be there for long, with nobody needing it.
    pub(crate) rotten: Option<PathBuf>,
    /// Its disk is nearly full.
    pub(crate) is_low: bool,
    /// Its own questions to the leader.
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) target: usize,
    pub(crate) fs: SimFs,
    pub(crate) store: MemStore,
    /// `None` while the process is down.
    pub(crate) member: Option<Member>,
    pub(crate) life: u32,
    /// How wrong the wall clock is, milliseconds.
    pub(crate) offset_ms: i64,
    /// How wrong all clocks go, millionths.
    pub(crate) rate_ppm: i64,
    /// Stopped, or waiting for its disk.
    pub(crate) busy_until: Us,
    inbox: VecDeque<Input>,
    ticks_missed: u32,
    ticks: u32,
    /// The tick at which the keeper is done with what it is at.
    pub(crate) kept_at: u32,
    pub(crate) shell: Shell,
    pub(crate) sync_us: Us,
    operations: u64,
    quiet_ticks: u32,
    /// How long it stays down where its disk stops it.
    pub(crate) down_us: Us,
    /// Of the disk, when the last round ended that the replica survived.
    failures: u64,
}

impl Host {
    pub(crate) fn new(id: u64, sync_us: Us, rate_ppm: i64, offset_ms: i64) -> Self {
        Self {
            id,
            storage_id: Member::founders_storage(id),
            joined: None,
            is_empty: false,
            is_gone: false,
            comes_back: false,
            leaves: false,
            flipped: None,
            rotten: None,
            is_low: false,
            calls: BTreeMap::new(),
            target: 0,
            fs: SimFs::new(),
            store: MemStore::default(),
            member: None,
            life: 0,
            offset_ms,
            rate_ppm,
            busy_until: 0,
            inbox: VecDeque::new(),
            ticks_missed: 0,
            ticks: 0,
            kept_at: 0,
            shell: Shell::default(),
            sync_us,
            operations: 0,
            quiet_ticks: 0,
            down_us: S,
            failures: 0,
        }
    }

    /// Whether its next start may end in a new disk.
    pub(crate) fn is_doomed(&self) -> bool {
        let is_there = |path: &PathBuf| self.fs.bytes(path).is_some();
        self.flipped.is_some() || self.rotten.as_ref().is_some_and(is_there)
    }

    pub(crate) fn layout(&self, cadence: Cadence) -> Layout {
        Layout {
            vfs: Arc::new(self.fs.clone()),
            dir: PathBuf::from("/replica"),
            segment_bytes: 8 << 10,
            frame_bytes: 1 << 10,
            cadence,
        }
    }

    /// Its monotonic clock.
    pub(crate) const fn mono(&self, now: Us) -> Us {
        (now as i64 + now as i64 * self.rate_ppm / 1_000_000) as u64
    }

    fn wall(&self, now: Us) -> Timestamp {
        let ms = WALL_MS + (self.mono(now) / MS) as i64 + self.offset_ms;
        Timestamp::from_ms(ms.max(0) as u64)
    }
}

impl World {
    /// Something came in for the replica.
    pub(crate) fn input(&mut self, replica: usize, input: Input) {
        let host = &mut self.hosts[replica];
        if host.member.is_none() {
            return;
        }
        if host.busy_until > self.now {
            match input {
                Input::Tick => host.ticks_missed += 1,
                input => host.inbox.push_back(input),
            }
            return;
        }
        self.round(replica, std::iter::once(input));
    }

    /// The process goes on after a standstill.
    pub(crate) fn wake(&mut self, replica: usize) {
        let host = &mut self.hosts[replica];
        if host.busy_until > self.now || host.member.is_none() {
            return;
        }
        let ticks = std::mem::take(&mut host.ticks_missed).min(TICKS_CAUGHT_UP_MAX);
        let inbox = std::mem::take(&mut host.inbox);
        let inputs = (0..ticks).map(|_| Input::Tick).chain(inbox).collect::<Vec<_>>();
        if !inputs.is_empty() {
            self.round(replica, inputs.into_iter());
        }
    }

    /// The replica stands still until then; whether it would not have for so long anyway.
    pub(crate) fn stop_until(&mut self, replica: usize, until: Us) -> bool {
        let host = &mut self.hosts[replica];
        let longer = until > host.busy_until;
        if longer {
            host.busy_until = until;
            let life = host.life;
            self.queue.push(until, Event::Wake { replica, life });
        }
        longer
    }

    fn round(&mut self, replica: usize, inputs: impl Iterator<Item = Input>) {
        let (mut letters, mut out) = (Vec::new(), Vec::new());
        let done = self.rounds(replica, inputs, &mut letters, &mut out);
        let host = &self.hosts[replica];
        if done.is_ok() && host.fs.is_off() {
            // In the middle of what a replica can do without, such as an image or a snapshot
            // that comes in. But no process goes on without power.
            let down = host.down_us;
            return self.crash(replica, down);
        }
        // Where it failed, this is of the rounds before, which had sent it by then.
        let delay = self.disk_delay(replica);
        for letter in letters {
            self.send_letter(replica, letter, delay);
        }
        for out in out {
            self.send_out(replica, out, delay);
        }
        match done {
            Ok(()) => {
                let host = &mut self.hosts[replica];
                host.failures = host.fs.failures();
            }
            Err(error) => self.stopped(replica, &error),
        }
    }

    fn rounds(
        &mut self,
        replica: usize,
        inputs: impl Iterator<Item = Input>,
        letters: &mut Vec<Letter>,
        out: &mut Vec<Out>,
    ) -> Result<(), ReplicaError> {
        for input in inputs {
            self.take_in(replica, input, out)?;
        }
        for _ in 0..ROUNDS_MAX {
            let host = &mut self.hosts[replica];
            let clock = host.wall(self.now);
            let Some(member) = &mut host.member else { break };
            member.propose_own(clock);
            let wave = std::mem::take(&mut host.shell.wave);
            if !wave.is_empty() {
                member.propose(clock, wave);
                host.quiet_ticks = 0;
            }
            let reads = std::mem::take(&mut host.shell.reads);
            if !reads.is_empty() {
                member.read(reads);
            }
            let processed = member.process();
            // These did not wait for the disk, and are gone before a write that fails.
            let early = member.sent_early();
            if processed.is_err() {
                self.audit.tally.saw_many(Seen::SentUnwritten, early.len() as u64);
            }
            early.into_iter().for_each(|letter| self.send_letter(replica, letter, 0));
            self.happened(replica, processed?, letters, out);
            let host = &self.hosts[replica];
            if host.member.is_none() || (host.shell.wave.is_empty() && host.shell.reads.is_empty())
            {
                break;
            }
        }
        Ok(())
    }

    fn take_in(
        &mut self,
        replica: usize,
        input: Input,
        out: &mut Vec<Out>,
    ) -> Result<(), ReplicaError> {
        let host = &mut self.hosts[replica];
        let now = host.mono(self.now);
        let Some(member) = &mut host.member else { return Ok(()) };
        let shell = &mut host.shell;
        match input {
            Input::Tick => {
                member.tick();
                shell.tick();
                host.quiet_ticks += 1;
                if host.quiet_ticks == 2 {
                    member.seal()?;
                }
                host.ticks += 1;
                // Under load, too. It takes its time, in which anything may come.
                if host.ticks >= host.kept_at && member.keep(now / MS) {
                    let ticks_max = KEEPER_TICKS[self.dice.below(3) as usize];
                    let ticks_max = if self.stormy { ticks_max } else { 1 };
                    host.kept_at = host.ticks + 1 + self.dice.below(ticks_max) as u32;
                }
                if host.ticks.is_multiple_of(DISK_TICKS) {
                    member.bar_disk(host.is_low);
                }
                if host.ticks.is_multiple_of(GROUP_TICKS)
                    && let Some(kept) = member.keep_group()
                {
                    self.audit.tally.saw(seen(kept));
                }
            }
            Input::Letter(letter) => {
                // What could not be kept comes again.
                if let Err(error) = member.step(letter) {
                    self.trace.note(78);
                    let untaken = || format!("replica {replica} takes no snapshot: {error:?}");
                    self.trace.tell(self.now, untaken);
                }
            }
            Input::SnapshotSent { to, arrived } => member.snapshot_sent(to, arrived),
            Input::Ask { from, call, proposal } => shell.called(from, call, proposal),
            Input::Say { conn, say } => {
                shell.heard(View { state: member.state(), now }, conn, say, out);
            }
            Input::Closed { conn } => shell.closed(conn),
            Input::Transfer { to } => member.transfer(to),
        }
        Ok(())
    }

    fn happened(
        &mut self,
        replica: usize,
        happened: Happened,
        letters: &mut Vec<Letter>,
        out: &mut Vec<Out>,
    ) {
        letters.extend(happened.letters);
        for (index, now, proposals) in happened.waves {
            let audited = self.audit.wave(index, now, proposals);
            self.ensure(audited);
        }
        let host = &mut self.hosts[replica];
        let now = host.mono(self.now);
        let Some(member) = &mut host.member else { return };
        if happened.applied {
            host.quiet_ticks = 0;
            let (index, chain) = (member.applied(), member.state().chain());
            self.trace.note(index);
            self.trace.note(u64::from(chain[0]) << 8 | u64::from(chain[1]));
            let mut compared = self.audit.compare(index, chain);
            if happened.installed {
                self.audit.tally.saw(Seen::SnapshotInstalled);
                let at_work = u64::from(happened.installed_at_work);
                self.audit.tally.saw_many(Seen::InstalledAtWork, at_work);
                compared = compared.and_then(|()| self.audit.same(index, member.state()));
            }
            if let Err(what) = compared {
                let what = format!("replica {}: {what}", host.id);
                return self.ensure(Err(what));
            }
        }
        let (leads, is_leader) = (member.leads(), member.is_leader());
        let view = View { state: member.state(), now };
        let shell = &mut host.shell;
        for (number, answer) in happened.answers {
            shell.answered(view, number, answer, out);
        }
        for (number, passed) in happened.reads {
            shell.read_done(view, number, passed, out);
        }
        // Some notices get lost, where a queue is full; then everything is derived anew.
        let missed = !happened.effects.is_empty() && self.dice.chance(1, 300);
        let begun = shell.stand(view, leads, out);
        if missed {
            shell.resync(view, out);
        } else {
            for effect in happened.effects {
                shell.route(view, effect, out);
            }
        }
        if !is_leader {
            shell.stepped_down(out);
        }
        shell.work(view, leads, &mut self.dice);
        let broken = shell.broken.take();
        let low = host.is_low;
        if begun {
            self.saw(if low { Seen::LedLow } else { Seen::Led });
        }
        if let Some(broken) = broken {
            self.ensure(Err(broken));
        }
    }

    /// How long the disk took for what this round wrote. A slow one makes the replica wait.
    fn disk_delay(&mut self, replica: usize) -> Us {
        let host = &mut self.hosts[replica];
        let operations = host.fs.operations();
        if std::mem::replace(&mut host.operations, operations) == operations {
            return 0;
        }
        let delay = host.sync_us;
        if delay >= 5 * MS {
            self.stop_until(replica, self.now + delay);
        }
        delay
    }

    fn send_letter(&mut self, replica: usize, letter: Letter, delay: Us) {
        let Some(to) = self.hosts.iter().position(|host| host.id == letter.to()) else { return };
        let (from, to) = (Peer::Replica(replica), Peer::Replica(to));
        let mut letter = letter;
        if letter.is_snapshot() {
            self.saw(Seen::SnapshotSent);
            if self.stormy && self.dice.chance(1, 4) {
                self.saw(Seen::SnapshotDamaged);
                letter = letter.damaged(&mut self.dice);
            }
            let (to, life) = (letter.to(), self.hosts[replica].life);
            let takes = delay + 50 * MS + self.dice.below(S);
            self.queue.push(self.now + takes, Event::SnapshotSent { replica, life, to });
        }
        self.send(from, to, Packet::Letter(letter), delay);
    }

    fn send_out(&mut self, replica: usize, out: Out, delay: Us) {
        match out {
            Out::Hear { conn, hear } => self.flow(conn, true, Flow::Hear(hear), delay),
            Out::Close { conn, end } => {
                let hint = self.leader_hint(replica);
                self.flow(conn, true, Flow::End(end, hint), delay);
            }
            Out::Told { to, call, told } => {
                let hint = self.leader_hint(replica);
                let packet = Packet::Told { call, told, hint };
                self.send(Peer::Replica(replica), to, packet, delay);
            }
        }
    }

    /// Who leads, as this replica knows.
    fn leader_hint(&mut self, replica: usize) -> Option<usize> {
        let member = self.hosts[replica].member.as_mut()?;
        let leader = member.standing().1?;
        self.hosts.iter().position(|host| host.id == leader)
    }
}

const fn seen(kept: Kept) -> Seen {
    match kept {
        Kept::Learner => Seen::LearnerAdded,
        Kept::LearnerLeft => Seen::LearnerLeft,
        Kept::Voters => Seen::VotersChanged,
        Kept::JointLeft => Seen::JointLeft,
        Kept::HandedOver => Seen::HandedOver,
    }
}
