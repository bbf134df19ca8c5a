//! From a job whose needs have ended to its legs.

use steading_model::limits::LABELS_MAX;

use super::matrix::{self, Combination};
use super::{PlannedJob, Submission, Verdict};
use crate::expression::template::has_expression;
use crate::expression::{Contexts, Object, Status, Value, World, interpolate};
use crate::job::{DIALECT, EnvLayer, JobSpec, Text};
use crate::pipeline::{Defaults, Job, Node, RunsOn};

/// How long a job may take, unless said, minutes. What GitHub gives.
const TIMEOUT_MINUTES: f64 = 360.0;

/// Longest that a job may take, minutes: 35 days, which is what GitHub gives a run.
const TIMEOUT_MINUTES_MAX: f64 = 35.0 * 24.0 * 60.0;

/// Before the name of a group among a job's labels.
const GROUP_PREFIX: &str = "group:";

/// What all jobs of a submission share.
pub(super) struct Planner<'a> {
    pub(super) submission: &'a Submission<'a>,
    github: Value,
    inputs: Value,
    vars: Value,
}

impl<'a> Planner<'a> {
    pub(super) fn new(submission: &'a Submission<'a>) -> Self {
        Self {
            submission,
            github: Value::from_json(submission.github),
            inputs: Value::from_json(submission.inputs),
            vars: Value::from_json(submission.vars),
        }
    }

    /// The contexts of a job before its matrix.
    pub(super) fn contexts(&self, needs: &Value) -> Contexts {
        let mut contexts = Contexts::new();
        contexts.set("github", self.github.clone());
        contexts.set("inputs", self.inputs.clone());
        contexts.set("vars", self.vars.clone());
        contexts.set("needs", needs.clone());
        contexts
    }

    /// A job that never runs.
    pub(super) fn decided(&self, job: &Job, verdict: Verdict) -> PlannedJob {
        PlannedJob {
            key: job.key.clone(),
            leg: 0,
            name: literal_name(job).to_owned(),
            labels: Vec::new(),
            resources: job.resources,
            needed: false,
            fail_fast: false,
            max_parallel: 0,
            continue_on_error: false,
            priority: job.priority.unwrap_or(self.submission.pipeline.priority),
            spot: job.spot,
            deadline_ms: job.deadline_ms.unwrap_or(0),
            retries: job.retries.unwrap_or(0),
            concurrency: None,
            verdict,
        }
    }

    /// The legs of a job, one where it has no matrix.
    pub(super) fn legs(
        &self,
        job: &Job,
        contexts: &Contexts,
        needs: &Value,
    ) -> Result<Vec<PlannedJob>, String> {
        let combinations = match &job.strategy.matrix {
            None => None,
            Some(node) => {
                let matrix = self.node(node, contexts)?;
                let wrong = |why| format!("{}: {why}", place(self.file(), position(node)));
                Some(matrix::combinations(&matrix).map_err(wrong)?)
            }
        };
        let total = combinations.as_ref().map_or(1, Vec::len);
        let strategy = &job.strategy;
        let fail_fast = match &strategy.fail_fast {
            Some(text) => self.boolean("fail-fast", text, contexts)?.unwrap_or(true),
            None => true,
        };
        let max_parallel = match &strategy.max_parallel {
            Some(text) => self.number("max-parallel", text, contexts)?.map(whole),
            None => None,
        };
        let matrices: Vec<Option<Combination>> = match combinations {
            Some(combinations) => combinations.into_iter().map(Some).collect(),
            None => vec![None],
        };
        let legs = matrices.into_iter().zip(0_u32..);
        legs.map(|(matrix, leg)| {
            let mut context = Object::new();
            context.insert("fail-fast", Value::Bool(fail_fast));
            context.insert("job-index", Value::Number(f64::from(leg)));
            #[allow(clippy::cast_precision_loss, reason = "at most `MATRIX_LEGS_MAX`")]
            let total = total as f64;
            context.insert("job-total", Value::Number(total));
            let parallel = max_parallel.filter(|max| *max > 0).map_or(total, f64::from);
            context.insert("max-parallel", Value::Number(parallel));
            let mut planned =
                self.leg(job, contexts, needs, &Value::object(context), matrix.as_ref())?;
            planned.leg = leg;
            planned.fail_fast = fail_fast && strategy.matrix.is_some();
            planned.max_parallel = max_parallel.unwrap_or(0);
            Ok(planned)
        })
        .collect()
    }

    fn leg(
        &self,
        job: &Job,
        contexts: &Contexts,
        needs: &Value,
        strategy: &Value,
        matrix: Option<&Combination>,
    ) -> Result<PlannedJob, String> {
        let matrix_context = matrix.map_or(Value::Null, Combination::context);
        let mut contexts = contexts.clone();
        contexts.set("strategy", strategy.clone());
        contexts.set("matrix", matrix_context.clone());
        let minutes = match &job.timeout_minutes {
            Some(text) => self.number("timeout-minutes", text, &contexts)?,
            None => None,
        };
        let minutes = minutes.unwrap_or(TIMEOUT_MINUTES).min(TIMEOUT_MINUTES_MAX);
        if minutes <= 0.0 {
            let at = job.timeout_minutes.clone().unwrap_or_default();
            let place = place(self.file(), &at);
            return Err(format!("{place}: `timeout-minutes` is {minutes}, want more than 0"));
        }
        let continue_on_error = match &job.continue_on_error {
            Some(text) => self.boolean("continue-on-error", text, &contexts)?.unwrap_or(false),
            None => false,
        };
        let name = self.name(job, &contexts, matrix)?;
        let labels = self.labels(job, &contexts)?;
        let concurrency = match &job.concurrency {
            Some(wants) => self.group(wants, &contexts)?,
            None => None,
        };
        let spec = JobSpec {
            dialect: DIALECT.to_owned(),
            file: self.file().to_owned(),
            key: job.key.clone(),
            name: name.clone(),
            source: self.submission.source.to_owned(),
            contexts: self.spec_contexts(job, needs, strategy, &matrix_context),
            env: self.env(job),
            steps: job.steps.clone(),
            outputs: job.outputs.clone(),
            default_shell: self.default(job, |defaults| defaults.shell.as_ref()),
            default_working_directory: self
                .default(job, |defaults| defaults.working_directory.as_ref()),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
            timeout_ms: (minutes * 60_000.0) as u64,
            cpu_milli: job.resources.cpu_milli,
            memory_mib: job.resources.memory_mib,
        };
        let verdict = Verdict::Run(Box::new(spec));
        let decided = self.decided(job, verdict);
        Ok(PlannedJob { name, labels, continue_on_error, concurrency, ..decided })
    }

    fn spec_contexts(
        &self,
        job: &Job,
        needs: &Value,
        strategy: &Value,
        matrix: &Value,
    ) -> serde_json::Value {
        let mut github = self.submission.github.clone();
        if let Some(github) = github.as_object_mut() {
            github.insert("job".to_owned(), job.key.as_str().into());
        }
        serde_json::json!({
            "github": github,
            "needs": needs.to_json(),
            "strategy": strategy.to_json(),
            "matrix": matrix.to_json(),
            "inputs": self.submission.inputs,
            "vars": self.submission.vars,
        })
    }

    /// The workflow's `env`, then the submission's, then the job's.
    fn env(&self, job: &Job) -> Vec<EnvLayer> {
        let given = self.submission.env.iter().map(|(name, value)| {
            let text = Text { value: verbatim(value), ..Text::default() };
            (name.clone(), text)
        });
        let layers = [self.submission.pipeline.env.clone(), given.collect(), job.env.clone()];
        layers.into_iter().filter(|layer| !layer.is_empty()).collect()
    }

    fn default(&self, job: &Job, which: impl Fn(&Defaults) -> Option<&Text>) -> Option<Text> {
        which(&job.defaults).or_else(|| which(&self.submission.pipeline.defaults)).cloned()
    }

    /// A name that is written out gets the values of the matrix behind it; a computed
    /// one says what it wants to say.
    fn name(
        &self,
        job: &Job,
        contexts: &Contexts,
        matrix: Option<&Combination>,
    ) -> Result<String, String> {
        if let Some(text) = job.name.as_ref().filter(|text| has_expression(&text.value)) {
            let name = self.value("name", text, contexts)?.to_text();
            if !name.trim().is_empty() {
                return Ok(name);
            }
        }
        let name = literal_name(job);
        let suffix = matrix.map(Combination::suffix).filter(|suffix| !suffix.is_empty());
        Ok(suffix.map_or_else(|| name.to_owned(), |suffix| format!("{name} ({suffix})")))
    }

    /// The labels that `runs-on` asks for, in lower case, each once.
    fn labels(&self, job: &Job, contexts: &Contexts) -> Result<Vec<String>, String> {
        let RunsOn { labels, group } = &job.runs_on;
        let mut found = Vec::new();
        if let Some(group) = group {
            let group = self.value("group", group, contexts)?.to_text();
            found.push(format!("{GROUP_PREFIX}{group}"));
        }
        for text in labels {
            collect_labels(&self.value("runs-on", text, contexts)?, &mut found);
        }
        let mut labels: Vec<String> = Vec::new();
        for label in found.iter().map(|label| label.trim().to_lowercase()) {
            if !label.is_empty() && !labels.contains(&label) {
                labels.push(label);
            }
        }
        let at = job.runs_on.labels.first().or(group.as_ref()).cloned().unwrap_or_default();
        let place = place(self.file(), &at);
        if labels.is_empty() {
            return Err(format!("{place}: `runs-on` comes to no label"));
        }
        if labels.len() > LABELS_MAX {
            let count = labels.len();
            return Err(format!("{place}: `runs-on` has {count} labels, at most {LABELS_MAX}"));
        }
        Ok(labels)
    }

    pub(super) fn file(&self) -> &str {
        &self.submission.pipeline.file
    }

    pub(super) fn value(
        &self,
        what: &str,
        text: &Text,
        contexts: &Contexts,
    ) -> Result<Value, String> {
        interpolate(&text.value, contexts, &Nothing)
            .map_err(|error| format!("{}: `{what}`: {error}", place(self.file(), text)))
    }

    /// `None` where the expression comes to nothing.
    pub(super) fn boolean(
        &self,
        what: &str,
        text: &Text,
        contexts: &Contexts,
    ) -> Result<Option<bool>, String> {
        let value = self.value(what, text, contexts)?;
        match value.to_text().as_str() {
            "" => Ok(None),
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            other => {
                let place = place(self.file(), text);
                Err(format!("{place}: `{what}` is `{other}`, want `true` or `false`"))
            }
        }
    }

    /// `None` where the expression comes to nothing.
    fn number(&self, what: &str, text: &Text, contexts: &Contexts) -> Result<Option<f64>, String> {
        let value = self.value(what, text, contexts)?;
        if value.to_text().trim().is_empty() {
            return Ok(None);
        }
        let number = Value::string(value.to_text()).to_number();
        if number.is_nan() {
            let place = place(self.file(), text);
            return Err(format!("{place}: `{what}` is `{}`, want a number", value.to_text()));
        }
        Ok(Some(number))
    }

    /// A part of the matrix, evaluated.
    fn node(&self, node: &Node, contexts: &Contexts) -> Result<Value, String> {
        match node {
            Node::Literal(value, _) => Ok(Value::from_json(value)),
            Node::String(text) => self.value("matrix", text, contexts),
            Node::Sequence(items, _) => {
                let items: Result<_, _> =
                    items.iter().map(|item| self.node(item, contexts)).collect();
                Ok(Value::array(items?))
            }
            Node::Mapping(members, _) => {
                let mut object = Object::new();
                for (key, value) in members {
                    object.insert(&key.value, self.node(value, contexts)?);
                }
                Ok(Value::object(object))
            }
        }
    }
}

/// Nothing is known of status or files where a job is planned but its `if`.
struct Nothing;

impl World for Nothing {
    fn status(&self) -> Status {
        Status::Success
    }

    fn hash_files(&self, _: &[String]) -> Result<String, String> {
        Err("`hashFiles` needs the files, which only a step has".to_owned())
    }
}

fn literal_name(job: &Job) -> &str {
    let literal = job.name.as_ref().map(|name| name.value.as_str());
    literal.filter(|name| !name.is_empty() && !has_expression(name)).unwrap_or(&job.key)
}

/// A string, an array of them, or an object with `group` and `labels`.
fn collect_labels(value: &Value, labels: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.items().iter().for_each(|item| labels.push(item.to_text())),
        Value::Object(object) => {
            if let Some(group) = object.get("group") {
                labels.push(format!("{GROUP_PREFIX}{}", group.to_text()));
            }
            if let Some(inner) = object.get("labels") {
                match inner {
                    Value::Array(items) => {
                        items.items().iter().for_each(|item| labels.push(item.to_text()));
                    }
                    other => labels.push(other.to_text()),
                }
            }
        }
        Value::Null => (),
        other => labels.push(other.to_text()),
    }
}

/// A text that evaluates to itself, whatever is in it.
fn verbatim(value: &str) -> String {
    if has_expression(value) {
        format!("${{{{ '{}' }}}}", value.replace('\'', "''"))
    } else {
        value.to_owned()
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn whole(number: f64) -> u32 {
    number.clamp(0.0, f64::from(u32::MAX)) as u32
}

fn position(node: &Node) -> &Text {
    match node {
        Node::Literal(_, text)
        | Node::String(text)
        | Node::Sequence(_, text)
        | Node::Mapping(_, text) => text,
    }
}

/// `FILE:LINE:COLUMN`, as diagnostics write it.
pub(super) fn place(file: &str, text: &Text) -> String {
    if text.line == 0 { file.to_owned() } else { format!("{file}:{}:{}", text.line, text.column) }
}
