//! The state as a whole: its tables, the one way in, and what is hashed.

use std::collections::VecDeque;
use std::sync::Arc;

use imbl::Vector;
use steading_model::codec::{Encode, record};
use steading_model::{AgentId, Epoch, JobId, RunId, Timestamp};

use crate::attempt::{EndedAttempt, StaleResults};
use crate::effect::{Effect, Rejection};
use crate::fleet::HandedBack;
use crate::group::{Group, Step};
use crate::identity::Identities;
use crate::index::Index;
use crate::proposal::Proposal;
use crate::replica::Replica;
use crate::rows::{Agent, Answered, Artifact, Claim, Job, Matrix, Run, Waiter};
use crate::table::{Row, Table, Write};

/// The replicated state of the farm.
///
/// A clone is cheap, whatever the size: it shares everything until one of the two
/// is written to. Reads of a clone go on while the original is applied to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub(crate) meta: Meta,
    pub(crate) runs: Table<Run>,
    pub(crate) jobs: Table<Job>,
    pub(crate) matrices: Table<Matrix>,
    pub(crate) agents: Table<Agent>,
    pub(crate) claims: Table<Claim>,
    pub(crate) waiters: Table<Waiter>,
    pub(crate) requests: Table<Answered>,
    pub(crate) artifacts: Table<Artifact>,
    pub(crate) replicas: Table<Replica>,
    pub(crate) groups: Table<Group>,
    pub(crate) attempts: Table<EndedAttempt>,
    pub(crate) stale: Table<StaleResults>,
    pub(crate) identities: Identities,
    pub(crate) index: Index,
    /// What was written since the image was last told.
    pub(crate) unsaved: Unsaved,
}

/// Encoded writes by proposal, oldest first. No part of what the state *is*.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unsaved {
    pub(crate) batches: Vector<Arc<Vec<Write>>>,
    /// Proposals applied when the image was last told.
    pub(crate) since: u64,
}

impl PartialEq for Unsaved {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Counters and the hash chain: the one row that every proposal changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Proposals applied, refused ones counted.
    pub(crate) applied: u64,
    /// Proposals accepted.
    pub(crate) version: u64,
    pub(crate) now: Timestamp,
    pub(crate) chain: [u8; 32],
    pub(crate) counters: Counters,
    /// The feature level; 0 for the first.
    pub(crate) level: u32,
    /// As in [`State::chain_from`].
    pub(crate) chain_from: u64,
}

record! { Meta { applied, version, now, chain, counters, level, chain_from } }

/// The last id of each kind. A rejected proposal uses none up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) run: RunId,
    pub(crate) job: JobId,
    pub(crate) agent: AgentId,
    pub(crate) epoch: Epoch,
    pub(crate) replica: u64,
}

record! { Counters { run, job, agent, epoch, replica } }

/// One proposal being applied.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) now: Timestamp,
    /// What rows that are written now carry.
    pub(crate) version: u64,
    pub(crate) effects: Vec<Effect>,
    /// Something can be placed that could not be before.
    pub(crate) dispatch: bool,
    /// Concurrency groups to join and to leave, done when all else is.
    pub(crate) steps: VecDeque<Step>,
}

impl State {
    /// Applies one proposal: the same answer on every replica, and on a rejection no
    /// change but of the count of proposals, the time and the hash chain.
    ///
    /// `now` is the leader's, from the log entry; an earlier one than the last is
    /// taken for the last.
    ///
    /// # Errors
    ///
    /// Returns the [`Rejection`]. The proposer is at fault, or was overtaken.
    pub fn apply(&mut self, now: Timestamp, proposal: Proposal) -> Result<Vec<Effect>, Rejection> {
        let bytes = proposal.to_bytes();
        let counters = self.meta.counters;
        let mut turn = Turn {
            now: now.max(self.meta.now),
            version: self.meta.version + 1,
            effects: Vec::new(),
            dispatch: false,
            steps: VecDeque::new(),
        };
        let outcome = self.decide(&mut turn, proposal);
        let mut writes = Vec::new();
        if outcome.is_ok() {
            self.settle(&mut turn);
            self.commit(&mut writes);
            self.meta.version = turn.version;
        } else if has_bug!(ApplyRejectionPartially) {
            self.commit(&mut writes);
        } else {
            self.undo();
            self.meta.counters = counters;
        }
        self.meta.applied += 1;
        self.meta.now = turn.now;
        self.meta.chain = self.meta.next_chain(&bytes, outcome.is_ok(), &writes);
        if !writes.is_empty() {
            self.unsaved.batches.push_back(Arc::new(writes));
        }
        outcome.map(|()| turn.effects)
    }

    fn decide(&mut self, turn: &mut Turn, proposal: Proposal) -> Result<(), Rejection> {
        match proposal {
            Proposal::AdmitRun { run, jobs, sealed, complete } => {
                self.admit_run(turn, run, jobs, sealed, complete)
            }
            Proposal::AppendJobs { run, offset, jobs, sealed } => {
                self.append_jobs(turn, run, offset, jobs, sealed)
            }
            Proposal::ExtendRun { run, revision, seen, jobs, complete } => {
                self.extend_run(turn, run, revision, seen, jobs, complete)
            }
            Proposal::CancelRun { run, request, reason } => {
                self.cancel_run(turn, run, &request, &reason)
            }
            Proposal::RegisterAgent { agent } => self.register_agent(turn, agent),
            Proposal::RetireAgent { agent, incarnation } => {
                self.retire_agent(turn, agent, incarnation)
            }
            Proposal::Assign { assignments } => self.assign(turn, &assignments),
            Proposal::ExpireLeases { leases } => self.expire_leases(turn, &leases),
            Proposal::ReleaseLease { lease, class, started } => {
                self.release_lease(turn, lease, class, started)
            }
            Proposal::CompleteAttempt { lease, outcome } => {
                self.complete_attempt(turn, lease, outcome)
            }
            Proposal::ClaimAction { scope, action, lease } => {
                self.claim_action(turn, (scope, action), lease)
            }
            Proposal::ResolveClaim { scope, action, lease, resolution } => {
                self.resolve_claim(turn, &(scope, action), lease, resolution)
            }
            Proposal::RecordArtifact { lease, name, root, files, bytes } => {
                self.record_artifact(turn, lease, name, root, files, bytes)
            }
            Proposal::RetireRuns { runs } => self.retire_runs(turn, &runs),
            Proposal::RetryRun { run, request, revision, again } => {
                self.retry_run(turn, run, &request, revision, &again)
            }
            Proposal::GiveUp { jobs } => self.give_up(turn, &jobs),
            Proposal::RecordStale { lease, outcome } => self.record_stale(turn, lease, &outcome),
            Proposal::HandBack { agent, incarnation, leases, window_ms, preempted } => {
                let back = HandedBack { agent, incarnation, window_ms, preempted };
                self.hand_back(turn, back, &leases)
            }
            Proposal::CordonAgent { name, cordoned } => self.cordon_agent(turn, &name, cordoned),
            Proposal::DrainAgent { name, request, deadline_ms } => {
                self.drain_agent(turn, &name, request, deadline_ms)
            }
            Proposal::RemoveAgent { name } => self.remove_agent(turn, &name),
            Proposal::AdmitReplica { storage_id, endpoint, level } => {
                self.admit_replica(turn, storage_id, endpoint, level)
            }
            Proposal::UpdateReplica { replica, storage_id, endpoint, level } => {
                self.update_replica(turn, replica, storage_id, endpoint, level)
            }
            Proposal::RemoveReplica { replica, force } => self.remove_replica(turn, replica, force),
            Proposal::CreateToken { token } => self.create_token(turn, token),
            Proposal::RevokeToken { id } => self.revoke_token(&id),
            Proposal::RedeemToken { id, secret, key, name } => {
                self.redeem_token(turn, &id, secret, key, name)
            }
            Proposal::RenewMember { role, name, key } => self.renew_member(turn, role, &name, key),
            Proposal::AddAuthority { storage_id, certificate, ancestors } => {
                self.add_authority(turn, storage_id, certificate, ancestors)
            }
            Proposal::Deny { subject, reason, by } => self.deny(turn, subject, &reason, by),
            Proposal::Allow { subject } => self.allow(&subject),
            Proposal::SetFeatureLevel { level } => self.set_feature_level(level),
            Proposal::CompareChain { .. } => Ok(()),
            Proposal::Probe { .. } => self.check_level(2),
            Proposal::FoundAnew { cluster_id: _ } => self.found_anew(turn),
        }
    }

    /// What follows from the writes of an accepted proposal, whatever it was.
    fn settle(&mut self, turn: &mut Turn) {
        loop {
            self.settle_groups(turn);
            let written: Vec<RunId> = self.runs.written().copied().collect();
            for run in written {
                self.end_if_over(turn, run);
            }
            if turn.steps.is_empty() {
                break;
            }
        }
        for run in self.runs.written() {
            self.tell_of_run(turn, *run);
        }
        if turn.dispatch && self.index.queue_len > 0 {
            turn.effects.push(Effect::Dispatch);
        }
    }

    fn commit(&mut self, writes: &mut Vec<Write>) {
        self.runs.commit(writes);
        self.jobs.commit(writes);
        self.matrices.commit(writes);
        self.agents.commit(writes);
        self.claims.commit(writes);
        self.waiters.commit(writes);
        self.requests.commit(writes);
        self.artifacts.commit(writes);
        self.replicas.commit(writes);
        self.groups.commit(writes);
        self.attempts.commit(writes);
        self.stale.commit(writes);
        self.identities.commit(writes);
    }

    /// Puts back what the proposal wrote, the indices with it.
    fn undo(&mut self) {
        // Jobs before runs: where a job stands in the queue depends on its run.
        for (id, row) in self.jobs.take_journal() {
            let startable = self.is_startable(&row.as_ref().or(self.jobs.get(&id)).cloned());
            let new = self.jobs.restore(&id, row.clone());
            self.index.job(new.as_deref(), row.as_deref(), startable);
        }
        for (id, row) in self.runs.take_journal() {
            let new = self.runs.restore(&id, row.clone());
            self.reindex_run(id, new.as_deref(), row.as_deref());
        }
        for (key, row) in self.matrices.take_journal() {
            self.matrices.restore(&key, row);
        }
        for (id, row) in self.agents.take_journal() {
            let new = self.agents.restore(&id, row.clone());
            self.index.agent(new.as_deref(), row.as_deref());
        }
        for (key, row) in self.claims.take_journal() {
            let new = self.claims.restore(&key, row.clone());
            self.index.claim(&key, new.as_deref(), row.as_deref());
        }
        for (key, row) in self.waiters.take_journal() {
            let new = self.waiters.restore(&key, row.clone());
            self.index.waiter(&key, new.as_deref(), row.as_deref());
        }
        for (key, row) in self.requests.take_journal() {
            let new = self.requests.restore(&key, row.clone());
            self.index.request(&key, new.as_deref(), row.as_deref());
        }
        for (key, row) in self.artifacts.take_journal() {
            self.artifacts.restore(&key, row);
        }
        for (id, row) in self.replicas.take_journal() {
            self.replicas.restore(&id, row);
        }
        for (key, row) in self.groups.take_journal() {
            self.groups.restore(&key, row);
        }
        for (key, row) in self.attempts.take_journal() {
            self.attempts.restore(&key, row);
        }
        for (id, row) in self.stale.take_journal() {
            self.stale.restore(&id, row);
        }
        self.identities.undo();
    }

    fn is_startable(&self, job: &Option<Arc<Job>>) -> bool {
        let run = job.as_ref().and_then(|job| self.runs.get(&job.run));
        run.is_some_and(|run| run.is_started())
    }

    pub(crate) fn reindex_run(&mut self, id: RunId, old: Option<&Run>, new: Option<&Run>) {
        self.index.run(old, new);
        let was = old.is_some_and(Run::is_started);
        let is = new.is_some_and(Run::is_started);
        if was != is {
            let ids: Vec<JobId> = self.job_ids(id).collect();
            for job in ids.iter().filter_map(|job| self.jobs.get(job)) {
                if job.is_queued() && !job.waits {
                    self.index.set_queued(job, is);
                }
            }
        }
    }

    pub(crate) fn set_run(&mut self, turn: &Turn, id: RunId, row: Option<Run>) {
        let new = row.map(|row| Arc::new(Run { version: turn.version, ..row }));
        let old = self.runs.set(&id, new.clone());
        self.reindex_run(id, old.as_deref(), new.as_deref());
    }

    /// Changes the row of a run that is there.
    pub(crate) fn edit_run(&mut self, turn: &Turn, id: RunId, edit: impl FnOnce(&mut Run)) {
        if let Some(run) = self.runs.get(&id) {
            let mut row = Run::clone(run);
            edit(&mut row);
            self.set_run(turn, id, Some(row));
        }
    }

    pub(crate) fn set_job(&mut self, turn: &Turn, id: JobId, row: Option<Job>) {
        let new = row.map(|row| Arc::new(Job { version: turn.version, ..row }));
        let old = self.jobs.set(&id, new.clone());
        let startable = self.is_startable(&new.clone().or(old.clone()));
        self.index.job(old.as_deref(), new.as_deref(), startable);
    }

    /// Changes the row of a job that is there.
    pub(crate) fn edit_job(&mut self, turn: &Turn, id: JobId, edit: impl FnOnce(&mut Job)) {
        if let Some(job) = self.jobs.get(&id) {
            let mut row = Job::clone(job);
            edit(&mut row);
            self.set_job(turn, id, Some(row));
        }
    }

    pub(crate) fn set_agent(&mut self, id: AgentId, row: Option<Agent>) {
        let new = row.map(Arc::new);
        let old = self.agents.set(&id, new.clone());
        self.index.agent(old.as_deref(), new.as_deref());
    }

    pub(crate) fn set_claim(&mut self, key: &<Claim as Row>::Key, row: Option<Claim>) {
        let new = row.map(Arc::new);
        let old = self.claims.set(key, new.clone());
        self.index.claim(key, old.as_deref(), new.as_deref());
    }

    pub(crate) fn set_waiter(&mut self, key: &<Waiter as Row>::Key, row: Option<Waiter>) {
        let new = row.map(Arc::new);
        let old = self.waiters.set(key, new.clone());
        self.index.waiter(key, old.as_deref(), new.as_deref());
    }

    pub(crate) fn set_request(&mut self, key: &<Answered as Row>::Key, row: Option<Answered>) {
        let new = row.map(Arc::new);
        let old = self.requests.set(key, new.clone());
        self.index.request(key, old.as_deref(), new.as_deref());
    }
}

impl Meta {
    /// The hash of everything so far. Replicas that applied the same proposals
    /// have the same one, or something is broken in one of them.
    fn next_chain(&self, proposal: &[u8], accepted: bool, writes: &[Write]) -> [u8; 32] {
        let mut bytes = Vec::with_capacity(256 + 2 * proposal.len());
        bytes.extend_from_slice(&self.chain);
        (self.applied, self.now).encode(&mut bytes);
        accepted.encode(&mut bytes);
        append(&mut bytes, proposal);
        self.counters.encode(&mut bytes);
        for (key, row) in writes {
            append(&mut bytes, key);
            row.is_some().encode(&mut bytes);
            append(&mut bytes, row.as_deref().unwrap_or_default());
        }
        *blake3::hash(&bytes).as_bytes()
    }
}

/// Appends bytes behind their length, so that no two lists run into one.
fn append(out: &mut Vec<u8>, bytes: &[u8]) {
    (bytes.len() as u64).encode(out);
    out.extend_from_slice(bytes);
}
