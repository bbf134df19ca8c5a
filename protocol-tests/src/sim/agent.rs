//! Agents as they behave: accept, wait for the acknowledgement, start; renew; freeze at
//! the deadline, which counts from the sending; kill what is refused; register anew
//! only when nothing of an earlier start is left.

mod attempts;
mod faults;

use std::collections::BTreeMap;

use steading_coordinator::replica::sim_fs::Dice;
use steading_core::{Effect, Lease, NewAgent, Proposal, Rejection};
use steading_model::limits::{LEASE_AGENT_MS, RENEW_PERIOD_MS};
use steading_model::{AgentId, Incarnation, Provisioning, Resources};

use super::calls::{Answered, Call, Purpose};
use super::net::Peer;
use super::queue::{MS, S, Us};
use super::shell::{End, Hear, Say};
use super::tally::Seen;
use super::world::{AgentEvent, Event, Flow, World};

const LEASE: Us = LEASE_AGENT_MS * MS;

/// How long an agent tries to give a lease back.
const RELEASE_WAIT: Us = 5 * S;

/// How long it asks the coordinators to take back what it has not started.
const HAND_BACK_WAIT: Us = 10 * S;

/// How long a frozen job is kept; shorter than the product's, so that it happens.
const FROZEN_MAX: Us = 60 * S;

/// What an agent's supervisor may be late by: "within a second".
const FENCE_MAX: Us = 900 * MS;

/// Renewal times without an answer to the connection's pings after which it is given up.
const SILENT_MAX: u32 = 4;

/// From the notice until the machine is gone.
const NOTICE: Us = 15 * S;

/// Of that, what is kept for stopping what has not ended by itself.
const RESERVE: Us = 5 * S;

/// Where a lease stands at its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Accepted; starts once that is acknowledged and a slot is free.
    Waiting,
    Running {
        ends: Us,
    },
    Frozen {
        left: Us,
        since: Us,
    },
    /// Refused: its processes are being killed.
    Dying,
    /// Its processes are gone, and the coordinator is being told.
    Over,
}

/// One lease that an agent holds.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// On the agent's clock; 0: never acknowledged.
    deadline: Us,
    pub(crate) phase: Phase,
    cancel: bool,
    /// Its agent leaves: it ends, and is given back.
    stop: bool,
    /// Events of an earlier start or end are of an earlier turn.
    turn: u32,
}

/// An agent and its machine.
#[derive(Debug)]
pub(crate) struct Agent {
    number: usize,
    slots: u32,
    large: bool,
    rate_ppm: i64,
    pub(crate) up: bool,
    pub(crate) life: u32,
    pub(crate) paused_until: Us,
    /// The whole machine stands still, not only the agent.
    machine_paused: bool,
    pub(crate) inbox: Vec<Event>,
    identity: Option<(AgentId, Incarnation)>,
    conn: Option<u64>,
    pub(crate) target: usize,
    pub(crate) calls: BTreeMap<u64, Call>,
    pub(crate) held: BTreeMap<Lease, Held>,
    sequence: u64,
    unanswered: BTreeMap<u64, Us>,
    /// Renewal times in a row at which nobody was at the connection's other end.
    silent: u32,
    draining: bool,
    back_after: Us,
}

impl Agent {
    pub(crate) fn new(number: usize, dice: &mut Dice) -> Self {
        Self {
            number,
            slots: 1 + dice.below(3) as u32,
            large: number == 0 || dice.chance(1, 3),
            rate_ppm: dice.below(100_000) as i64 - 50_000,
            up: false,
            life: 0,
            paused_until: 0,
            machine_paused: false,
            inbox: Vec::new(),
            identity: None,
            conn: None,
            target: 0,
            calls: BTreeMap::new(),
            held: BTreeMap::new(),
            sequence: 0,
            unanswered: BTreeMap::new(),
            silent: 0,
            draining: false,
            back_after: S,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.held.is_empty() && self.up
    }

    pub(crate) const fn is_paused(&self, now: Us) -> bool {
        self.paused_until > now
    }

    pub(crate) fn summary(&self) -> String {
        format!("up {}, {:?}, conn {:?}, {:?}", self.up, self.identity, self.conn, self.held)
    }

    /// Its clock.
    const fn local(&self, now: Us) -> Us {
        (now as i64 + now as i64 * self.rate_ppm / 1_000_000) as u64
    }

    /// When its clock shows `local`, rounded up.
    const fn global(&self, local: Us) -> Us {
        (local as i64 * 1_000_000 / (1_000_000 + self.rate_ppm)) as u64 + 2
    }

    fn definition(&self, start: u64) -> NewAgent {
        NewAgent {
            name: format!("a{}", self.number),
            pool: "pool".into(),
            provisioning: Provisioning::OnDemand,
            labels: if self.large { vec!["large".into()] } else { Vec::new() },
            slots: self.slots + 1,
            resources: Resources { cpu_milli: 4_000, memory_mib: 4_000 },
            cache_endpoint: String::new(),
            properties: BTreeMap::new(),
            start,
        }
    }
}

impl World {
    pub(crate) fn agent(&mut self, agent: usize, life: u32, what: AgentEvent) {
        let this = &mut self.agents[agent];
        if this.life != life {
            return;
        }
        // The supervisor goes on while its agent is stopped, but not while the machine is.
        let supervisors = matches!(
            what,
            AgentEvent::Supervise(_)
                | AgentEvent::JobEnd { .. }
                | AgentEvent::Gone { .. }
                | AgentEvent::Taken
                | AgentEvent::Wake
        );
        if this.is_paused(self.now) && (this.machine_paused || !supervisors) {
            if !matches!(what, AgentEvent::Wake) {
                this.inbox.push(Event::Agent { agent, life, what });
            }
            return;
        }
        match what {
            AgentEvent::Start => self.start_agent(agent),
            AgentEvent::Wake => self.wake_agent(agent),
            AgentEvent::Connect => self.connect_agent(agent),
            AgentEvent::Renew { conn } => {
                if self.agents[agent].conn == Some(conn) {
                    let period = RENEW_PERIOD_MS * MS;
                    self.later(agent, period, AgentEvent::Renew { conn });
                    self.renew(agent);
                }
            }
            AgentEvent::Supervise(lease) => self.supervise(agent, lease),
            AgentEvent::JobEnd { lease, turn } => self.job_end(agent, lease, turn),
            AgentEvent::Gone { lease } => {
                self.rests(agent, lease);
                self.let_go(agent, lease);
            }
            AgentEvent::Stop => self.stop_jobs(agent),
            AgentEvent::Taken => self.leave(agent),
        }
    }

    fn later(&mut self, agent: usize, after: Us, what: AgentEvent) {
        let life = self.agents[agent].life;
        self.queue.push(self.now + after, Event::Agent { agent, life, what });
    }

    /// The process starts: what an earlier one left is killed first.
    fn start_agent(&mut self, agent: usize) {
        for lease in std::mem::take(&mut self.agents[agent].held).into_keys() {
            self.rests(agent, lease);
        }
        let this = &mut self.agents[agent];
        this.up = true;
        this.draining = false;
        this.identity = None;
        this.unanswered.clear();
        self.trace.tell(self.now, || format!("agent {agent} starts"));
        self.register(agent);
    }

    fn register(&mut self, agent: usize) {
        let start = self.dice.roll() | 1;
        let definition = self.agents[agent].definition(start);
        let proposal = Proposal::RegisterAgent { agent: definition };
        self.ask(Peer::Agent(agent), Purpose::Register, proposal, Us::MAX);
    }

    fn connect_agent(&mut self, agent: usize) {
        let this = &self.agents[agent];
        let (Some((id, incarnation)), None, true) = (this.identity, this.conn, this.up) else {
            return;
        };
        let target = this.target;
        let running: Vec<Lease> = this.held.keys().copied().collect();
        let Some(conn) = self.connect(agent, target) else {
            self.agents[agent].target = (target + 1) % self.hosts.len();
            return self.connect_later(agent);
        };
        let this = &mut self.agents[agent];
        this.conn = Some(conn);
        this.silent = 0;
        this.unanswered.clear();
        let hello = Say::Hello { agent: id, incarnation, running };
        self.flow(conn, false, Flow::Say(hello), 0);
        self.later(agent, RENEW_PERIOD_MS * MS, AgentEvent::Renew { conn });
        if self.agents[agent].draining {
            self.flow(conn, false, Flow::Say(Say::Drain), 0);
        }
    }

    fn connect_later(&mut self, agent: usize) {
        let pause = 50 * MS + self.dice.below(500 * MS);
        self.later(agent, pause, AgentEvent::Connect);
    }

    /// The connection is no more.
    pub(crate) fn disconnected(&mut self, agent: usize, conn: u64, end: End, hint: Option<usize>) {
        let this = &mut self.agents[agent];
        if this.conn != Some(conn) || !this.up {
            return;
        }
        this.conn = None;
        let replicas = self.hosts.len();
        match end {
            End::Stale => self.begin_anew(agent),
            End::Broken | End::NotLeader => {
                this.target = hint.unwrap_or((this.target + 1) % replicas);
                self.connect_later(agent);
            }
        }
    }

    /// Another process took its name's place. It kills everything, waits for that, and
    /// comes back.
    fn begin_anew(&mut self, agent: usize) {
        self.trace.tell(self.now, || format!("agent {agent} is stale"));
        let this = &mut self.agents[agent];
        this.life += 1;
        this.up = false;
        this.calls.clear();
        let leases: Vec<Lease> = this.held.keys().copied().collect();
        leases.into_iter().for_each(|lease| self.kill(agent, lease));
        self.later(agent, S, AgentEvent::Start);
    }

    fn say(&mut self, agent: usize, say: Say) {
        if let Some(conn) = self.agents[agent].conn {
            self.flow(conn, false, Flow::Say(say), 0);
        }
    }

    /// The next sequence number; the lease counts from now.
    fn count(&mut self, agent: usize) -> u64 {
        let now = self.now;
        let this = &mut self.agents[agent];
        this.sequence += 1;
        let local = this.local(now);
        this.unanswered.insert(this.sequence, local);
        this.sequence
    }

    fn renew(&mut self, agent: usize) {
        let this = &self.agents[agent];
        let local = this.local(self.now);
        let Some(conn) = this.conn else { return };
        // The connection's own pings.
        let answers = self.answers(conn);
        let this = &mut self.agents[agent];
        this.silent = if answers { 0 } else { this.silent + 1 };
        let silent = this.silent > SILENT_MAX;
        if silent || this.unanswered.values().next().is_some_and(|sent| local > sent + LEASE) {
            self.hang_up(conn);
            return self.disconnected(agent, conn, End::Broken, None);
        }
        let leases: Vec<Lease> = this.held.keys().copied().collect();
        if !leases.is_empty() {
            let sequence = self.count(agent);
            self.say(agent, Say::Renew { sequence, leases });
        }
    }

    /// The session said something.
    pub(crate) fn hear(&mut self, agent: usize, conn: u64, hear: Hear) {
        let this = &mut self.agents[agent];
        if this.is_paused(self.now) {
            this.inbox.push(Event::Flow { conn, down: true, flow: Flow::Hear(hear) });
            return;
        }
        if this.conn != Some(conn) || !this.up {
            return;
        }
        match hear {
            Hear::Welcome { leases, cancelling } => {
                let gone: Vec<Lease> =
                    this.held.keys().filter(|lease| !leases.contains(lease)).copied().collect();
                gone.into_iter().for_each(|lease| self.refuse(agent, lease));
                cancelling.into_iter().for_each(|lease| self.cancel(agent, lease));
                self.renew(agent);
            }
            Hear::Offer(lease) => self.offered(agent, lease),
            Hear::Renewed { sequence, leases, refused } => {
                if let Some(sent) = self.agents[agent].unanswered.remove(&sequence) {
                    self.audit.tally.saw_many(Seen::Renewed, leases.len() as u64);
                    leases.into_iter().for_each(|lease| self.extend(agent, lease, sent + LEASE));
                }
                refused.into_iter().for_each(|lease| self.refuse(agent, lease));
            }
            Hear::Revoke(lease) => self.refuse(agent, lease),
            Hear::Cancel(lease) => self.cancel(agent, lease),
        }
    }

    fn offered(&mut self, agent: usize, lease: Lease) {
        let declines = self.dice.chance(1, 25);
        let this = &mut self.agents[agent];
        if this.draining || (declines && !this.held.contains_key(&lease)) {
            return self.say(agent, Say::Decline(lease));
        }
        let phase = Phase::Waiting;
        let new = Held { deadline: 0, phase, cancel: false, stop: false, turn: 0 };
        this.held.entry(lease).or_insert(new);
        let sequence = self.count(agent);
        self.say(agent, Say::Accept { sequence, lease });
    }

    fn extend(&mut self, agent: usize, lease: Lease, deadline: Us) {
        let now = self.now;
        let this = &mut self.agents[agent];
        let local = this.local(now);
        let Some(held) = this.held.get_mut(&lease) else { return };
        if deadline <= held.deadline {
            return;
        }
        held.deadline = deadline;
        match held.phase {
            Phase::Frozen { left, .. } if deadline > local => {
                self.saw(Seen::Thawed);
                self.go_on(agent, lease, left);
            }
            Phase::Running { .. } => self.supervise_later(agent, lease),
            _ => self.start_jobs(agent),
        }
    }

    pub(crate) fn agent_answered(&mut self, agent: usize, call: Call, answer: Answered) {
        if !self.agents[agent].up {
            return;
        }
        match (call.purpose, answer) {
            (Purpose::Register, Ok(effects)) => {
                let registered = effects.iter().find_map(|effect| match effect {
                    Effect::Registered { agent, incarnation } => Some((*agent, *incarnation)),
                    _ => None,
                });
                self.agents[agent].identity = registered;
                self.connect_agent(agent);
            }
            // What an earlier process had said came late, and after what this one said first.
            (Purpose::Register, Err(Rejection::IncarnationStale)) => self.begin_anew(agent),
            (Purpose::Register, Err(rejection)) => {
                self.ensure(Err(format!("agent {agent} may not register: {rejection}")));
            }
            (Purpose::Complete { lease, success }, answer) => {
                if success && answer.is_ok() {
                    self.audit.reported(lease);
                }
                self.let_go(agent, lease);
            }
            (Purpose::Release(lease), _) => self.let_go(agent, lease),
            (Purpose::HandBack(leases), _) => self.handed_back(agent, leases),
            _ => (),
        }
    }
}
