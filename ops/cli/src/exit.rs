//! How the command ends, as a program that called it sees it.

use std::process::ExitCode;

/// How a verb ended that did what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Done, and the run, if there is one, succeeded.
    Success,
    /// The pipeline failed, or someone else cancelled it.
    RunFailed,
    /// A person or the system asked this process to stop.
    Interrupted,
}

/// Why a verb could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The caller's mistake: bad usage, a bad pipeline, a run that does not exist.
    #[error("{0:#}")]
    Usage(anyhow::Error),
    /// The caller's mistake, and everything about it has been printed already.
    #[error("bad usage, as printed above")]
    Printed,
    /// The farm's own fault, or this machine's.
    #[error("{0:#}")]
    Farm(anyhow::Error),
}

/// What is not known to be the caller's mistake is the farm's fault.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Farm(error)
    }
}

impl Failure {
    /// The caller's mistake, told in one sentence.
    pub fn usage(message: impl std::fmt::Display) -> Self {
        Self::Usage(anyhow::Error::msg(message.to_string()))
    }
}

/// The exit code of a verb's end, its error printed: 0 success, 1 the pipeline
/// failed, 2 bad usage or bad pipeline, 3 the farm's own fault, 130 interrupted.
pub fn code(outcome: Result<Ended, Failure>) -> ExitCode {
    ExitCode::from(match outcome {
        Ok(Ended::Success) => 0,
        Ok(Ended::RunFailed) => 1,
        Ok(Ended::Interrupted) => INTERRUPTED,
        Err(Failure::Printed) => 2,
        Err(failure @ Failure::Usage(_)) => {
            eprintln!("error: {failure}");
            2
        }
        Err(failure @ Failure::Farm(_)) => {
            eprintln!("error: {failure}");
            3
        }
    })
}

/// 128 + SIGINT, as shells count.
pub const INTERRUPTED: u8 = 130;
