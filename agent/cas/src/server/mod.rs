//! The server's end of the cache services of the Remote Execution API: CAS,
//! ByteStream, ActionCache and Capabilities over one store.
//!
//! Blobs are shared between instance names: who knows a digest has the blob. Results
//! of actions are not: there the instance name is the scope.

mod actions;
mod capabilities;
mod cas;
mod name;
mod stream;

use std::sync::Arc;

use steading_model::{Digest, DigestFunction};
use steading_proto::bytestream::byte_stream_server::ByteStreamServer;
use steading_proto::reapi::action_cache_server::ActionCacheServer;
use steading_proto::reapi::capabilities_server::CapabilitiesServer;
use steading_proto::reapi::content_addressable_storage_server::ContentAddressableStorageServer;
use steading_proto::{blob_digest, digest_function, reapi};
use tonic::Status;

use crate::actions::ActionCacheError;
use crate::front::Front;
use crate::origin::OriginError;
use crate::remote::MESSAGE_BYTES_MAX;
use crate::store::StoreError;
use crate::tree::TreeError;

pub use actions::{ActionCacheService, Writers};
pub use capabilities::CapabilitiesService;
pub use cas::CasService;
pub use stream::ByteStreamService;

/// Longest instance name, bytes.
const INSTANCE_BYTES_MAX: usize = 1024;

/// Who makes a request, `ROLE/ID`. Put into it by whoever authenticates callers; results of
/// actions are stored with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer(pub String);

/// The four services, ready to be added to a router.
#[derive(Clone, Debug)]
pub struct Services {
    pub cas: ContentAddressableStorageServer<CasService>,
    pub streams: ByteStreamServer<ByteStreamService>,
    pub actions: ActionCacheServer<ActionCacheService>,
    pub capabilities: CapabilitiesServer<CapabilitiesService>,
}

/// The cache services over this store, with the origin behind it.
pub fn services(front: Front, writers: Arc<dyn Writers>) -> Services {
    let cas = ContentAddressableStorageServer::new(CasService::new(front.clone()));
    let streams = ByteStreamServer::new(ByteStreamService::new(front.clone()));
    let actions = ActionCacheServer::new(ActionCacheService::new(front, writers));
    Services {
        cas: cas
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
        streams: streams
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
        actions: actions
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
        capabilities: CapabilitiesServer::new(CapabilitiesService),
    }
}

fn check_instance(name: &str) -> Result<(), Status> {
    if name.len() > INSTANCE_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "the instance name has {} bytes, at most {INSTANCE_BYTES_MAX} are allowed",
            name.len()
        )));
    }
    Ok(())
}

fn function_of(value: i32) -> Result<DigestFunction, Status> {
    Ok(digest_function(value)?)
}

fn required(field: &'static str, digest: Option<&reapi::Digest>) -> Result<Digest, Status> {
    let digest = digest.ok_or_else(|| Status::invalid_argument(format!("`{field}` is missing")))?;
    Ok(blob_digest(field, digest)?)
}

fn not_found(digest: &Digest) -> Status {
    Status::not_found(format!("blob `{digest}` is not here"))
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Mismatch { .. } | StoreError::TooLong { .. } => {
                Self::invalid_argument(error.to_string())
            }
            StoreError::Io { source, .. } => {
                tracing::error!(%error, cause = %source, "the blob store failed");
                match source.raw_os_error().map(nix::errno::Errno::from_raw) {
                    Some(nix::errno::Errno::ENOSPC | nix::errno::Errno::EDQUOT) => {
                        Self::resource_exhausted("the server's disk is full: free some of it")
                    }
                    _ => Self::internal("the server's blob store failed: see its log"),
                }
            }
            StoreError::Changing { .. } => Self::internal(error.to_string()),
        }
    }
}

impl From<OriginError> for Status {
    fn from(error: OriginError) -> Self {
        match error {
            OriginError::Store(error) => error.into(),
            OriginError::Object { ref source, .. } => {
                tracing::error!(%error, cause = %source, "the origin failed");
                Self::unavailable("the origin cannot be reached: see the coordinator's log")
            }
            OriginError::Setting { .. }
            | OriginError::NotShared { .. }
            | OriginError::NotMounted { .. } => {
                tracing::error!(%error, "the origin failed");
                Self::unavailable(error.to_string())
            }
        }
    }
}

impl From<TreeError> for Status {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Store(error) => error.into(),
            TreeError::Missing(digest) => not_found(&digest),
            TreeError::Io { .. } => Self::internal(error.to_string()),
            TreeError::Malformed { .. }
            | TreeError::Unsupported { .. }
            | TreeError::NotUtf8 { .. }
            | TreeError::TooDeep { .. }
            | TreeError::TooLarge
            | TreeError::Path(_) => Self::invalid_argument(error.to_string()),
        }
    }
}

impl From<ActionCacheError> for Status {
    fn from(error: ActionCacheError) -> Self {
        match error {
            ActionCacheError::Store(error) => error.into(),
            ActionCacheError::Origin(error) => error.into(),
            ActionCacheError::Io { ref source, .. } => {
                tracing::error!(%error, cause = %source, "the action cache failed");
                Self::internal("the server's action cache failed: see its log")
            }
            ActionCacheError::Incomplete(_) => {
                Self::failed_precondition(format!("{error}: upload them first"))
            }
            ActionCacheError::Malformed(_) => Self::invalid_argument(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
