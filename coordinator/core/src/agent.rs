//! Agents: registered, retired, forgotten.

use std::sync::Arc;

use steading_model::codec::Encode;
use steading_model::limits::{
    AGENT_ROW_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX, POOL_NAME_BYTES_MAX,
};
use steading_model::{AgentId, Incarnation, Resources, Timestamp};

use crate::effect::{Effect, Rejection};
use crate::limits::AGENTS_MAX;
use crate::proposal::{Lease, NewAgent};
use crate::rows::{Agent, Job};
use crate::run::at_most;
use crate::state::{State, Turn};

/// Starts of an agent that are remembered. A registration that is later than so many others
/// has not been on its way, but in somebody's hands.
const STARTS_MAX: usize = 8;

impl State {
    pub(crate) fn register_agent(
        &mut self,
        turn: &mut Turn,
        agent: NewAgent,
    ) -> Result<(), Rejection> {
        at_most("size of an agent's name", agent.name.len(), NAME_BYTES_MAX)?;
        at_most("size of a pool's name", agent.pool.len(), POOL_NAME_BYTES_MAX)?;
        at_most("number of labels of an agent", agent.labels.len(), LABELS_MAX)?;
        at_most("size of an agent's properties", agent.to_bytes().len(), AGENT_ROW_BYTES_MAX)?;
        let earlier = self.agent_by_name(&agent.name);
        if earlier.is_some_and(|earlier| earlier.removed) {
            return Err(Rejection::AgentRemoved);
        }
        if let Some(earlier) = earlier.filter(|_| agent.start != 0) {
            if earlier.definition.start == agent.start {
                // Sent again, for the first answer was late: the agent may work by now.
                let (agent, incarnation) = (earlier.id, earlier.incarnation);
                turn.effects.push(Effect::Registered { agent, incarnation });
                return Ok(());
            }
            if earlier.earlier_starts.contains(&agent.start) {
                return Err(Rejection::IncarnationStale);
            }
        }
        let earlier_starts = earlier.map_or_else(Vec::new, starts_before);
        // What operators want of an agent is meant for its name.
        let cordoned = earlier.is_some_and(|earlier| earlier.cordoned);
        let drain = earlier.and_then(|earlier| earlier.drain.clone());
        let known = earlier.map(|agent| (agent.id, agent.incarnation));
        let (id, incarnation) = match known {
            Some((id, incarnation)) => {
                // What the earlier incarnation ran died with it, or was killed by this one
                // before it asked. Its leases end before its successor can get any.
                let leases: Vec<Lease> = self.leases_of(id).filter_map(Job::lease).collect();
                for lease in leases {
                    self.lose(turn, lease, "its agent started anew");
                }
                (id, incarnation.next())
            }
            None => {
                self.make_room_for_an_agent()?;
                let id = self.meta.counters.agent.next();
                self.meta.counters.agent = id;
                (id, Incarnation::default().next())
            }
        };
        let row = Agent {
            id,
            definition: Arc::new(agent),
            incarnation,
            retired: false,
            registered: turn.now,
            version: turn.version,
            cordoned,
            drain,
            leaves: Timestamp::default(),
            removed: false,
            earlier_starts,
        };
        self.set_agent(id, Some(row));
        turn.effects.push(Effect::Registered { agent: id, incarnation });
        turn.dispatch = true;
        Ok(())
    }

    /// Forgets the agent that retired first, where the table is full.
    fn make_room_for_an_agent(&mut self) -> Result<(), Rejection> {
        if self.agents.len() < AGENTS_MAX {
            return Ok(());
        }
        let idle = |agent: &&Agent| agent.retired && self.leases_of(agent.id).next().is_none();
        let oldest = self.agents().filter(idle).min_by_key(|agent| (agent.version, agent.id));
        match oldest.map(|agent| agent.id) {
            Some(id) => {
                self.set_agent(id, None);
                Ok(())
            }
            None => at_most("number of agents", self.agents.len() + 1, AGENTS_MAX),
        }
    }

    /// An agent that has a lease is not gone, or not yet: retired with it, it would stay
    /// connected and never get another.
    pub(crate) fn retire_agent(
        &mut self,
        turn: &Turn,
        id: AgentId,
        incarnation: Incarnation,
    ) -> Result<(), Rejection> {
        let agent = self.agent(id).ok_or(Rejection::AgentUnknown)?;
        if agent.incarnation != incarnation {
            return Err(Rejection::IncarnationStale);
        }
        if self.leases_of(id).next().is_some() {
            return Err(Rejection::AgentBusy);
        }
        let row = Agent { retired: true, version: turn.version, ..agent.clone() };
        self.set_agent(id, Some(row));
        Ok(())
    }

    /// What of the agent's resources its leases leave.
    pub(crate) fn room(&self, agent: &Agent) -> Resources {
        let usage = self.index.usage.get(&agent.id).copied().unwrap_or_default();
        let taken = Resources {
            cpu_milli: u32::try_from(usage.cpu_milli).unwrap_or(u32::MAX),
            memory_mib: u32::try_from(usage.memory_mib).unwrap_or(u32::MAX),
        };
        agent.definition.resources.minus(taken)
    }

    /// How many more jobs the agent can run.
    pub(crate) fn free_slots(&self, agent: &Agent) -> u32 {
        let taken = self.index.usage.get(&agent.id).map_or(0, |usage| usage.slots);
        agent.definition.slots.saturating_sub(taken)
    }
}

/// The starts that will lie before the next one, the latest last.
fn starts_before(agent: &Agent) -> Vec<u64> {
    let mut starts = agent.earlier_starts.clone();
    starts.extend(Some(agent.definition.start).filter(|start| *start != 0));
    let surplus = starts.len().saturating_sub(STARTS_MAX);
    starts.split_off(surplus)
}
