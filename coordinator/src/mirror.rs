//! What only the leader knows of a run, at a replica that follows it: the steps of running
//! attempts, and what queued jobs wait for. A hint, for those who watch the run here.
//!
//! The protocol: as long as somebody watches a run here while another replica leads, one
//! `WatchRun` of it is open at the leader, however many watch, from the version that this
//! replica has. Of its events the steps and the sentences are kept, by job and attempt;
//! rows, conclusions and tokens come from this replica's own state alone, so that a watch
//! says nothing that is not committed, and goes on without a leader.
//!
//! What can go wrong: what comes late, of an attempt that is over, is not shown. What is
//! lost with the stream comes again with the next one, whole. What comes twice changes
//! nothing. An old leader is left as soon as another one is known, and what it said is
//! forgotten. A leader that follows by now refuses, for [`HOP`] says that it must not ask
//! another one: two confused replicas never watch each other. Nothing of it is on a disk.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use steading_model::limits::{JOBS_PER_RUN_MAX, STEPS_PER_JOB_MAX};
use steading_model::{JobId, RunId};
use steading_proto::v1;
use steading_proto::v1::pipelines_client::PipelinesClient;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::forward::{Forward, HOP};
use crate::leadership::{Leader, Leadership};
use crate::replica::Replica;
use crate::run_watch::RunWatch;

/// Before the leader is asked again that ended a stream.
const PAUSE: Duration = Duration::from_secs(1);

/// Largest event, bytes: a run with as many jobs as one event may have.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// The runs that are watched here while another replica leads. Clones share them.
#[derive(Clone)]
pub(crate) struct Mirror {
    pub(crate) replica: Replica,
    pub(crate) leadership: Leadership,
    pub(crate) forward: Forward,
    pub(crate) watch: Arc<RunWatch>,
    pub(crate) tasks: TaskTracker,
    /// Each as long as somebody watches it.
    pub(crate) runs: Arc<Mutex<BTreeMap<RunId, Weak<Mirrored>>>>,
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").finish_non_exhaustive()
    }
}

/// One run, in the hands of those who watch it.
#[derive(Debug)]
pub(crate) struct Mirrored {
    told: Arc<Mutex<Told>>,
    /// Ends the task that asks the leader.
    _asking: DropGuard,
}

#[derive(Debug, Default)]
struct Told {
    jobs: BTreeMap<JobId, Live>,
    /// Counts changes.
    sequence: u64,
}

/// What the leader said of a job.
#[derive(Clone, Debug, Default, PartialEq)]
struct Live {
    attempt: u32,
    steps: Vec<v1::StepProgress>,
    waiting: String,
    /// Of the last change.
    sequence: u64,
}

impl Mirror {
    /// The run's, from now on as long as somebody holds it.
    pub(crate) fn of(&self, run: RunId) -> Arc<Mirrored> {
        let mut runs = lock(&self.runs);
        if let Some(known) = runs.get(&run).and_then(Weak::upgrade) {
            return known;
        }
        runs.retain(|_, known| known.strong_count() > 0);
        let (told, stop) = (Arc::new(Mutex::default()), CancellationToken::new());
        let (mirror, asked) = (self.clone(), Arc::clone(&told));
        let stopped = stop.clone();
        self.tasks.spawn(async move {
            stopped.run_until_cancelled(mirror.ask(run, &asked)).await;
        });
        let mirrored = Arc::new(Mirrored { told, _asking: stop.drop_guard() });
        runs.insert(run, Arc::downgrade(&mirrored));
        mirrored
    }

    async fn ask(&self, run: RunId, told: &Mutex<Told>) {
        loop {
            let Some(leader) = self.leadership.clone().settled().await else {
                // Agents tell this one.
                if let Ok(term) = self.leadership.term() {
                    term.over().await;
                }
                continue;
            };
            let left = self.leadership.clone().left(leader.id);
            tokio::select! {
                () = left => (),
                () = self.keep_asking(&leader, run, told) => return,
            }
            self.forget(run, told);
        }
    }

    /// Ends where the leader knows the run no more.
    async fn keep_asking(&self, leader: &Leader, run: RunId, told: &Mutex<Told>) {
        loop {
            match self.ask_once(leader, run, told).await {
                // It ended, and this replica will hear of it.
                Ok(()) => return,
                Err(status) if status.code() == Code::NotFound => return,
                Err(status) => tracing::debug!(%run, %status, "the leader tells no more of a run"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn ask_once(
        &self,
        leader: &Leader,
        run: RunId,
        told: &Mutex<Told>,
    ) -> Result<(), Status> {
        let channel = self.forward.channel(&leader.endpoint)?;
        let mut client = PipelinesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let token = self.replica.view().version();
        let mut request = Request::new(v1::WatchRunRequest { run_id: run.counter(), token });
        request.metadata_mut().insert(HOP, MetadataValue::from_static("1"));
        let mut events = client.watch_run(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if lock(told).take_in(event.jobs) {
                self.watch.changed(run);
            }
        }
        Ok(())
    }

    fn forget(&self, run: RunId, told: &Mutex<Told>) {
        lock(told).jobs.clear();
        self.watch.changed(run);
    }
}

impl Mirrored {
    /// Adds to the message what the leader said of the attempt that the row is at.
    pub(crate) fn add_to(&self, wire: &mut v1::Job) {
        let told = lock(&self.told);
        let live = told.jobs.get(&JobId::from_counter(wire.job_id));
        let Some(live) = live.filter(|live| live.attempt == wire.attempt) else {
            return;
        };
        match wire.status() {
            v1::job::Status::Running => wire.steps = live.steps.clone(),
            v1::job::Status::Queued => wire.waiting = live.waiting.clone(),
            v1::job::Status::Done | v1::job::Status::Unspecified => (),
        }
    }

    /// Jobs of which something was said after `sequence`, and what to ask with next.
    pub(crate) fn changed_since(&self, sequence: u64) -> (Vec<JobId>, u64) {
        let told = lock(&self.told);
        let changed = told.jobs.iter().filter(|(_, live)| live.sequence > sequence);
        (changed.map(|(job, _)| *job).collect(), told.sequence)
    }
}

impl Told {
    /// Whether anything is new.
    fn take_in(&mut self, jobs: Vec<v1::Job>) -> bool {
        let before = self.sequence;
        for wire in jobs {
            let id = JobId::from_counter(wire.job_id);
            if wire.status() == v1::job::Status::Done {
                self.jobs.remove(&id);
                continue;
            }
            let known = self.jobs.get(&id);
            if known.is_none() && self.jobs.len() >= JOBS_PER_RUN_MAX {
                continue;
            }
            let v1::Job { attempt, mut steps, waiting, .. } = wire;
            steps.truncate(STEPS_PER_JOB_MAX);
            let sequence = known.map_or(0, |known| known.sequence);
            let mut live = Live { attempt, steps, waiting, sequence };
            let silent = known.is_none() && live.steps.is_empty() && live.waiting.is_empty();
            if silent || known == Some(&live) {
                continue;
            }
            self.sequence += 1;
            live.sequence = self.sequence;
            self.jobs.insert(id, live);
        }
        self.sequence > before
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_leader_says_is_told_once_and_of_its_attempt_only() {
        let stop = CancellationToken::new();
        let mirrored = Mirrored { told: Arc::default(), _asking: stop.drop_guard() };
        let take_in = |job: v1::Job| lock(&mirrored.told).take_in(vec![job]);
        let running = |attempt, steps: u32| {
            let steps = (0..steps).map(|index| v1::StepProgress { index, ..Default::default() });
            let status = v1::job::Status::Running.into();
            let steps = steps.collect();
            v1::Job { job_id: 7, attempt, status, steps, ..Default::default() }
        };
        let shown = |attempt| {
            let mut job = running(attempt, 0);
            mirrored.add_to(&mut job);
            job.steps.len()
        };
        assert!(!take_in(running(1, 0)), "nothing is said of it");
        assert!(take_in(running(1, 2)));
        assert!(!take_in(running(1, 2)), "the same again");
        assert_eq!((shown(1), shown(2)), (2, 0));
        let (jobs, seen) = mirrored.changed_since(0);
        assert_eq!(jobs, [JobId::from_counter(7)]);
        assert!(take_in(running(2, 1)));
        assert_eq!((shown(1), shown(2)), (0, 1));
        assert_eq!(mirrored.changed_since(seen).0, jobs);
        let done = v1::Job { status: v1::job::Status::Done.into(), ..running(2, 1) };
        assert!(!take_in(done));
        assert_eq!(shown(2), 0);
    }
}
