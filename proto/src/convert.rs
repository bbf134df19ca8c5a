//! Conversions between wire and model. Parsing happens here; what comes out is trusted.

use steading_model::{Conclusion, Digest, DigestFunction, Epoch, FailureClass, JobId, Work};

use crate::{reapi, v1};

/// Why a message is not what it should be. Always the sender's mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    #[error("`{field}` is missing")]
    Missing { field: &'static str },
    #[error("`{field}` is not a digest")]
    Digest {
        field: &'static str,
        #[source]
        source: steading_model::ParseDigestError,
    },
    #[error("`{field}` has the unknown value {value}")]
    Enum { field: &'static str, value: i32 },
}

impl From<ConvertError> for tonic::Status {
    fn from(error: ConvertError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// A REAPI digest as ours.
///
/// # Errors
///
/// [`ConvertError::Digest`] where the hash is not 64 lower-case hexadecimal
/// digits or the size is negative.
pub fn blob_digest(field: &'static str, wire: &reapi::Digest) -> Result<Digest, ConvertError> {
    let size = u64::try_from(wire.size_bytes).map_err(|_| ConvertError::Digest {
        field,
        source: steading_model::ParseDigestError::Hash,
    })?;
    Digest::from_hex(&wire.hash, size).map_err(|source| ConvertError::Digest { field, source })
}

/// Our digest as REAPI's.
pub fn reapi_digest(digest: &Digest) -> reapi::Digest {
    reapi::Digest { hash: digest.hash_hex(), size_bytes: digest.size as i64 }
}

/// The digest function of a request; `UNKNOWN` stands for SHA-256, as the API says
/// for functions told by length.
///
/// # Errors
///
/// [`ConvertError::Enum`] for a function that we do not serve.
pub fn digest_function(value: i32) -> Result<DigestFunction, ConvertError> {
    match reapi::digest_function::Value::try_from(value) {
        Ok(reapi::digest_function::Value::Blake3) => Ok(DigestFunction::Blake3),
        Ok(reapi::digest_function::Value::Sha256 | reapi::digest_function::Value::Unknown) => {
            Ok(DigestFunction::Sha256)
        }
        _ => Err(ConvertError::Enum { field: "digest_function", value }),
    }
}

/// REAPI's number of a digest function.
pub fn reapi_digest_function(function: DigestFunction) -> i32 {
    match function {
        DigestFunction::Blake3 => reapi::digest_function::Value::Blake3 as i32,
        DigestFunction::Sha256 => reapi::digest_function::Value::Sha256 as i32,
    }
}

impl From<Conclusion> for v1::Conclusion {
    fn from(conclusion: Conclusion) -> Self {
        match conclusion {
            Conclusion::Success => Self::Success,
            Conclusion::Failure => Self::Failure,
            Conclusion::Cancelled => Self::Cancelled,
            Conclusion::Skipped => Self::Skipped,
        }
    }
}

impl v1::Conclusion {
    /// The model's conclusion; none while there is none yet.
    pub fn to_model(self) -> Option<Conclusion> {
        match self {
            Self::Unspecified => None,
            Self::Success => Some(Conclusion::Success),
            Self::Failure => Some(Conclusion::Failure),
            Self::Cancelled => Some(Conclusion::Cancelled),
            Self::Skipped => Some(Conclusion::Skipped),
        }
    }
}

impl From<FailureClass> for v1::FailureClass {
    fn from(class: FailureClass) -> Self {
        match class {
            FailureClass::User => Self::User,
            FailureClass::Timeout => Self::Timeout,
            FailureClass::Cancelled => Self::Cancelled,
            FailureClass::AgentLost => Self::AgentLost,
            FailureClass::Preempted => Self::Preempted,
            FailureClass::ImagePull => Self::ImagePull,
            FailureClass::Cache => Self::Cache,
            FailureClass::Config => Self::Config,
            FailureClass::Oom => Self::Oom,
        }
    }
}

impl v1::FailureClass {
    /// The model's class; none for a success.
    pub fn to_model(self) -> Option<FailureClass> {
        match self {
            Self::Unspecified => None,
            Self::User => Some(FailureClass::User),
            Self::Timeout => Some(FailureClass::Timeout),
            Self::Cancelled => Some(FailureClass::Cancelled),
            Self::AgentLost => Some(FailureClass::AgentLost),
            Self::Preempted => Some(FailureClass::Preempted),
            Self::ImagePull => Some(FailureClass::ImagePull),
            Self::Cache => Some(FailureClass::Cache),
            Self::Config => Some(FailureClass::Config),
            Self::Oom => Some(FailureClass::Oom),
        }
    }
}

impl v1::Lease {
    /// The wire's lease of this work and epoch.
    pub fn new(work: Work, epoch: Epoch) -> Self {
        Self { job_id: work.job.counter(), attempt: work.attempt, epoch: epoch.counter() }
    }

    /// The leased work.
    pub fn work(&self) -> Work {
        Work { job: JobId::from_counter(self.job_id), attempt: self.attempt }
    }

    /// The fencing token.
    pub fn lease_epoch(&self) -> Epoch {
        Epoch::from_counter(self.epoch)
    }
}
