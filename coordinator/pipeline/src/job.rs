//! What an agent is told of a job, and what it tells back: JSON documents in the
//! CAS, written by the planner and read by the agent (and the other way round).
//!
//! Additive: a reader ignores members that it does not know, and every member
//! that a later version adds has a default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use steading_model::{Conclusion, FailureClass};

/// The language as this version understands it. A run keeps the dialect that it
/// was planned with.
pub const DIALECT: &str = "2026-08";

/// A scalar of the pipeline as it was written, and where. What holds `${{ }}` is
/// evaluated where its contexts are known: most of a job only on the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    pub value: String,
    /// From 1; 0 where it was not written but computed.
    #[serde(default)]
    pub line: u32,
    #[serde(default)]
    pub column: u32,
}

/// One job for one agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    pub dialect: String,
    /// The pipeline's file, for messages about positions in it.
    pub file: String,
    /// The key under `jobs:`.
    pub key: String,
    /// For people.
    pub name: String,
    /// Root `Directory` of the source in the CAS, `HASH/SIZE`.
    pub source: String,
    /// Contexts that are known before the job starts: `github`, `needs`, `strategy`,
    /// `matrix`, `inputs`, `vars`. An object.
    pub contexts: serde_json::Value,
    /// The workflow's `env`, then the submission's, then the job's: later wins. In order.
    pub env: Vec<EnvLayer>,
    pub steps: Vec<StepSpec>,
    /// The job's `outputs:`.
    #[serde(default)]
    pub outputs: Vec<(String, Text)>,
    /// `defaults.run` of job over workflow.
    #[serde(default)]
    pub default_shell: Option<Text>,
    #[serde(default)]
    pub default_working_directory: Option<Text>,
    /// Milliseconds.
    pub timeout_ms: u64,
    /// What it asks for of the machine, and may not use more of: thousandths of a core, MiB.
    /// 0: it does not say.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cpu_milli: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub memory_mib: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Variables of one `env:`. A layer's values may use the layers before it.
pub type EnvLayer = Vec<(String, Text)>;

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepSpec {
    /// As written, or made up (`__run`, `__actions_checkout`, `__run_2`).
    pub id: String,
    #[serde(default)]
    pub name: Option<Text>,
    /// Without the implied `success()`; see [`crate::expression::condition`].
    #[serde(default, rename = "if")]
    pub condition: Option<Text>,
    #[serde(flatten)]
    pub kind: StepKind,
    #[serde(default)]
    pub env: EnvLayer,
    #[serde(default)]
    pub continue_on_error: Option<Text>,
    #[serde(default)]
    pub timeout_minutes: Option<Text>,
    #[serde(default)]
    pub cache: Option<CacheSpec>,
    /// Of the step, from 1.
    #[serde(default)]
    pub line: u32,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    Run {
        script: Text,
        #[serde(default)]
        shell: Option<Text>,
        #[serde(default)]
        working_directory: Option<Text>,
    },
    Uses {
        action: String,
        #[serde(default)]
        with: Vec<(String, Text)>,
    },
}

/// `x-steading: {cache: …}` of a step. `cache: true` is `whole`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheSpec {
    /// Input is the whole workspace but `.git`, output the whole workspace afterwards.
    #[serde(default)]
    pub whole: bool,
    /// Glob patterns relative to the workspace, `!` excludes.
    #[serde(default)]
    pub inputs: Vec<String>,
    /// Likewise; `?` before a pattern: may be missing.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// GITHUB_ and RUNNER_ variables that the step reads; they join the key.
    #[serde(default)]
    pub env: Vec<String>,
    /// Absolute paths outside the workspace whose content joins the key.
    #[serde(default)]
    pub tools: Vec<String>,
    /// Secrets that the step uses.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// The step uses the network; its result is believed for so many seconds.
    #[serde(default)]
    pub network_max_age_s: Option<u64>,
    /// A write outside the outputs fails the step.
    #[serde(default)]
    pub strict: bool,
}

/// What an attempt left, besides its exit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// The job's outputs, masked values left out.
    #[serde(default)]
    pub outputs: BTreeMap<String, String>,
    #[serde(default)]
    pub steps: Vec<StepResult>,
    #[serde(default)]
    pub annotations: Vec<Annotation>,
    /// What steps wrote to GITHUB_STEP_SUMMARY, in step order.
    #[serde(default)]
    pub summary: String,
    /// Complete logs, one blob per stream, as `HASH/SIZE`.
    #[serde(default)]
    pub logs: BTreeMap<u32, String>,
}

/// How one step ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepResult {
    pub id: String,
    pub name: String,
    /// Before `continue-on-error`: success, failure, cancelled or skipped.
    pub outcome: String,
    /// After it.
    pub conclusion: String,
    /// Position among the job's steps; also its log stream.
    pub index: u32,
    #[serde(default)]
    pub exit_code: Option<i32>,
    #[serde(default)]
    pub signal: Option<i32>,
    /// Declares a cache.
    #[serde(default)]
    pub cacheable: bool,
    /// Its result came from the cache.
    #[serde(default)]
    pub cached: bool,
    /// Why it did not succeed, or what to know of it.
    #[serde(default)]
    pub message: String,
    /// Why a timeout is no failure of the user's.
    #[serde(default)]
    pub failure_class: Option<String>,
    /// Workspace files that the output of a failed cached step names but its inputs do not.
    #[serde(default)]
    pub undeclared: Vec<String>,
    /// Milliseconds since the Unix epoch.
    #[serde(default)]
    pub started_ms: u64,
    #[serde(default)]
    pub finished_ms: u64,
    /// Of the REAPI `Action`, of cacheable steps.
    #[serde(default)]
    pub action: String,
}

/// An `::error::`, `::warning::` or `::notice::`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotation {
    /// error, warning or notice.
    pub level: String,
    pub message: String,
    #[serde(default)]
    pub title: Option<String>,
    #[serde(default)]
    pub file: Option<String>,
    #[serde(default)]
    pub line: Option<u32>,
    #[serde(default)]
    pub column: Option<u32>,
    /// Position of the step.
    #[serde(default)]
    pub step: u32,
}

/// One leg of a job key that has ended, as the planner sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct EndedJob {
    pub leg: u32,
    pub conclusion: Conclusion,
    pub class: Option<FailureClass>,
    pub continue_on_error: bool,
    pub outputs: BTreeMap<String, String>,
}
