//! Follows a run to its end and shows it.

pub mod feed;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use steading_cas::Blobs;
use steading_model::{Conclusion, Digest, RunId, limits};
use steading_pipeline::job::{JobResult, StepResult};
use steading_proto::v1;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::connect::{AWAY_MAX, failure};
use crate::coordinators::{Coordinators, with_blobs};
use crate::exit::{Ended, Failure};
use crate::follow::feed::{INPUTS_MAX, Input, LogOf};
use crate::screen::render::{
    annotation_line, as_progress, failed_step, failed_steps, job_line, step_line,
};
use crate::screen::{Lines, Screen, tail};
use crate::signals::Signals;
use crate::text::clean;

pub use view::{Change, View};

/// How often the clocks of live lines move on.
const TICK: Duration = Duration::from_millis(100);

/// Last lines of a failed step that are shown.
const TAIL_LINES: usize = 30;

/// What is read of a log to show its last lines, bytes.
const TAIL_BYTES: u64 = 64 << 10;

/// How long the last lines of a log are waited for. The run is over without them, too.
const TAIL_WAIT: Duration = Duration::from_secs(10);

/// How long a job's result is asked for while no coordinator answers.
const RESULT_WAIT: Duration = Duration::from_secs(20);

/// How long a cancelled run is waited for: the grace between TERM and KILL, and the
/// five minutes that GitHub gives to `always()` steps.
const CANCEL_WAIT: Duration = Duration::from_millis(limits::KILL_GRACE_MS + 5 * 60 * 1000 + 15_000);

/// How a run is followed.
#[derive(Debug)]
pub struct Options {
    /// Stream whole logs.
    pub verbose: bool,
    /// What INT and TERM do: cancel the run, or only stop following it.
    pub cancel_on_signal: bool,
    /// The command for whole logs but for the job: `stead logs run-7`.
    pub logs_command: String,
    /// Labels of the only agent there is, where no other one will come.
    pub only_labels: Option<BTreeSet<String>>,
}

/// A run that has been followed as far as it goes.
#[derive(Debug)]
pub struct Over {
    pub view: View,
    /// This process was asked to stop.
    pub interrupted: bool,
    /// Asked twice, or the run did not end in time: not everything is known to be gone.
    pub abandoned: bool,
}

impl Over {
    /// What the exit code says.
    pub fn ended(&self) -> Ended {
        if self.interrupted {
            return Ended::Interrupted;
        }
        match self.view.run().conclusion().to_model() {
            Some(Conclusion::Success) => Ended::Success,
            _ => Ended::RunFailed,
        }
    }
}

/// Follows the run until it has a conclusion, or until it is asked to stop.
///
/// # Errors
///
/// [`Failure`] where the coordinator refuses, or stays away for too long.
pub async fn follow(
    coordinators: Coordinators,
    blobs: Blobs,
    run: RunId,
    options: Options,
    screen: &mut Screen,
    signals: &mut Signals,
) -> Result<Over, Failure> {
    let (to, mut inputs) = mpsc::channel(INPUTS_MAX);
    let mut feeds = JoinSet::new();
    feeds.spawn(feed::events(coordinators.clone(), run.counter(), to.clone()));
    let mut follower = Follower {
        coordinators,
        blobs,
        run,
        options,
        screen,
        view: View::default(),
        lines: Lines::default(),
        readers: BTreeMap::new(),
        ending: BTreeSet::new(),
        feeds,
        to,
        cancelled_at: None,
    };
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut abandoned = false;
    while !follower.is_over() {
        tokio::select! {
            biased;
            () = signals.next() => {
                if !follower.options.cancel_on_signal || follower.cancelled_at.is_some() {
                    follower.cancelled_at.get_or_insert_with(Instant::now);
                    abandoned = true;
                    break;
                }
                follower.cancel();
            }
            Some(input) = inputs.recv() => follower.take(input).await?,
            _ = ticks.tick() => {
                follower.tick();
                if follower.cancelled_at.is_some_and(|at| at.elapsed() > CANCEL_WAIT) {
                    abandoned = true;
                    break;
                }
            }
        }
    }
    follower.screen.clear();
    let interrupted = follower.cancelled_at.is_some();
    Ok(Over { view: follower.view, interrupted, abandoned })
}

/// Asks for the end of the run, until the coordinator has taken it down.
///
/// # Errors
///
/// [`Failure`] where the coordinator refuses, or stays away for too long.
pub async fn cancel(coordinators: &Coordinators, run: RunId, reason: &str) -> Result<(), Failure> {
    let request_id = crate::id::request_id().map_err(anyhow::Error::from)?;
    let request =
        v1::CancelRunRequest { run_id: run.counter(), request_id, reason: reason.to_owned() };
    let cancelled = coordinators.call(AWAY_MAX, |mut client| {
        let request = request.clone();
        async move { client.cancel_run(request).await }
    });
    cancelled.await.map_err(|status| failure("cancel the run", status))?;
    Ok(())
}

struct Follower<'a> {
    coordinators: Coordinators,
    blobs: Blobs,
    run: RunId,
    options: Options,
    screen: &'a mut Screen,
    view: View,
    lines: Lines,
    /// Attempts whose logs are being streamed, by job.
    readers: BTreeMap<u64, u32>,
    /// Jobs that ended before their logs were shown whole.
    ending: BTreeSet<u64>,
    feeds: JoinSet<()>,
    to: mpsc::Sender<Input>,
    cancelled_at: Option<Instant>,
}

impl Follower<'_> {
    fn is_over(&self) -> bool {
        self.view.is_over() && self.ending.is_empty()
    }

    fn cancel(&mut self) {
        self.cancelled_at = Some(Instant::now());
        let run = self.run;
        self.screen.line(format!("cancelling {run}; once more to leave at once"));
        let coordinators = self.coordinators.clone();
        self.feeds.spawn(async move {
            if let Err(error) = cancel(&coordinators, run, "interrupted").await {
                tracing::warn!(%run, error = %error, "cannot cancel the run");
            }
        });
    }

    fn tick(&mut self) {
        if self.screen.is_live() {
            let (waiting, running) = self.view.waiting_and_running();
            self.screen.tick(waiting, running, self.cancelled_at.is_some());
        }
    }

    async fn take(&mut self, input: Input) -> Result<(), Failure> {
        match input {
            Input::Event(event) => {
                for change in self.view.apply(event) {
                    self.show(change).await;
                }
                self.refuse_impossible_labels()
            }
            Input::Log { job, chunk } => {
                let prefix = self.name(job);
                let text = self.lines.push(&prefix, job, chunk.stream, &chunk.data);
                self.screen.print(text);
                Ok(())
            }
            Input::LogEnd { job, attempt } => {
                if self.readers.get(&job) == Some(&attempt) {
                    self.readers.remove(&job);
                    if self.ending.remove(&job) {
                        self.finish(job).await;
                    }
                }
                Ok(())
            }
            Input::Broken(failure) => Err(failure),
        }
    }

    async fn show(&mut self, change: Change) {
        match change {
            Change::Started { job } => self.job_started(job),
            Change::Step { job, step } => {
                if !self.screen.is_live() {
                    self.screen.line(step_line(&self.name(job), &step));
                }
            }
            Change::Moved { job } => {
                if let Some(job) = self.view.job(job) {
                    self.screen.job_runs(job);
                }
            }
            Change::Again { job } => {
                self.screen.job_rests(job);
                let name = self.name(job);
                self.screen.line(format!("{name}  another attempt is made"));
            }
            Change::Waits { job } => {
                if let Some(job) = self.view.job(job) {
                    let (name, why) = (clean(&job.name), clean(&job.waiting));
                    self.screen.line(format!("{name}  waits: {why}"));
                }
            }
            Change::Done { job } => {
                self.screen.job_rests(job);
                if self.readers.contains_key(&job) {
                    self.ending.insert(job);
                } else {
                    self.finish(job).await;
                }
            }
        }
    }

    fn job_started(&mut self, id: u64) {
        let Some(job) = self.view.job(id) else { return };
        let attempt = job.attempt;
        if attempt > 1 {
            let name = clean(&job.name).into_owned();
            self.screen.line(format!("{name}  attempt {attempt}"));
        }
        if self.options.verbose && self.readers.insert(id, attempt).is_none_or(|old| old < attempt)
        {
            let of =
                LogOf { run: self.run.counter(), job: id, attempt, stream: None, follow: true };
            self.feeds.spawn(feed::log(self.coordinators.clone(), of, self.to.clone()));
        }
    }

    /// Shows the end of a job.
    async fn finish(&mut self, id: u64) {
        let Some(job) = self.view.job(id).cloned() else { return };
        let name = self.name(id);
        self.screen.print(self.lines.finish(&name, id));
        let result = self.result(&job).await.unwrap_or_default();
        if !self.screen.is_live() {
            let told = self.view.steps_told(id);
            for step in result.steps.iter().filter(|step| step.index >= told) {
                self.screen.line(step_line(&name, &as_progress(step)));
            }
        }
        for annotation in &result.annotations {
            self.screen.line(annotation_line(&name, annotation));
        }
        self.screen.line(job_line(&job));
        for step in failed_steps(&result) {
            let command = format!("{} {}", self.options.logs_command, quoted(&job.name));
            let (text, cut) = if self.options.verbose {
                (String::new(), false)
            } else {
                self.tail(&job, &result, step).await
            };
            self.screen.print(failed_step(step, &text, cut, &command));
        }
    }

    /// What the attempt left; nothing where it cannot be had, which fails no run.
    async fn result(&self, job: &v1::Job) -> Option<JobResult> {
        let digest: Digest = job.result_digest.parse().ok()?;
        match with_blobs(RESULT_WAIT, || self.blobs.get(&digest)).await {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).ok(),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(job = job.job_id, error = %error, "cannot fetch the job's result");
                None
            }
        }
    }

    /// The last lines of the step's log, and whether lines before them are left out.
    async fn tail(&self, job: &v1::Job, result: &JobResult, step: &StepResult) -> (String, bool) {
        let size = |text: &String| text.parse::<Digest>().map_or(0, |digest| digest.size);
        let sizes = result.logs.iter().map(|(stream, digest)| (*stream, size(digest)));
        let mut offsets: HashMap<u32, u64> = sizes.collect();
        let from = offsets.get(&step.index).map_or(0, |size| size.saturating_sub(TAIL_BYTES));
        offsets.insert(step.index, from);
        let of = LogOf {
            run: self.run.counter(),
            job: job.job_id,
            attempt: job.attempt,
            stream: Some(step.index),
            follow: false,
        };
        let (chunks, mut received) = mpsc::channel::<v1::LogChunk>(INPUTS_MAX);
        let mut bytes = Vec::new();
        let mut whole = from == 0;
        let collect = async {
            while let Some(chunk) = received.recv().await {
                bytes.extend_from_slice(&chunk.data);
                if bytes.len() as u64 > 2 * TAIL_BYTES {
                    bytes.drain(..bytes.len() - TAIL_BYTES as usize);
                    whole = false;
                }
            }
        };
        let read = feed::read_log(self.coordinators.clone(), of, offsets, chunks);
        let both = async { tokio::join!(read, collect) };
        match tokio::time::timeout(TAIL_WAIT, both).await {
            Ok((Ok(()), ())) => (),
            Ok((Err(status), ())) => {
                tracing::warn!(job = job.job_id, error = %status, "cannot read the step's log");
            }
            Err(_) => tracing::warn!(job = job.job_id, "the step's log takes too long"),
        }
        tail(&bytes, TAIL_LINES, whole)
    }

    /// On one machine no other agent will come: a job that waits for one waits forever.
    fn refuse_impossible_labels(&self) -> Result<(), Failure> {
        let Some(here) = &self.options.only_labels else { return Ok(()) };
        for job in self.view.jobs().filter(|job| job.status() == v1::job::Status::Queued) {
            let missing: Vec<&str> = job
                .labels
                .iter()
                .filter(|label| !here.contains(&label.to_lowercase()))
                .map(String::as_str)
                .collect();
            if !missing.is_empty() {
                return Err(Failure::usage(format!(
                    "job `{}` runs on `{}`, which this host is not\n  \
                     hint: --labels {} says that it is",
                    clean(&job.name),
                    clean(&missing.join(", ")),
                    clean(&missing.join(","))
                )));
            }
        }
        Ok(())
    }

    fn name(&self, job: u64) -> String {
        self.view.job(job).map_or_else(|| format!("job-{job}"), |job| clean(&job.name).into_owned())
    }
}

/// The word as a shell reads it back.
pub fn quoted(word: &str) -> String {
    let word = clean(word);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_quoted_where_a_shell_would_take_it_apart() {
        for (word, want) in [
            ("build", "build"),
            ("test (linux, 8)", "'test (linux, 8)'"),
            ("it's", "'it'\\''s'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), want);
        }
    }
}
