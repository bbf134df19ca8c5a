//! A group on disks that lose power, over a network that loses, delays and reorders:
//! what was acknowledged stays, and all replicas agree. Deterministic for a seed.

mod full;
mod leaving;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Message, MessageType,
};
use steading_core::{Effect, State};
use steading_model::Timestamp;
use steading_model::codec::Encode;
use tokio::sync::oneshot;

use crate::replica::image_memory::MemStore;
use crate::replica::keeper::{Job, Keeper};
use crate::replica::membership::Membership;
use crate::replica::node::{ELECTION_TICKS, Node, Output, Staged};
use crate::replica::open::{Opened, Place, open};
use crate::replica::sim_fs::{Dice, Faults, SimFs};
use crate::replica::vfs::{Vfs, read_all};
use crate::replica::wal::Position;
use crate::replica::{Cadence, Joined, ProposeError, ReplicaError, snapshot};

const CLUSTER: &str = "07070707070707070707070707070707";

const STORIES: u64 = 60;

const STEPS: u32 = 2000;

#[test]
fn what_was_acknowledged_survives_power_cuts_of_any_members() {
    let mut seen = Seen::default();
    for seed in 1..=STORIES {
        let story = Story::run(seed, STEPS);
        seen.acknowledged += story.acknowledged.len();
        seen.cuts += story.seen.cuts;
        seen.snapshots += story.seen.snapshots;
        seen.leaders += story.leaders.len();
        seen.failures += story.seen.failures;
    }
    // The faults that this is about did happen.
    assert!(seen.acknowledged > 500 && seen.cuts > 300, "{seen:?}");
    assert!(seen.failures > 10, "{seen:?}");
    assert!(seen.snapshots > 50 && seen.leaders > 150, "{seen:?}");
}

#[derive(Debug, Default)]
struct Seen {
    acknowledged: usize,
    cuts: usize,
    snapshots: usize,
    leaders: usize,
    failures: usize,
}

type Answer = oneshot::Receiver<Result<Vec<Effect>, ProposeError>>;

#[derive(Default)]
struct Member {
    fs: SimFs,
    store: MemStore,
    live: Option<(Node, Keeper)>,
    /// What the keeper is at.
    job: Option<Job>,
    /// Failures of the disk that it survived, or stopped for.
    failures: u64,
    waiting: Vec<(String, Answer)>,
    /// The members by what it had applied, as others could last see.
    group: Option<(u64, Membership)>,
}

struct Story {
    seed: u64,
    dice: Dice,
    clock_ms: u64,
    members: BTreeMap<u64, Member>,
    network: Vec<Message>,
    acknowledged: BTreeSet<String>,
    proposed: u64,
    /// Chain by index: the same for all.
    chains: BTreeMap<u64, [u8; 32]>,
    /// Leader by term: one only.
    leaders: BTreeMap<u64, u64>,
    calm: bool,
    seen: Seen,
}

impl Story {
    fn run(seed: u64, steps: u32) -> Self {
        let mut story = Self::begin(seed);
        for _ in 0..steps {
            story.step();
        }
        story.settle();
        story
    }

    fn begin(seed: u64) -> Self {
        let members = (1..=4).map(|id| (id, Member::default())).collect();
        let mut story = Self {
            seed,
            dice: Dice::new(seed),
            clock_ms: 0,
            members,
            network: Vec::new(),
            acknowledged: BTreeSet::new(),
            proposed: 0,
            chains: BTreeMap::new(),
            leaders: BTreeMap::new(),
            calm: false,
            seen: Seen::default(),
        };
        for id in 1..=4 {
            story.start(id);
        }
        story
    }

    fn step(&mut self) {
        let id = 1 + self.dice.below(4);
        match self.dice.below(64) {
            0..=15 => self.tick(),
            16..=45 => self.deliver(),
            46..=53 => self.propose(id),
            54 => self.change(id),
            63 => self.end_change(id),
            55..=57 => self.keep(id),
            58 => self.members[&id].fs.cut_power_after(self.dice.below(60)),
            59 if self.dice.chance(1, 3) => self.power_cycle(id),
            62 if self.dice.chance(1, 6) => self.members[&id]
                .fs
                .set_faults(Faults { fail_sync_in: Some(self.dice.below(8)), ..Faults::default() }),
            60 if self.dice.chance(1, 3) => drop(self.with(id, |node, _| node.transfer(None))),
            61 => drop(self.with_failing(id, |node, _| node.seal())),
            _ => self.start(id),
        }
    }

    /// Power and network are fine from here on: the group recovers and agrees.
    fn settle(&mut self) {
        self.calm = true;
        for id in 1..=4 {
            self.members[&id].fs.set_faults(Faults::default());
            self.power_cycle(id);
            self.start(id);
        }
        let last = "last".to_owned();
        for _ in 0..3000 {
            self.tick();
            while !self.network.is_empty() {
                self.deliver();
            }
            for id in 1..=4 {
                self.keep(id);
                self.start(id);
            }
            if !self.acknowledged.contains(&last) {
                for id in 1..=4 {
                    self.propose_named(id, last.clone());
                }
            } else if self.voters_agree() {
                return self.check_end();
            }
        }
        panic!("seed {}: the group does not recover", self.seed);
    }

    fn voters_agree(&mut self) -> bool {
        let voters = self.voters();
        let chains: Vec<_> = voters.iter().map(|id| self.state(*id).map(State::chain)).collect();
        chains.iter().all(|chain| chain.is_some() && *chain == chains[0])
    }

    fn check_end(&self) {
        for id in self.voters() {
            let state = self.state(id).unwrap();
            state.check_invariants().unwrap();
            for name in &self.acknowledged {
                let found = state.agent_by_name(name).is_some();
                assert!(found, "seed {}: {id} has lost {name}", self.seed);
            }
        }
    }

    fn voters(&self) -> Vec<u64> {
        let live = self.members.values().filter_map(|member| member.live.as_ref());
        let newest = live.max_by_key(|(node, _)| node.status().applied);
        newest.map(|(node, _)| node.membership().voters).unwrap_or_default()
    }

    fn state(&self, id: u64) -> Option<&State> {
        self.members[&id].live.as_ref().map(|(node, _)| node.state())
    }

    fn tick(&mut self) {
        self.clock_ms += 25;
        for id in 1..=4 {
            self.with(id, |node, _| node.tick());
        }
    }

    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let which = self.dice.below(self.network.len().min(6) as u64) as usize;
        let message = self.network.remove(which);
        if !self.calm && self.dice.chance(1, 12) {
            return self.arrived(&message, false);
        }
        if !self.calm && self.dice.chance(1, 20) {
            self.network.push(message.clone());
        }
        if message.get_msg_type() == MessageType::MsgSnapshot {
            let arrived = self.ship(&message);
            self.seen.snapshots += usize::from(arrived);
            return self.arrived(&message, arrived);
        }
        let to = message.to;
        self.with(to, |node, _| node.step(message));
    }

    fn arrived(&mut self, message: &Message, arrived: bool) {
        if message.get_msg_type() == MessageType::MsgSnapshot {
            self.with(message.from, |node, _| node.snapshot_sent(message.to, arrived));
        }
    }

    /// The way of a snapshot: read, written, synced, checked, staged, installed.
    fn ship(&mut self, message: &Message) -> bool {
        let wanted = message.get_snapshot().get_metadata();
        let at = Position { index: wanted.index, term: wanted.term };
        let read = |member: &Member| {
            let path = snapshot::find(&member.fs, &dir().join("snapshots"), at.index).ok()?;
            read_all(&*member.fs.open(&path).ok()?).ok()
        };
        let Some(bytes) = read(&self.members[&message.from]) else { return false };
        let member = &self.members[&message.to];
        if member.live.is_none() {
            return false;
        }
        let staged = receive(&member.fs, &bytes, at);
        let Some(staged) = staged else { return false };
        let message = message.clone();
        self.with_failing(message.to, |node, output| node.install(staged, message, output))
            .is_some()
    }

    fn propose(&mut self, id: u64) {
        self.proposed += 1;
        let name = format!("agent-{}", self.proposed);
        self.propose_named(id, name);
    }

    fn propose_named(&mut self, id: u64, name: String) {
        let now = Timestamp::from_ms(self.clock_ms);
        let bytes = super::agent_named(&name).to_bytes();
        let (waiter, answer) = oneshot::channel();
        let sent = self.with(id, |node, output| node.propose(now, vec![(bytes, waiter)], output));
        if sent.is_some()
            && let Some(member) = self.members.get_mut(&id)
        {
            member.waiting.push((name, answer));
        }
        self.hear(id);
    }

    /// Now one joins, now one gets a vote or loses it.
    fn change(&mut self, id: u64) {
        let one = 1 + self.dice.below(4);
        let two = 1 + self.dice.below(4);
        let kinds = [
            ConfChangeType::AddLearnerNode,
            ConfChangeType::RemoveNode,
            ConfChangeType::AddNode,
            ConfChangeType::AddNode,
        ];
        let [first, second] = [one, two].map(|id| (id, kinds[self.dice.below(4) as usize]));
        let both = [first, second];
        self.propose_change(id, changes(if one == two { &both[..1] } else { &both }));
    }

    fn end_change(&mut self, id: u64) {
        let node = self.members[&id].live.as_ref().map(|(node, _)| node);
        if node.is_some_and(|node| node.membership().is_joint()) {
            self.propose_change(id, ConfChangeV2::default());
        }
    }

    /// The change, or where the last one is half done, the end of that.
    fn propose_change(&mut self, id: u64, change: ConfChangeV2) {
        let (ended, _) = oneshot::channel();
        self.with(id, |node, output| {
            let change =
                if node.membership().is_joint() { ConfChangeV2::default() } else { change };
            node.change_members(&change, ended, output);
        });
    }

    fn keep(&mut self, id: u64) {
        let clock_ms = self.clock_ms;
        let Some(member) = self.members.get_mut(&id) else { return };
        let Some((node, keeper)) = &mut member.live else { return };
        // It takes its time, and much may happen before it is done.
        match member.job.take() {
            Some(job) => node.kept(keeper.run(job)),
            None => member.job = node.due(clock_ms),
        }
    }

    fn power_cycle(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id) else { return };
        (member.live, member.job) = (None, None);
        member.waiting.clear();
        member.fs.power_cycle(&mut self.dice);
        self.seen.cuts += 1;
    }

    fn start(&mut self, id: u64) {
        let random = self.dice.roll();
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.live.is_some() {
            return;
        }
        if member.fs.is_off() {
            member.fs.power_cycle(&mut self.dice);
            self.seen.cuts += 1;
        }
        let joined = Joined {
            cluster_id: CLUSTER.to_owned(),
            replica_id: id,
            storage_id: format!("{id:032x}"),
        };
        let place = Place {
            vfs: Arc::new(member.fs.clone()),
            dir: dir(),
            segment_bytes: 2 << 10,
            frame_bytes: 512,
            background: false,
            cadence: Cadence { checkpoint_entries: 7, checkpoint_ms: 500, snapshot_bytes: 1500 },
            join: (id != 1).then_some(joined),
        };
        let mut seed = [7; 32];
        seed[24..].copy_from_slice(&random.to_le_bytes());
        match open(&place, Box::new(member.store.clone()), || Ok(seed)) {
            Ok(Opened { mut node, keeper, .. }) => {
                node.set_election_timeout(ELECTION_TICKS);
                member.live = Some((node, keeper));
                let before = member.group.take();
                self.with(id, |_, _| ());
                self.check_group(id, before);
            }
            // The power went while it started, or a sync failed.
            Err(_) if member.fs.is_off() || member.fs.failures() > member.failures => {
                member.failures = member.fs.failures();
            }
            Err(error) => panic!("seed {}: {id} does not start: {error:?}", self.seed),
        }
    }

    /// Entries may have to be applied again once the group says that they are committed, but
    /// not a change of the members: who is needed for that may have left by it.
    fn check_group(&self, id: u64, before: Option<(u64, Membership)>) {
        let now = self.members[&id].group.as_ref();
        let (Some((was_applied, was)), Some((applied, is))) = (before, now) else { return };
        let (seed, known) = (self.seed, *applied > was_applied || *is == was);
        assert!(known, "seed {seed}: {id} forgot {was:?} at {was_applied}; it knows {is:?}");
    }

    /// Lets a live member do something, and everything that follows from it.
    fn with<T>(&mut self, id: u64, run: impl FnOnce(&mut Node, &mut Output) -> T) -> Option<T> {
        self.with_failing(id, |node, output| Ok(run(node, output)))
    }

    fn with_failing<T>(
        &mut self,
        id: u64,
        run: impl FnOnce(&mut Node, &mut Output) -> Result<T, ReplicaError>,
    ) -> Option<T> {
        let member = self.members.get_mut(&id)?;
        let (node, _) = member.live.as_mut()?;
        let mut output = Output::default();
        let timeout = ELECTION_TICKS + self.dice.below(ELECTION_TICKS as u64) as usize;
        let result = run(node, &mut output);
        node.set_election_timeout(timeout);
        let result = result.and_then(|done| node.process(&mut output).map(|()| done));
        node.set_election_timeout(timeout);
        if let Err(error) = &result {
            let failed = member.fs.failures() > member.failures;
            let excused = matches!(error, ReplicaError::Wal(_)) && (failed || member.fs.is_off());
            assert!(excused, "seed {}: {id} stops: {error:?}", self.seed);
            self.seen.failures += usize::from(failed);
            member.failures = member.fs.failures();
            // Nobody hears of what it did in its last round.
            (member.live, member.job) = (None, None);
            member.waiting.clear();
            return None;
        }
        // What it survived excuses nothing later.
        member.failures = member.fs.failures();
        for (waiter, answer) in output.answers {
            let _ = waiter.send(answer);
        }
        self.network.extend(output.messages);
        let status = node.status();
        let mut group = status.membership;
        let votes = group.votes(id) || group.voters_outgoing.contains(&id);
        assert!(!status.standing.leads || votes, "seed {}: {id} leads {group:?}", self.seed);
        // In no order.
        group.voters.sort_unstable();
        group.voters_outgoing.sort_unstable();
        member.group = Some((status.applied, group));
        let chain = *self.chains.entry(status.applied).or_insert(node.state().chain());
        assert_eq!(chain, node.state().chain(), "seed {}: {id} differs", self.seed);
        if output.leads {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(leader, id, "seed {}: two lead in term {}", self.seed, status.term);
        }
        self.hear(id);
        result.ok()
    }

    fn hear(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.waiting.retain_mut(|(name, answer)| match answer.try_recv() {
            Ok(Ok(_)) => {
                self.acknowledged.insert(name.clone());
                false
            }
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => false,
            Err(oneshot::error::TryRecvError::Empty) => true,
        });
    }
}

/// A change that goes through a joint membership, which stays until another one ends it.
fn changes(all: &[(u64, ConfChangeType)]) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    change.set_transition(ConfChangeTransition::Explicit);
    for (id, kind) in all {
        let mut single = ConfChangeSingle::default();
        single.set_change_type(*kind);
        single.node_id = *id;
        change.mut_changes().push(single);
    }
    change
}

fn receive(fs: &SimFs, bytes: &[u8], at: Position) -> Option<Staged> {
    let snapshots = dir().join("snapshots");
    let incoming = snapshots.join(format!("0{}", snapshot::INCOMING));
    let mut file = fs.create(&incoming).ok()?;
    file.write_at(0, bytes).ok()?;
    file.sync_all().ok()?;
    let (header, state) = snapshot::stage(fs, &snapshots, &incoming, at).ok()?;
    Some(Staged { header, state })
}

fn dir() -> PathBuf {
    Path::new("/replica").to_owned()
}
