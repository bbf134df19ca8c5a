//! What is leased, what it needs, and how it ended.

use std::fmt;
use std::str::FromStr;

use crate::codec::{record, variants};
use crate::ids::JobId;

/// One piece of leasable work: a job's attempt. Later also a bare action, which
/// is why the job id is not used in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work {
    pub job: JobId,
    /// Counted from 1, over all reasons for another try.
    pub attempt: u32,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.job, self.attempt)
    }
}

record! { Work { job, attempt } }

/// How a job, a step or a run ended, in the words of the workflow language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Conclusion {
    Success,
    Failure,
    Cancelled,
    Skipped,
}

variants! { Conclusion { 0 = Success, 1 = Failure, 2 = Cancelled, 3 = Skipped } }

impl Conclusion {
    /// The word that expressions and `--json` use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }
}

impl fmt::Display for Conclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word is none of success, failure, cancelled, skipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no conclusion: want success, failure, cancelled or skipped")]
pub struct ParseConclusionError(String);

impl FromStr for Conclusion {
    type Err = ParseConclusionError;

    fn from_str(text: &str) -> Result<Self, ParseConclusionError> {
        match text {
            "success" => Ok(Self::Success),
            "failure" => Ok(Self::Failure),
            "cancelled" => Ok(Self::Cancelled),
            "skipped" => Ok(Self::Skipped),
            _ => Err(ParseConclusionError(text.to_owned())),
        }
    }
}

/// Why an attempt did not succeed. Data, not an error: it decides whether
/// another attempt is made, and whose budget that attempt uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureClass {
    /// A step failed: the user's own doing.
    User,
    /// The job's or a step's time was over.
    Timeout,
    /// Somebody cancelled, or a sibling's failure did.
    Cancelled,
    /// The agent died, or fell silent for longer than its lease.
    AgentLost,
    /// The agent's machine was taken away, with notice.
    Preempted,
    /// The job's image could not be had.
    ImagePull,
    /// A blob that the job needs could not be had.
    Cache,
    /// The job asks for what this agent cannot do.
    Config,
    /// The job used more memory than it may.
    Oom,
}

variants! { FailureClass {
    0 = User, 1 = Timeout, 2 = Cancelled, 3 = AgentLost, 4 = Preempted,
    5 = ImagePull, 6 = Cache, 7 = Config, 8 = Oom,
} }

impl FailureClass {
    /// Whether the farm tries again by itself, without using the user's attempts.
    pub const fn is_infrastructure(self) -> bool {
        match self {
            Self::AgentLost | Self::Preempted | Self::ImagePull | Self::Cache => true,
            Self::User | Self::Timeout | Self::Cancelled | Self::Config | Self::Oom => false,
        }
    }

    /// The name in messages and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::AgentLost => "agent_lost",
            Self::Preempted => "preempted",
            Self::ImagePull => "image_pull",
            Self::Cache => "cache",
            Self::Config => "config",
            Self::Oom => "oom",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a pool's machines may be taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provisioning {
    #[default]
    OnDemand,
    Spot,
}

variants! { Provisioning { 0 = OnDemand, 1 = Spot } }

/// What a job thinks of machines that may be taken away. A job that says nothing runs
/// wherever there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Spot {
    /// There first, elsewhere where they have no room.
    Prefer,
    /// There or nowhere.
    Only,
    /// Anywhere else.
    Never,
}

variants! { Spot { 0 = Prefer, 1 = Only, 2 = Never } }

impl Spot {
    /// The word of the pipeline language.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prefer => "prefer",
            Self::Only => "only",
            Self::Never => "never",
        }
    }

    /// Whether a job that says this can run on such a machine.
    pub const fn admits(self, provisioning: Provisioning) -> bool {
        match (self, provisioning) {
            (Self::Prefer, _)
            | (Self::Only, Provisioning::Spot)
            | (Self::Never, Provisioning::OnDemand) => true,
            (Self::Only, Provisioning::OnDemand) | (Self::Never, Provisioning::Spot) => false,
        }
    }
}

/// What a job takes of an agent, and what an agent has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_milli: u32,
    /// MiB.
    pub memory_mib: u32,
}

record! { Resources { cpu_milli, memory_mib } }

impl Resources {
    /// Whether `self` fits into `room`, in every dimension.
    pub const fn fits(self, room: Self) -> bool {
        self.cpu_milli <= room.cpu_milli && self.memory_mib <= room.memory_mib
    }

    /// Adds, saturating.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
        }
    }

    /// Subtracts, down to zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
        }
    }
}

/// How many steps of an attempt ran, for summaries that need not read its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCounts {
    /// Steps that ran, cacheable or not.
    pub executed: u32,
    /// Steps whose result came from the cache.
    pub cached: u32,
    /// Steps whose `if` said no.
    pub skipped: u32,
    /// Of the executed ones, those that declare a cache.
    pub cacheable_executed: u32,
}

record! { StepCounts { executed, cached, skipped, cacheable_executed } }

impl StepCounts {
    /// Adds, saturating.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            executed: self.executed.saturating_add(other.executed),
            cached: self.cached.saturating_add(other.cached),
            skipped: self.skipped.saturating_add(other.skipped),
            cacheable_executed: self.cacheable_executed.saturating_add(other.cacheable_executed),
        }
    }
}
