//! Looking up and writing what actions gave, here or at a server.

use std::time::SystemTime;

use steading_model::Digest;
use steading_proto::reapi;
use steading_proto::reapi::action_cache_client::ActionCacheClient;
use steading_proto::{reapi_digest, reapi_digest_function};
use tonic::body::Body;
use tonic::codegen::http;
use tower::Service;

use crate::actions::{ActionCache, ActionCacheError, ActionEntry};
use crate::blobs::{off_thread, status_is_transient};
use crate::remote::{FUNCTION, MESSAGE_BYTES_MAX, Way};

/// Who writes into a cache of this process, as entries have it.
const LOCAL: &str = "local";

/// Why the action cache did not answer. Never a reason to fail a job: execute.
#[derive(Debug, thiserror::Error)]
pub enum ActionsError {
    #[error(transparent)]
    Local(#[from] ActionCacheError),
    #[error("the action cache says: {} ({})", .0.message(), .0.code())]
    Remote(#[source] Box<tonic::Status>),
}

impl ActionsError {
    /// Whether trying again may help: the connection broke, or the server is busy.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Local(_) => false,
            Self::Remote(status) => status_is_transient(status),
        }
    }
}

/// An action cache. Clones share it. Digests are BLAKE3.
#[derive(Clone, Debug)]
pub enum Actions {
    Local(ActionCache),
    Remote(ActionCacheClient<Way>),
}

impl Actions {
    /// The action cache behind this channel, or what chooses one.
    pub fn remote<S>(service: S) -> Self
    where
        S: Service<
                http::Request<Body>,
                Response = http::Response<Body>,
                Error = tonic::transport::Error,
                Future: Send + 'static,
            > + Clone
            + Send
            + Sync
            + 'static,
    {
        Self::Remote(
            ActionCacheClient::new(Way::new(service))
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
        )
    }

    /// What the action gave, if the scope (a REAPI instance name) knows it and every
    /// blob of it is there.
    ///
    /// # Errors
    ///
    /// [`ActionsError`]: treat it as a miss.
    pub async fn get_action_result(
        &self,
        scope: &str,
        action: &Digest,
    ) -> Result<Option<reapi::ActionResult>, ActionsError> {
        match self {
            Self::Local(cache) => {
                let (cache, scope, action) = (cache.clone(), scope.to_owned(), *action);
                let entry = off_thread(move || cache.get(&scope, FUNCTION, &action)).await?;
                Ok(entry.map(|entry| entry.result))
            }
            Self::Remote(client) => {
                let request = reapi::GetActionResultRequest {
                    instance_name: scope.to_owned(),
                    action_digest: Some(reapi_digest(action)),
                    digest_function: reapi_digest_function(FUNCTION),
                    ..<_>::default()
                };
                match client.clone().get_action_result(request).await {
                    Ok(response) => Ok(Some(response.into_inner())),
                    Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
                    Err(status) => Err(ActionsError::Remote(Box::new(status))),
                }
            }
        }
    }

    /// Remembers what the action gave. Its blobs must be durable already.
    ///
    /// # Errors
    ///
    /// [`ActionsError`]: the next one executes again, no more.
    pub async fn update_action_result(
        &self,
        scope: &str,
        action: &Digest,
        result: reapi::ActionResult,
    ) -> Result<(), ActionsError> {
        match self {
            Self::Local(cache) => {
                let (cache, scope, action) = (cache.clone(), scope.to_owned(), *action);
                let entry = ActionEntry { result, writer: LOCAL.to_owned(), written_ms: now_ms() };
                Ok(off_thread(move || cache.update(&scope, FUNCTION, &action, &entry)).await?)
            }
            Self::Remote(client) => {
                let request = reapi::UpdateActionResultRequest {
                    instance_name: scope.to_owned(),
                    action_digest: Some(reapi_digest(action)),
                    action_result: Some(result),
                    results_cache_policy: None,
                    digest_function: reapi_digest_function(FUNCTION),
                };
                match client.clone().update_action_result(request).await {
                    Ok(_) => Ok(()),
                    Err(status) => Err(ActionsError::Remote(Box::new(status))),
                }
            }
        }
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
