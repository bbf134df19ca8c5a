//! The services: authenticate, convert, propose, answer.

pub(crate) mod agents;
mod append_log;
pub(crate) mod cluster;
mod convert;
pub(crate) mod explain;
mod fleet;
pub(crate) mod operate;
pub(crate) mod pipelines;
mod read_log;
mod session;
mod status;
mod submit;
mod watch;

use std::pin::Pin;

use tokio_stream::Stream;
use tonic::Status;

/// What a streaming method answers with.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
