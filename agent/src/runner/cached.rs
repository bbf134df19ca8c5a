//! Steps that declare a cache. What comes back is applied like what a step leaves that
//! was executed here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use steading_cas::client::Actions;
use steading_model::FailureClass;
use steading_pipeline::job::CacheSpec;
use tokio_util::sync::CancellationToken;

use super::Host;
use super::effects::Written;
use super::output::StepOutput;
use super::state::JobState;
use super::step::{Executed, Given, Script, StepEnd, end_of};
use crate::cached::platform::Platform;
use crate::cached::{CachedError, Claims, Context, Isolation, Ran, Request, SideEffects, run};

/// What cached steps need of the agent.
#[derive(Debug)]
pub struct CacheHost<'a> {
    pub actions: &'a Actions,
    /// None: whoever misses executes.
    pub claims: Option<Claims>,
    pub platform: &'a Arc<Platform>,
    /// How this program is started again, without the sub-command.
    pub program: &'a [String],
    /// Where sandboxes are made, on the store's file system.
    pub scratch: PathBuf,
    /// The agent's name.
    pub agent: &'a str,
    /// Whose results are read and written.
    pub scope: String,
    /// All of the job's.
    pub secrets: &'a BTreeMap<String, String>,
    /// It was said already that steps are not isolated here.
    pub isolation_told: bool,
}

/// Runs a script through the cache.
pub(super) async fn run_cached(
    state: &JobState<'_>,
    host: &mut Host<'_>,
    given: &Given<'_>,
    spec: &CacheSpec,
    script: &Script,
    output: &mut StepOutput,
    cancel: &CancellationToken,
) -> Executed {
    let mut env = given.env.clone();
    env.extend(state.github_variables(&given.step.id));
    env.extend(host.runner_variables());
    let workspace = state.workspace.dir();
    let text = script.shell.script(&script.text);
    let request = Request {
        spec,
        script: &text,
        shell: &script.shell.template,
        env: &env,
        path_prefix: &state.path,
        working_directory: relative(&script.working_directory, &workspace),
        workspace: &workspace,
        owner: state.workspace.user(),
        secrets: host.cache.secrets,
        scope: &host.cache.scope,
        timeout: given.timeout,
    };
    let context = Context {
        blobs: host.blobs,
        actions: host.cache.actions,
        claims: host.cache.claims.clone(),
        supervisor: &mut *host.supervisor,
        platform: host.cache.platform,
        program: host.cache.program,
        scratch: &host.cache.scratch,
        agent: host.cache.agent,
    };
    match Box::pin(run(context, request, output, cancel)).await {
        Ok(ran) => {
            tell(host, &ran, output);
            Ok(ended(ran, given))
        }
        Err(error @ CachedError::Supervisor(_)) => Err(StepEnd {
            class: Some(FailureClass::AgentLost),
            lost: true,
            ..StepEnd::failure(error.to_string())
        }),
        Err(error) => {
            let class = match error {
                CachedError::Blobs(_) | CachedError::Actions(_) => FailureClass::Cache,
                _ => FailureClass::Config,
            };
            let error = anyhow::Error::from(error);
            Err(StepEnd { class: Some(class), ..StepEnd::failure(format!("{error:#}")) })
        }
    }
}

/// Says what people should know besides the step's own output.
fn tell(host: &mut Host<'_>, ran: &Ran, output: &mut StepOutput) {
    if let Isolation::Off(why) = &ran.isolation
        && !std::mem::replace(&mut host.cache.isolation_told, true)
    {
        output.line(&format!(
            "##[warning]isolation is off, so cached results stay on this machine: {why}"
        ));
    }
    for note in &ran.notes {
        output.line(&format!("[steading] {note}"));
    }
    if !ran.dropped.is_empty() {
        let paths = ran.dropped.join(", ");
        output.line(&format!("[steading] writes outside of `outputs` are dropped: {paths}"));
    }
    if !ran.undeclared.is_empty() {
        let paths = ran.undeclared.join(", ");
        output.line(&format!(
            "[steading] the output names files of the workspace that `inputs` lacks: {paths}"
        ));
    }
}

fn ended(ran: Ran, given: &Given<'_>) -> (StepEnd, Written) {
    let mut end = end_of(ran.exit, given.timeout);
    if let Some(failure) = ran.failure {
        let exit = end.exit;
        end = StepEnd { exit, ..StepEnd::failure(failure) };
    }
    end.cached = ran.cached;
    end.action = ran.action.to_string();
    end.undeclared = ran.undeclared;
    let SideEffects { output, env, path, state, summary } = ran.effects;
    (end, Written { env, output, path, state, summary })
}

/// The working directory within the workspace, also where it was written absolute.
fn relative<'a>(directory: &'a str, workspace: &Path) -> &'a str {
    match Path::new(directory).strip_prefix(workspace) {
        Ok(inside) => inside.to_str().unwrap_or(directory),
        Err(_) => directory,
    }
}
