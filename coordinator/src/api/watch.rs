//! `WatchRun`: the rows of a run as they change.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use steading_core::{Job, Run, State};
use steading_model::{JobId, RunId};
use steading_proto::leader::not_leader;
use steading_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::explain::Waits;
use super::{Answers, convert};
use crate::documents::Facts;
use crate::mirror::Mirrored;
use crate::progress::Progress;
use crate::replica::Replica;

/// Least time between two events, unless the run has ended: a thousand changes become
/// thirty events a second.
const COALESCE: Duration = Duration::from_millis(30);
/// Events that wait for a slow client. It then gets what is newest, in one event.
const EVENTS_MAX: usize = 4;
/// Most jobs of one event, so that it stays below a message's bound.
const JOBS_PER_EVENT_MAX: usize = 1_000;

/// How often it is looked at what queued jobs wait for. Also how long they have waited
/// before anything is said of it: at first an agent may be about to come.
const WAITS_PERIOD: Duration = Duration::from_secs(1);

/// When a watch that begins now looks for the first time at what jobs wait for.
pub(super) fn first_look() -> Instant {
    Instant::now() + WAITS_PERIOD
}

/// One client that watches one run.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) replica: Replica,
    pub(super) progress: Arc<Progress>,
    /// Subscribed before the state is read for the first time.
    pub(super) changes: watch::Receiver<u64>,
    pub(super) run: RunId,
    pub(super) token: u64,
    pub(super) progress_seen: u64,
    /// What the leader says, where that is another replica.
    pub(super) mirrored: Arc<Mirrored>,
    pub(super) mirrored_seen: u64,
    pub(super) facts: Arc<Facts>,
    pub(super) waits: Waits,
    /// What was told of jobs that wait.
    pub(super) waiting: BTreeMap<JobId, String>,
    /// When to look again.
    pub(super) waits_due: Instant,
}

impl Watcher {
    /// Ends when this replica is `alone`: others may know more of the run.
    pub(super) fn stream(
        self,
        tasks: &TaskTracker,
        alone: impl Future<Output = ()> + Send + 'static,
        stop: CancellationToken,
    ) -> Answers<v1::WatchRunEvent> {
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        tasks.spawn(async move {
            tokio::select! {
                () = self.send_events(&sender) => (),
                () = sender.closed() => (),
                () = alone => {
                    let _ = sender.try_send(Err(not_leader(None)));
                }
                () = stop.cancelled() => {
                    // Full: the client sees the connection end.
                    let _ = sender.try_send(Err(Status::unavailable("the coordinator stops")));
                }
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    /// Ends with the run, or when the client is gone.
    async fn send_events(mut self, sender: &mpsc::Sender<Result<v1::WatchRunEvent, Status>>) {
        let mut first = true;
        loop {
            self.changes.mark_unchanged();
            let state = self.replica.view();
            let Some(row) = state.run(self.run) else {
                let gone = Status::not_found(format!("`{}` was retired", self.run));
                // The client is gone as well.
                let _ = sender.send(Err(gone)).await;
                return;
            };
            let told_anew = if first { Vec::new() } else { self.told_anew(&state, row) };
            for event in self.events(&state, row, first, told_anew) {
                self.token = event.token;
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            if row.has_ended() {
                return;
            }
            first = false;
            if !self.wait().await {
                return;
            }
        }
    }

    /// What changed since the token, oldest change first. Jobs that run come along with
    /// the last event if something was said of their steps.
    fn events(
        &mut self,
        state: &State,
        row: &Run,
        first: bool,
        told_anew: Vec<v1::Job>,
    ) -> Vec<v1::WatchRunEvent> {
        let changed: Vec<&Job> = state.jobs_of_changed_since(self.run, self.token).collect();
        let mut progressed = self.progressed(state);
        progressed.extend(told_anew);
        if changed.is_empty() && progressed.is_empty() && row.version <= self.token && !first {
            return Vec::new();
        }
        let run = convert::run(row, &self.facts);
        let wire = |jobs: &[&Job]| -> Vec<v1::Job> {
            jobs.iter().map(|job| self.wire(state, job)).collect()
        };
        let (rest, last) = changed.split_at(last_chunk(changed.len()));
        let mut events: Vec<v1::WatchRunEvent> = Vec::new();
        for chunk in rest.chunks(JOBS_PER_EVENT_MAX) {
            // Other jobs of the same version may come in the next event, and who resumes
            // must not miss them.
            let token = chunk.last().map_or(0, |job| job.version.saturating_sub(1));
            // The conclusion is told with the last event.
            let run = v1::Run { conclusion: v1::Conclusion::Unspecified.into(), ..run.clone() };
            let (token, jobs) = (token.max(self.token), wire(chunk));
            events.push(v1::WatchRunEvent { token, run: Some(run), jobs });
        }
        let version = changed.last().map_or(0, |job| job.version).max(row.version);
        let mut jobs = wire(last);
        jobs.extend(progressed);
        events.push(v1::WatchRunEvent { token: version.max(self.token), run: Some(run), jobs });
        events
    }

    /// Jobs whose rows did not change, but of whose steps or waits something was said.
    fn progressed(&mut self, state: &State) -> Vec<v1::Job> {
        let (leases, seen) = self.progress.changed_since(self.run, self.progress_seen);
        self.progress_seen = seen;
        let (mirrored, seen) = self.mirrored.changed_since(self.mirrored_seen);
        self.mirrored_seen = seen;
        let here = leases.into_iter().filter_map(|lease| state.leased_job(lease));
        let there = mirrored.into_iter().filter_map(|job| state.job(job));
        let jobs = here.chain(there.filter(|job| job.run == self.run));
        let unchanged = jobs.filter(|job| job.version <= self.token);
        unchanged.map(|job| self.wire(state, job)).collect()
    }

    /// Queued jobs whose rows did not change, but that wait for something else by now.
    fn told_anew(&mut self, state: &State, row: &Run) -> Vec<v1::Job> {
        if row.has_ended() || row.counts.queued() == 0 || self.waits_due > Instant::now() {
            return Vec::new();
        }
        self.waits_due = Instant::now() + WAITS_PERIOD;
        let before = std::mem::replace(&mut self.waiting, self.waits.of_run(state, self.run));
        let differs = |job: &&JobId| before.get(*job) != self.waiting.get(*job);
        let ids: BTreeSet<&JobId> =
            before.keys().chain(self.waiting.keys()).filter(differs).collect();
        let jobs = ids.into_iter().filter_map(|job| state.job(*job));
        let unchanged = jobs.filter(|job| job.version <= self.token && job.is_queued());
        unchanged.map(|job| self.wire(state, job)).collect()
    }

    fn wire(&self, state: &State, job: &Job) -> v1::Job {
        let mut wire = convert::job(state, job, &self.progress);
        if job.is_queued() {
            wire.waiting = self.waiting.get(&job.id).cloned().unwrap_or_default();
        }
        self.mirrored.add_to(&mut wire);
        wire
    }

    /// Until something changed, and [`COALESCE`] is over or the run has ended. False
    /// where nothing will ever change.
    async fn wait(&mut self) -> bool {
        let earliest = Instant::now() + COALESCE;
        let queued = self.replica.view().run(self.run).is_some_and(|run| run.counts.queued() > 0);
        tokio::select! {
            changed = self.changes.changed() => if changed.is_err() {
                return false;
            },
            () = tokio::time::sleep_until(self.waits_due), if queued => return true,
        }
        loop {
            if self.replica.view().run(self.run).is_none_or(Run::has_ended) {
                return true;
            }
            tokio::select! {
                () = tokio::time::sleep_until(earliest) => return true,
                changed = self.changes.changed() => match changed {
                    Ok(()) => (),
                    Err(_) => return false,
                },
            }
        }
    }
}

/// Where the last chunk of `len` jobs begins.
fn last_chunk(len: usize) -> usize {
    match len % JOBS_PER_EVENT_MAX {
        0 => len.saturating_sub(JOBS_PER_EVENT_MAX),
        rest => len - rest,
    }
}
