//! `AppendLog`: log bytes of running attempts, many leases on one stream.

use std::sync::Arc;

use steading_core::{Lease, State};
use steading_model::limits::LOG_CHUNK_BYTES_MAX;
use steading_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::{Answers, convert};
use crate::auth::Caller;
use crate::blocking::blocking;
use crate::leadership::Term;
use crate::logs::{LogError, Logs};
use crate::replica::Replica;

/// Appends written in one go, and acknowledgements that wait for a slow agent.
const BATCH_MAX: usize = 64;

/// Writes what comes, in order, and acknowledges.
pub(super) fn stream(
    replica: Replica,
    caller: Caller,
    logs: Arc<Logs>,
    inbound: impl Stream<Item = Result<v1::LogAppend, Status>> + Send + Unpin + 'static,
    tasks: &TaskTracker,
    term: Term,
    stop: CancellationToken,
) -> Answers<v1::LogAck> {
    let (sender, receiver) = mpsc::channel(BATCH_MAX);
    // From the connection to the disk: what comes while the disk is busy is one batch.
    let (queue, mut queued) = mpsc::channel(BATCH_MAX);
    tasks.spawn({
        let stop = stop.clone();
        let refused = sender.clone();
        async move {
            tokio::select! {
                () = receive(inbound, &queue) => (),
                () = queue.closed() => (),
                () = stop.cancelled() => (),
                refusal = term.over() => {
                    // Full: the agent sees the stream end.
                    let _ = refused.try_send(Err(refusal));
                }
            }
        }
    });
    tasks.spawn(async move {
        let mut batch = Vec::new();
        while queued.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let appends = std::mem::take(&mut batch);
            let (state, logs, caller) = (replica.view(), Arc::clone(&logs), caller.clone());
            let written = blocking(move || {
                let acks = appends.into_iter().map(|append| write(&state, &caller, &logs, append));
                acks.collect::<Vec<_>>()
            });
            let acks = match written.await {
                Ok(acks) => acks,
                Err(status) => vec![Err(status)],
            };
            for ack in acks {
                let failed = ack.is_err();
                if sender.send(ack).await.is_err() || failed {
                    return;
                }
            }
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

async fn receive(
    mut inbound: impl Stream<Item = Result<v1::LogAppend, Status>> + Unpin,
    queue: &mpsc::Sender<v1::LogAppend>,
) {
    // A broken stream is the agent's to open again; what came before it is written.
    while let Some(Ok(append)) = inbound.next().await {
        if queue.send(append).await.is_err() {
            return;
        }
    }
}

/// Fenced: only the attempt that holds its lease appends. Blocks.
fn write(
    state: &State,
    caller: &Caller,
    logs: &Logs,
    append: v1::LogAppend,
) -> Result<v1::LogAck, Status> {
    let lease: Lease = convert::lease(append.lease)?;
    let mut ack =
        v1::LogAck { lease: append.lease, stream: append.stream, durable: 0, refused: false };
    if append.data.len() > LOG_CHUNK_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "`data` has {} bytes, at most {LOG_CHUNK_BYTES_MAX} are allowed",
            append.data.len()
        )));
    }
    let Some(job) = state.leased_job(lease) else {
        ack.refused = true;
        return Ok(ack);
    };
    caller.holds(state, lease)?;
    let v1::LogAppend { stream, offset, data, last, .. } = append;
    match logs.append(job.run, lease.work, stream, offset, &data, last) {
        Ok(end) => ack.durable = end,
        Err(error @ LogError::Stream(_)) => {
            return Err(Status::invalid_argument(error.to_string()));
        }
        Err(error @ LogError::Io { .. }) => {
            tracing::error!(error = &error as &dyn std::error::Error, "a log cannot be written");
            return Err(Status::unavailable(error.to_string()));
        }
    }
    Ok(ack)
}
