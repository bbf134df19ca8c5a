//! The `ActionCache` service.

use std::fmt;
use std::sync::Arc;

use steading_model::limits::BATCH_BYTES_MAX;
use steading_model::{Digest, DigestFunction};
use steading_proto::reapi;
use steading_proto::reapi::action_cache_server::ActionCache as Service;
use tonic::{Extensions, Request, Response, Status};

use super::{Writer, check_instance, function_of, required};
use crate::actions::ActionEntry;
use crate::blobs::off_thread;
use crate::client::now_ms;
use crate::front::Front;
use crate::store::{Store, StoreError};
use crate::tree::wire_digest;

/// Knows who may say what an action gave. What is said there is believed by all who run
/// in the scope.
#[tonic::async_trait]
pub trait Writers: fmt::Debug + Send + Sync {
    /// Whether who sent a request with these extensions may write in the scope.
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED, or another that the caller is to hear.
    async fn may_write(&self, sender: &Extensions, scope: &str) -> Result<(), Status>;
}

/// Results of actions, each in the scope that its instance name says.
#[derive(Clone, Debug)]
pub struct ActionCacheService {
    front: Front,
    writers: Arc<dyn Writers>,
}

impl ActionCacheService {
    pub(super) fn new(front: Front, writers: Arc<dyn Writers>) -> Self {
        Self { front, writers }
    }
}

#[tonic::async_trait]
impl Service for ActionCacheService {
    #[tracing::instrument(name = "action.get", skip_all)]
    async fn get_action_result(
        &self,
        request: Request<reapi::GetActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        let request = request.into_inner();
        check_instance(&request.instance_name)?;
        let function = function_of(request.digest_function)?;
        let action = required("action_digest", request.action_digest.as_ref())?;
        let entry = self.front.action(&request.instance_name, function, &action).await?;
        let Some(entry) = entry else {
            return Err(Status::not_found(format!("no result of action `{action}` is known")));
        };
        let mut result = entry.result;
        let inlined = inlined(&request, &result);
        if inlined.is_empty() {
            return Ok(Response::new(result));
        }
        let _pin = self.front.bring(function, &inlined).await?;
        let store = self.front.store().clone();
        let result = off_thread(move || -> Result<_, Status> {
            inline(&store, function, &request, &mut result)?;
            Ok(result)
        });
        Ok(Response::new(result.await?))
    }

    #[tracing::instrument(name = "action.update", skip_all)]
    async fn update_action_result(
        &self,
        request: Request<reapi::UpdateActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        let (_, sender, request) = request.into_parts();
        let Writer(writer) = sender.get().cloned().unwrap_or_default();
        check_instance(&request.instance_name)?;
        self.writers.may_write(&sender, &request.instance_name).await?;
        let function = function_of(request.digest_function)?;
        let action = required("action_digest", request.action_digest.as_ref())?;
        let result = request
            .action_result
            .ok_or_else(|| Status::invalid_argument("`action_result` is missing"))?;
        let entry = ActionEntry { result: result.clone(), writer, written_ms: now_ms() };
        self.front.put_action(&request.instance_name, function, &action, entry).await?;
        Ok(Response::new(result))
    }
}

/// What the client wants in the answer itself.
fn inlined(request: &reapi::GetActionResultRequest, result: &reapi::ActionResult) -> Vec<Digest> {
    let stdout = result.stdout_digest.as_ref().filter(|_| request.inline_stdout);
    let stderr = result.stderr_digest.as_ref().filter(|_| request.inline_stderr);
    let files = result.output_files.iter();
    let files = files.filter(|file| request.inline_output_files.contains(&file.path));
    let wanted = stdout.into_iter().chain(stderr).chain(files.flat_map(|file| &file.digest));
    let digests = wanted.filter_map(|digest| wire_digest(Some(digest)).ok());
    digests.filter(|digest| digest.size <= BATCH_BYTES_MAX as u64).collect()
}

/// Puts contents into the answer that the client asked for, as far as they fit.
fn inline(
    store: &Store,
    function: DigestFunction,
    request: &reapi::GetActionResultRequest,
    result: &mut reapi::ActionResult,
) -> Result<(), StoreError> {
    let mut room = BATCH_BYTES_MAX as u64;
    let mut read = |digest: Option<&reapi::Digest>| -> Result<Vec<u8>, StoreError> {
        let Ok(digest) = wire_digest(digest) else { return Ok(Vec::new()) };
        if digest.size > room {
            return Ok(Vec::new());
        }
        let bytes = store.get(function, &digest)?.unwrap_or_default();
        room -= bytes.len() as u64;
        Ok(bytes.into())
    };
    if request.inline_stdout && result.stdout_raw.is_empty() {
        result.stdout_raw = read(result.stdout_digest.as_ref())?;
    }
    if request.inline_stderr && result.stderr_raw.is_empty() {
        result.stderr_raw = read(result.stderr_digest.as_ref())?;
    }
    for file in &mut result.output_files {
        if file.contents.is_empty() && request.inline_output_files.contains(&file.path) {
            file.contents = read(file.digest.as_ref())?;
        }
    }
    Ok(())
}
