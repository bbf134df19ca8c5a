//! The world: its clock, who is in it, and what happens next.

mod conns;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use steading_coordinator::replica::sim_fs::Dice;
use steading_coordinator::replica::sim_member::{Letter, Member};
use steading_core::{Lease, Proposal};
use steading_model::JobId;

use super::agent::Agent;
use super::audit::Audit;
use super::client::Client;
use super::host::{Host, Input};
use super::net::{Net, Peer};
use super::plan::{Options, Plan};
use super::queue::{MS, Queue, S, Us};
use super::shell::{End, Hear, Say, Told};
use super::tally::Seen;
use super::trace::Trace;
use super::{Report, Violation};

/// Faults are planned for so long at most.
const HORIZON: Us = 600 * S;

/// How often everything is checked, steps.
const CHECK_PERIOD: u64 = 1_000;

/// Once faults have stopped, everything ends within this time, …
const CALM_MAX: Us = 600 * S;

/// … and within so many steps.
const CALM_STEPS_MAX: u64 = 400_000;

/// Something that will happen.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "events lie in slots, and small things are moved")]
pub(crate) enum Event {
    Tick {
        replica: usize,
        life: u32,
    },
    Wake {
        replica: usize,
        life: u32,
    },
    Restart {
        replica: usize,
        life: u32,
    },
    /// A snapshot arrived, as its sender can tell.
    SnapshotSent {
        replica: usize,
        life: u32,
        to: u64,
    },
    Arrive {
        from: Peer,
        to: Peer,
        packet: Packet,
    },
    Flow {
        conn: u64,
        down: bool,
        flow: Flow,
    },
    Fault(usize),
    Heal(Heal),
    Client {
        client: usize,
    },
    CallTimeout {
        who: Peer,
        call: u64,
    },
    CallAgain {
        who: Peer,
        call: u64,
    },
    Agent {
        agent: usize,
        life: u32,
        what: AgentEvent,
    },
}

/// Of an agent's own.
#[derive(Debug)]
pub(crate) enum AgentEvent {
    Start,
    Wake,
    Connect,
    Renew {
        conn: u64,
    },
    /// The supervisor looks at a lease's deadline.
    Supervise(Lease),
    /// A job's processes have ended.
    JobEnd {
        lease: Lease,
        turn: u32,
    },
    /// A job's processes were killed.
    Gone {
        lease: Lease,
    },
    /// It will be taken away soon: what runs is stopped.
    Stop,
    /// The machine is taken away.
    Taken,
}

/// What ends a fault.
#[derive(Debug)]
pub(crate) enum Heal {
    Cuts(Vec<(Peer, Peer)>),
    Weather,
    Disk(usize),
    Room(Vec<usize>),
    /// `life`: of the process when it was planned.
    PowerOff {
        replica: usize,
        life: u32,
        down: Us,
    },
}

/// A message on its own.
#[derive(Debug)]
pub(crate) enum Packet {
    Letter(Letter),
    Ask { call: u64, proposal: Proposal },
    Told { call: u64, told: Told, hint: Option<usize> },
}

/// A message on a connection.
#[derive(Debug)]
pub(crate) enum Flow {
    Say(Say),
    Hear(Hear),
    /// The other side is done with it, and says why.
    End(End, Option<usize>),
}

/// A session's connection: in order, or broken.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) agent: usize,
    pub(crate) replica: usize,
    replica_life: u32,
    /// When the last packet of each direction arrives.
    arrives: [Us; 2],
    /// What waits for a cut to heal.
    held: [VecDeque<Flow>; 2],
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) plan: Plan,
    pub(crate) now: Us,
    pub(crate) queue: Queue<Event>,
    pub(crate) dice: Dice,
    pub(crate) net: Net,
    pub(crate) hosts: Vec<Host>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) clients: Vec<Client>,
    pub(crate) conns: BTreeMap<u64, Conn>,
    /// Members that are to leave the group, or have left it.
    pub(crate) dead: BTreeSet<u64>,
    /// The last number of a connection, call or directory.
    pub(crate) number: u64,
    pub(crate) audit: Audit,
    pub(crate) trace: Trace,
    /// Which agents run a job now: processes that are there and not frozen.
    running: BTreeMap<JobId, BTreeSet<(usize, Lease)>>,
    /// Faults happen, and work comes in.
    pub(crate) stormy: bool,
    pub(crate) happened: Vec<usize>,
    broken: Option<String>,
    steps: u64,
}

impl World {
    pub(crate) fn new(options: Options) -> Self {
        let plan = Plan::of(&options, HORIZON);
        let mut dice = Dice::new(options.seed);
        let replicas = plan.replicas;
        let hosts = (0..plan.replicas)
            .map(|number| {
                let rate_ppm = dice.below(100_000) as i64 - 50_000;
                let offset_ms = dice.below(2_000) as i64 - 1_000;
                Host::new(number as u64 + 1, plan.disk_us, rate_ppm, offset_ms)
            })
            .collect();
        let agents = (0..plan.agents).map(|number| Agent::new(number, &mut dice)).collect();
        let clients = (0..plan.clients).map(|_| Client::default()).collect();
        Self {
            net: Net::new(plan.weather),
            trace: Trace::new(options.tell),
            options,
            plan,
            now: 0,
            queue: Queue::new(),
            dice,
            hosts,
            agents,
            clients,
            conns: BTreeMap::new(),
            dead: BTreeSet::new(),
            number: 0,
            audit: Audit::new(Member::genesis(&(1..=replicas as u64).collect::<Vec<_>>())),
            running: BTreeMap::new(),
            stormy: true,
            happened: Vec::new(),
            broken: None,
            steps: 0,
        }
    }

    pub(crate) fn play(mut self) -> Result<Report, Box<Violation>> {
        self.begin();
        while self.broken.is_none() && self.stormy {
            self.step();
            if self.steps >= self.options.steps || self.now > HORIZON {
                self.calm();
            }
        }
        let (from, steps) = (self.now, self.steps);
        while self.broken.is_none() && !self.is_quiet() {
            self.step();
            let over = self.now > from + CALM_MAX || self.steps > steps + CALM_STEPS_MAX;
            if over && self.broken.is_none() {
                self.broken = Some(self.unfinished());
            }
        }
        if self.broken.is_none() {
            let ended = self.check_end();
            self.ensure(ended);
        }
        self.verdict()
    }

    fn verdict(self) -> Result<Report, Box<Violation>> {
        let hash = self.trace.hash();
        let Some(what) = self.broken else {
            let (steps, virtual_ms) = (self.steps, self.now / MS);
            let mut tally = self.audit.tally;
            for host in &self.hosts {
                tally.saw_losses(&host.fs.losses());
            }
            return Ok(Report { hash, steps, virtual_ms, tally });
        };
        let fault = |place: &usize| {
            let (at, fault) = &self.plan.faults[*place];
            (*place, format!("{:>9} ms {fault:?}", at / MS))
        };
        Err(Box::new(Violation {
            seed: self.options.seed,
            what,
            steps: self.steps,
            hash,
            faults: self.happened.iter().map(fault).collect(),
            story: self.trace.lines(),
        }))
    }

    fn begin(&mut self) {
        let voters: Vec<u64> = self.hosts.iter().map(|host| host.id).collect();
        for replica in 0..self.hosts.len() {
            let host = &self.hosts[replica];
            let founded = Member::found(&host.layout(self.plan.cadence), host.id, &voters);
            self.ensure(founded.map_err(|error| format!("no group can be founded: {error:?}")));
            self.restart(replica);
        }
        for agent in 0..self.agents.len() {
            let at = self.dice.below(2 * S);
            self.queue.push(at, Event::Agent { agent, life: 0, what: AgentEvent::Start });
        }
        for client in 0..self.clients.len() {
            let at = S + self.dice.below(2 * S);
            self.queue.push(at, Event::Client { client });
        }
        for place in 0..self.plan.faults.len() {
            if !self.options.without.contains(&place) {
                self.queue.push(self.plan.faults[place].0, Event::Fault(place));
            }
        }
    }

    fn step(&mut self) {
        let Some((at, event)) = self.queue.pop() else {
            return self.ensure(Err("nothing will ever happen again".into()));
        };
        self.now = at;
        self.steps += 1;
        self.trace.note(at);
        // Raft says by a panic that its promises are broken.
        let happened = catch_unwind(AssertUnwindSafe(|| self.happen(event)));
        if let Err(panic) = happened {
            let text = panic.downcast_ref::<String>().cloned();
            self.ensure(Err(format!("panicked: {}", text.unwrap_or_default())));
        }
        if self.steps.is_multiple_of(CHECK_PERIOD) {
            let checked = self.check();
            self.ensure(checked);
        }
    }

    pub(crate) fn happen(&mut self, event: Event) {
        match event {
            Event::Tick { replica, life } => {
                if self.hosts[replica].life == life {
                    let rate = self.hosts[replica].rate_ppm;
                    let tick = (self.plan.tick_us as i64 * 1_000_000 / (1_000_000 + rate)) as u64;
                    self.queue.push(self.now + tick, Event::Tick { replica, life });
                    self.input(replica, Input::Tick);
                    if !self.dead.is_empty() {
                        self.look_after_machines();
                    }
                }
            }
            Event::Wake { replica, life } if self.hosts[replica].life == life => self.wake(replica),
            Event::Restart { replica, life } if self.hosts[replica].life == life => {
                self.restart(replica);
            }
            Event::SnapshotSent { replica, life, to } if self.hosts[replica].life == life => {
                let there = self.hosts.iter().position(|host| host.id == to);
                let arrived = there.is_some_and(|there| {
                    !self.net.is_cut(Peer::Replica(replica), Peer::Replica(there))
                });
                self.input(replica, Input::SnapshotSent { to, arrived });
            }
            Event::Wake { .. } | Event::Restart { .. } | Event::SnapshotSent { .. } => (),
            Event::Arrive { from, to, packet } => self.arrive(from, to, packet),
            Event::Flow { conn, down, flow } => self.flowed(conn, down, flow),
            Event::Fault(place) => self.fault(place),
            Event::Heal(heal) => self.heal(heal),
            Event::Client { client } => self.client(client),
            Event::CallTimeout { who, call } => self.call_timeout(who, call),
            Event::CallAgain { who, call } => self.call_again(who, call),
            Event::Agent { agent, life, what } => self.agent(agent, life, what),
        }
    }

    /// Sends a packet, which may get lost, doubled and overtaken.
    pub(crate) fn send(&mut self, from: Peer, to: Peer, packet: Packet, delay: Us) {
        let weather = self.net.weather;
        if self.net.is_cut(from, to) {
            return self.saw(Seen::Cut);
        }
        if self.dice.chance(weather.lost, 10_000) {
            return self.saw(Seen::Lost);
        }
        let takes = weather.delay(&mut self.dice);
        if takes > weather.usual_us + 50 {
            self.saw(Seen::Overtaken);
        }
        let at = self.now + delay + takes;
        if let Packet::Letter(letter) = &packet
            && self.dice.chance(weather.doubled, 10_000)
        {
            self.saw(Seen::Doubled);
            let again = at + weather.delay(&mut self.dice);
            let packet = Packet::Letter(letter.clone());
            self.queue.push(again, Event::Arrive { from, to, packet });
        }
        self.queue.push(at, Event::Arrive { from, to, packet });
    }

    fn arrive(&mut self, from: Peer, to: Peer, packet: Packet) {
        if self.net.is_cut(from, to) {
            return self.saw(Seen::Cut);
        }
        match (to, packet) {
            (Peer::Replica(replica), Packet::Letter(letter)) => {
                self.trace.tell(self.now, || format!("{from:?} to {to:?}: {}", letter.kind()));
                self.input(replica, Input::Letter(letter));
            }
            (Peer::Replica(replica), Packet::Ask { call, proposal }) => {
                self.trace.tell(self.now, || format!("{from:?} asks {to:?} {call}: {proposal:?}"));
                self.input(replica, Input::Ask { from, call, proposal });
            }
            (_, Packet::Told { call, told, hint }) => {
                self.trace.tell(self.now, || format!("{from:?} tells {to:?} {call}: {told:?}"));
                self.told(to, call, told, hint);
            }
            _ => (),
        }
    }

    /// A job's processes go, on this agent.
    pub(crate) fn runs(&mut self, agent: usize, lease: Lease) {
        let running = self.running.entry(lease.work.job).or_default();
        running.insert((agent, lease));
        if running.len() > 1 {
            let what = format!("{} runs twice at once: {running:?}", lease.work.job);
            self.ensure(Err(what));
        }
    }

    /// They are frozen, or gone.
    pub(crate) fn rests(&mut self, agent: usize, lease: Lease) {
        if let Some(running) = self.running.get_mut(&lease.work.job) {
            running.remove(&(agent, lease));
            if running.is_empty() {
                self.running.remove(&lease.work.job);
            }
        }
    }

    pub(crate) fn ensure(&mut self, outcome: Result<(), String>) {
        if let Err(what) = outcome
            && self.broken.is_none()
        {
            self.trace.tell(self.now, || format!("VIOLATION: {what}"));
            self.broken = Some(what);
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.audit.check(&self.audit.state, self.audit.last)?;
        let replica = self.dice.below(self.hosts.len() as u64) as usize;
        match &self.hosts[replica].member {
            Some(member) => self.audit.check(member.state(), member.applied()),
            None => Ok(()),
        }
    }

    /// Faults stop, work stops coming in, whoever is down comes back.
    fn calm(&mut self) {
        self.stormy = false;
        self.net.calm();
        self.trace.tell(self.now, || "faults stop".to_owned());
        self.release_held();
        self.calm_faults();
    }

    /// Whether everything has come to its end.
    fn is_quiet(&self) -> bool {
        let applied = |host: &Host| {
            let there = |member: &Member| {
                member.applied() >= self.audit.last && !member.membership().is_joint()
            };
            host.is_gone || (!host.leaves && host.member.as_ref().is_some_and(there))
        };
        self.audit.state.open_runs().next().is_none()
            && self.audit.state.leased().next().is_none()
            && self.clients.iter().all(Client::is_idle)
            && self.agents.iter().all(Agent::is_idle)
            && self.hosts.iter().all(applied)
    }

    fn unfinished(&self) -> String {
        let state = &self.audit.state;
        let runs: Vec<String> = state.open_runs().take(3).map(|run| format!("{run:?}")).collect();
        let leased: Vec<String> = state.leased().take(3).map(|job| format!("{job:?}")).collect();
        let held: Vec<_> = self.agents.iter().map(Agent::summary).collect();
        let hosts: Vec<_> =
            self.hosts.iter().map(|host| host.member.as_ref().map(Member::applied)).collect();
        format!(
            "faults have stopped, and not everything ends. open: {runs:#?}; leased: {leased:?}; queued: {}; \
             agents: {held:#?}; applied: {hosts:?} of {}; clients idle: {:?}",
            state.queue_len(),
            self.audit.last,
            self.clients.iter().map(Client::is_idle).collect::<Vec<_>>(),
        )
    }

    fn check_end(&self) -> Result<(), String> {
        if !self.running.is_empty() {
            return Err(format!("no lease is held, and yet something runs: {:?}", self.running));
        }
        let left = self.audit.state.outstanding();
        if !left.is_empty() {
            return Err(format!("nothing is to be done any more, but {left:?}"));
        }
        self.audit.check(&self.audit.state, self.audit.last)?;
        let mut rows = None;
        for member in self.hosts.iter().filter_map(|host| host.member.as_ref()) {
            self.audit.check(member.state(), member.applied())?;
            let these: Vec<_> = member.state().rows().collect();
            if rows.get_or_insert_with(|| these.clone()) != &these {
                return Err("equal entries made different states".into());
            }
        }
        Ok(())
    }
}
