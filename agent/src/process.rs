//! What it takes to run one process under a supervisor, and how it ended.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One process to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program, looked up in PATH of `env` where it has no `/`, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    /// User and group to run as; the supervisor's own where none.
    pub user: Option<(u32, u32)>,
    /// Then TERM, a grace, KILL. Time in which the tree is frozen does not count.
    pub timeout: Option<Duration>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// Its timeout was over before it ended.
    pub timed_out: bool,
    /// It was told to stop before it ended.
    pub cancelled: bool,
    /// The lease was over for so long that the whole tree was killed.
    pub fenced: bool,
    /// The kernel killed processes meanwhile for want of memory, of which there may be so
    /// much, MiB; 0: as much as there is.
    #[serde(default)]
    pub out_of_memory_mib: Option<u64>,
}

impl Exit {
    /// Exit code 0, by its own will.
    pub fn succeeded(&self) -> bool {
        self.code == Some(0) && !self.timed_out && !self.cancelled && !self.fenced
    }
}

/// Takes a process's output, standard output and standard error in one.
pub trait OutputSink: Send {
    /// Takes the next bytes. Must not block for long: the supervisor waits.
    fn write(&mut self, bytes: &[u8]);
}

impl OutputSink for Vec<u8> {
    fn write(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Why a process could not be run, or its end not be told.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("the supervisor process cannot be started as `{program}`")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{program}` cannot be started: {reason}")]
    NotStarted { program: String, reason: String },
    #[error("the supervisor process is gone")]
    Gone(#[source] std::io::Error),
    #[error("the supervisor process spoke out of turn: {what}")]
    Protocol { what: String },
}

impl From<std::io::Error> for SupervisorError {
    fn from(error: std::io::Error) -> Self {
        Self::Gone(error)
    }
}
