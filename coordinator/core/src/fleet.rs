//! What operators want of agents, and what agents give back before they leave.

use steading_model::limits::ASSIGNMENTS_PER_PROPOSAL_MAX;
use steading_model::{AgentId, Incarnation, RequestId, Role};

use crate::effect::{Effect, Rejection};
use crate::identity::subject;
use crate::job::cancelled;
use crate::lease::WAS_CANCELLED;
use crate::limits::DENIED_MAX;
use crate::proposal::Lease;
use crate::rows::{Agent, Drain, JobStatus};
use crate::run::at_most;
use crate::state::{State, Turn};

/// Who gives back, and why.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HandedBack {
    pub(crate) agent: AgentId,
    pub(crate) incarnation: Incarnation,
    pub(crate) window_ms: Option<u64>,
    pub(crate) preempted: bool,
}

impl State {
    pub(crate) fn hand_back(
        &mut self,
        turn: &mut Turn,
        back: HandedBack,
        leases: &[Lease],
    ) -> Result<(), Rejection> {
        let max = ASSIGNMENTS_PER_PROPOSAL_MAX;
        at_most("number of leases in a proposal", leases.len(), max)?;
        let agent = self.agent(back.agent).ok_or(Rejection::AgentUnknown)?;
        if agent.incarnation != back.incarnation {
            return Err(Rejection::IncarnationStale);
        }
        let pool = agent.definition.pool.clone();
        if let Some(window_ms) = back.window_ms
            && agent.leaves == Default::default()
        {
            let row = Agent {
                leaves: turn.now.plus_ms(window_ms.max(1)),
                version: turn.version,
                ..agent.clone()
            };
            self.set_agent(back.agent, Some(row));
        }
        for &lease in leases {
            if self.holder(lease) != Some((back.agent, back.incarnation)) {
                continue;
            }
            let job = lease.work.job;
            let cancelling = self.is_cancelling(lease);
            self.end_lease(turn, lease);
            if cancelling {
                self.finish_job(turn, job, cancelled(WAS_CANCELLED));
                continue;
            }
            self.remember_attempt(turn, job, None);
            if back.preempted {
                // Its machines go away: the job had better start elsewhere.
                self.edit_job(turn, job, |job| {
                    job.preemptions = job.preemptions.saturating_add(1);
                    job.avoid_pool = Some(pool.clone());
                });
            }
            self.requeue(turn, job);
        }
        Ok(())
    }

    /// Who holds the lease.
    fn holder(&self, lease: Lease) -> Option<(AgentId, Incarnation)> {
        match self.leased_job(lease)?.status {
            JobStatus::Leased { agent, incarnation, .. } => Some((agent, incarnation)),
            JobStatus::Queued | JobStatus::Done { .. } => None,
        }
    }

    pub(crate) fn cordon_agent(
        &mut self,
        turn: &mut Turn,
        name: &str,
        cordoned: bool,
    ) -> Result<(), Rejection> {
        let agent = self.agent_by_name(name).ok_or(Rejection::AgentUnknown)?.clone();
        if agent.removed {
            return Err(Rejection::AgentRemoved);
        }
        let (id, incarnation) = (agent.id, agent.incarnation);
        let ends_drain = !cordoned && agent.drain.is_some();
        if agent.cordoned == cordoned && !ends_drain {
            return Ok(());
        }
        let drain = agent.drain.clone().filter(|_| cordoned);
        self.set_agent(id, Some(Agent { cordoned, drain, version: turn.version, ..agent }));
        if ends_drain {
            turn.effects.push(Effect::Empty { agent: id, incarnation });
        }
        turn.dispatch |= !cordoned;
        Ok(())
    }

    pub(crate) fn drain_agent(
        &mut self,
        turn: &mut Turn,
        name: &str,
        request: RequestId,
        deadline_ms: Option<u64>,
    ) -> Result<(), Rejection> {
        let agent = self.agent_by_name(name).ok_or(Rejection::AgentUnknown)?.clone();
        if agent.removed {
            return Err(Rejection::AgentRemoved);
        }
        if agent.drain.as_ref().is_some_and(|drain| drain.request == request) {
            return Ok(());
        }
        let (id, incarnation) = (agent.id, agent.incarnation);
        let deadline = deadline_ms.map(|ms| turn.now.plus_ms(ms));
        let drain = Some(Drain { request, since: turn.now, deadline });
        // A drained agent stays cordoned until somebody says otherwise.
        let row = Agent { cordoned: true, drain, version: turn.version, ..agent };
        self.set_agent(id, Some(row));
        turn.effects.push(Effect::Empty { agent: id, incarnation });
        Ok(())
    }

    pub(crate) fn remove_agent(&mut self, turn: &mut Turn, name: &str) -> Result<(), Rejection> {
        let agent = self.agent_by_name(name).ok_or(Rejection::AgentUnknown)?.clone();
        if agent.removed {
            return Ok(());
        }
        let (id, incarnation) = (agent.id, agent.incarnation);
        at_most("number of denials", self.identities.denied.len() + 1, DENIED_MAX)?;
        let row = Agent { removed: true, retired: true, version: turn.version, ..agent };
        self.set_agent(id, Some(row));
        turn.effects.push(Effect::Empty { agent: id, incarnation });
        if self.leases_of(id).next().is_none() {
            self.deny_removed(turn, id);
        }
        Ok(())
    }

    /// Takes its certificate from an agent that was removed and holds nothing any more:
    /// before that it has to give back what it runs.
    pub(crate) fn deny_removed(&mut self, turn: &Turn, agent: AgentId) {
        let Some(agent) = self.agent(agent).filter(|agent| agent.removed) else { return };
        let who = subject(Role::Agent, &agent.definition.name);
        // A full list denies nobody more, but a removed agent is not let in either way.
        if let Ok(by) = "farm".parse() {
            let _ = self.deny(turn, who, "the agent was removed", by);
        }
    }
}
