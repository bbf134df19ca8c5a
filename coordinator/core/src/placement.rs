//! Who should run what: a policy on a version of the state. Not part of `apply`,
//! which checks each decision again; so it may change without a feature level.
//!
//! Jobs go by age, and a step of priority counts as a minute of it, so that every job's
//! turn comes. Of the agents that have a job's labels and room and that its spot policy
//! admits, it goes to one of the kind that it is better off with: where its deadline is
//! near, or a machine was taken away from it, one that stays; else the kind that it
//! prefers. Then: not in the pool that it lost a machine of, not the agent that had its
//! last attempt, and the most free slots (then CPU, then memory).
//!
//! A job that fits nowhere is passed by, but not for ever: once it has waited
//! [`PASSED_BY_MS`], the agent that is nearest to having room for it takes no less urgent
//! job until it has. Which one that is needs no memory: the one that is kept free only
//! gets freer.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Bound;

use steading_model::{AgentId, Incarnation, Provisioning, Resources, RunId, Spot, Timestamp};

use crate::index::{Lane, Place};
use crate::proposal::Assignment;
use crate::rows::{Agent, Job};
use crate::state::State;

/// How long smaller jobs may go before one that fits nowhere, milliseconds.
pub(crate) const PASSED_BY_MS: u64 = 120_000;

/// Agents that one pass keeps free for such jobs.
const KEPT_FREE_MAX: usize = 16;

/// Chooses agents for queued jobs, `max` at most, among the `connected` ones.
///
/// Costs a little per lane of the queue (jobs with equal needs), per connected agent
/// and per assignment; how long the queue is hardly matters.
pub fn place(
    state: &State,
    connected: &BTreeSet<(AgentId, Incarnation)>,
    max: usize,
) -> Vec<Assignment> {
    let mut pass = Pass::new(state, connected);
    let mut assignments = Vec::new();
    // The heads of the lanes, the most urgent on top. A lane whose head cannot be
    // placed is dropped: nothing behind the head could.
    let mut heads: BinaryHeap<Reverse<(Place, &Lane)>> = BinaryHeap::new();
    if pass.free > 0 {
        let queue = state.index.queue.iter();
        heads
            .extend(queue.filter_map(|(lane, places)| {
                places.get_min().map(|place| Reverse((*place, lane)))
            }));
    }
    while assignments.len() < max && pass.free > 0 {
        let Some(Reverse((place, lane))) = heads.pop() else { break };
        let Some(job) = state.job(place.job) else { continue };
        if !pass.may_start(job, lane) {
            continue;
        }
        let Some((agent, incarnation)) = pass.take_agent(job, lane) else {
            pass.keep_free_for(job, lane);
            continue;
        };
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
    places.range((Bound::Excluded(place), Bound::Unbounded)).next().copied()
}

/// Which kind of machine the job is better off with, if it may choose.
pub(crate) fn wish(job: &Job, now: Timestamp) -> Option<Provisioning> {
    let definition = &job.definition;
    if is_urgent(job, now) || job.preemptions > 0 {
        return Some(Provisioning::OnDemand);
    }
    (definition.spot == Some(Spot::Prefer)).then_some(Provisioning::Spot)
}

/// Whether half of the time to the job's deadline is over: lost once more, it might
/// have to begin when it should have ended.
pub(crate) fn is_urgent(job: &Job, now: Timestamp) -> bool {
    let deadline_ms = job.definition.deadline_ms;
    deadline_ms > 0 && now.since_ms(job.queued) >= deadline_ms / 2
}

/// Agents with a free slot that are alike but for their room.
struct Class<'a> {
    labels: &'a [String],
    provisioning: Provisioning,
    pool: &'a str,
    free: BTreeSet<Free>,
}

impl<'a> Class<'a> {
    fn of(agent: &'a Agent) -> Self {
        let definition = &agent.definition;
        Self {
            labels: &definition.labels,
            provisioning: definition.provisioning,
            pool: &definition.pool,
            free: BTreeSet::new(),
        }
    }

    fn admits(&self, lane: &Lane) -> bool {
        lane.provisioning.is_none_or(|wanted| wanted == self.provisioning)
            && lane.labels.iter().all(|label| self.labels.contains(label))
    }
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

struct Pass<'a> {
    state: &'a State,
    classes: Vec<Class<'a>>,
    /// Agents with a free slot.
    free: usize,
    /// By lane, the classes that its jobs may go to.
    admitted: BTreeMap<&'a Lane, Vec<usize>>,
    /// Legs that this pass starts, of the matrices that bound theirs.
    started: BTreeMap<&'a (RunId, String), u32>,
    /// Agents that were looked for, to be kept free.
    kept: usize,
}

impl<'a> Pass<'a> {
    fn new(state: &'a State, connected: &BTreeSet<(AgentId, Incarnation)>) -> Self {
        let mut classes: BTreeMap<(&[String], Provisioning, &str), Class<'_>> = BTreeMap::new();
        let mut free = 0;
        for &(id, incarnation) in connected {
            let Some(agent) = state.agent(id) else { continue };
            let slots = state.free_slots(agent);
            if agent.incarnation != incarnation || !agent.takes_work() || slots == 0 {
                continue;
            }
            let Resources { cpu_milli, memory_mib } = state.room(agent);
            let room = Free { slots, cpu_milli, memory_mib, agent: Reverse(id), incarnation };
            let class = Class::of(agent);
            let key = (class.labels, class.provisioning, class.pool);
            classes.entry(key).or_insert(class).free.insert(room);
            free += 1;
        }
        let classes = classes.into_values().collect();
        Self { state, classes, free, admitted: BTreeMap::new(), started: BTreeMap::new(), kept: 0 }
    }

    /// Whether the job's matrix may start one more leg.
    fn may_start(&self, job: &Job, lane: &Lane) -> bool {
        let Some(bounded) = &lane.bounded else { return true };
        let leased = self.state.matrices.get(bounded).map_or(0, |matrix| matrix.leased);
        let started = self.started.get(bounded).copied().unwrap_or(0);
        leased + started < job.definition.max_parallel
    }

    /// The best agent for the job, which then has that much less room.
    fn take_agent(&mut self, job: &Job, lane: &'a Lane) -> Option<(AgentId, Incarnation)> {
        let needs = job.definition.resources;
        let wish = wish(job, self.state.now());
        let classes = &self.classes;
        let admitted = self
            .admitted
            .entry(lane)
            .or_insert_with(|| (0..classes.len()).filter(|at| classes[*at].admits(lane)).collect());
        let mut best = None;
        for &at in admitted.iter() {
            let class = &classes[at];
            let kind = wish.is_none_or(|wanted| wanted == class.provisioning);
            let pool = job.avoid_pool.as_deref() != Some(class.pool);
            let fits = |free: &&Free| {
                needs.fits(Resources { cpu_milli: free.cpu_milli, memory_mib: free.memory_mib })
            };
            // The last attempt's agent is one, so that the best of two is another one.
            for free in class.free.iter().rev().filter(fits).take(2) {
                let rank = (kind, pool, job.agent != Some(free.agent.0), *free);
                if best.is_none_or(|(other, _)| other < rank) {
                    best = Some((rank, at));
                }
            }
        }
        let ((.., free), at) = best?;
        let agents = &mut self.classes[at].free;
        agents.remove(&free);
        if free.slots > 1 {
            agents.insert(Free {
                slots: free.slots - 1,
                cpu_milli: free.cpu_milli.saturating_sub(needs.cpu_milli),
                memory_mib: free.memory_mib.saturating_sub(needs.memory_mib),
                ..free
            });
        } else {
            self.free -= 1;
        }
        Some((free.agent.0, free.incarnation))
    }

    /// Takes the agent out of the pass that will first have room for a job that waited for
    /// long and fits nowhere now.
    fn keep_free_for(&mut self, job: &Job, lane: &Lane) {
        let waited = self.state.now().since_ms(job.queued);
        let Some(admitted) = self.admitted.get(lane) else { return };
        if waited < PASSED_BY_MS || self.kept == KEPT_FREE_MAX {
            return;
        }
        self.kept += 1;
        let needs = job.definition.resources;
        let whole = |free: &Free| self.state.agent(free.agent.0).map(|it| it.definition.resources);
        let candidates = admitted.iter().flat_map(|&at| {
            let agents = self.classes[at].free.iter();
            agents
                .filter(|free| whole(free).is_some_and(|all| needs.fits(all)))
                .map(move |it| (*it, at))
        });
        // Both have to come free; of what is missing, the larger part counts.
        let missing = |free: &Free| {
            let part = |needed: u32, free: u32| {
                u64::from(needed.saturating_sub(free)) * 1_000 / u64::from(needed.max(1))
            };
            part(needs.cpu_milli, free.cpu_milli).max(part(needs.memory_mib, free.memory_mib))
        };
        let nearest = candidates.min_by_key(|(free, _)| (missing(free), Reverse(*free)));
        if let Some((free, at)) = nearest {
            self.classes[at].free.remove(&free);
            self.free -= 1;
        }
    }
}
