//! Which contexts and functions each key may use: the table of the pinned dialect.

use crate::expression::function::{Functions, StatusFunctions};

/// What the expressions of a key may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed {
    pub(super) contexts: &'static [&'static str],
    pub(super) functions: Functions,
}

const PLAIN: Functions = Functions { hash_files: false, status: StatusFunctions::None };
const FILES: Functions = Functions { hash_files: true, status: StatusFunctions::None };

const fn plain(contexts: &'static [&'static str]) -> Allowed {
    Allowed { contexts, functions: PLAIN }
}

/// `run-name`, `concurrency` of the workflow.
pub(super) const WORKFLOW: Allowed = plain(&["github", "inputs", "vars"]);
/// `env` of the workflow.
pub(super) const WORKFLOW_ENV: Allowed = plain(&["github", "inputs", "vars", "secrets"]);
/// `if` of a job. Evaluated before the matrix.
pub(super) const JOB_IF: Allowed = Allowed {
    contexts: &["github", "inputs", "vars", "needs"],
    functions: Functions { hash_files: false, status: StatusFunctions::Job },
};
/// `strategy`.
pub(super) const STRATEGY: Allowed = plain(&["github", "inputs", "vars", "needs"]);
/// `runs-on`, `name`, `timeout-minutes`, `continue-on-error`, `concurrency` of a job.
pub(super) const JOB: Allowed = plain(&["github", "inputs", "vars", "needs", "strategy", "matrix"]);
/// `env` of a job.
pub(super) const JOB_ENV: Allowed =
    plain(&["github", "inputs", "vars", "needs", "strategy", "matrix", "secrets"]);
/// `defaults.run` of a job.
pub(super) const JOB_DEFAULTS: Allowed =
    plain(&["github", "inputs", "vars", "strategy", "matrix", "needs", "env"]);
/// `outputs` of a job.
pub(super) const OUTPUTS: Allowed = plain(STEP_CONTEXTS);
/// Everything of a step but its `if`.
pub(super) const STEP: Allowed = Allowed { contexts: STEP_CONTEXTS, functions: FILES };
/// `if` of a step: no secrets.
pub(super) const STEP_IF: Allowed = Allowed {
    contexts: &[
        "github", "inputs", "vars", "needs", "strategy", "matrix", "steps", "job", "runner", "env",
    ],
    functions: Functions { hash_files: true, status: StatusFunctions::Step },
};
/// `default` of an input of `workflow_call`.
pub(super) const INPUT_DEFAULT: Allowed = plain(&["github", "inputs", "vars"]);
/// `value` of an output of `workflow_call`.
pub(super) const CALL_OUTPUT: Allowed = plain(&["github", "inputs", "vars", "jobs"]);

const STEP_CONTEXTS: &[&str] = &[
    "github", "inputs", "vars", "needs", "strategy", "matrix", "secrets", "steps", "job", "runner",
    "env",
];
