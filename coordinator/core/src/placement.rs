//! Who should run what: a policy on a version of the state. Not part of `apply`,
//! which checks each decision again; so it may change without a feature level.
//!
//! Jobs go by priority, then age. A job goes to the agent with the most free slots
//! (then CPU, then memory) that has its labels and room, but, where another one
//! will do, not to the one that had its last attempt.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use steading_model::{AgentId, Incarnation, Resources, RunId};

use crate::index::{Lane, Place};
use crate::proposal::Assignment;
use crate::rows::Job;
use crate::state::State;

/// Chooses agents for queued jobs, `max` at most, among the `connected` ones.
///
/// Costs a little per lane of the queue (jobs with equal needs), per connected agent
/// and per assignment; how long the queue is hardly matters.
pub fn place(
    state: &State,
    connected: &BTreeSet<(AgentId, Incarnation)>,
    max: usize,
) -> Vec<Assignment> {
    let mut pass = Pass { state, agents: free_agents(state, connected), started: BTreeMap::new() };
    let mut assignments = Vec::new();
    // The heads of the lanes, the most urgent on top. A lane whose head cannot be
    // placed is dropped: nothing behind the head could.
    let mut heads: BinaryHeap<Reverse<(Place, &Lane)>> = BinaryHeap::new();
    if !pass.agents.is_empty() {
        let queue = state.index.queue.iter();
        heads
            .extend(queue.filter_map(|(lane, places)| {
                places.get_min().map(|place| Reverse((*place, lane)))
            }));
    }
    while assignments.len() < max && !pass.agents.is_empty() {
        let Some(Reverse((place, lane))) = heads.pop() else { break };
        let Some(job) = state.job(place.job) else { continue };
        if !pass.may_start(job, lane) {
            continue;
        }
        let Some((agent, incarnation)) = pass.take_agent(job) else { continue };
        assignments.push(Assignment { job: job.id, agent, incarnation });
        if let Some(bounded) = &lane.bounded {
            *pass.started.entry(bounded).or_default() += 1;
        }
        if let Some(next) = next_in(state, lane, place) {
            heads.push(Reverse((next, lane)));
        }
    }
    assignments
}

fn next_in(state: &State, lane: &Lane, place: Place) -> Option<Place> {
    let places = state.index.queue.get(lane)?;
    let after = (std::ops::Bound::Excluded(place), std::ops::Bound::Unbounded);
    places.range(after).next().copied()
}

struct Pass<'a> {
    state: &'a State,
    agents: BTreeMap<&'a [String], BTreeSet<Free>>,
    /// Legs that this pass starts, of the matrices that bound theirs.
    started: BTreeMap<&'a (RunId, String), u32>,
}

/// An agent with a free slot. Ordered by how much is free.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Free {
    slots: u32,
    cpu_milli: u32,
    memory_mib: u32,
    /// Of equals the oldest.
    agent: Reverse<AgentId>,
    incarnation: Incarnation,
}

fn free_agents<'a>(
    state: &'a State,
    connected: &BTreeSet<(AgentId, Incarnation)>,
) -> BTreeMap<&'a [String], BTreeSet<Free>> {
    let mut agents: BTreeMap<&[String], BTreeSet<Free>> = BTreeMap::new();
    for &(id, incarnation) in connected {
        let Some(agent) = state.agent(id) else { continue };
        let slots = state.free_slots(agent);
        if agent.incarnation != incarnation || agent.retired || slots == 0 {
            continue;
        }
        let Resources { cpu_milli, memory_mib } = state.room(agent);
        let free = Free { slots, cpu_milli, memory_mib, agent: Reverse(id), incarnation };
        agents.entry(agent.definition.labels.as_slice()).or_default().insert(free);
    }
    agents
}

impl Pass<'_> {
    /// Whether the job's matrix may start one more leg.
    fn may_start(&self, job: &Job, lane: &Lane) -> bool {
        let Some(bounded) = &lane.bounded else { return true };
        let leased = self.state.matrices.get(bounded).map_or(0, |matrix| matrix.leased);
        let started = self.started.get(bounded).copied().unwrap_or(0);
        leased + started < job.definition.max_parallel
    }

    /// The best agent for the job, which then has that much less room.
    fn take_agent(&mut self, job: &Job) -> Option<(AgentId, Incarnation)> {
        let definition = &job.definition;
        let needs = definition.resources;
        let fits = |free: &&Free| {
            needs.fits(Resources { cpu_milli: free.cpu_milli, memory_mib: free.memory_mib })
        };
        // Another agent than the last time is worth more than any room.
        let rank = |free: &Free| (job.agent != Some(free.agent.0), *free);
        let mut best: Option<(&[String], Free)> = None;
        for (labels, agents) in &self.agents {
            if !definition.labels.iter().all(|label| labels.contains(label)) {
                continue;
            }
            let fitting = agents.iter().rev().filter(fits).take(2);
            if let Some(free) = fitting.max_by_key(|free| rank(free))
                && best.is_none_or(|(_, other)| rank(&other) < rank(free))
            {
                best = Some((labels, *free));
            }
        }
        let (labels, free) = best?;
        let agents = self.agents.get_mut(labels)?;
        agents.remove(&free);
        if free.slots > 1 {
            agents.insert(Free {
                slots: free.slots - 1,
                cpu_milli: free.cpu_milli.saturating_sub(needs.cpu_milli),
                memory_mib: free.memory_mib.saturating_sub(needs.memory_mib),
                ..free
            });
        } else if agents.is_empty() {
            self.agents.remove(labels);
        }
        Some((free.agent.0, free.incarnation))
    }
}
