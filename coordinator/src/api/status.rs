//! What a failure looks like on the wire: each error in one place.

use steading_core::Rejection;
use steading_proto::leader::not_leader;
use tonic::{Code, Status};

use crate::documents::DocumentError;
use crate::replica::ProposeError;
use crate::submission::SubmissionError;

impl From<ProposeError> for Status {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Rejected(rejection) => rejected(&rejection),
            ProposeError::Busy => Self::resource_exhausted("too many proposals wait, try again"),
            ProposeError::Membership(_) => Self::failed_precondition(error.to_string()),
            ProposeError::TooLarge(_) => Self::invalid_argument(error.to_string()),
            // Whether it was applied is not known: a repetition is answered like the first.
            ProposeError::NotLeader => not_leader(None),
            ProposeError::Stopped | ProposeError::Unknown => {
                Self::unavailable(format!("{error}; try again"))
            }
        }
    }
}

/// FAILED_PRECONDITION tells an agent to stop the work, so that nothing else may use it
/// of what agents propose.
fn rejected(rejection: &Rejection) -> Status {
    let code = match rejection {
        Rejection::AgentRemoved => Code::PermissionDenied,
        Rejection::RunUnknown | Rejection::ReplicaUnknown => Code::NotFound,
        Rejection::TokenUnknown | Rejection::TokenExpired | Rejection::Denied => {
            Code::PermissionDenied
        }
        Rejection::NotDenied => Code::NotFound,
        Rejection::MemberName => Code::InvalidArgument,
        Rejection::TokenDiffers | Rejection::MemberDiffers => Code::AlreadyExists,
        Rejection::RequestBodyDiffers => Code::AlreadyExists,
        Rejection::RequestIdsFull | Rejection::ClaimFull => Code::ResourceExhausted,
        Rejection::Limit { .. } | Rejection::JobKeyRepeated(_) => Code::InvalidArgument,
        _ => Code::FailedPrecondition,
    };
    Status::new(code, rejection.to_string())
}

impl From<DocumentError> for Status {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::Missing { .. } => Self::not_found(error.to_string()),
            DocumentError::TooLarge { .. } | DocumentError::Unreadable { .. } => {
                Self::data_loss(error.to_string())
            }
            DocumentError::Store(error) => error.into(),
            DocumentError::Secrets { .. } => {
                tracing::error!(error = &error as &dyn std::error::Error, "a document failed");
                Self::internal(error.to_string())
            }
        }
    }
}

impl From<SubmissionError> for Status {
    fn from(error: SubmissionError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}
