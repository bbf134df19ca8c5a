//! Retires agents that went away without a word: a spot machine that was taken, a pod
//! that has another name the next time. Nobody else would, and a table that is full of
//! them takes no new agent.
//!
//! One that comes back all the same is told to register, and is then as good as any. The
//! time counts in the leader's memory: a new leader begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use steading_core::{Agent, Proposal, State};
use steading_model::{AgentId, Incarnation, Timestamp};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::leadership::Leadership;
use crate::replica::Replica;
use crate::sessions::Sessions;

/// How long one is waited for that said that its machine goes, at most.
const LEAVING: Duration = Duration::from_secs(300);
/// How often is looked, at most and at least.
const PERIOD_MAX: Duration = Duration::from_secs(30);
const PERIOD_MIN: Duration = Duration::from_millis(100);
/// Most agents that one look retires; the others are found by the next.
const AGENTS_MAX: usize = 100;

type Known = (AgentId, Incarnation);

/// Runs until `stop`. `patience`: how long an agent may be away.
pub(crate) async fn run(
    replica: Replica,
    leadership: Leadership,
    sessions: Arc<Sessions>,
    patience: Duration,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut away = Away::default();
    let mut ticks = tokio::time::interval((patience / 4).clamp(PERIOD_MIN, PERIOD_MAX));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        if !leadership.standing().leads {
            away = Away::default();
            continue;
        }
        let overdue =
            away.overdue(Instant::now(), &replica.view(), &sessions.connected(), patience);
        for (agent, incarnation) in overdue.into_iter().take(AGENTS_MAX) {
            match replica.propose(Proposal::RetireAgent { agent, incarnation }).await {
                // One that came meanwhile hears of it when it connects again.
                Ok(_) => sessions.registered(agent, incarnation.next()),
                // The next look sees what came of it.
                Err(error) => tracing::debug!(%agent, %error, "an absent agent was not retired"),
            }
        }
    }
    Ok(())
}

/// Since when which agents are away.
#[derive(Debug, Default)]
struct Away {
    since: BTreeMap<Known, Instant>,
}

impl Away {
    /// Takes in who is away now, and answers who has been for long enough. Whoever holds a
    /// lease is waited for until that is over.
    fn overdue(
        &mut self,
        now: Instant,
        state: &State,
        connected: &BTreeSet<Known>,
        patience: Duration,
    ) -> Vec<Known> {
        let is_away = |agent: &&Agent| {
            !agent.retired
                && !connected.contains(&(agent.id, agent.incarnation))
                && state.leases_of(agent.id).next().is_none()
        };
        let before = std::mem::take(&mut self.since);
        let mut overdue = Vec::new();
        for agent in state.agents().filter(is_away) {
            let known = (agent.id, agent.incarnation);
            let since = before.get(&known).copied().unwrap_or(now);
            self.since.insert(known, since);
            let leaves = agent.leaves > Timestamp::default();
            let patience = if leaves { patience.min(LEAVING) } else { patience };
            if now - since >= patience {
                overdue.push(known);
            }
        }
        overdue
    }
}
