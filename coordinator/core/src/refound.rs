//! A new group that goes on from the state of another one: from a backup, or from what a
//! survivor has.
//!
//! The other group may have gone on after that state, or still do. So nothing that it can
//! have given out since is given out again, and nothing that it said is believed here:
//! ids, epochs and versions jump, leases end, agents are strangers until they register.

use steading_model::{AgentId, Epoch, Incarnation, JobId, RunId};

use crate::effect::{Effect, Rejection};
use crate::identity::Identities;
use crate::proposal::Lease;
use crate::rows::{Agent, Job};
use crate::state::{State, Turn};
use crate::table::{Row, Table};

/// By how much the counters of runs and agents jump, and agents' incarnations: more than
/// any group admits between a backup and its restoration.
pub const RUNS_GAP: u64 = 10_000_000;

/// By how much epochs, versions and the counter of jobs jump: ten days of ten thousand
/// assignments a second.
pub const EPOCHS_GAP: u64 = 10_000_000_000;

impl State {
    /// Makes this the state of a new group. Who was a member of the old one, and whoever it
    /// knew by certificate or token, is none here. Jobs that ran begin again, uncounted.
    pub(crate) fn found_anew(&mut self, turn: &mut Turn) -> Result<(), Rejection> {
        turn.version += EPOCHS_GAP;
        let counters = &mut self.meta.counters;
        counters.run = RunId::from_counter(counters.run.counter() + RUNS_GAP);
        counters.agent = AgentId::from_counter(counters.agent.counter() + RUNS_GAP);
        counters.job = JobId::from_counter(counters.job.counter() + EPOCHS_GAP);
        counters.epoch = Epoch::from_counter(counters.epoch.counter() + EPOCHS_GAP);

        let leases: Vec<Lease> = self.leased().filter_map(Job::lease).collect();
        for lease in leases {
            self.end_with_its_group(turn, lease);
        }
        let agents: Vec<Agent> = self.agents().cloned().collect();
        for agent in agents {
            let incarnation = Incarnation::from_counter(agent.incarnation.counter() + RUNS_GAP);
            let (id, version) = (agent.id, turn.version);
            self.set_agent(id, Some(Agent { retired: true, incarnation, version, ..agent }));
        }
        clear(&mut self.replicas);
        let Identities { authorities, tokens, denied, members } = &mut self.identities;
        clear(authorities);
        clear(tokens);
        clear(denied);
        clear(members);
        // Whoever watched the old group may have seen them in a later state.
        let open: Vec<RunId> = self.open_runs().map(|run| run.id).collect();
        for run in open {
            self.edit_run(turn, run, |_| ());
            let jobs: Vec<JobId> = self.job_ids(run).collect();
            for job in jobs {
                self.edit_job(turn, job, |_| ());
            }
            turn.effects.push(Effect::RunChanged { run });
        }
        turn.dispatch = true;
        Ok(())
    }
}

fn clear<R: Row>(table: &mut Table<R>) {
    let keys: Vec<R::Key> = table.iter().map(|(key, _)| key.clone()).collect();
    for key in keys {
        table.set(&key, None);
    }
}
