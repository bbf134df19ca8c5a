//! Runs the steps of one job, one after the other, as GitHub's runner does.

mod builtin;
mod cached;
mod commands;
mod effects;
mod files;
mod hash_files;
mod mask;
mod output;
mod shell;
mod state;
mod step;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use steading_cas::Blobs;
use steading_model::{Conclusion, FailureClass, StepCounts};
use steading_pipeline::expression::{Contexts, Status};
use steading_pipeline::job::{JobResult, JobSpec, StepKind, StepResult, StepSpec};
use steading_proto::v1;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use cached::CacheHost;
pub use mask::Secrets;
use output::{StepOutput, cut};
use state::{JobState, conclusion_of};
use step::{Given, StepEnd, execute, timeout_of};

use crate::agents::Agents;
use crate::logs::JobLogs;
use crate::supervisor::Supervisor;
use crate::workspace::Workspace;

/// How long steps may run on after a cancel, milliseconds: what GitHub gives.
const CANCEL_WINDOW_MS: u64 = 300_000;

/// Longest name of a step that is shown, bytes.
const STEP_NAME_BYTES_MAX: usize = 200;

/// What a job is run with.
#[derive(Debug)]
pub struct Host<'a> {
    pub supervisor: &'a mut Supervisor,
    pub blobs: &'a Blobs,
    pub agents: Agents,
    pub lease: v1::Lease,
    /// What every step's environment starts from.
    pub environment: BTreeMap<String, String>,
    /// The `runner` context; its texts are RUNNER_ variables too.
    pub runner: BTreeMap<String, String>,
    pub has_bash: bool,
    pub cache: CacheHost<'a>,
}

impl Host<'_> {
    fn runner_variables(&self) -> impl Iterator<Item = (String, String)> {
        let runner = self.runner.iter();
        runner.map(|(name, value)| (format!("RUNNER_{}", name.to_ascii_uppercase()), value.clone()))
    }
}

/// What may end a job before its steps do.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Somebody wants the job to end: `always()` steps still run.
    pub cancel: CancellationToken,
    /// The job ends here and now: the agent leaves, or the lease is lost.
    pub stop: CancellationToken,
}

/// How a job's attempt ended here.
#[derive(Debug)]
pub struct JobEnd {
    pub result: JobResult,
    pub conclusion: Conclusion,
    pub class: Option<FailureClass>,
    pub counts: StepCounts,
    /// One line for people.
    pub message: String,
    /// The supervisor is of no more use.
    pub lost: bool,
}

/// Runs all steps of the job and says how it ended. `progress` hears of every step.
pub async fn run(
    spec: &JobSpec,
    secret_values: &BTreeMap<String, String>,
    workspace: &Workspace,
    mut host: Host<'_>,
    logs: &JobLogs,
    signals: &Signals,
    progress: &(dyn Fn(v1::StepProgress) + Send + Sync),
) -> JobEnd {
    let secrets = Secrets::default();
    secrets.add_all(secret_values.values().map(String::as_str));
    let debug = is_on(secret_values.get("ACTIONS_STEP_DEBUG"));
    let state = JobState::new(spec, workspace, secrets, secret_values, &host.runner);
    let mut job = Job {
        state,
        clock: Clock::new(Duration::from_millis(spec.timeout_ms)),
        end: JobEnd::empty(),
        failed_class: None,
        debug,
        logs,
        signals,
        progress,
    };
    if let Err(message) = job.begin() {
        logs.append(
            steading_model::limits::JOB_LOG_STREAM,
            format!("##[error]{message}\n").as_bytes(),
        );
        job.end.message = message;
        job.failed_class = Some(FailureClass::Config);
        job.state.status = Status::Failure;
        return job.finish();
    }
    for (index, step) in spec.steps.iter().enumerate() {
        if signals.stop.is_cancelled() || job.end.lost || job.clock.window_is_over() {
            break;
        }
        Box::pin(job.step(index as u32, step, &mut host)).await;
    }
    job.finish()
}

struct Job<'a> {
    state: JobState<'a>,
    clock: Clock,
    end: JobEnd,
    /// Of the step that made the job fail.
    failed_class: Option<FailureClass>,
    debug: bool,
    logs: &'a JobLogs,
    signals: &'a Signals,
    progress: &'a (dyn Fn(v1::StepProgress) + Send + Sync),
}

impl Job<'_> {
    fn begin(&mut self) -> Result<(), String> {
        let event = self.state.spec.contexts.pointer("/github/event");
        let event = event.map_or_else(|| "{}".to_owned(), serde_json::Value::to_string);
        self.state
            .workspace
            .put_shared("event.json", event.as_bytes(), false)
            .map_err(|error| format!("the event cannot be written: {error}"))?;
        self.state.set_job_env().map_err(|error| error.to_string())
    }

    /// Runs one step or skips it, and records how that went.
    async fn step(&mut self, index: u32, step: &StepSpec, host: &mut Host<'_>) {
        self.notice_cancel();
        let started_ms = now_ms();
        let given = self.given(step);
        let name = self.name_of(step, given.as_ref().ok());
        let decision = given.and_then(|given| {
            let contexts = &given.contexts;
            let condition = step.condition.as_ref();
            let run = self.state.condition(condition, self.state.status, contexts);
            run.map(|run| (given, run)).map_err(|error| error.to_string())
        });
        let end = match decision {
            Ok((_, false)) => {
                self.state.ended(
                    &step.id,
                    &BTreeMap::new(),
                    Conclusion::Skipped,
                    Conclusion::Skipped,
                );
                self.record(index, step, name, StepEnd::new(Conclusion::Skipped, ""), started_ms);
                return;
            }
            Ok((given, true)) => {
                self.tell(index, &name, v1::step_progress::Status::Running, None, started_ms);
                self.execute(index, &given, host).await
            }
            Err(message) => {
                self.output(index).error(&message);
                StepEnd { class: Some(FailureClass::Config), ..StepEnd::failure(message) }
            }
        };
        self.record(index, step, name, end, started_ms);
    }

    /// Evaluates what the step is given, before its `if`, which sees its `env`.
    fn given<'s>(&self, step: &'s StepSpec) -> Result<Given<'s>, String> {
        let env = self.state.step_env(&step.env, &step.id).map_err(|error| error.to_string())?;
        let contexts = self.state.contexts(&env, &step.id);
        let timeout = timeout_of(&self.state, step.timeout_minutes.as_ref(), &contexts)?;
        Ok(Given { step, env, contexts, timeout })
    }

    async fn execute(&mut self, index: u32, given: &Given<'_>, host: &mut Host<'_>) -> StepEnd {
        let output = self.output(index);
        // Asked before it runs: while it does, its state is in use.
        let survives_cancel = given.step.condition.is_some()
            && self
                .state
                .condition(given.step.condition.as_ref(), Status::Cancelled, &given.contexts)
                .unwrap_or(false);
        let cancel = CancellationToken::new();
        let work = execute(&mut self.state, host, given, output, &cancel);
        tokio::pin!(work);
        loop {
            let end_of_time = self.clock.ends_at;
            tokio::select! {
                end = &mut work => return end,
                () = self.signals.stop.cancelled(), if !cancel.is_cancelled() => cancel.cancel(),
                () = self.signals.cancel.cancelled(), if !self.clock.cancelled => {
                    self.clock.cancel(false);
                    if !survives_cancel {
                        cancel.cancel();
                    }
                }
                () = tokio::time::sleep_until(end_of_time), if !cancel.is_cancelled() => {
                    // The job's own time, or the window after a cancel.
                    if self.clock.cancelled || !survives_cancel {
                        cancel.cancel();
                    }
                    self.clock.cancel(true);
                }
            }
        }
    }

    /// From now on, conditions see that the job is cancelled.
    fn notice_cancel(&mut self) {
        if self.signals.cancel.is_cancelled() {
            self.clock.cancel(false);
        }
        if Instant::now() >= self.clock.ends_at {
            self.clock.cancel(true);
        }
        if self.clock.cancelled {
            self.state.status = Status::Cancelled;
        }
    }

    fn record(&mut self, index: u32, step: &StepSpec, name: String, end: StepEnd, started_ms: u64) {
        let mut conclusion = end.outcome;
        if conclusion == Conclusion::Failure && self.continues(step) {
            conclusion = Conclusion::Success;
        }
        if end.outcome != Conclusion::Skipped {
            let before = self.state.status;
            self.state.ended(&step.id, &end.outputs, end.outcome, conclusion);
            if before == Status::Success && self.state.status == Status::Failure {
                self.failed_class = end.class;
                self.end.message = format!("step `{name}`: {}", end.message);
            }
        }
        self.count(step, &end);
        self.end.lost |= end.lost;
        self.end.result.summary.push_str(&end.summary);
        self.end.result.annotations.extend(end.said.annotations);
        let status = v1::step_progress::Status::Done;
        self.tell(index, &name, status, Some((conclusion, end.cached)), started_ms);
        self.end.result.steps.push(StepResult {
            id: step.id.clone(),
            name,
            outcome: end.outcome.as_str().to_owned(),
            conclusion: conclusion.as_str().to_owned(),
            index,
            exit_code: end.exit.and_then(|exit| exit.code),
            signal: end.exit.and_then(|exit| exit.signal),
            cacheable: step.cache.is_some(),
            cached: end.cached,
            message: self.state.secrets.mask(&end.message),
            failure_class: end.class.map(|class| class.as_str().to_owned()),
            undeclared: end.undeclared,
            started_ms,
            finished_ms: now_ms(),
            action: end.action,
        });
    }

    fn count(&mut self, step: &StepSpec, end: &StepEnd) {
        let counts = &mut self.end.counts;
        if end.outcome == Conclusion::Skipped {
            counts.skipped += 1;
        } else if end.cached {
            counts.cached += 1;
        } else {
            counts.executed += 1;
            counts.cacheable_executed += u32::from(step.cache.is_some());
        }
    }

    /// Whether the step's failure is to be ignored.
    fn continues(&self, step: &StepSpec) -> bool {
        let Some(text) = &step.continue_on_error else {
            return false;
        };
        let contexts = self.contexts_after(step);
        match self.state.text(text, &contexts) {
            Ok(value) => value.trim().eq_ignore_ascii_case("true"),
            Err(error) => {
                tracing::debug!(%error, "continue-on-error has no value");
                false
            }
        }
    }

    fn contexts_after(&self, step: &StepSpec) -> Contexts {
        let env = self.state.step_env(&step.env, &step.id).unwrap_or_default();
        self.state.contexts(&env, &step.id)
    }

    fn name_of(&self, step: &StepSpec, given: Option<&Given<'_>>) -> String {
        let named = step.name.as_ref().and_then(|name| match given {
            Some(given) => self.state.text(name, &given.contexts).ok(),
            None => Some(name.value.clone()),
        });
        let mut name = named.unwrap_or_else(|| match &step.kind {
            StepKind::Run { script, .. } => {
                format!("Run {}", script.value.trim().lines().next().unwrap_or_default())
            }
            StepKind::Uses { action, .. } => format!("Run {action}"),
        });
        name = self.state.secrets.mask(&name);
        cut(&mut name, STEP_NAME_BYTES_MAX);
        name
    }

    fn output(&self, index: u32) -> StepOutput {
        StepOutput::new(self.logs.clone(), index, self.state.secrets.clone(), self.debug)
    }

    fn tell(
        &self,
        index: u32,
        name: &str,
        status: v1::step_progress::Status,
        ended: Option<(Conclusion, bool)>,
        started_ms: u64,
    ) {
        let conclusion = ended.map_or(v1::Conclusion::Unspecified, |(end, _)| end.into());
        (self.progress)(v1::StepProgress {
            index,
            name: name.to_owned(),
            status: status.into(),
            conclusion: conclusion.into(),
            cached: ended.is_some_and(|(_, cached)| cached),
            started_ms,
            finished_ms: if ended.is_some() { now_ms() } else { 0 },
        });
    }

    /// Evaluates the outputs and sums up.
    fn finish(mut self) -> JobEnd {
        self.notice_cancel();
        let (conclusion, class) = conclusion_of(self.state.status);
        (self.end.conclusion, self.end.class) = (conclusion, class);
        if conclusion == Conclusion::Failure {
            self.end.class = self.failed_class.or(class);
        }
        if conclusion == Conclusion::Cancelled {
            self.end.message = "cancelled".to_owned();
        }
        if self.clock.timed_out {
            self.end.conclusion = Conclusion::Failure;
            self.end.class = Some(FailureClass::Timeout);
            let minutes = self.state.spec.timeout_ms as f64 / 60_000.0;
            self.end.message = format!("the job's time of {minutes} minutes is over");
        }
        self.end.message = self.state.secrets.mask(&self.end.message);
        self.outputs();
        self.end
    }

    fn outputs(&mut self) {
        let contexts = self.state.contexts(&self.state.env, "");
        for (name, text) in &self.state.spec.outputs {
            let problem = match self.state.text(text, &contexts) {
                Ok(value) if self.state.secrets.occur_in(&value) => {
                    format!("output `{name}` is left out: it may contain a secret")
                }
                Ok(value) if value.len() > steading_model::limits::OUTPUT_BYTES_MAX => {
                    format!("output `{name}` is left out: it has {} bytes", value.len())
                }
                Ok(value) => {
                    self.end.result.outputs.insert(name.clone(), value);
                    continue;
                }
                Err(error) => format!("output `{name}` is left out: {error}"),
            };
            let line = format!("##[warning]{problem}\n");
            self.logs.append(steading_model::limits::JOB_LOG_STREAM, line.as_bytes());
            self.end.result.annotations.push(steading_pipeline::job::Annotation {
                level: "warning".to_owned(),
                message: self.state.secrets.mask(&problem),
                ..Default::default()
            });
        }
    }
}

impl JobEnd {
    pub(crate) fn empty() -> Self {
        Self {
            result: JobResult::default(),
            conclusion: Conclusion::Success,
            class: None,
            counts: StepCounts::default(),
            message: String::new(),
            lost: false,
        }
    }
}

/// The time that a job has.
#[derive(Debug)]
struct Clock {
    /// After a cancel: when the window of `always()` steps is over.
    ends_at: Instant,
    cancelled: bool,
    /// It was the job's own time that ended it.
    timed_out: bool,
}

impl Clock {
    fn new(timeout: Duration) -> Self {
        // Far away, but not so far that adding overflows.
        let timeout = timeout.min(Duration::from_secs(366 * 86_400));
        Self { ends_at: Instant::now() + timeout, cancelled: false, timed_out: false }
    }

    fn window_is_over(&self) -> bool {
        self.cancelled && Instant::now() >= self.ends_at
    }

    fn cancel(&mut self, timed_out: bool) {
        if !self.cancelled {
            self.cancelled = true;
            self.timed_out = timed_out;
            self.ends_at = Instant::now() + Duration::from_millis(CANCEL_WINDOW_MS);
        }
    }
}

fn is_on(value: Option<&String>) -> bool {
    value.is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
