//! What a job knows while its steps run: contexts, environment, how it goes.

use std::collections::BTreeMap;

use steading_model::{Conclusion, FailureClass};
use steading_pipeline::expression::{self, Contexts, Object, Status, Value, World};
use steading_pipeline::job::{EnvLayer, JobSpec, Text};

use super::effects::{Effects, FILES};
use super::hash_files::hash_files;
use super::mask::Secrets;
use crate::workspace::Workspace;

/// Members of the `github` context that become GITHUB_ variables.
const GITHUB_VARIABLES: [&str; 31] = [
    "action",
    "action_path",
    "action_ref",
    "action_repository",
    "actor",
    "actor_id",
    "api_url",
    "base_ref",
    "event_name",
    "event_path",
    "graphql_url",
    "head_ref",
    "job",
    "ref",
    "ref_name",
    "ref_protected",
    "ref_type",
    "repository",
    "repository_id",
    "repository_owner",
    "repository_owner_id",
    "retention_days",
    "run_attempt",
    "run_id",
    "run_number",
    "server_url",
    "sha",
    "triggering_actor",
    "workflow",
    "workflow_ref",
    "workflow_sha",
];

/// Why a text of the pipeline has no value. The step fails with it.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub(super) struct TextError {
    file: String,
    line: u32,
    column: u32,
    message: String,
}

/// The knowledge of one job.
#[derive(Debug)]
pub(super) struct JobState<'a> {
    pub(super) spec: &'a JobSpec,
    pub(super) workspace: &'a Workspace,
    pub(super) secrets: Secrets,
    pub(super) status: Status,
    /// Of the workflow, the job and GITHUB_ENV.
    pub(super) env: BTreeMap<String, String>,
    /// What GITHUB_PATH put in front, first comes first.
    pub(super) path: Vec<String>,
    contexts: Contexts,
    github: Object,
    steps: Object,
}

/// How the expression functions of a step see the world.
struct StepWorld<'a> {
    status: Status,
    workspace: &'a Workspace,
}

impl World for StepWorld<'_> {
    fn status(&self) -> Status {
        self.status
    }

    fn hash_files(&self, patterns: &[String]) -> Result<String, String> {
        hash_files(&self.workspace.dir(), patterns)
    }
}

impl<'a> JobState<'a> {
    /// The state before the first step, without the job's `env`.
    pub(super) fn new(
        spec: &'a JobSpec,
        workspace: &'a Workspace,
        secrets: Secrets,
        secret_values: &BTreeMap<String, String>,
        runner: &BTreeMap<String, String>,
    ) -> Self {
        let mut contexts = Contexts::from_json(&spec.contexts);
        contexts.set("secrets", Value::strings(secret_values));
        contexts.set("runner", Value::strings(runner));
        for name in ["needs", "strategy", "matrix", "inputs", "vars"] {
            if contexts.get(name).is_none() {
                contexts.set(name, Value::object(Object::new()));
            }
        }
        let mut github = Object::new();
        if let Some(Value::Object(given)) = contexts.get("github") {
            for (name, value) in given.entries() {
                github.insert(name, value.clone());
            }
        }
        github.insert("workspace", Value::string(path_text(&workspace.dir())));
        github.insert("event_path", Value::string(path_text(&workspace.shared_file("event.json"))));
        github.insert("job", Value::string(spec.key.as_str()));
        for (_, member, file) in FILES {
            github.insert(member, Value::string(path_text(&workspace.shared_file(file))));
        }
        Self {
            spec,
            workspace,
            secrets,
            status: Status::Success,
            env: BTreeMap::new(),
            path: Vec::new(),
            contexts,
            github,
            steps: Object::new(),
        }
    }

    /// Evaluates the job's own `env`, one layer after the other.
    pub(super) fn set_job_env(&mut self) -> Result<(), TextError> {
        for layer in &self.spec.env {
            let env = std::mem::take(&mut self.env);
            self.env = self.with_layer(env, layer, "")?;
        }
        Ok(())
    }

    /// The environment of a step: the job's, and the step's own over it.
    pub(super) fn step_env(
        &self,
        layer: &EnvLayer,
        id: &str,
    ) -> Result<BTreeMap<String, String>, TextError> {
        self.with_layer(self.env.clone(), layer, id)
    }

    fn with_layer(
        &self,
        mut env: BTreeMap<String, String>,
        layer: &EnvLayer,
        id: &str,
    ) -> Result<BTreeMap<String, String>, TextError> {
        if layer.is_empty() {
            return Ok(env);
        }
        // Within a layer, values see the layers before it and not each other.
        let contexts = layer
            .iter()
            .any(|(_, text)| is_expression(&text.value))
            .then(|| self.contexts(&env, id));
        for (name, text) in layer {
            let value = match &contexts {
                Some(contexts) => self.text(text, contexts)?,
                None => text.value.clone(),
            };
            env.insert(name.clone(), value);
        }
        Ok(env)
    }

    /// All contexts, as the step `id` sees them with this environment.
    pub(super) fn contexts(&self, env: &BTreeMap<String, String>, id: &str) -> Contexts {
        let mut contexts = self.contexts.clone();
        let mut variables = Object::case_sensitive();
        for (name, value) in env {
            variables.insert(name, Value::string(value.as_str()));
        }
        contexts.set("env", Value::object(variables));
        let mut github = self.github.clone();
        github.insert("action", Value::string(id));
        contexts.set("github", Value::object(github));
        contexts.set("steps", Value::object(self.steps.clone()));
        contexts.set("job", Value::strings([("status", status_word(self.status))]));
        contexts
    }

    /// The value of a text as a string.
    pub(super) fn text(&self, text: &Text, contexts: &Contexts) -> Result<String, TextError> {
        if !is_expression(&text.value) {
            return Ok(text.value.clone());
        }
        Ok(self.value(text, contexts)?.to_text())
    }

    /// The value of a text.
    pub(super) fn value(&self, text: &Text, contexts: &Contexts) -> Result<Value, TextError> {
        expression::interpolate(&text.value, contexts, &self.world(self.status))
            .map_err(|error| self.error(text, &error.to_string()))
    }

    /// Whether the step's `if` lets it run, were the job in `status`.
    pub(super) fn condition(
        &self,
        condition: Option<&Text>,
        status: Status,
        contexts: &Contexts,
    ) -> Result<bool, TextError> {
        match condition {
            None => Ok(status == Status::Success),
            Some(text) if text.value.trim().is_empty() => Ok(status == Status::Success),
            Some(text) => expression::condition(&text.value, contexts, &self.world(status))
                .map_err(|error| self.error(text, &error.to_string())),
        }
    }

    /// An error at the place of a text.
    pub(super) fn error(&self, text: &Text, message: &str) -> TextError {
        TextError {
            file: self.spec.file.clone(),
            line: text.line,
            column: text.column,
            message: message.to_owned(),
        }
    }

    /// What GITHUB_ variables a step gets.
    pub(super) fn github_variables(&self, id: &str) -> Vec<(String, String)> {
        let mut variables = Vec::with_capacity(GITHUB_VARIABLES.len() + FILES.len() + 4);
        for name in GITHUB_VARIABLES {
            let value = match self.github.get(name) {
                _ if name == "action" => id.to_owned(),
                Some(Value::Null) | None => continue,
                Some(value) => value.to_text(),
            };
            variables.push((format!("GITHUB_{}", name.to_ascii_uppercase()), value));
        }
        for (variable, _, file) in FILES {
            variables.push((variable.to_owned(), path_text(&self.workspace.shared_file(file))));
        }
        variables.push(("GITHUB_WORKSPACE".to_owned(), path_text(&self.workspace.dir())));
        variables.push(("GITHUB_ACTIONS".to_owned(), "true".to_owned()));
        variables
    }

    /// A member of the `github` context that is a text, and not empty.
    pub(super) fn github_member(&self, name: &str) -> Option<String> {
        match self.github.get(name) {
            Some(Value::String(text)) if !text.is_empty() => Some(text.to_string()),
            _ => None,
        }
    }

    /// Takes over what a step left for those after it.
    pub(super) fn apply(&mut self, effects: &Effects) {
        self.env.extend(effects.env.iter().cloned());
        effects.prepend_to(&mut self.path);
    }

    /// Records how a step ended.
    pub(super) fn ended(
        &mut self,
        id: &str,
        outputs: &BTreeMap<String, String>,
        outcome: Conclusion,
        conclusion: Conclusion,
    ) {
        let mut step = Object::new();
        step.insert("outputs", Value::strings(outputs));
        step.insert("outcome", Value::string(outcome.as_str()));
        step.insert("conclusion", Value::string(conclusion.as_str()));
        self.steps.insert(id, Value::object(step));
        if conclusion == Conclusion::Failure && self.status == Status::Success {
            self.status = Status::Failure;
        }
    }

    fn world(&self, status: Status) -> StepWorld<'_> {
        StepWorld { status, workspace: self.workspace }
    }
}

/// How an attempt ends whose steps ended so.
pub(super) fn conclusion_of(status: Status) -> (Conclusion, Option<FailureClass>) {
    match status {
        Status::Success => (Conclusion::Success, None),
        Status::Failure => (Conclusion::Failure, Some(FailureClass::User)),
        Status::Cancelled => (Conclusion::Cancelled, Some(FailureClass::Cancelled)),
    }
}

fn status_word(status: Status) -> &'static str {
    match status {
        Status::Success => "success",
        Status::Failure => "failure",
        Status::Cancelled => "cancelled",
    }
}

fn is_expression(text: &str) -> bool {
    text.contains("${{")
}

pub(super) fn path_text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}
