//! Why a job waits: a reading of the state and of who is connected. Nothing is decided
//! here but which jobs are given up: those that no agent that is known could ever run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;

use steading_model::limits::JOBS_PER_PROPOSAL_MAX;
use steading_model::{AgentId, FailureClass, Incarnation, JobId, Provisioning, Resources};

use crate::effect::Rejection;
use crate::group::Member;
use crate::index::{Lane, Place};
use crate::proposal::Outcome;
use crate::rows::{Agent, Job, Run};
use crate::run::at_most;
use crate::state::{State, Turn};

/// Most labels and agents that a sentence lists.
const LISTED_MAX: usize = 10;

/// Jobs ahead in the queue are counted so far.
const AHEAD_MAX: usize = 10_000;

/// What a job waits for. `Display` is the sentence that a person reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Its run is still being submitted.
    Seal,
    /// Another one has the concurrency group of the run, or of the job.
    Group {
        who: Member,
        group: String,
        holder: Member,
        of: Option<String>,
        ahead: usize,
    },
    MaxParallel {
        max: u32,
    },
    /// No agent was ever here.
    NoAgent,
    NoLabel {
        label: String,
        known: Vec<String>,
    },
    /// There is an agent for each label, but none for all of them.
    NoLabels {
        labels: Vec<String>,
    },
    NoKind {
        kind: Provisioning,
    },
    NoResources {
        wanted: Resources,
        largest: Resources,
    },
    NotConnected {
        agents: Vec<String>,
    },
    NotTaking {
        agents: Vec<String>,
    },
    /// They have room, but took none of what they were offered.
    Declined {
        /// With what each said.
        agents: Vec<(String, String)>,
    },
    /// All agents that would do are full.
    Full {
        agents: usize,
        ahead: usize,
        next: Option<JobId>,
    },
    /// An agent has room for it.
    Turn {
        ahead: usize,
    },
}

impl Wait {
    /// Whether no agent that is known could ever run the job.
    pub const fn is_hopeless(&self) -> bool {
        match self {
            Self::NoAgent
            | Self::NoLabel { .. }
            | Self::NoLabels { .. }
            | Self::NoKind { .. }
            | Self::NoResources { .. } => true,
            Self::Seal
            | Self::Group { .. }
            | Self::MaxParallel { .. }
            | Self::NotConnected { .. }
            | Self::NotTaking { .. }
            | Self::Declined { .. }
            | Self::Full { .. }
            | Self::Turn { .. } => false,
        }
    }

    /// Whether it may take longer than a queue does, so that whoever watches wants to know.
    pub const fn is_worth_telling(&self) -> bool {
        let out_of_reach = matches!(
            self,
            Self::Group { .. }
                | Self::NotConnected { .. }
                | Self::NotTaking { .. }
                | Self::Declined { .. }
        );
        out_of_reach || self.is_hopeless()
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seal => f.write_str("its run is still being submitted"),
            Self::Group { who, group, holder, of, ahead } => {
                let whose = if matches!(who, Member::Run { .. }) { "the run's " } else { "" };
                write!(f, "{whose}concurrency group `{group}` is held by {holder}")?;
                if let Some(of) = of {
                    write!(f, " ({of})")?;
                }
                match ahead {
                    0 => Ok(()),
                    ahead => write!(f, "; {ahead} more before it"),
                }
            }
            Self::MaxParallel { max } => {
                write!(f, "as many legs of its matrix run as `max-parallel` allows: {max}")
            }
            Self::NoAgent => f.write_str("no agent is known"),
            Self::NoLabel { label, known } => {
                write!(f, "no agent has label `{label}`; known labels: {}", known.join(", "))
            }
            Self::NoLabels { labels } => {
                write!(f, "no agent has all of its labels: {}", labels.join(", "))
            }
            Self::NoKind { kind: Provisioning::Spot } => {
                f.write_str("`spot: only`, and no agent with its labels is a spot machine")
            }
            Self::NoKind { kind: Provisioning::OnDemand } => {
                f.write_str("`spot: never`, and every agent with its labels is a spot machine")
            }
            Self::NoResources { wanted, largest } => write!(
                f,
                "no agent with its labels has {}; the largest has {}",
                Amount(*wanted),
                Amount(*largest)
            ),
            Self::NotConnected { agents } => {
                write!(f, "the agents that could run it are not connected: {}", agents.join(", "))
            }
            Self::NotTaking { agents } => write!(
                f,
                "the agents that could run it take no work (cordoned, draining or leaving): {}",
                agents.join(", ")
            ),
            Self::Declined { agents } => {
                let said = agents.iter().map(|(agent, why)| format!("{agent} ({why})"));
                let said = said.collect::<Vec<_>>().join(", ");
                write!(f, "the agents that have room declined what they were offered: {said}")
            }
            Self::Full { agents, ahead, next } => {
                write!(f, "all {agents} agents that could run it are full")?;
                match (ahead, next) {
                    (0, _) | (_, None) => f.write_str("; it is the next in line"),
                    (ahead, Some(next)) => write!(f, "; {ahead} jobs are ahead, first {next}"),
                }
            }
            Self::Turn { ahead: 0 } => f.write_str("an agent has room; it is about to be placed"),
            Self::Turn { ahead } => write!(f, "an agent has room; {ahead} jobs are ahead"),
        }
    }
}

struct Amount(Resources);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Resources { cpu_milli, memory_mib } = self.0;
        write!(f, "{} millicores and {memory_mib} MiB", cpu_milli)
    }
}

/// Explains jobs of one version of the state. Jobs with equal needs are looked at once.
#[derive(Debug)]
pub struct Explainer<'a> {
    state: &'a State,
    connected: &'a BTreeSet<(AgentId, Incarnation)>,
    /// Who gets no offers for a while, and what they said.
    declined: Option<&'a BTreeMap<AgentId, String>>,
    lanes: BTreeMap<Lane, Wait>,
}

impl<'a> Explainer<'a> {
    pub fn new(state: &'a State, connected: &'a BTreeSet<(AgentId, Incarnation)>) -> Self {
        Self { state, connected, declined: None, lanes: BTreeMap::new() }
    }

    /// These connected agents declined what they were offered, and have accepted nothing since.
    #[must_use]
    pub fn declined(self, declined: &'a BTreeMap<AgentId, String>) -> Self {
        Self { declined: Some(declined), ..self }
    }

    /// What the job waits for, without its place in the queue; `None` where it does not wait.
    pub fn wait(&mut self, job: &Job) -> Option<Wait> {
        if !job.is_queued() {
            return None;
        }
        let run = self.state.run(job.run)?;
        if let Some(wait) = self.state.wait_of_run(run).or_else(|| self.state.group_wait(job)) {
            return Some(wait);
        }
        let lane = Lane { bounded: None, ..Lane::of(job) };
        let (state, connected, declined) = (self.state, self.connected, self.declined);
        let wait = self.lanes.entry(lane).or_insert_with_key(|lane| {
            state.hopeless(lane).unwrap_or_else(|| state.capacity(lane, connected, declined))
        });
        if !wait.is_hopeless() && state.is_at_max_parallel(job) {
            return Some(Wait::MaxParallel { max: job.definition.max_parallel });
        }
        Some(wait.clone())
    }

    /// What the job waits for, and who is ahead of it. Looks through the queue.
    pub fn explain(&mut self, job: &Job) -> Option<Wait> {
        let mut wait = self.wait(job)?;
        if let Wait::Full { ahead, next, .. } = &mut wait {
            (*ahead, *next) = self.state.ahead_of(job);
        } else if let Wait::Turn { ahead } = &mut wait {
            (*ahead, _) = self.state.ahead_of(job);
        }
        Some(wait)
    }
}

impl State {
    /// Queued jobs that no agent that is known could ever run, at most `max`, with the
    /// reason of each kind of them.
    pub fn unplaceable(&self, max: usize) -> Vec<(Wait, Vec<JobId>)> {
        let mut found = Vec::new();
        let mut left = max;
        for (lane, places) in &self.index.queue {
            if left == 0 {
                break;
            }
            if let Some(wait) = self.hopeless(lane) {
                let jobs: Vec<JobId> = places.iter().take(left).map(|place| place.job).collect();
                left -= jobs.len();
                found.push((wait, jobs));
            }
        }
        found
    }

    /// Ends queued jobs that waited too long for an agent which nobody knows of. Those
    /// that one could run by now are left alone.
    pub(crate) fn give_up(&mut self, turn: &mut Turn, jobs: &[JobId]) -> Result<(), Rejection> {
        at_most("number of jobs to give up", jobs.len(), JOBS_PER_PROPOSAL_MAX)?;
        for &id in jobs {
            let Some(job) = self.job(id) else { continue };
            let started = self.run(job.run).is_some_and(Run::is_started);
            if !started || !job.is_queued() || job.waits {
                continue;
            }
            if let Some(wait) = self.hopeless(&Lane::of(job)) {
                let outcome = Outcome {
                    conclusion: steading_model::Conclusion::Failure,
                    class: Some(FailureClass::Config),
                    result: None,
                    counts: Default::default(),
                    message: format!("it waited too long: {wait}"),
                };
                self.finish_job(turn, id, outcome);
            }
        }
        Ok(())
    }

    fn wait_of_run(&self, run: &Run) -> Option<Wait> {
        if !run.sealed {
            return Some(Wait::Seal);
        }
        run.waits.then(|| self.wait_for_group(Member::Run { run: run.id })).flatten()
    }

    fn group_wait(&self, job: &Job) -> Option<Wait> {
        job.waits.then(|| self.wait_for_group(Member::Job { job: job.id })).flatten()
    }

    fn wait_for_group(&self, who: Member) -> Option<Wait> {
        let (key, _) = self.group_of(who)?;
        let group = self.group(&key)?;
        let of = match group.holder {
            Member::Run { run } => self.run(run).map(|run| run.definition.name.clone()),
            Member::Job { job } => {
                let job = self.job(job);
                job.map(|job| format!("{} of {}", job.definition.name, job.run))
            }
        };
        let ahead = group.pending.iter().position(|member| *member == who).unwrap_or(0);
        Some(Wait::Group { who, group: key.1, holder: group.holder, of, ahead })
    }

    /// Why no agent that is known, wherever it is now, could ever run jobs of the lane.
    fn hopeless(&self, lane: &Lane) -> Option<Wait> {
        let able = |agent: &&Agent| has_labels(agent, lane) && has_kind(agent, lane);
        let fits = |agent: &Agent| lane.resources.fits(agent.definition.resources);
        if self.known_agents().filter(able).any(fits) {
            return None;
        }
        if self.known_agents().next().is_none() {
            return Some(Wait::NoAgent);
        }
        let known: BTreeSet<&String> =
            self.known_agents().flat_map(|agent| &agent.definition.labels).collect();
        if let Some(label) = lane.labels.iter().find(|label| !known.contains(label)) {
            let known = known.into_iter().take(LISTED_MAX).cloned().collect();
            return Some(Wait::NoLabel { label: label.clone(), known });
        }
        let labelled = || self.known_agents().filter(|agent| has_labels(agent, lane));
        if labelled().next().is_none() {
            return Some(Wait::NoLabels { labels: lane.labels.clone() });
        }
        let able: Vec<&Agent> = labelled().filter(|agent| has_kind(agent, lane)).collect();
        let largest = able.iter().map(|agent| agent.definition.resources);
        match (largest.max(), lane.provisioning) {
            (None, Some(kind)) => Some(Wait::NoKind { kind }),
            (largest, _) => Some(Wait::NoResources {
                wanted: lane.resources,
                largest: largest.unwrap_or_default(),
            }),
        }
    }

    /// What those agents do that could run jobs of the lane.
    fn capacity(
        &self,
        lane: &Lane,
        connected: &BTreeSet<(AgentId, Incarnation)>,
        declined: Option<&BTreeMap<AgentId, String>>,
    ) -> Wait {
        let able: Vec<&Agent> = self
            .known_agents()
            .filter(|agent| has_labels(agent, lane) && has_kind(agent, lane))
            .filter(|agent| lane.resources.fits(agent.definition.resources))
            .collect();
        let names = |agents: &[&Agent]| {
            agents.iter().take(LISTED_MAX).map(|agent| agent.definition.name.clone()).collect()
        };
        // Who has left may come back, and is away like those who are not connected.
        let taking: Vec<&Agent> =
            able.iter().copied().filter(|agent| agent.retired || agent.takes_work()).collect();
        if taking.is_empty() {
            return Wait::NotTaking { agents: names(&able) };
        }
        let is_here =
            |agent: &&Agent| !agent.retired && connected.contains(&(agent.id, agent.incarnation));
        let here: Vec<&Agent> = taking.iter().copied().filter(is_here).collect();
        if here.is_empty() {
            return Wait::NotConnected { agents: names(&taking) };
        }
        let has_room =
            |agent: &&Agent| self.free_slots(agent) > 0 && lane.resources.fits(self.room(agent));
        let room: Vec<&Agent> = here.iter().copied().filter(has_room).collect();
        let why = |agent: &&Agent| declined.and_then(|declined| declined.get(&agent.id));
        if room.iter().any(|agent| why(agent).is_none()) {
            return Wait::Turn { ahead: 0 };
        }
        if !room.is_empty() {
            let said = |agent: &&Agent| Some((agent.definition.name.clone(), why(agent)?.clone()));
            return Wait::Declined {
                agents: room.iter().filter_map(said).take(LISTED_MAX).collect(),
            };
        }
        Wait::Full { agents: here.len(), ahead: 0, next: None }
    }

    fn known_agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents().filter(|agent| !agent.removed)
    }

    /// How many queued jobs are to be placed before this one, and the first of them.
    fn ahead_of(&self, job: &Job) -> (usize, Option<JobId>) {
        let place = Place::of(job);
        let mut ahead = 0;
        let mut first: Option<Place> = None;
        for places in self.index.queue.values() {
            let before = places.range((Bound::Unbounded, Bound::Excluded(place)));
            for other in before.take(AHEAD_MAX - ahead) {
                ahead += 1;
                first = Some(first.map_or(*other, |first| first.min(*other)));
            }
        }
        (ahead, first.map(|place| place.job))
    }
}

fn has_labels(agent: &Agent, lane: &Lane) -> bool {
    lane.labels.iter().all(|label| agent.definition.labels.contains(label))
}

fn has_kind(agent: &Agent, lane: &Lane) -> bool {
    lane.provisioning.is_none_or(|kind| kind == agent.definition.provisioning)
}
