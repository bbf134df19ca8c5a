//! What befalls agents and their machines.

use steading_core::{Lease, Proposal};

use super::{HAND_BACK_WAIT, Held, NOTICE, Phase, RESERVE};
use crate::sim::calls::Purpose;
use crate::sim::net::Peer;
use crate::sim::queue::{MS, S, Us};
use crate::sim::shell::Say;
use crate::sim::tally::Seen;
use crate::sim::world::{AgentEvent, Event, Packet, World};

impl World {
    /// kill -9 of the agent: its supervisors notice, and kill.
    pub(crate) fn kill_agent(&mut self, agent: usize, down: Us) {
        if !self.agents[agent].up {
            return;
        }
        self.saw(Seen::AgentKilled);
        self.agent_is_gone(agent, true);
        let leases: Vec<Lease> = self.agents[agent].held.keys().copied().collect();
        leases.into_iter().for_each(|lease| self.kill(agent, lease));
        self.later(agent, down, AgentEvent::Start);
    }

    /// The machine is gone, with all that ran on it.
    pub(crate) fn lose_machine(&mut self, agent: usize, down: Us) {
        if !self.agents[agent].up {
            return;
        }
        self.saw(Seen::MachineLost);
        let told = self.dice.chance(1, 3);
        self.machine_goes(agent, told, down);
    }

    fn machine_goes(&mut self, agent: usize, told: bool, down: Us) {
        self.agent_is_gone(agent, told);
        for lease in std::mem::take(&mut self.agents[agent].held).into_keys() {
            self.rests(agent, lease);
        }
        self.later(agent, down, AgentEvent::Start);
    }

    pub(crate) fn agent_is_gone(&mut self, agent: usize, told: bool) {
        self.trace.tell(self.now, || format!("agent {agent} is gone"));
        let this = &mut self.agents[agent];
        this.life += 1;
        this.up = false;
        this.calls.clear();
        this.inbox.clear();
        this.paused_until = 0;
        this.conn = None;
        if told {
            self.break_conns(Peer::Agent(agent));
        }
    }

    /// SIGSTOP of the agent, or the whole machine stands still.
    pub(crate) fn pause_agent(&mut self, agent: usize, machine: bool, lasts: Us) {
        let now = self.now;
        let this = &mut self.agents[agent];
        if !this.up || this.is_paused(now) {
            return;
        }
        this.paused_until = now + lasts;
        this.machine_paused = machine;
        self.audit.tally.saw(if machine { Seen::MachinePaused } else { Seen::AgentPaused });
        let this = &mut self.agents[agent];
        let local = this.local(now);
        let mut stopped = Vec::new();
        if machine {
            for (lease, held) in &mut this.held {
                if let Phase::Running { ends } = held.phase {
                    held.phase = Phase::Frozen { left: ends.saturating_sub(now), since: local };
                    held.turn += 1;
                    stopped.push(*lease);
                }
            }
        }
        stopped.into_iter().for_each(|lease| self.rests(agent, lease));
        self.later(agent, lasts, AgentEvent::Wake);
    }

    pub(crate) fn wake_agent(&mut self, agent: usize) {
        let inbox = std::mem::take(&mut self.agents[agent].inbox);
        if std::mem::take(&mut self.agents[agent].machine_paused) {
            let frozen: Vec<(Lease, Us)> = self.agents[agent]
                .held
                .iter()
                .filter_map(|(lease, held)| match held.phase {
                    Phase::Frozen { left, .. } => Some((*lease, left)),
                    _ => None,
                })
                .collect();
            frozen.into_iter().for_each(|(lease, left)| self.go_on(agent, lease, left));
        }
        for event in inbox {
            match event {
                // These had arrived: no cut that came meanwhile holds them up.
                Event::Flow { conn, flow, .. } => self.arrived(conn, flow),
                Event::Arrive { to, packet: Packet::Told { call, told, hint }, .. } => {
                    self.told(to, call, told, hint);
                }
                event => self.happen(event),
            }
        }
    }

    /// The machine will be taken away. What was not started goes back at once, in one call;
    /// what runs may end by itself for a while.
    pub(crate) fn preempt(&mut self, agent: usize, down: Us) {
        let this = &mut self.agents[agent];
        if !this.up || this.draining || this.is_paused(self.now) {
            return;
        }
        this.draining = true;
        this.back_after = down;
        self.audit.tally.saw(Seen::Preempted);
        self.say(agent, Say::Drain);
        self.later(agent, NOTICE - RESERVE, AgentEvent::Stop);
        self.later(agent, NOTICE, AgentEvent::Taken);
        self.hand_back(agent);
        self.leave_if_empty(agent);
    }

    /// Asks for it also where there is nothing to give: the coordinator is to know that the
    /// agent leaves.
    fn hand_back(&mut self, agent: usize) {
        let this = &self.agents[agent];
        let Some((id, incarnation)) = this.identity else { return };
        let waits =
            |(lease, held): (&Lease, &Held)| (held.phase == Phase::Waiting).then_some(*lease);
        let leases: Vec<Lease> = this.held.iter().filter_map(waits).collect();
        leases.iter().for_each(|lease| self.over(agent, *lease));
        let proposal = Proposal::HandBack {
            agent: id,
            incarnation,
            leases: leases.clone(),
            window_ms: Some(NOTICE / MS),
            preempted: true,
        };
        let until = self.now + HAND_BACK_WAIT;
        self.ask(Peer::Agent(agent), Purpose::HandBack(leases), proposal, until);
    }

    /// Taken back, or nobody is there to take them: then they run out.
    pub(crate) fn handed_back(&mut self, agent: usize, leases: Vec<Lease>) {
        leases.into_iter().for_each(|lease| self.let_go(agent, lease));
        self.leave_if_empty(agent);
    }

    /// TERM to all that has not ended by itself: given back once its processes are gone.
    pub(crate) fn stop_jobs(&mut self, agent: usize) {
        let leases: Vec<Lease> = self.agents[agent].held.keys().copied().collect();
        for lease in leases {
            let takes = self.dice.below(3 * S);
            if let Some(held) = self.agents[agent].held.get_mut(&lease) {
                held.stop = true;
                self.end_soon(agent, lease, takes);
            }
        }
    }

    /// An agent that leaves ends once it holds nothing and is asking for nothing.
    pub(crate) fn leave_if_empty(&mut self, agent: usize) {
        let this = &self.agents[agent];
        let asks = this.calls.values().any(|call| matches!(call.purpose, Purpose::HandBack(_)));
        if this.up && this.draining && this.held.is_empty() && !asks {
            self.leave(agent);
        }
    }

    /// The agent ends, and its machine goes.
    pub(crate) fn leave(&mut self, agent: usize) {
        let down = self.agents[agent].back_after;
        self.machine_goes(agent, true, down);
    }
}
