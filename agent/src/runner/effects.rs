//! What a step leaves for its job through files. Executed or replayed from the
//! cache, it is applied here and nowhere else.

use std::io;

use steading_model::limits::SUMMARY_BYTES_MAX;

use super::files::{FileError, parse_entries, parse_env, prepend_path};
use crate::workspace::Workspace;

/// The files of one step, as it left them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) env: Vec<u8>,
    pub(super) output: Vec<u8>,
    pub(super) path: Vec<u8>,
    pub(super) state: Vec<u8>,
    pub(super) summary: Vec<u8>,
}

/// Variable, name in the `github` context and name of the file.
pub(super) const FILES: [(&str, &str, &str); 5] = [
    ("GITHUB_ENV", "env", "set_env"),
    ("GITHUB_OUTPUT", "output", "set_output"),
    ("GITHUB_PATH", "path", "add_path"),
    ("GITHUB_STATE", "state", "save_state"),
    ("GITHUB_STEP_SUMMARY", "step_summary", "step_summary"),
];

impl Written {
    /// Makes the empty files.
    pub(super) fn prepare(workspace: &Workspace) -> io::Result<()> {
        for (_, _, file) in FILES {
            workspace.put_shared(file, b"", true)?;
        }
        Ok(())
    }

    /// Takes what the step left in them.
    pub(super) fn collect(workspace: &Workspace) -> io::Result<Self> {
        Ok(Self {
            env: workspace.take_shared("set_env")?,
            output: workspace.take_shared("set_output")?,
            path: workspace.take_shared("add_path")?,
            state: workspace.take_shared("save_state")?,
            summary: workspace.take_shared("step_summary")?,
        })
    }
}

/// The same, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    pub(super) env: Vec<(String, String)>,
    pub(super) output: Vec<(String, String)>,
    path: String,
    pub(super) summary: String,
    /// What could not be understood. Each fails the step; the other files count.
    pub(super) errors: Vec<String>,
}

impl Effects {
    pub(super) fn read(written: &Written) -> Self {
        let mut effects = Self { path: text(&written.path), ..Self::default() };
        match parse_env(&text(&written.env)) {
            Ok(env) => effects.env = env,
            Err(error) => effects.failed("GITHUB_ENV", &error),
        }
        match parse_entries(&text(&written.output)) {
            Ok(output) => effects.output = output,
            Err(error) => effects.failed("GITHUB_OUTPUT", &error),
        }
        if let Err(error) = parse_entries(&text(&written.state)) {
            effects.failed("GITHUB_STATE", &error);
        }
        if written.summary.len() > SUMMARY_BYTES_MAX {
            effects.errors.push(format!(
                "GITHUB_STEP_SUMMARY has {} bytes, at most {SUMMARY_BYTES_MAX} are kept: it is \
                 dropped",
                written.summary.len()
            ));
        } else {
            effects.summary = text(&written.summary);
        }
        effects
    }

    /// Puts GITHUB_PATH's entries in front of `path`.
    pub(super) fn prepend_to(&self, path: &mut Vec<String>) {
        prepend_path(path, &self.path);
    }

    fn failed(&mut self, file: &str, error: &FileError) {
        self.errors.push(format!("{file}: {error}"));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
