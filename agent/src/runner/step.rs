//! One step: what it is given, how it is executed, what comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use steading_model::limits::OUTPUT_BYTES_MAX;
use steading_model::{Conclusion, FailureClass};
use steading_pipeline::expression::{Contexts, Value};
use steading_pipeline::job::{StepKind, StepSpec, Text};
use tokio_util::sync::CancellationToken;

use super::cached::run_cached;
use super::effects::{Effects, Written};
use super::output::{Said, StepOutput};
use super::shell::Shell;
use super::state::{JobState, path_text};
use super::{Host, builtin};
use crate::process::{Command, Exit, SupervisorError};

/// Longest `timeout-minutes` that is counted, minutes: a year is for ever.
const TIMEOUT_MINUTES_MAX: f64 = 525_600.0;

/// How one step ended.
#[derive(Debug)]
pub(super) struct StepEnd {
    /// Before `continue-on-error`.
    pub(super) outcome: Conclusion,
    pub(super) outputs: BTreeMap<String, String>,
    pub(super) exit: Option<Exit>,
    /// One line for people; empty where nothing is to be said.
    pub(super) message: String,
    pub(super) class: Option<FailureClass>,
    pub(super) cached: bool,
    pub(super) action: String,
    pub(super) undeclared: Vec<String>,
    pub(super) said: Said,
    pub(super) summary: String,
    /// The supervisor is gone: the job cannot go on.
    pub(super) lost: bool,
}

impl StepEnd {
    /// An end without a process.
    pub(super) fn new(outcome: Conclusion, message: impl Into<String>) -> Self {
        Self {
            outcome,
            outputs: BTreeMap::new(),
            exit: None,
            message: message.into(),
            class: (outcome == Conclusion::Failure).then_some(FailureClass::User),
            cached: false,
            action: String::new(),
            undeclared: Vec::new(),
            said: Said::default(),
            summary: String::new(),
            lost: false,
        }
    }

    pub(super) fn failure(message: impl Into<String>) -> Self {
        Self::new(Conclusion::Failure, message)
    }

    fn fail(&mut self, message: String) {
        if self.outcome != Conclusion::Failure {
            self.outcome = Conclusion::Failure;
            self.class = Some(FailureClass::User);
            self.message = message;
        }
    }
}

/// What a step is executed with, evaluated.
#[derive(Debug)]
pub(super) struct Given<'a> {
    pub(super) step: &'a StepSpec,
    /// The job's environment with the step's own over it.
    pub(super) env: BTreeMap<String, String>,
    pub(super) contexts: Contexts,
    pub(super) timeout: Option<Duration>,
}

/// What a `run:` comes to.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) text: String,
    pub(super) shell: Shell,
    /// Relative to the workspace where it was not written absolute; may be empty.
    pub(super) working_directory: String,
}

/// Executes a step whose `if` said yes, and applies what it left to the state.
pub(super) async fn execute(
    state: &mut JobState<'_>,
    host: &mut Host<'_>,
    given: &Given<'_>,
    output: StepOutput,
    cancel: &CancellationToken,
) -> StepEnd {
    let mut output = output;
    let done = match &given.step.kind {
        StepKind::Run { script, shell, working_directory } => {
            match evaluate_script(state, host, given, script, shell, working_directory) {
                Ok(script) => match &given.step.cache {
                    Some(cache) => {
                        let cached =
                            run_cached(state, host, given, cache, &script, &mut output, cancel);
                        Box::pin(cached).await
                    }
                    None => run_script(state, host, given, &script, &mut output, cancel).await,
                },
                Err(message) => Err(StepEnd::failure(message)),
            }
        }
        StepKind::Uses { action, with } => match evaluate_with(state, given, with) {
            Ok(with) => tokio::select! {
                done = Box::pin(builtin::run(state, host, action, &with, &mut output)) => done,
                () = cancel.cancelled() => Err(StepEnd::new(Conclusion::Cancelled, "cancelled")),
            },
            Err(message) => Err(StepEnd::failure(message)),
        },
    };
    let (mut end, written) = match done {
        Ok((end, written)) => (end, written),
        Err(end) => (end, Written::default()),
    };
    let effects = Effects::read(&written);
    for error in &effects.errors {
        output.error(error);
        end.fail(error.clone());
    }
    if let Some(exit) = end.exit.filter(Exit::succeeded)
        && let Some(limit_mib) = exit.out_of_memory_mib
    {
        let what = out_of_memory(limit_mib);
        output.line(&format!("##[warning]a process was killed, and the step went on: {what}"));
    }
    if end.outcome == Conclusion::Failure && end.exit.is_none_or(|exit| exit.succeeded()) {
        output.error(&end.message);
    }
    end.said = output.finish();
    if let Some(error) = end.said.errors.first().cloned() {
        end.fail(error);
    }
    settle(state, &mut end, effects);
    end
}

/// Applies what the step left. The one place for executed and for cached steps.
fn settle(state: &mut JobState<'_>, end: &mut StepEnd, effects: Effects) {
    state.apply(&effects);
    let outputs = std::mem::take(&mut end.said.outputs).into_iter().chain(effects.output);
    for (name, value) in outputs {
        if value.len() > OUTPUT_BYTES_MAX {
            end.fail(format!(
                "output `{name}` has {} bytes, at most {OUTPUT_BYTES_MAX} are allowed",
                value.len()
            ));
            continue;
        }
        end.outputs.insert(name, value);
    }
    end.summary = state.secrets.mask(&effects.summary);
}

fn evaluate_script(
    state: &JobState<'_>,
    host: &Host<'_>,
    given: &Given<'_>,
    script: &Text,
    shell: &Option<Text>,
    working_directory: &Option<Text>,
) -> Result<Script, String> {
    let text = |text: &Text| state.text(text, &given.contexts).map_err(|e| e.to_string());
    let shell_name = shell.as_ref().or(state.spec.default_shell.as_ref());
    let shell = match shell_name {
        None => Shell::unnamed(host.has_bash),
        Some(name) => Shell::named(&text(name)?)
            .map_err(|error| state.error(name, &error.to_string()).to_string())?,
    };
    let working_directory =
        working_directory.as_ref().or(state.spec.default_working_directory.as_ref());
    let working_directory = working_directory.map(text).transpose()?.unwrap_or_default();
    Ok(Script { text: text(script)?.replace("\r\n", "\n"), shell, working_directory })
}

fn evaluate_with(
    state: &JobState<'_>,
    given: &Given<'_>,
    with: &[(String, Text)],
) -> Result<BTreeMap<String, String>, String> {
    let mut values = BTreeMap::new();
    for (name, text) in with {
        let value = state.text(text, &given.contexts).map_err(|error| error.to_string())?;
        values.insert(name.to_ascii_lowercase(), value);
    }
    Ok(values)
}

/// What executing gives: the end so far and the files that the step left, or an end
/// of which nothing is left.
pub(super) type Executed = Result<(StepEnd, Written), StepEnd>;

async fn run_script(
    state: &JobState<'_>,
    host: &mut Host<'_>,
    given: &Given<'_>,
    script: &Script,
    output: &mut StepOutput,
    cancel: &CancellationToken,
) -> Executed {
    let failed = |what: &str, error: std::io::Error| StepEnd {
        class: Some(FailureClass::Config),
        ..StepEnd::failure(format!("{what}: {error}"))
    };
    Written::prepare(state.workspace)
        .map_err(|error| failed("the step's files cannot be made", error))?;
    let name = format!("script{}", script.shell.extension);
    let file = state
        .workspace
        .put_shared(&name, script.shell.script(&script.text).as_bytes(), false)
        .map_err(|error| failed("the script cannot be written", error))?;
    let command = Command {
        argv: script.shell.argv(&path_text(&file)),
        env: environment(state, host, given),
        cwd: state.workspace.dir().join(&script.working_directory),
        user: state.workspace.user(),
        timeout: given.timeout,
    };
    let exit = host.supervisor.run(command, output, cancel).await;
    // It may have installed something.
    host.cache.platform.distrust();
    let end = match exit {
        Ok(exit) => end_of(exit, given.timeout),
        Err(error @ SupervisorError::NotStarted { .. }) => StepEnd::failure(error.to_string()),
        Err(error) => {
            return Err(StepEnd {
                class: Some(FailureClass::AgentLost),
                lost: true,
                ..StepEnd::failure(error.to_string())
            });
        }
    };
    let written = Written::collect(state.workspace)
        .map_err(|error| failed("the step's files cannot be read", error))?;
    Ok((end, written))
}

/// What the end of a step's process means.
pub(super) fn end_of(exit: Exit, timeout: Option<Duration>) -> StepEnd {
    let mut end = if exit.succeeded() {
        StepEnd::new(Conclusion::Success, "")
    } else if exit.timed_out {
        let minutes = timeout.map_or(0.0, |timeout| timeout.as_secs_f64() / 60.0);
        let class = Some(FailureClass::Timeout);
        StepEnd { class, ..StepEnd::failure(format!("timed out after {minutes} minutes")) }
    } else if exit.cancelled {
        StepEnd::new(Conclusion::Cancelled, "cancelled")
    } else if exit.fenced {
        let class = Some(FailureClass::AgentLost);
        StepEnd { class, lost: true, ..StepEnd::failure("the lease was over for too long") }
    } else if let Some(limit_mib) = exit.out_of_memory_mib {
        let class = Some(FailureClass::Oom);
        StepEnd { class, ..StepEnd::failure(out_of_memory(limit_mib)) }
    } else {
        match (exit.code, exit.signal) {
            (Some(code), _) => StepEnd::failure(format!("exit code {code}")),
            (None, Some(signal)) => StepEnd::failure(format!("killed by {}", signal_name(signal))),
            (None, None) => StepEnd::failure("ended without an exit code"),
        }
    };
    end.exit = Some(exit);
    end
}

fn out_of_memory(limit_mib: u64) -> String {
    match limit_mib {
        0 => "out of memory: the machine has no more".to_owned(),
        mib => format!(
            "out of memory: the job may use {mib} MiB; ask for more with \
             `x-steading: {{resources: {{memory: …}}}}`"
        ),
    }
}

fn signal_name(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => format!("{signal} (signal {number})"),
        Err(_) => format!("signal {number}"),
    }
}

/// The whole environment of a step's process.
fn environment(state: &JobState<'_>, host: &Host<'_>, given: &Given<'_>) -> Vec<(String, String)> {
    let mut env: BTreeMap<String, String> = host.environment.clone();
    env.entry("CI".to_owned()).or_insert_with(|| "true".to_owned());
    // Git in a workspace without a repository must not take one that this agent's own
    // folder happens to be in.
    if let Some(above) = state.workspace.dir().parent() {
        env.entry("GIT_CEILING_DIRECTORIES".to_owned()).or_insert_with(|| path_text(above));
    }
    env.extend(given.env.clone());
    // What speaks of the run is stronger than what anybody set.
    env.extend(state.github_variables(&given.step.id));
    env.extend(host.runner_variables());
    if !state.path.is_empty() {
        let path = env.remove("PATH").unwrap_or_default();
        env.insert("PATH".to_owned(), format!("{}:{path}", state.path.join(":")));
    }
    env.into_iter().collect()
}

/// A step's own `timeout-minutes`.
pub(super) fn timeout_of(
    state: &JobState<'_>,
    text: Option<&Text>,
    contexts: &Contexts,
) -> Result<Option<Duration>, String> {
    let Some(text) = text else {
        return Ok(None);
    };
    let value = state.value(text, contexts).map_err(|error| error.to_string())?;
    let minutes = match &value {
        Value::Number(number) => Some(*number),
        other => other.to_text().trim().parse::<f64>().ok(),
    };
    match minutes {
        Some(minutes) if minutes > 0.0 => {
            Ok(Some(Duration::from_secs_f64(minutes.min(TIMEOUT_MINUTES_MAX) * 60.0)))
        }
        // GitHub takes 0 as none.
        Some(0.0) => Ok(None),
        _ => Err(state
            .error(text, &format!("`timeout-minutes` is `{}`, want a number", value.to_text()))
            .to_string()),
    }
}
