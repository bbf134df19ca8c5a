//! What a leader does by itself: it expires, plans, places and forgets.

use std::collections::BTreeSet;

use steading_coordinator::Look;
use steading_coordinator::replica::ProposeError;
use steading_coordinator::replica::sim_fs::Dice;
use steading_coordinator::replica::testkit::Answer;
use steading_core::{Proposal, Rejection, placement};
use steading_model::limits::ASSIGNMENTS_PER_PROPOSAL_MAX;
use steading_model::{AgentId, Incarnation, RunId};

use super::{FINISHED_KEPT, PLANS_MAX, Pending, Session, Shell, View};
use crate::sim::dag;
use crate::sim::queue::MS;

impl Shell {
    pub(crate) fn planned(&mut self, run: RunId, mut later: Vec<Proposal>, answer: Answer) {
        self.planning.remove(&run);
        match answer {
            Ok(_) if !later.is_empty() => {
                let next = later.remove(0);
                self.planning.insert(run);
                self.propose(next, Pending::Plan { run, later });
            }
            // Another plan may be due already.
            Ok(_) | Err(ProposeError::Rejected(Rejection::PlanRevision { .. })) => {
                self.due.insert(run);
            }
            Err(ProposeError::Rejected(
                Rejection::RunEnded | Rejection::RunUnknown | Rejection::PlanComplete,
            )) => (),
            Err(ProposeError::Rejected(rejection)) => {
                self.broken = Some(format!("the plan of {run} was refused: {rejection}"));
            }
            Err(ProposeError::Busy) => {
                self.due.insert(run);
            }
            Err(_) => (),
        }
    }

    /// What is due, by time or by what came in. `leads`: the term in which it leads, as far
    /// as it knows.
    pub(crate) fn work(&mut self, view: View<'_>, leads: Option<u64>, dice: &mut Dice) {
        if !self.expiring
            && let Look::Overdue { term, leases } =
                self.book.look(view.time(), ASSIGNMENTS_PER_PROPOSAL_MAX)
        {
            // A leader in between may have renewed them.
            if leads == Some(term) {
                self.expiring = true;
                let overdue = leases.clone();
                self.propose(Proposal::ExpireLeases { leases }, Pending::Expire(overdue));
            } else {
                self.book.not_expired(view.time(), &leases);
            }
        }
        self.plan(view, dice);
        if self.dispatch && !self.assigning {
            self.dispatch = false;
            self.place(view);
        }
        if std::mem::take(&mut self.retire) && leads.is_some() {
            let runs = view.state.runs_to_retire(FINISHED_KEPT, 64);
            if !runs.is_empty() {
                self.propose(Proposal::RetireRuns { runs }, Pending::Aside);
            }
        }
    }

    /// On every tick: rests end.
    pub(crate) const fn tick(&mut self) {
        self.dispatch = true;
    }

    pub(crate) fn place(&mut self, view: View<'_>) {
        if view.state.queue_len() == 0 || self.sessions.is_empty() {
            return;
        }
        let takes_work = |(_, session): &(&AgentId, &Session)| {
            session.welcomed && !session.draining && session.rests_until <= view.now
        };
        let agents: BTreeSet<(AgentId, Incarnation)> = self
            .sessions
            .iter()
            .filter(takes_work)
            .map(|(agent, session)| (*agent, session.incarnation))
            .collect();
        let assignments = placement::place(view.state, &agents, 16);
        if !assignments.is_empty() {
            self.assigning = true;
            self.propose(Proposal::Assign { assignments }, Pending::Assign);
        }
    }

    pub(crate) fn plan(&mut self, view: View<'_>, dice: &mut Dice) {
        while self.planning.len() < PLANS_MAX {
            let Some(run) = self.due.iter().find(|run| !self.planning.contains(run)).copied()
            else {
                break;
            };
            self.due.remove(&run);
            let Some(row) = view.state.run(run).filter(|row| row.is_plan_due()) else { continue };
            let planned = dag::plan_run(view.state, row);
            let (mut revision, seen, before) = (row.revision, row.needed_ended, row.needed_planned);
            let mut proposals = Vec::new();
            let mut jobs = planned.jobs;
            // Sometimes in two chunks, as if it were a large one.
            let first_key = jobs.first().map(|job| job.key.clone());
            let (first, rest): (Vec<_>, Vec<_>) =
                jobs.drain(..).partition(|job| Some(&job.key) == first_key.as_ref());
            let mut last = [first, rest];
            if !last[1].is_empty() && dice.chance(1, 3) {
                let jobs = std::mem::take(&mut last[0]);
                proposals.push(Proposal::ExtendRun {
                    run,
                    revision,
                    seen: before,
                    jobs,
                    complete: false,
                });
                revision += 1;
            }
            let jobs = last.into_iter().flatten().collect();
            let complete = planned.complete;
            proposals.push(Proposal::ExtendRun { run, revision, seen, jobs, complete });
            // Planning takes its time, while the world goes on.
            let takes = if dice.chance(1, 3) { dice.below(500 * MS) } else { 0 };
            self.planning.insert(run);
            self.plans.push((view.now + takes, run, proposals));
        }
        let mut waiting = Vec::new();
        for (at, run, mut proposals) in std::mem::take(&mut self.plans) {
            if at > view.now {
                waiting.push((at, run, proposals));
                continue;
            }
            let first = proposals.remove(0);
            self.propose(first, Pending::Plan { run, later: proposals });
        }
        self.plans = waiting;
    }
}
