//! One cached step from the key to the workspace.

mod leave;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use steading_cas::client::ActionsError;
use steading_cas::tree::{self, Entry, Materialize, MaterializeMode, Mtime, TreeError};
use steading_cas::{Blobs, BlobsError, FetchedTree, Store, remove_tree};
use steading_model::{Digest, DigestFunction};
use tokio_util::sync::CancellationToken;

use super::claim::{self, Decided};
use super::execute::{Executed, execute};
use super::key::{Key, key, replace_path};
use super::result::{self, Outcome, off_thread};
use super::{
    AWAY_WAIT, CachedError, Context, Isolation, Ran, Request, SideEffects, io_error, isolation,
    scan,
};
use crate::backoff::patiently;
use crate::process::{Exit, OutputSink};
use crate::sandbox::{Support, WORKSPACE};

/// Most times that somebody else's result is looked for before the step is executed
/// here, whatever the claims say.
const ROUNDS_MAX: u32 = 3;

/// Most paths that a list of dropped writes tells.
const DROPPED_MAX: usize = 100;

/// Runs a cached step: a result that is known is applied, one that is missing is made.
/// The log goes to `log` as it comes, or all at once from the cache.
///
/// # Errors
///
/// [`CachedError`] for what the step or this machine must change: a bad pattern, a
/// secret in the open, a tool that cannot be read. A cache that fails is no error.
pub async fn run(
    mut context: Context<'_>,
    request: Request<'_>,
    log: &mut dyn OutputSink,
    cancel: &CancellationToken,
) -> Result<Ran, CachedError> {
    let scratch = context.scratch.to_owned();
    let ran = run_in_scratch(&mut context, &request, log, cancel).await;
    // A hit needs none.
    if !scratch.exists() {
        return ran;
    }
    let cleared = off_thread(move || remove_tree(&scratch)).await;
    if let Err(error) = cleared {
        tracing::warn!(%error, scratch = %context.scratch.display(), "scratch not removed");
    }
    ran
}

async fn run_in_scratch(
    context: &mut Context<'_>,
    request: &Request<'_>,
    log: &mut dyn OutputSink,
    cancel: &CancellationToken,
) -> Result<Ran, CachedError> {
    let store = context.blobs.local().cloned().ok_or(BlobsError::NoStore)?;
    let (platform, program) = (context.platform.clone(), context.program.to_vec());
    let (owned, scratch) = (request.detached(), context.scratch.to_owned());
    let (support, key) = off_thread(move || {
        let support = isolation::support(&program, &platform, &scratch);
        let isolation = Isolation::of(&support);
        key(&owned.as_request(), &platform, &store, &isolation).map(|key| (support, key))
    })
    .await?;
    let mut step = Step { context, request, key, support, lost: None };
    for _ in 0..ROUNDS_MAX {
        if cancel.is_cancelled() {
            return Ok(step.ended(Exit { cancelled: true, ..Exit::default() }));
        }
        if let Some(ran) = step.look_up(log).await? {
            return Ok(ran);
        }
        let action = step.key.action;
        let decided = match &step.context.claims {
            Some(claims) => claims.claim(&action, cancel).await,
            None => Decided::Unclaimed,
        };
        match decided {
            Decided::Build => return step.build(log, cancel).await,
            Decided::Unclaimed => return step.execute(log, cancel).await.map(|(ran, _)| ran),
            Decided::Published => (),
            Decided::Failed(detail) => {
                if let Some(ran) = step.replay_failure(&detail, log).await? {
                    return Ok(ran);
                }
            }
            Decided::Cancelled => {
                return Ok(step.ended(Exit { cancelled: true, ..Exit::default() }));
            }
        }
    }
    // Others say that they publish, and nothing is to be found.
    step.execute(log, cancel).await.map(|(ran, _)| ran)
}

/// One cached step under way.
struct Step<'c, 'a, 'r> {
    context: &'c mut Context<'a>,
    request: &'c Request<'r>,
    key: Key,
    support: Support,
    /// The layer of a result whose blobs are gone: not to be tried again.
    lost: Option<Digest>,
}

/// What a result brings besides its layer: side effects, log, and the layer's pin.
type Ready = (SideEffects, Bytes, FetchedTree);

/// What an execution leaves for those who wait for it.
enum Left {
    Published,
    Failed(Digest),
    Nothing,
}

impl Step<'_, '_, '_> {
    /// Applies the result that the cache has, if it has one that can be believed.
    async fn look_up(&mut self, log: &mut dyn OutputSink) -> Result<Option<Ran>, CachedError> {
        let action = self.key.action;
        let found = patiently(AWAY_WAIT, ActionsError::is_transient, || {
            self.context.actions.get_action_result(self.request.scope, &action)
        });
        let result = match found.await {
            Ok(Some(result)) => result,
            Ok(None) => return Ok(None),
            Err(error) => {
                tracing::warn!(%action, %error, "action cache not read, taken for a miss");
                return Ok(None);
            }
        };
        if let Some(seconds) = self.request.spec.network_max_age_s {
            let age = result::executed_at(&result)
                .and_then(|at| SystemTime::now().duration_since(at).ok());
            if age.is_none_or(|age| age > Duration::from_secs(seconds)) {
                return Ok(None);
            }
        }
        let Some(outcome) = Outcome::of_action_result(&result) else { return Ok(None) };
        if self.lost == Some(outcome.layer) {
            return Ok(None);
        }
        self.replay(&outcome, log).await
    }

    /// The same failure as of the execution that this step waited for.
    async fn replay_failure(
        &mut self,
        detail: &Digest,
        log: &mut dyn OutputSink,
    ) -> Result<Option<Ran>, CachedError> {
        let bytes = match self.context.blobs.get(detail).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) | Err(_) => return Ok(None),
        };
        match serde_json::from_slice::<Outcome>(&bytes) {
            Ok(outcome) => self.replay(&outcome, log).await,
            Err(_) => Ok(None),
        }
    }

    /// Applies an outcome that was made elsewhere. None where a blob of it is gone.
    async fn replay(
        &mut self,
        outcome: &Outcome,
        log: &mut dyn OutputSink,
    ) -> Result<Option<Ran>, CachedError> {
        let here = self.replay_here(outcome).await;
        let fetch = || self.fetch(outcome);
        let ready = match here {
            Some(ready) => Ok(ready),
            None => match patiently(AWAY_WAIT, CachedError::is_transient, fetch).await {
                Ok(ready) => self.apply(&outcome.layer).await.map(|()| ready),
                Err(error) => Err(error),
            },
        };
        let (effects, text, _pin) = match ready {
            Ok(ready) => ready,
            Err(error) => {
                tracing::warn!(
                    action = %self.key.action, %error, "a result's blob is gone, executed again"
                );
                self.lost = Some(outcome.layer);
                return Ok(None);
            }
        };
        log.write(&text);
        let mut ran = self.ended(outcome.exit());
        ran.cached = true;
        ran.failure.clone_from(&outcome.failure);
        ran.undeclared.clone_from(&outcome.undeclared);
        ran.effects = self.outside(effects);
        Ok(Some(ran))
    }

    /// [`Step::fetch`] and [`Step::apply`] in one go, where the local store has all that
    /// the outcome names. None: it has not, or something failed, which the long way tells.
    async fn replay_here(&self, outcome: &Outcome) -> Option<Ready> {
        let store = self.context.blobs.local()?.clone();
        let (outcome, apply) = (outcome.clone(), self.application(outcome.layer));
        off_thread(move || {
            let mut effects = SideEffects::default();
            for (name, digest) in &outcome.effects {
                let bytes = store.get(DigestFunction::Blake3, &digest.parse().ok()?).ok()??;
                effects.set(name, &bytes);
            }
            let text = store.get(DigestFunction::Blake3, &outcome.log).ok()??;
            let tree = steading_cas::held_tree(&store, &outcome.layer)?;
            apply(&store).ok()?;
            Some((effects, text, tree))
        })
        .await
    }

    async fn fetch(&self, outcome: &Outcome) -> Result<Ready, CachedError> {
        let blobs: &Blobs = self.context.blobs;
        let effects = result::get_effects(blobs, &outcome.effects).await?;
        let text = blobs.get(&outcome.log).await?;
        let text = text.ok_or(BlobsError::Missing(vec![outcome.log]))?;
        let tree = blobs.fetch_tree(&outcome.layer).await?;
        Ok((effects, text, tree))
    }

    /// Executes under a claim, and tells those who wait.
    async fn build(
        &mut self,
        log: &mut dyn OutputSink,
        cancel: &CancellationToken,
    ) -> Result<Ran, CachedError> {
        let (claims, action) = (self.context.claims.clone(), self.key.action);
        // Who was granted the claim may have missed a result by a moment.
        let found = self.look_up(log).await?;
        let (ran, resolution) = match found {
            Some(ran) => (Ok(ran), claim::published()),
            None => match self.execute(log, cancel).await {
                Ok((ran, Left::Published)) => (Ok(ran), claim::published()),
                Ok((ran, Left::Failed(detail))) => (Ok(ran), claim::failed(&detail)),
                Ok((ran, Left::Nothing)) => (Ok(ran), claim::abandoned()),
                Err(error) => (Err(error), claim::abandoned()),
            },
        };
        if let Some(claims) = claims {
            claims.resolve(&action, resolution).await;
        }
        ran
    }

    async fn execute(
        &mut self,
        log: &mut dyn OutputSink,
        cancel: &CancellationToken,
    ) -> Result<(Ran, Left), CachedError> {
        let scratch = self.context.scratch;
        fs::create_dir_all(scratch).map_err(io_error("create", scratch))?;
        let executed =
            execute(self.context, self.request, &self.key, &self.support, log, cancel).await?;
        let mut ran = self.ended(executed.exit);
        let exit = executed.exit;
        let out_of_memory = exit.out_of_memory_mib.is_some() && !exit.succeeded();
        if exit.cancelled || exit.timed_out || exit.fenced || out_of_memory {
            return Ok((ran, Left::Nothing));
        }
        self.judge(&executed, &mut ran)?;
        let outcome = self.keep_here(&executed, &ran).await?;
        self.apply(&outcome.layer).await?;
        let left = match self.refuse_to_keep(&executed, &outcome, &mut ran).await? {
            Some(why) => {
                ran.notes.push(why);
                Left::Nothing
            }
            None => self.leave(&outcome, &executed, &mut ran).await,
        };
        ran.effects = self.outside(executed.effects);
        Ok((ran, left))
    }

    /// Missing outputs, writes outside of them, and files that were not declared.
    fn judge(&self, executed: &Executed, ran: &mut Ran) -> Result<(), CachedError> {
        let spec = self.request.spec;
        ran.dropped = executed
            .made
            .changed
            .iter()
            .filter(|path| !self.key.outputs.matches(path))
            .take(DROPPED_MAX)
            .cloned()
            .collect();
        if !ran.exit.succeeded() {
            ran.undeclared = scan::undeclared(
                &executed.log,
                self.request.workspace,
                self.request.working_directory,
                &self.key.input_folder,
            )
            .map_err(io_error("read", &executed.log))?;
            if ran.exit.code == Some(127) {
                ran.notes.extend(self.missing_tool(&executed.log));
            }
            return Ok(());
        }
        let missing: Vec<&str> = executed
            .made
            .unmatched
            .iter()
            .filter(|pattern| !self.key.optional.contains(pattern))
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            ran.failure = Some(format!(
                "the step made none of its outputs `{}`: correct `outputs`, or write `?` before \
                 what may be missing",
                missing.join("`, `")
            ));
        } else if spec.strict && !ran.dropped.is_empty() {
            ran.failure = Some(format!(
                "the step is `strict` and wrote outside of its outputs: `{}`",
                ran.dropped.join("`, `")
            ));
        }
        Ok(())
    }

    /// A hint where the command called what it does not see.
    fn missing_tool(&self, log: &Path) -> Option<String> {
        let text = fs::read(log).ok()?;
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().rev().find(|line| line.contains("not found"))?;
        line.split([':', ' ', '\'', '`', '"']).find_map(|word| {
            let home = self.key.tools.would_have(word)?;
            Some(format!(
                "`{word}` belongs to {home}, which a cached step sees only if its script or a file \
                 named there says so: add `tools: [{home}]` to its `cache`"
            ))
        })
    }

    /// Puts it into the local store, which the workspace is written from.
    async fn keep_here(&self, executed: &Executed, ran: &Ran) -> Result<Outcome, CachedError> {
        let blobs: &Blobs = self.context.blobs;
        let store = blobs.local().cloned().ok_or(BlobsError::NoStore)?;
        let (folder, file) = (executed.made.outputs.clone(), executed.log.clone());
        let (layer, log) = off_thread(move || -> Result<_, CachedError> {
            let layer = tree::save(&store, &folder)?.root;
            let log = store.put_file(DigestFunction::Blake3, &file).map_err(BlobsError::Store)?;
            Ok((layer, log))
        })
        .await?;
        Ok(Outcome {
            code: ran.exit.code,
            signal: ran.exit.signal,
            failure: ran.failure.clone(),
            layer,
            log,
            effects: Vec::new(),
            undeclared: ran.undeclared.clone(),
        })
    }

    /// Why the result must not be used again. A secret in it fails the step besides.
    async fn refuse_to_keep(
        &self,
        executed: &Executed,
        outcome: &Outcome,
        ran: &mut Ran,
    ) -> Result<Option<String>, CachedError> {
        if let Some(secret) = self.secret(executed, outcome).await? {
            ran.failure.get_or_insert(format!(
                "the value of the secret `{secret}` is in the step's log or outputs: do not print \
                 it, or do not cache the step"
            ));
            return Ok(Some("the result is not kept, because a secret is in it".to_owned()));
        }
        if !executed.effects.state.is_empty() {
            return Ok(Some("the result is not kept, because the step wrote GITHUB_STATE".into()));
        }
        let masks = scan::masks_values(&executed.log).map_err(io_error("read", &executed.log))?;
        Ok(masks.then(|| "the result is not kept, because the step masked a value".into()))
    }

    /// The secret that is in the log, in a side effect or in an output.
    async fn secret(
        &self,
        executed: &Executed,
        outcome: &Outcome,
    ) -> Result<Option<String>, CachedError> {
        let names = self.request.spec.secrets.clone();
        if names.is_empty() {
            return Ok(None);
        }
        let store = self.context.blobs.local().cloned().ok_or(BlobsError::NoStore)?;
        let secrets = self.request.secrets.clone();
        let mut files = vec![executed.log.clone()];
        let commands = self.context.scratch.join("commands");
        files.extend(executed.effects.named().map(|(name, _)| commands.join(name)));
        let (layer, copy) = (outcome.layer, self.context.scratch.join("scan"));
        off_thread(move || {
            tree::materialize(&store, &layer, &copy, &Materialize::LOWER)?;
            tree::load(&store, &layer)?.visit(&mut |path, entry| {
                if matches!(entry, Entry::File(_)) {
                    files.push(copy.join(path));
                }
            });
            for file in files.iter().filter(|file| file.is_file()) {
                let found =
                    scan::secret_in(file, &secrets, &names).map_err(io_error("read", file))?;
                if let Some(name) = found {
                    return Ok(Some(name.to_owned()));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Puts the outputs into the workspace, in place of what the patterns choose there.
    async fn apply(&self, layer: &Digest) -> Result<(), CachedError> {
        let store = self.context.blobs.local().cloned().ok_or(BlobsError::NoStore)?;
        let apply = self.application(*layer);
        off_thread(move || apply(&store)).await?;
        Ok(())
    }

    /// The work of [`Step::apply`], for a thread that may block.
    fn application(
        &self,
        layer: Digest,
    ) -> impl FnOnce(&Store) -> Result<(), TreeError> + Send + 'static {
        let workspace = self.request.workspace.to_owned();
        let (patterns, owner) = (self.key.outputs.clone(), self.request.owner);
        move |store| {
            let options = Materialize { mode: MaterializeMode::Writable, mtime: Mtime::Now, owner };
            tree::apply_layer(store, &layer, &workspace, &patterns, &options).map(drop)
        }
    }

    /// Side effects with this job's workspace in their paths.
    fn outside(&self, mut effects: SideEffects) -> SideEffects {
        let Some(workspace) = self.request.workspace.to_str() else { return effects };
        for bytes in
            [&mut effects.output, &mut effects.env, &mut effects.path, &mut effects.summary]
        {
            if let Some(replaced) = replace_path(bytes, WORKSPACE, workspace) {
                *bytes = replaced;
            }
        }
        effects
    }

    fn ended(&self, exit: Exit) -> Ran {
        Ran {
            cached: false,
            exit,
            failure: None,
            effects: SideEffects::default(),
            undeclared: Vec::new(),
            dropped: Vec::new(),
            isolation: Isolation::of(&self.support),
            action: self.key.action,
            notes: Vec::new(),
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
