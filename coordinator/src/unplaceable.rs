//! Gives up jobs that wait for an agent which nobody knows of.
//!
//! That one waits so is said at once, by `stead watch` and `stead explain`; it is left in
//! the queue, for a fleet may be about to grow. Only when it has waited for a configured
//! time does it fail. The time counts in the leader's memory: a new leader begins anew.

use std::collections::BTreeMap;
use std::time::Duration;

use steading_core::Proposal;
use steading_model::JobId;
use steading_model::limits::JOBS_PER_PROPOSAL_MAX;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::leadership::Leadership;
use crate::replica::Replica;

/// How often the queue is looked at. What is in it for good can wait as long.
const PERIOD: Duration = Duration::from_secs(2);
/// Most jobs that are looked after at once; others come when these are gone.
const JOBS_MAX: usize = 10_000;

/// Runs until `stop`. `patience`: how long such a job may wait.
pub(crate) async fn run(
    replica: Replica,
    leadership: Leadership,
    patience: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut waiting = Waiting::default();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        if !leadership.standing().leads {
            waiting = Waiting::default();
            continue;
        }
        let unplaceable = replica.view().unplaceable(JOBS_MAX);
        for (wait, jobs) in &unplaceable {
            if let Some(job) = jobs.iter().find(|job| !waiting.since.contains_key(*job)) {
                tracing::warn!(%job, jobs = jobs.len(), %wait, "no known agent can run a job");
            }
        }
        let jobs = unplaceable.into_iter().flat_map(|(_, jobs)| jobs);
        let overdue = waiting.overdue(Instant::now(), jobs, patience);
        for jobs in overdue.chunks(JOBS_PER_PROPOSAL_MAX) {
            // Whatever the answer, the next look at the queue sees what came of it.
            if let Err(error) = replica.propose(Proposal::GiveUp { jobs: jobs.to_vec() }).await {
                tracing::warn!(%error, "jobs that nobody can run were not given up");
                break;
            }
        }
    }
    Ok(())
}

/// Since when which jobs were seen to wait.
#[derive(Debug, Default)]
struct Waiting {
    since: BTreeMap<JobId, Instant>,
}

impl Waiting {
    /// Takes in which jobs wait now, and answers which of them have waited long enough.
    fn overdue(
        &mut self,
        now: Instant,
        jobs: impl Iterator<Item = JobId>,
        patience: Duration,
    ) -> Vec<JobId> {
        let before = std::mem::take(&mut self.since);
        let since = |job: JobId| (job, before.get(&job).copied().unwrap_or(now));
        self.since = jobs.map(since).collect();
        let overdue = self.since.iter().filter(|(_, since)| now - **since >= patience);
        overdue.map(|(job, _)| *job).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_waited_all_the_time_is_given_up() {
        let patience = Duration::from_secs(10);
        let start = Instant::now();
        let mut waiting = Waiting::default();
        let mut overdue = |after_s: u64, jobs: &[u64]| -> Vec<u64> {
            let jobs = jobs.iter().map(|job| JobId::from_counter(*job));
            let now = start + Duration::from_secs(after_s);
            waiting.overdue(now, jobs, patience).iter().map(|job| job.counter()).collect()
        };
        let cases: [(u64, &[u64], &[u64]); 5] = [
            (0, &[1, 2], &[]),
            (4, &[1], &[]),
            (9, &[1, 2], &[]),
            (10, &[1, 2], &[1]),
            (19, &[2], &[2]),
        ];
        for (after_s, jobs, want) in cases {
            assert_eq!(overdue(after_s, jobs), want, "after {after_s} s");
        }
    }
}
