//! The world that a seed stands for: its size, its weather, and its faults in advance,
//! so that a schedule can be printed, and cut down, apart from everything else.

use steading_coordinator::replica::Cadence;
use steading_coordinator::replica::sim_fs::Dice;

use super::net::{Peer, Weather};
use super::queue::{MS, S, Us};

/// How a world is run.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Events after which faults and new work stop.
    pub steps: u64,
    /// Faults of the seed's schedule that are left out, by their place in it.
    pub without: Vec<usize>,
    /// Keep the last lines of the story.
    pub tell: bool,
    /// How many replicas; the seed decides where this is `None`.
    pub replicas: Option<usize>,
    /// Nothing else goes wrong.
    pub focus: Option<Focus>,
}

/// What a world is about, so that what is rare among all other faults happens in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Focus {
    /// Leaders that stand still for a while, and agents that can reach nobody else.
    PausedLeaders,
    /// Agents that are cut off, or stopped, and come back late.
    LateAgents,
}

impl Options {
    /// The seed's own world.
    pub const fn new(seed: u64, steps: u64) -> Self {
        Self { seed, steps, without: Vec::new(), tell: false, replicas: None, focus: None }
    }
}

/// What a seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) replicas: usize,
    pub(crate) agents: usize,
    pub(crate) clients: usize,
    pub(crate) tick_us: Us,
    pub(crate) weather: Weather,
    pub(crate) cadence: Cadence,
    /// What an fdatasync takes.
    pub(crate) disk_us: Us,
    /// Longest job, and the least that each takes.
    pub(crate) job_us_max: Us,
    pub(crate) job_us_min: Us,
    /// Open runs beyond which nobody submits more: the state must stay small.
    pub(crate) open_runs_max: usize,
    pub(crate) faults: Vec<(Us, Fault)>,
}

/// Something that goes wrong. Durations are in microseconds. `replica` is no place of a
/// machine but stands for one of those that are there when it happens: see [`Fault::at`].
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// kill -9: the page cache stays.
    Kill {
        replica: usize,
        down: Us,
    },
    /// The power goes, in the middle of the write or sync after `operations` more.
    PowerCut {
        replica: usize,
        operations: u64,
        down: Us,
    },
    KillAll {
        power: bool,
        down: Us,
    },
    /// SIGSTOP: time goes on, the process does not.
    Pause {
        replica: usize,
        lasts: Us,
    },
    PauseLeader {
        lasts: Us,
    },
    KillLeader {
        down: Us,
    },
    /// The leader hands over.
    Transfer {
        to: usize,
    },
    /// Nothing passes between the two, one way or both ways.
    Cut {
        a: Peer,
        b: Peer,
        both: bool,
        lasts: Us,
    },
    /// The leader stands still, and the agent can reach no other replica, also for a while
    /// after it goes on: what it answers late is all that the agent hears.
    Strand {
        agent: usize,
        lasts: Us,
    },
    /// Nothing passes between the agent and any replica.
    AgentAlone {
        agent: usize,
        lasts: Us,
    },
    /// Nothing passes between the replica and the other replicas.
    Isolate {
        replica: usize,
        lasts: Us,
    },
    /// The leader is cut off from the other replicas, not from agents and clients.
    IsolateLeader {
        lasts: Us,
    },
    Storm {
        weather: Weather,
        lasts: Us,
    },
    ClockJump {
        replica: usize,
        ms: i64,
    },
    SlowDisk {
        replica: usize,
        sync_us: Us,
        lasts: Us,
    },
    /// A write, or a sync, fails once.
    FailDisk {
        replica: usize,
        write: bool,
        after: u64,
    },
    FullDisk {
        replica: usize,
        room: u64,
        lasts: Us,
    },
    /// There is little room left, on its disk or on all, and who has little had better not
    /// lead. For ever, where it lasts for none.
    LowDisk {
        replica: usize,
        all: bool,
        lasts: Option<Us>,
    },
    /// The replica is killed, and its image is empty when it comes back.
    LoseImage {
        replica: usize,
    },
    /// The disk is gone.
    Wipe {
        replica: usize,
        down: Us,
    },
    /// A bit rots in what was synced.
    FlipBit {
        replica: usize,
        snapshot: bool,
    },
    /// The member is taken out, and comes back as another.
    Remove {
        replica: usize,
    },
    /// Another machine takes its place.
    Replace {
        replica: usize,
    },
    /// Another machine joins.
    Grow,
    AgentKill {
        agent: usize,
        down: Us,
    },
    /// Agent and jobs are gone at once, without a word.
    MachineLost {
        agent: usize,
        down: Us,
    },
    AgentPause {
        agent: usize,
        machine: bool,
        lasts: Us,
    },
    Preempt {
        agent: usize,
        down: Us,
    },
}

/// Replicas of faults are counted up to here: divisible by every count of machines that a
/// group may have, so that each of them is hit as often as any other.
const PICKS: u64 = 60;

/// Kinds of faults; each seed has some of them only, so that each also meets the others alone.
const KINDS: u64 = 29;

/// Of [`Fault::Strand`].
const STRANDED: u64 = 22;

/// Of [`Fault::AgentPause`] and [`Fault::AgentAlone`].
const LATE_AGENTS: [u64; 2] = [19, 20];

impl Fault {
    /// The fault with the places of those that it befalls. `there`: of the machines that are
    /// not gone, in order. `None` where it needs a machine that is not there.
    pub(crate) fn at(mut self, there: &[usize]) -> Option<Self> {
        let place = |pick: usize| there.get(pick % there.len().max(1)).copied();
        match &mut self {
            Self::Cut { a: Peer::Replica(a), b: Peer::Replica(b), .. } => {
                *a = place(*a)?;
                let others: Vec<usize> = there.iter().copied().filter(|it| it != a).collect();
                *b = *others.get(*b % others.len().max(1))?;
            }
            Self::Cut { a: Peer::Replica(replica), .. }
            | Self::Cut { b: Peer::Replica(replica), .. }
            | Self::Kill { replica, .. }
            | Self::PowerCut { replica, .. }
            | Self::Pause { replica, .. }
            | Self::Transfer { to: replica }
            | Self::Isolate { replica, .. }
            | Self::ClockJump { replica, .. }
            | Self::SlowDisk { replica, .. }
            | Self::FailDisk { replica, .. }
            | Self::FullDisk { replica, .. }
            | Self::LowDisk { replica, .. }
            | Self::LoseImage { replica }
            | Self::Wipe { replica, .. }
            | Self::FlipBit { replica, .. }
            | Self::Remove { replica }
            | Self::Replace { replica } => *replica = place(*replica)?,
            Self::Cut { .. }
            | Self::KillAll { .. }
            | Self::PauseLeader { .. }
            | Self::KillLeader { .. }
            | Self::Strand { .. }
            | Self::AgentAlone { .. }
            | Self::IsolateLeader { .. }
            | Self::Storm { .. }
            | Self::Grow
            | Self::AgentKill { .. }
            | Self::MachineLost { .. }
            | Self::AgentPause { .. }
            | Self::Preempt { .. } => (),
        }
        Some(self)
    }
}

impl Plan {
    pub(crate) fn of(options: &Options, horizon: Us) -> Self {
        let mut dice = Dice::new(options.seed.wrapping_mul(2) ^ 0x5eed);
        let replicas = options.replicas.unwrap_or([3, 3, 3, 3, 5, 1][dice.below(6) as usize]);
        let agents = 2 + dice.below(4) as usize;
        let clients = 1 + dice.below(3) as usize;
        let tick_us = [25, 50, 100, 100][dice.below(4) as usize] * MS;
        let weather = Weather {
            lost: [0, 0, 50, 300][dice.below(4) as usize],
            doubled: [0, 50, 200][dice.below(3) as usize],
            slow: [0, 20, 200][dice.below(3) as usize],
            slow_us: [20 * MS, 500 * MS, 4 * S][dice.below(3) as usize],
            usual_us: [MS, 5 * MS, 30 * MS][dice.below(3) as usize],
        };
        let cadence = match dice.below(3) {
            0 => Cadence { checkpoint_entries: 5, checkpoint_ms: 2_000, snapshot_bytes: 3 << 10 },
            1 => Cadence { checkpoint_entries: 40, checkpoint_ms: 9_000, snapshot_bytes: 20 << 10 },
            _ => {
                Cadence { checkpoint_entries: 900, checkpoint_ms: 60_000, snapshot_bytes: 1 << 20 }
            }
        };
        let disk_us = [100, 300, 2 * MS][dice.below(3) as usize];
        let job_us_max = [2 * S, 10 * S, 40 * S][dice.below(3) as usize];
        let job_us_max = if options.focus.is_some() { 40 * S } else { job_us_max };
        let mut plan = Self {
            replicas,
            agents,
            clients,
            tick_us,
            weather,
            cadence,
            disk_us,
            job_us_max,
            job_us_min: if options.focus.is_some() { 10 * S } else { 10 * MS },
            open_runs_max: if options.focus.is_some() { 2 } else { 6 },
            faults: Vec::new(),
        };
        plan.schedule(&mut dice, horizon, options.focus);
        plan
    }

    fn schedule(&mut self, dice: &mut Dice, horizon: Us, focus: Option<Focus>) {
        let kinds: Vec<u64> = match focus {
            Some(Focus::PausedLeaders) => vec![STRANDED],
            Some(Focus::LateAgents) => LATE_AGENTS.to_vec(),
            None => (0..KINDS).filter(|_| dice.chance(1, 2)).collect(),
        };
        let gap =
            if focus.is_some() { 15 * S } else { [2 * S, 5 * S, 15 * S][dice.below(3) as usize] };
        let mut at = S + dice.below(gap);
        while at < horizon && !kinds.is_empty() {
            let kind = kinds[dice.below(kinds.len() as u64) as usize];
            let fault = self.fault(kind, dice);
            self.faults.push((at, fault));
            at += dice.below(2 * gap) + 1;
        }
    }

    fn fault(&self, kind: u64, dice: &mut Dice) -> Fault {
        let replica = dice.below(PICKS) as usize;
        let agent = dice.below(self.agents as u64) as usize;
        let short = 100 * MS + dice.below(3 * S);
        let lasts = short + if dice.chance(2, 3) { 0 } else { dice.below(20 * S) };
        match kind {
            0 => Fault::Kill { replica, down: lasts },
            1 | 2 => Fault::PowerCut { replica, operations: dice.below(30), down: lasts },
            3 => Fault::KillAll { power: dice.chance(1, 2), down: lasts },
            4 => Fault::Pause { replica, lasts },
            5 | 6 => Fault::PauseLeader { lasts: 2 * S + dice.below(11 * S) },
            7 => Fault::KillLeader { down: lasts },
            8 => Fault::Transfer { to: replica },
            9 => {
                let other = dice.below(PICKS) as usize;
                let (a, b) = (Peer::Replica(replica), Peer::Replica(other));
                Fault::Cut { a, b, both: dice.chance(1, 2), lasts }
            }
            10 => {
                let lasts = S + dice.below(40 * S);
                let (a, b) = (Peer::Agent(agent), Peer::Replica(replica));
                let (a, b) = if dice.chance(1, 2) { (a, b) } else { (b, a) };
                Fault::Cut { a, b, both: dice.chance(1, 2), lasts }
            }
            11 => Fault::Isolate { replica, lasts },
            12 => Fault::IsolateLeader { lasts },
            13 => {
                let weather = Weather {
                    lost: dice.below(3_000),
                    doubled: dice.below(2_000),
                    slow: dice.below(5_000),
                    slow_us: [500 * MS, 3 * S, 20 * S][dice.below(3) as usize],
                    usual_us: 20 * MS,
                };
                Fault::Storm { weather, lasts: lasts / 2 }
            }
            14 => {
                let ms = dice.below(60_000) as i64 - 30_000;
                Fault::ClockJump { replica, ms }
            }
            15 => Fault::SlowDisk { replica, sync_us: 5 * MS + dice.below(400 * MS), lasts },
            16 => match dice.below(3) {
                0 => Fault::FullDisk { replica, room: dice.below(20_000), lasts },
                1 => Fault::LoseImage { replica },
                _ => Fault::FailDisk { replica, write: dice.chance(1, 2), after: dice.below(20) },
            },
            17 => Fault::AgentKill { agent, down: lasts },
            18 => Fault::MachineLost { agent, down: lasts },
            19 => {
                Fault::AgentPause { agent, machine: dice.chance(1, 2), lasts: dice.below(50 * S) }
            }
            STRANDED => Fault::Strand { agent, lasts: 7 * S + dice.below(5 * S) },
            20 | 21 => Fault::AgentAlone { agent, lasts: 5 * S + dice.below(40 * S) },
            23 => Fault::Wipe { replica, down: lasts },
            24 => Fault::FlipBit { replica, snapshot: dice.chance(1, 3) },
            25 => match dice.below(2) {
                0 => Fault::Remove { replica },
                _ => Fault::Replace { replica },
            },
            26 => Fault::Grow,
            27 => Fault::LowDisk {
                replica,
                all: dice.chance(1, 3),
                lasts: Some(lasts).filter(|_| dice.chance(3, 4)),
            },
            _ => Fault::Preempt { agent, down: lasts },
        }
    }
}
