//! What a new leader has to do, from the state alone.

use crate::claim::{granted, waits};
use crate::effect::Effect;
use crate::rows::{Job, JobStatus};
use crate::state::State;

impl State {
    /// The effects that a leader which saw none of the earlier ones must act on:
    /// offers and cancels of every lease, plans that are due, claims, and the queue.
    pub fn outstanding(&self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for job in self.leased() {
            push_lease(&mut effects, job);
        }
        for run in self.open_runs().filter(|run| run.is_plan_due()) {
            effects.push(Effect::PlanRun { run: run.id, revision: run.revision });
        }
        for (key, claim) in self.claims.iter() {
            effects.push(granted(key, claim.holder));
            for waiter in self.waiters(&key.0, &key.1) {
                effects.push(waits(key, waiter, claim.holder));
            }
        }
        if self.queue_len() > 0 {
            effects.push(Effect::Dispatch);
        }
        effects
    }
}

fn push_lease(effects: &mut Vec<Effect>, job: &Job) {
    let (JobStatus::Leased { agent, incarnation, cancelling, .. }, Some(lease)) =
        (&job.status, job.lease())
    else {
        return;
    };
    let (agent, incarnation) = (*agent, *incarnation);
    effects.push(Effect::Offer { agent, incarnation, lease });
    if *cancelling {
        effects.push(Effect::Cancel { agent, incarnation, lease });
    }
}
