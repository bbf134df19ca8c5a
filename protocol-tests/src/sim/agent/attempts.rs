//! Jobs at an agent: started, frozen, thawed, ended, given back, killed.

use steading_core::{Lease, Outcome, Proposal, Resolution};
use steading_model::{Conclusion, Digest, FailureClass, StepCounts};

use super::{FENCE_MAX, FROZEN_MAX, Held, Phase, RELEASE_WAIT};
use crate::sim::calls::Purpose;
use crate::sim::dag;
use crate::sim::net::Peer;
use crate::sim::queue::{MS, S, Us};
use crate::sim::tally::Seen;
use crate::sim::world::{AgentEvent, Event, World};

impl World {
    /// Starts what is acknowledged, as long as there are slots.
    pub(crate) fn start_jobs(&mut self, agent: usize) {
        loop {
            let this = &self.agents[agent];
            let takes_slot = |held: &&Held| {
                matches!(held.phase, Phase::Running { .. } | Phase::Frozen { .. } | Phase::Dying)
            };
            let busy = this.held.values().filter(takes_slot).count();
            let next = this
                .held
                .iter()
                .find(|(_, held)| held.phase == Phase::Waiting && held.deadline > 0);
            let (Some((&lease, held)), true) = (next, this.up && busy < this.slots as usize) else {
                return;
            };
            if held.cancel || held.stop {
                self.give_back(agent, lease, FailureClass::Preempted, false);
                continue;
            }
            let takes = match self.stormy {
                true => self.plan.job_us_min + self.dice.below(self.plan.job_us_max),
                false => 10 * MS + self.dice.below(S),
            };
            if self.dice.chance(1, 4) {
                self.claim(agent, lease);
            }
            self.go_on(agent, lease, takes);
        }
    }

    /// The job's processes start, or thaw, if the deadline allows; `left` to do.
    pub(crate) fn go_on(&mut self, agent: usize, lease: Lease, left: Us) {
        let now = self.now;
        let this = &mut self.agents[agent];
        let local = this.local(now);
        let machine_paused = this.machine_paused && this.is_paused(now);
        let Some(held) = this.held.get_mut(&lease) else { return };
        if held.deadline <= local || machine_paused {
            held.phase = Phase::Frozen { left, since: local };
            return self.later(agent, FROZEN_MAX, AgentEvent::Supervise(lease));
        }
        held.turn += 1;
        let turn = held.turn;
        held.phase = Phase::Running { ends: now + left };
        self.trace.tell(now, || format!("agent {agent} runs {lease:?}"));
        self.later(agent, left, AgentEvent::JobEnd { lease, turn });
        self.supervise_later(agent, lease);
        self.runs(agent, lease);
    }

    pub(crate) fn supervise_later(&mut self, agent: usize, lease: Lease) {
        let this = &self.agents[agent];
        let Some(held) = this.held.get(&lease) else { return };
        let at = this.global(held.deadline);
        let late = self.dice.below(FENCE_MAX);
        let after = at.saturating_sub(self.now) + late;
        self.later(agent, after, AgentEvent::Supervise(lease));
    }

    /// The supervisor looks at the deadline.
    pub(crate) fn supervise(&mut self, agent: usize, lease: Lease) {
        let now = self.now;
        let this = &mut self.agents[agent];
        let local = this.local(now);
        let Some(held) = this.held.get_mut(&lease) else { return };
        match held.phase {
            Phase::Running { ends } if held.deadline <= local => {
                held.phase = Phase::Frozen { left: ends.saturating_sub(now), since: local };
                held.turn += 1;
                self.saw(Seen::Frozen);
                self.trace.tell(now, || format!("agent {agent} freezes {lease:?}"));
                self.rests(agent, lease);
                self.later(agent, FROZEN_MAX, AgentEvent::Supervise(lease));
            }
            Phase::Frozen { since, .. } if local >= since + FROZEN_MAX => {
                self.give_back(agent, lease, FailureClass::AgentLost, true);
            }
            Phase::Frozen { .. } => {
                self.later(agent, FROZEN_MAX / 4, AgentEvent::Supervise(lease));
            }
            _ => (),
        }
    }

    pub(crate) fn job_end(&mut self, agent: usize, lease: Lease, turn: u32) {
        let this = &mut self.agents[agent];
        let Some(held) = this.held.get(&lease) else { return };
        if held.turn != turn || !matches!(held.phase, Phase::Running { .. }) {
            return;
        }
        let (cancel, stop) = (held.cancel, held.stop);
        self.rests(agent, lease);
        if self.agents[agent].is_paused(self.now) {
            // Its agent hears of it when it goes on. Nothing runs meanwhile.
            let life = self.agents[agent].life;
            let what = AgentEvent::JobEnd { lease, turn };
            self.agents[agent].inbox.push(Event::Agent { agent, life, what });
            return;
        }
        if stop {
            return self.give_back(agent, lease, FailureClass::Preempted, true);
        }
        if self.dice.chance(1, 40) {
            return self.give_back(agent, lease, FailureClass::AgentLost, true);
        }
        let (conclusion, class) = match self.dice.below(20) {
            _ if cancel => (Conclusion::Cancelled, Some(FailureClass::Cancelled)),
            0 => (Conclusion::Failure, Some(FailureClass::User)),
            1 => (Conclusion::Failure, Some(FailureClass::ImagePull)),
            _ => (Conclusion::Success, None),
        };
        let outcome = Outcome {
            conclusion,
            class,
            result: None,
            counts: StepCounts::default(),
            message: String::new(),
        };
        if self.dice.chance(1, 3) {
            self.resolve(agent, lease);
        }
        let success = conclusion == Conclusion::Success;
        self.over(agent, lease);
        let proposal = Proposal::CompleteAttempt { lease, outcome };
        let purpose = Purpose::Complete { lease, success };
        self.ask(Peer::Agent(agent), purpose, proposal, Us::MAX);
        self.start_jobs(agent);
    }

    /// Gives the lease back, its processes gone.
    pub(crate) fn give_back(
        &mut self,
        agent: usize,
        lease: Lease,
        class: FailureClass,
        started: bool,
    ) {
        self.rests(agent, lease);
        self.over(agent, lease);
        let proposal = Proposal::ReleaseLease { lease, class, started };
        let until = self.now + RELEASE_WAIT;
        self.ask(Peer::Agent(agent), Purpose::Release(lease), proposal, until);
    }

    pub(crate) fn over(&mut self, agent: usize, lease: Lease) {
        if let Some(held) = self.agents[agent].held.get_mut(&lease) {
            held.phase = Phase::Over;
            held.turn += 1;
        }
    }

    /// The lease is not held any more: everything is killed, nothing is reported.
    pub(crate) fn refuse(&mut self, agent: usize, lease: Lease) {
        // Often what it has said of it is on its way already.
        let stubborn = self.dice.chance(1, 2);
        let calls = &mut self.agents[agent].calls;
        calls.retain(|_, call| match &call.purpose {
            Purpose::Complete { lease: of, .. } | Purpose::Release(of) => stubborn || *of != lease,
            _ => true,
        });
        let phase = self.agents[agent].held.get(&lease).map(|held| &held.phase);
        if matches!(phase, Some(Phase::Running { .. } | Phase::Frozen { .. })) {
            self.saw(Seen::JobsKilled);
        }
        self.kill(agent, lease);
        self.start_jobs(agent);
    }

    /// Processes die, not at once.
    pub(crate) fn kill(&mut self, agent: usize, lease: Lease) {
        let takes = self.dice.below(300 * MS);
        let this = &mut self.agents[agent];
        let Some(held) = this.held.get_mut(&lease) else { return };
        match held.phase {
            Phase::Running { .. } => {
                held.phase = Phase::Dying;
                held.turn += 1;
                self.later(agent, takes, AgentEvent::Gone { lease });
            }
            Phase::Dying => (),
            Phase::Waiting | Phase::Frozen { .. } | Phase::Over => {
                this.held.remove(&lease);
            }
        }
    }

    pub(crate) fn cancel(&mut self, agent: usize, lease: Lease) {
        let takes = self.dice.below(3 * S);
        let Some(held) = self.agents[agent].held.get_mut(&lease) else { return };
        if !std::mem::replace(&mut held.cancel, true) {
            self.end_soon(agent, lease, takes);
        }
        self.start_jobs(agent);
    }

    /// TERM: what runs ends within this time; what is frozen, when it thaws.
    pub(crate) fn end_soon(&mut self, agent: usize, lease: Lease, within: Us) {
        let now = self.now;
        let Some(held) = self.agents[agent].held.get_mut(&lease) else { return };
        match &mut held.phase {
            Phase::Running { ends } => {
                *ends = (*ends).min(now + within);
                let after = ends.saturating_sub(now);
                held.turn += 1;
                let turn = held.turn;
                self.later(agent, after, AgentEvent::JobEnd { lease, turn });
            }
            Phase::Frozen { left, .. } => *left = (*left).min(within),
            Phase::Waiting | Phase::Dying | Phase::Over => (),
        }
    }

    /// The lease is done with.
    pub(crate) fn let_go(&mut self, agent: usize, lease: Lease) {
        self.agents[agent].held.remove(&lease);
        self.start_jobs(agent);
        self.leave_if_empty(agent);
    }

    pub(crate) fn claim(&mut self, agent: usize, lease: Lease) {
        let action = Digest { hash: [3; 32], size: self.dice.below(3) };
        let proposal = Proposal::ClaimAction { scope: dag::project(), action, lease };
        let until = self.now + 5 * S;
        self.ask(Peer::Agent(agent), Purpose::Claim, proposal, until);
    }

    pub(crate) fn resolve(&mut self, agent: usize, lease: Lease) {
        let action = Digest { hash: [3; 32], size: self.dice.below(3) };
        let resolution = match self.dice.below(3) {
            0 => Resolution::Abandoned,
            1 => Resolution::Failed { detail: action },
            _ => Resolution::Published,
        };
        let scope = dag::project();
        let proposal = Proposal::ResolveClaim { scope, action, lease, resolution };
        self.ask(Peer::Agent(agent), Purpose::Resolve, proposal, self.now + S);
    }
}
