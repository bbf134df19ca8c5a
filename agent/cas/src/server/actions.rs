//! The `ActionCache` service.

use steading_model::DigestFunction;
use steading_model::limits::BATCH_BYTES_MAX;
use steading_proto::reapi;
use steading_proto::reapi::action_cache_server::ActionCache as Service;
use tonic::{Request, Response, Status};

use super::{check_instance, function_of, required};
use crate::actions::{ActionCache, ActionEntry};
use crate::blobs::off_thread;
use crate::client::now_ms;
use crate::store::{Store, StoreError};
use crate::tree::wire_digest;

/// Results of actions, each in the scope that its instance name says.
#[derive(Clone, Debug)]
pub struct ActionCacheService {
    actions: ActionCache,
}

impl ActionCacheService {
    pub(super) fn new(actions: ActionCache) -> Self {
        Self { actions }
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
        let actions = self.actions.clone();
        let result = off_thread(move || -> Result<_, Status> {
            let entry = actions.get(&request.instance_name, function, &action)?;
            let Some(entry) = entry else { return Ok(None) };
            let mut result = entry.result;
            inline(actions.store(), function, &request, &mut result)?;
            Ok(Some(result))
        })
        .await?;
        match result {
            Some(result) => Ok(Response::new(result)),
            None => Err(Status::not_found(format!("no result of action `{action}` is known"))),
        }
    }

    #[tracing::instrument(name = "action.update", skip_all)]
    async fn update_action_result(
        &self,
        request: Request<reapi::UpdateActionResultRequest>,
    ) -> Result<Response<reapi::ActionResult>, Status> {
        let request = request.into_inner();
        check_instance(&request.instance_name)?;
        let function = function_of(request.digest_function)?;
        let action = required("action_digest", request.action_digest.as_ref())?;
        let result = request
            .action_result
            .ok_or_else(|| Status::invalid_argument("`action_result` is missing"))?;
        let (actions, scope) = (self.actions.clone(), request.instance_name);
        // Who wrote it is known once callers are authenticated.
        let entry = ActionEntry { result, writer: String::new(), written_ms: now_ms() };
        let result = off_thread(move || -> Result<_, Status> {
            actions.update(&scope, function, &action, &entry)?;
            Ok(entry.result)
        })
        .await?;
        Ok(Response::new(result))
    }
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
