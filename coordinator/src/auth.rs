//! Who asks. The one place that turns a request into an identity.

use steading_model::Principal;
use tonic::{Request, Status};

/// Who sent the request.
///
/// Every client is `local` as long as the coordinator listens on a Unix socket or
/// on loopback only; with mTLS the name comes from the peer's certificate, never
/// from the message.
///
/// # Errors
///
/// UNAUTHENTICATED, once identities are checked.
pub(crate) fn principal<T>(_request: &Request<T>) -> Result<Principal, Status> {
    "local".parse().map_err(|_| Status::internal("`local` is no principal"))
}
