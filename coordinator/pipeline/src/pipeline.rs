//! A pipeline as it was parsed and validated.

use steading_model::{Resources, Spot};

use crate::job::{EnvLayer, StepSpec, Text};

/// A parsed, validated pipeline.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pipeline {
    /// The file it was read from, for messages.
    pub file: String,
    pub name: Option<String>,
    pub run_name: Option<Text>,
    pub on: Vec<Trigger>,
    pub env: EnvLayer,
    pub defaults: Defaults,
    /// In the order of the file.
    pub jobs: Vec<Job>,
    /// Larger first; 0 unless said.
    pub priority: i32,
    pub concurrency: Option<Concurrency>,
}

impl Pipeline {
    /// What to call it: its name, or the file's.
    pub fn title(&self) -> &str {
        self.name.as_deref().filter(|name| !name.is_empty()).unwrap_or(&self.file)
    }

    /// The job of this key; keys differ in more than case.
    pub fn job(&self, key: &str) -> Option<&Job> {
        self.jobs.iter().find(|job| job.key.eq_ignore_ascii_case(key))
    }

    /// Whether the pipeline says `on: EVENT`.
    pub fn listens_to(&self, event: &str) -> bool {
        self.on.iter().any(|trigger| trigger.event == event)
    }

    /// The inputs that `event` takes, `workflow_dispatch` or `workflow_call`.
    pub fn inputs(&self, event: &str) -> &[Input] {
        self.on.iter().find(|trigger| trigger.event == event).map_or(&[], |t| &t.inputs)
    }
}

/// `concurrency:`. The group's expression may also give an object of these fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Concurrency {
    pub group: Text,
    pub cancel_in_progress: Option<Text>,
    /// `queue: max`: all who wait stay in line.
    pub queue_all: bool,
}

/// One event under `on:`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trigger {
    pub event: String,
    /// `branches`, `paths-ignore`, `types`, `cron` and their kin.
    pub filters: Vec<EventFilter>,
    pub inputs: Vec<Input>,
    /// `workflow_call` only: names, and whether they are required.
    pub secrets: Vec<(String, bool)>,
    pub line: u32,
    pub column: u32,
}

/// One filter of a trigger, patterns in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    pub name: String,
    pub patterns: Vec<String>,
}

/// A declared input.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    pub name: String,
    pub description: String,
    pub kind: InputKind,
    pub required: bool,
    pub default: Option<serde_json::Value>,
    /// Of `choice`.
    pub options: Vec<String>,
}

/// Type of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    String,
    Boolean,
    Number,
    Choice,
    Environment,
}

/// `defaults.run`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    pub shell: Option<Text>,
    pub working_directory: Option<Text>,
}

/// One entry under `jobs:`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Job {
    pub key: String,
    pub name: Option<Text>,
    pub needs: Vec<Need>,
    pub condition: Option<Text>,
    pub runs_on: RunsOn,
    pub strategy: Strategy,
    pub env: EnvLayer,
    pub defaults: Defaults,
    pub outputs: Vec<(String, Text)>,
    pub timeout_minutes: Option<Text>,
    pub continue_on_error: Option<Text>,
    pub steps: Vec<StepSpec>,
    pub resources: Resources,
    pub priority: Option<i32>,
    pub concurrency: Option<Concurrency>,
    pub spot: Option<Spot>,
    /// By when the job should have ended, milliseconds from when it could start.
    pub deadline_ms: Option<u64>,
    /// How often the job is tried again after a failure of its own.
    pub retries: Option<u32>,
    pub line: u32,
    pub column: u32,
}

/// One entry of `needs:`, with the spelling of the needed job's own key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub key: String,
    pub line: u32,
    pub column: u32,
}

/// `runs-on:`. Each label may be an expression; one that gives an array gives several labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunsOn {
    pub labels: Vec<Text>,
    pub group: Option<Text>,
}

/// `strategy:`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strategy {
    pub matrix: Option<Node>,
    pub fail_fast: Option<Text>,
    pub max_parallel: Option<Text>,
}

/// A value of the file that may hold expressions in any place.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Null, a boolean or a number, as YAML reads it.
    Literal(serde_json::Value, Text),
    /// A string, with or without `${{ }}`.
    String(Text),
    Sequence(Vec<Node>, Text),
    /// Keys are literal. In the order of the file.
    Mapping(Vec<(Text, Node)>, Text),
}
