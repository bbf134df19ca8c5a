//! Cached steps: hermetic commands whose results are kept under the digest of
//! all that they depend on.
//!
//! [`run`] is the way in: it makes the key ([`key`]), looks it up, claims what is
//! missing, executes it in the sandbox ([`execute`]), keeps what it gave ([`result`]),
//! and applies a result to the workspace, the same way whether it was found or made.

mod claim;
mod execute;
mod isolation;
mod key;
mod layer;
pub mod platform;
mod result;
mod run;
mod scan;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use steading_cas::client::{Actions, ActionsError};
use steading_cas::tree::{PatternError, TreeError};
use steading_cas::{Blobs, BlobsError};
use steading_model::Digest;
use steading_pipeline::job::CacheSpec;

pub use claim::Claims;
pub use isolation::Isolation;
use platform::{Platform, PlatformError};
pub use run::run;

use crate::process::{Exit, SupervisorError};
use crate::supervisor::Supervisor;

/// How long a result waits for a coordinator that is away, to be kept or to be fetched.
/// The job cannot end without the coordinator either, and a result that is given up is
/// made a second time.
const AWAY_WAIT: Duration = Duration::from_secs(120);

/// What a cached step is run with: the agent's side.
#[derive(Debug)]
pub struct Context<'a> {
    /// Needs a local store.
    pub blobs: &'a Blobs,
    pub actions: &'a Actions,
    /// None: whoever misses executes.
    pub claims: Option<Claims>,
    pub supervisor: &'a mut Supervisor,
    pub platform: &'a Arc<Platform>,
    /// How to start this program again, without the sub-command.
    pub program: &'a [String],
    /// A folder that nobody else uses; made and removed here.
    pub scratch: &'a Path,
    /// The agent's name, for the result's records.
    pub agent: &'a str,
}

/// What a cached step is: the job's side.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub spec: &'a CacheSpec,
    pub script: &'a str,
    /// Arguments with `{0}` for the script's path.
    pub shell: &'a [String],
    /// Of workflow, job and step, and what earlier steps put into GITHUB_ENV. GITHUB_ and
    /// RUNNER_ variables may be in it: only those that `cache.env` names are passed on.
    pub env: &'a BTreeMap<String, String>,
    /// What earlier steps put into GITHUB_PATH, last added first.
    pub path_prefix: &'a [String],
    /// Within the workspace; empty for the workspace itself.
    pub working_directory: &'a str,
    pub workspace: &'a Path,
    /// Who owns what is written into the workspace; none: the agent's own user.
    pub owner: Option<(u32, u32)>,
    /// All of the job's, to find them where they must not be.
    pub secrets: &'a BTreeMap<String, String>,
    /// Whose results these are: REAPI's instance name.
    pub scope: &'a str,
    pub timeout: Option<Duration>,
}

/// A request that borrows nothing, to be worked on by another thread.
struct OwnedRequest {
    spec: CacheSpec,
    script: String,
    shell: Vec<String>,
    env: BTreeMap<String, String>,
    path_prefix: Vec<String>,
    working_directory: String,
    workspace: PathBuf,
    owner: Option<(u32, u32)>,
    secrets: BTreeMap<String, String>,
    scope: String,
    timeout: Option<Duration>,
}

impl Request<'_> {
    fn detached(self) -> OwnedRequest {
        OwnedRequest {
            spec: self.spec.clone(),
            script: self.script.to_owned(),
            shell: self.shell.to_vec(),
            env: self.env.clone(),
            path_prefix: self.path_prefix.to_vec(),
            working_directory: self.working_directory.to_owned(),
            workspace: self.workspace.to_owned(),
            owner: self.owner,
            secrets: self.secrets.clone(),
            scope: self.scope.to_owned(),
            timeout: self.timeout,
        }
    }
}

impl OwnedRequest {
    fn as_request(&self) -> Request<'_> {
        Request {
            spec: &self.spec,
            script: &self.script,
            shell: &self.shell,
            env: &self.env,
            path_prefix: &self.path_prefix,
            working_directory: &self.working_directory,
            workspace: &self.workspace,
            owner: self.owner,
            secrets: &self.secrets,
            scope: &self.scope,
            timeout: self.timeout,
        }
    }
}

/// How a cached step ended. Its outputs are in the workspace.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The result was found, not made here.
    pub cached: bool,
    pub exit: Exit,
    /// Why the step failed though its command did not: a missing output, a write outside
    /// of the outputs under `strict`, a secret in an output.
    pub failure: Option<String>,
    pub effects: SideEffects,
    /// After a failure: files of the workspace that its output names but `inputs` do not.
    pub undeclared: Vec<String>,
    /// What it wrote or removed outside of its outputs; undone.
    pub dropped: Vec<String>,
    pub isolation: Isolation,
    /// Of the REAPI `Action`.
    pub action: Digest,
    /// What people should know, a line each: why the result is not kept, say.
    pub notes: Vec<String>,
}

impl Ran {
    /// The step succeeded.
    pub fn succeeded(&self) -> bool {
        self.exit.succeeded() && self.failure.is_none()
    }
}

/// What a step told its job, as files in the form that GitHub gives them. Paths in the
/// workspace are this job's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SideEffects {
    pub output: Vec<u8>,
    pub env: Vec<u8>,
    pub path: Vec<u8>,
    pub state: Vec<u8>,
    pub summary: Vec<u8>,
}

/// Why a cached step could not be run. A cache that fails is no reason: then the step
/// is executed and its result not kept.
#[derive(Debug, thiserror::Error)]
pub enum CachedError {
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Blobs(#[from] BlobsError),
    #[error(transparent)]
    Actions(#[from] ActionsError),
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    #[error(
        "the secret `{name}` is in the {place} of a cached step: its result would be kept for all \
         who may read the cache; name it in `cache.secrets` and pass it through `env`, or do not \
         cache the step"
    )]
    Secret { name: String, place: &'static str },
    #[error("`{0}` in `cache.secrets` is no secret of this job")]
    NoSuchSecret(String),
    #[error("the working directory `{0}` of a cached step is not a path within the workspace")]
    WorkingDirectory(String),
    #[error("the sandbox cannot be made: {0}")]
    Sandbox(String),
    #[error("cannot {what} `{path}`")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl CachedError {
    /// Whether trying again may help: the coordinator is away.
    fn is_transient(&self) -> bool {
        match self {
            Self::Blobs(error) => error.is_transient(),
            Self::Actions(error) => error.is_transient(),
            _ => false,
        }
    }
}

fn io_error(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> CachedError {
    move |source| CachedError::Io { what, path: path.into(), source }
}
