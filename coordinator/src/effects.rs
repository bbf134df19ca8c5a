//! Does what the core asks for, as long as this replica leads. Effects are hints: after
//! some were missed, and in each new term, everything is derived from the state again.

use std::collections::BTreeSet;
use std::sync::Arc;

use steading_core::{Effect, Lease, Resolution, State};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::claims::{Claims, Decision};
use crate::dispatcher::Dispatcher;
use crate::leadership::Leadership;
use crate::leases::Leases;
use crate::logs::Logs;
use crate::planner::Planner;
use crate::progress::Progress;
use crate::replica::{Notice, Replica, Standing};
use crate::run_watch::RunWatch;
use crate::sessions::{self, Sessions};

/// Where effects go.
#[derive(Debug)]
pub(crate) struct Effects {
    pub(crate) replica: Replica,
    pub(crate) leadership: Leadership,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) claims: Arc<Claims>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) watch: Arc<RunWatch>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) planner: Arc<Planner>,
    /// A run ended: there may be one too many.
    pub(crate) run_finished: Arc<Notify>,
}

impl Effects {
    /// Runs until `stop`, or until the replica ends.
    pub(crate) async fn run(
        self,
        mut notices: mpsc::Receiver<Notice>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut leadership = self.leadership.clone();
        // The term that has begun here.
        let mut begun = None;
        loop {
            self.stand(leadership.standing(), &mut begun);
            let notice = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = leadership.changed() => continue,
                notice = notices.recv() => notice,
            };
            match notice {
                Some(Notice::Effects(effects)) => {
                    for effect in effects {
                        self.route(effect);
                    }
                }
                Some(Notice::Resync) => {
                    // Not leading, there is nothing to miss.
                    if begun.is_some() {
                        self.resync();
                    }
                }
                None => anyhow::bail!("the replica has stopped by itself; its log says why"),
            }
        }
    }

    /// Begins a term, or ends it. Who is connected for its sake sees to itself.
    fn stand(&self, standing: Standing, begun: &mut Option<u64>) {
        let leads = standing.leads.then_some(standing.term);
        if *begun == leads {
            return;
        }
        if begun.is_some() {
            self.leases.end_term();
            self.progress.clear();
            self.planner.forget();
        }
        if let Some(term) = leads {
            tracing::info!(term, "this replica leads");
            // Everything before the term is applied, the term's first entry committed.
            let state = self.replica.view();
            self.leases.begin_term(term, state.leased().filter_map(|job| job.lease()));
            self.derive(&state);
        } else {
            tracing::info!(term = standing.term, "this replica leads no longer");
        }
        self.watch.all_changed();
        *begun = leads;
    }

    /// Some effects were missed.
    fn resync(&self) {
        let state = self.replica.view();
        let held: BTreeSet<Lease> = state.leased().filter_map(|job| job.lease()).collect();
        self.leases.resync(&held);
        self.derive(&state);
        self.watch.all_changed();
    }

    /// Everything that is to be done, from the state alone.
    fn derive(&self, state: &State) {
        self.recheck_waits(state);
        for effect in state.outstanding() {
            self.route(effect);
        }
        self.dispatcher.wake();
        self.run_finished.notify_one();
    }

    /// Waits whose decision was missed.
    fn recheck_waits(&self, state: &State) {
        for wait in self.claims.waits() {
            let (lease, scope, action) = &wait;
            let holds = state.claim(scope, action).is_some_and(|claim| claim.holder == *lease);
            if state.leased_job(*lease).is_none() {
                self.claims.decide(&wait, Decision::LeaseEnded);
            } else if holds {
                self.claims.decide(&wait, Decision::Build);
            } else if !state.waiters(scope, action).any(|waiter| waiter == *lease) {
                self.claims.decide(&wait, Decision::AskAgain);
            }
        }
    }

    fn route(&self, effect: Effect) {
        match effect {
            Effect::Admitted { .. } | Effect::Redeemed { .. } => (),
            Effect::Registered { agent, incarnation } => {
                self.sessions.registered(agent, incarnation);
            }
            Effect::Dispatch => self.dispatcher.wake(),
            Effect::Offer { agent, incarnation, lease } => {
                self.leases.granted(lease);
                self.sessions.tell(agent, incarnation, sessions::Notice::Offer(lease));
            }
            Effect::NotAssigned { job, agent, why } => {
                tracing::debug!(%job, %agent, %why, "an assignment no longer held");
            }
            Effect::Revoke { agent, incarnation, lease } => {
                self.lease_ended(lease);
                self.sessions.tell(agent, incarnation, sessions::Notice::Revoke(lease));
            }
            Effect::Cancel { agent, incarnation, lease } => {
                self.sessions.tell(agent, incarnation, sessions::Notice::Cancel(lease));
            }
            Effect::Empty { agent, incarnation } => {
                self.sessions.tell(agent, incarnation, sessions::Notice::Empty);
            }
            Effect::PlanRun { run, .. } => self.planner.due(run),
            Effect::RunChanged { run } => self.watch.changed(run),
            Effect::RunFinished { run } => {
                self.progress.run_ended(run);
                self.watch.changed(run);
                self.run_finished.notify_one();
            }
            Effect::ClaimGranted { scope, action, lease } => {
                self.claims.decide(&(lease, scope, action), Decision::Build);
            }
            Effect::ClaimWaits { .. } => (),
            Effect::ClaimResolved { scope, action, waiters, resolution } => {
                let decision = match resolution {
                    Resolution::Published => Decision::Published,
                    Resolution::Failed { detail } => Decision::Failed(detail),
                    Resolution::Abandoned => Decision::AskAgain,
                };
                for lease in waiters {
                    self.claims.decide(&(lease, scope.clone(), action), decision);
                }
            }
        }
    }

    fn lease_ended(&self, lease: Lease) {
        self.leases.ended(lease);
        self.claims.lease_ended(lease);
        let state = self.replica.view();
        if let Some(job) = state.job(lease.work.job) {
            self.progress.ended(job.run, lease);
        }
        self.logs.close(lease.work);
    }
}
