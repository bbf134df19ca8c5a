//! Concurrency groups: who goes on, who waits, and who has to make room.
//!
//! A run or a job that names a group joins it when it could start, and leaves it when
//! it has ended: a job with its last lease, so that what it locked is free neither before
//! its processes are gone nor before its lease is over. One member goes on; the others
//! wait in line, and nothing of them is placed.
//!
//! Locks are taken in one order: the run's group, the job's group, a slot. Only a run
//! that goes on can hold one while it wants another, so that only waits of jobs can
//! close a cycle; each is looked at when it begins.
//!
//! Joining and leaving are steps of the proposal's end (`settle`), done one after
//! another: what one member's leaving starts may make others leave, and a long chain of
//! them must not be a deep recursion.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use steading_model::codec::{record, variants};
use steading_model::{JobId, ProjectName, RunId};

use crate::limits::GROUP_PENDING_MAX;
use crate::proposal::Concurrency;
use crate::rows::Run;
use crate::state::{State, Turn};
use crate::table::Row;

/// Who is in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    Run { run: RunId },
    Job { job: JobId },
}

variants! { Member { 0 = Run { run }, 1 = Job { job } } }

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run { run } => run.fmt(f),
            Self::Job { job } => job.fmt(f),
        }
    }
}

/// A group's name means something within its project.
pub type GroupKey = (ProjectName, String);

/// A group that somebody is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Goes on.
    pub holder: Member,
    /// Who waits, first come first. At most one, but for those who queue.
    pub pending: Vec<Member>,
}

record! { Group { holder, pending } }

impl Row for Group {
    type Key = GroupKey;
    const TABLE: u8 = 13;
}

/// What is left to do at the end of a proposal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Join(Member),
    Leave(Member),
}

impl State {
    pub(crate) fn settle_groups(&mut self, turn: &mut Turn) {
        while let Some(step) = turn.steps.pop_front() {
            match step {
                Step::Join(member) => self.join_group(turn, member),
                Step::Leave(member) => self.leave_group(turn, member),
            }
        }
    }

    /// The run may start: it goes for its group, or its jobs go for theirs.
    pub(crate) fn start_run(&self, turn: &mut Turn, id: RunId) {
        match self.run(id) {
            Some(run) if run.waits => turn.steps.push_back(Step::Join(Member::Run { run: id })),
            Some(_) => {
                let jobs = self.waiting_jobs(id);
                turn.steps.extend(jobs.map(|job| Step::Join(Member::Job { job })));
            }
            None => {}
        }
    }

    /// The group that the member names.
    pub fn group_of(&self, member: Member) -> Option<(GroupKey, &Concurrency)> {
        let (run, wants) = match member {
            Member::Run { run } => {
                let run = self.run(run)?;
                (run, run.definition.concurrency.as_ref()?)
            }
            Member::Job { job } => {
                let job = self.job(job)?;
                (self.run(job.run)?, job.definition.concurrency.as_ref()?)
            }
        };
        Some(((run.definition.request.project.clone(), wants.group.clone()), wants))
    }

    pub fn group(&self, key: &GroupKey) -> Option<&Group> {
        self.groups.get(key).map(Arc::as_ref)
    }

    /// Whether the member is to be in its group, and does not go on yet.
    pub(crate) fn is_waiting(&self, member: Member) -> bool {
        match member {
            Member::Run { run } => self.run(run).is_some_and(|run| {
                run.sealed && run.waits && !run.has_ended() && run.cancel.is_none()
            }),
            Member::Job { job } => self.job(job).is_some_and(|job| {
                job.is_queued() && job.waits && self.run(job.run).is_some_and(Run::is_started)
            }),
        }
    }

    /// Jobs of the run that wait for their groups.
    fn waiting_jobs(&self, run: RunId) -> impl Iterator<Item = JobId> + '_ {
        let last = JobId::from_counter(u64::MAX);
        let range = self.index.waiting.range((run, JobId::default())..=(run, last));
        range.map(|(_, job)| *job)
    }

    fn join_group(&mut self, turn: &mut Turn, member: Member) {
        if !self.is_waiting(member) {
            return;
        }
        let Some((key, wants)) = self.group_of(member) else { return };
        let (cancel, queue_all) = (wants.cancel_in_progress, wants.queue_all);
        let Some(group) = self.group(&key) else {
            self.groups.set(&key, Some(Arc::new(Group { holder: member, pending: Vec::new() })));
            self.go_on(turn, member);
            return;
        };
        if group.holder == member || group.pending.contains(&member) {
            return;
        }
        let mut row = group.clone();
        if let (Member::Job { job }, Member::Run { run }) = (member, row.holder)
            && !self.break_cycles(turn, job, run, &key.1)
        {
            return;
        }
        let replaced = if queue_all { Vec::new() } else { std::mem::take(&mut row.pending) };
        if row.pending.len() >= GROUP_PENDING_MAX {
            let why = format!("{GROUP_PENDING_MAX} others wait for concurrency group `{}`", key.1);
            self.cancel_member(turn, member, &why);
            return;
        }
        row.pending.push(member);
        let holder = row.holder;
        self.groups.set(&key, Some(Arc::new(row)));
        if cancel {
            let why = format!("{member} cancels what goes on in concurrency group `{}`", key.1);
            self.cancel_member(turn, holder, &why);
        }
        let why = format!("{member} took its place in line for concurrency group `{}`", key.1);
        for other in replaced {
            self.cancel_member(turn, other, &why);
        }
    }

    fn leave_group(&mut self, turn: &mut Turn, member: Member) {
        let Some((key, _)) = self.group_of(member) else { return };
        let Some(group) = self.group(&key) else { return };
        let mut row = group.clone();
        // Those who were cancelled meanwhile are about to leave as well.
        row.pending.retain(|other| *other != member && self.is_waiting(*other));
        if row.holder != member {
            self.groups.set(&key, Some(Arc::new(row)));
        } else if row.pending.is_empty() {
            self.groups.set(&key, None);
        } else {
            let next = row.pending.remove(0);
            row.holder = next;
            self.groups.set(&key, Some(Arc::new(row)));
            self.go_on(turn, next);
        }
    }

    fn go_on(&mut self, turn: &mut Turn, member: Member) {
        match member {
            Member::Run { run } => {
                self.edit_run(turn, run, |run| run.waits = false);
                self.start_run(turn, run);
            }
            Member::Job { job } => {
                self.edit_job(turn, job, |job| job.waits = false);
                self.touch_run_of(turn, job);
            }
        }
        turn.dispatch = true;
    }

    fn cancel_member(&mut self, turn: &mut Turn, member: Member, why: &str) {
        match member {
            Member::Run { run } => self.cancel_by_itself(turn, run, why),
            Member::Job { job } => {
                self.cancel_job(turn, job, why);
                self.touch_run_of(turn, job);
            }
        }
    }

    /// Cancels a run that goes on, as the farm's own decision.
    fn cancel_by_itself(&mut self, turn: &mut Turn, run: RunId, why: &str) {
        if self.run(run).is_some_and(|run| !run.has_ended() && run.cancel.is_none()) {
            self.cancel_open_run(turn, run, None, why);
        }
    }

    /// The job is about to wait for a group that `holder` has. Where `holder` waits, by
    /// jobs of its own, for the end of the job's run, none of them would ever end: the
    /// youngest run among them is cancelled. Whether the job is left to wait.
    fn break_cycles(&mut self, turn: &mut Turn, job: JobId, holder: RunId, group: &str) -> bool {
        let Some(run) = self.job(job).map(|job| job.run) else { return false };
        while let Some(cycle) = self.cycle(run, holder) {
            let Some(&youngest) = cycle.iter().max() else { return true };
            let others = cycle.iter().filter(|other| **other != youngest);
            let others: Vec<String> = others.map(RunId::to_string).collect();
            let why = match others.as_slice() {
                [] => format!("a job of it waits for concurrency group `{group}`, which it has"),
                _ => format!(
                    "deadlock at concurrency group `{group}`: it and {} wait for each other",
                    others.join(", ")
                ),
            };
            self.cancel_by_itself(turn, youngest, &why);
            // Where it was cancelled before, what it still has to clean up closes the cycle.
            let jobs: Vec<JobId> = self.waiting_jobs(youngest).collect();
            for job in jobs {
                self.cancel_job(turn, job, &why);
            }
            if youngest == run {
                return false;
            }
        }
        true
    }

    /// The runs of a cycle that a wait of `run` for the end of `holder` closes.
    fn cycle(&self, run: RunId, holder: RunId) -> Option<BTreeSet<RunId>> {
        // Of each run that was reached, who waits for it.
        let mut reached: BTreeMap<RunId, RunId> = [(holder, run)].into();
        let mut open = vec![holder];
        while let Some(at) = open.pop() {
            if at == run {
                let mut cycle = BTreeSet::from([run]);
                let mut back = reached.get(&run).copied()?;
                while back != run && cycle.insert(back) {
                    back = reached.get(&back).copied()?;
                }
                return Some(cycle);
            }
            for job in self.waiting_jobs(at) {
                let key = self.group_of(Member::Job { job }).map(|(key, _)| key);
                let group = key.and_then(|key| self.group(&key));
                if let Some(Group { holder: Member::Run { run: next }, .. }) = group
                    && !reached.contains_key(next)
                {
                    reached.insert(*next, at);
                    open.push(*next);
                }
            }
        }
        None
    }

    fn touch_run_of(&mut self, turn: &Turn, job: JobId) {
        if let Some(run) = self.job(job).map(|job| job.run) {
            self.edit_run(turn, run, |_| ());
        }
    }
}
