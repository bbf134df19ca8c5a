//! What comes in from the coordinator while a run is followed: its events, and the
//! logs of its jobs. Both go on where they were after a break.

use std::collections::HashMap;

use steading_proto::v1;
use tokio::sync::mpsc;

use crate::connect::{AWAY_MAX, Backoff, failure, is_transient};
use crate::coordinators::Coordinators;
use crate::exit::Failure;

/// Inputs that wait for the screen. A reader that is ahead of the screen waits.
pub const INPUTS_MAX: usize = 256;

/// One thing that came in.
#[derive(Debug)]
pub enum Input {
    Event(v1::WatchRunEvent),
    /// Log bytes of a job, in order within each stream, none twice.
    Log {
        job: u64,
        chunk: v1::LogChunk,
    },
    /// The attempt's log is complete, or cannot be read any further.
    LogEnd {
        job: u64,
        attempt: u32,
    },
    /// The run cannot be followed any further.
    Broken(Failure),
}

/// Follows the run's events until it has a conclusion.
pub async fn events(coordinators: Coordinators, run_id: u64, to: mpsc::Sender<Input>) {
    let mut token = 0;
    let mut backoff = Backoff::default();
    loop {
        let request = v1::WatchRunRequest { run_id, token };
        let connection = coordinators.connection();
        let status = match coordinators.pipelines().watch_run(request).await {
            Ok(response) => {
                match pass_events(response.into_inner(), &mut token, &mut backoff, &to).await {
                    Some(status) => status,
                    None => return,
                }
            }
            Err(status) => status,
        };
        coordinators.refused(connection, &status);
        if !is_transient(&status) || !backoff.wait(AWAY_MAX).await {
            // Nobody listens any more: then nobody needs to know.
            let _ = to.send(Input::Broken(broken(status))).await;
            return;
        }
    }
}

/// Why a run that the farm had accepted can no longer be followed.
fn broken(status: tonic::Status) -> Failure {
    if status.code() == tonic::Code::NotFound {
        return Failure::Farm(anyhow::anyhow!(
            "the farm has lost the run, or retired it long ago: {}\n  \
             hint: is it the coordinator that the run was submitted to, on the same data?",
            status.message()
        ));
    }
    failure("follow the run", status)
}

/// Passes events on; `None` when the run is over or nobody listens.
async fn pass_events(
    mut stream: tonic::Streaming<v1::WatchRunEvent>,
    token: &mut u64,
    backoff: &mut Backoff,
    to: &mpsc::Sender<Input>,
) -> Option<tonic::Status> {
    loop {
        match stream.message().await {
            Ok(Some(event)) => {
                backoff.reset();
                *token = event.token;
                let concluded = event
                    .run
                    .as_ref()
                    .is_some_and(|run| run.conclusion() != v1::Conclusion::Unspecified);
                to.send(Input::Event(event)).await.ok()?;
                if concluded {
                    return None;
                }
            }
            // A coordinator that stops ends its streams before their time.
            Ok(None) => return Some(tonic::Status::unavailable("the stream ended")),
            Err(status) => return Some(status),
        }
    }
}

/// Which log is read.
#[derive(Clone, Copy, Debug)]
pub struct LogOf {
    pub run: u64,
    pub job: u64,
    /// 0: the last one.
    pub attempt: u32,
    /// Only this stream.
    pub stream: Option<u32>,
    /// Go on until the attempt has ended.
    pub follow: bool,
}

/// Reads the log of an attempt to its end. A log that cannot be read fails nothing.
pub async fn log(coordinators: Coordinators, of: LogOf, to: mpsc::Sender<Input>) {
    let LogOf { job, attempt, .. } = of;
    let (chunks, mut received) = mpsc::channel(INPUTS_MAX);
    let read = read_log(coordinators, of, HashMap::new(), chunks);
    let pass = async {
        while let Some(chunk) = received.recv().await {
            // The end of the job says more.
            if !chunk.notice.is_empty() {
                continue;
            }
            if to.send(Input::Log { job, chunk }).await.is_err() {
                return;
            }
        }
    };
    let (read, ()) = tokio::join!(read, pass);
    if let Err(status) = read {
        tracing::warn!(job, attempt, error = %status, "cannot read the log");
    }
    // Nobody listens any more: then nobody needs to know.
    let _ = to.send(Input::LogEnd { job, attempt }).await;
}

/// Reads the log from `offsets` on, resuming after breaks, none of its bytes twice.
/// Ends early, and well, when nobody receives any more.
///
/// # Errors
///
/// The status of a read that would fail again, or has failed for [`AWAY_MAX`].
pub async fn read_log(
    coordinators: Coordinators,
    of: LogOf,
    mut offsets: HashMap<u32, u64>,
    to: mpsc::Sender<v1::LogChunk>,
) -> Result<(), tonic::Status> {
    let mut backoff = Backoff::default();
    loop {
        let request = v1::ReadLogRequest {
            run_id: of.run,
            job_id: of.job,
            attempt: of.attempt,
            offsets: offsets.clone(),
            follow: of.follow,
        };
        let connection = coordinators.connection();
        let status = match coordinators.pipelines().read_log(request).await {
            Ok(response) => {
                let mut stream = response.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(chunk)) => {
                            backoff.reset();
                            if of.stream.is_some_and(|only| only != chunk.stream) {
                                continue;
                            }
                            if !chunk.notice.is_empty() {
                                if to.send(chunk).await.is_err() {
                                    return Ok(());
                                }
                                continue;
                            }
                            let Some(chunk) = unseen(chunk, &mut offsets) else { continue };
                            if to.send(chunk).await.is_err() {
                                return Ok(());
                            }
                        }
                        Ok(None) => return Ok(()),
                        Err(status) => break status,
                    }
                }
            }
            Err(status) => status,
        };
        coordinators.refused(connection, &status);
        if !is_transient(&status) || !backoff.wait(AWAY_MAX).await {
            return Err(status);
        }
    }
}

/// The part of the chunk that has not been seen yet; moves the stream's offset on.
fn unseen(mut chunk: v1::LogChunk, offsets: &mut HashMap<u32, u64>) -> Option<v1::LogChunk> {
    let seen = offsets.entry(chunk.stream).or_default();
    let end = chunk.offset.saturating_add(chunk.data.len() as u64);
    if end <= *seen {
        return None;
    }
    if let Some(known) = seen.checked_sub(chunk.offset) {
        let known = usize::try_from(known).ok()?;
        chunk.data = chunk.data.slice(known..);
        chunk.offset = *seen;
    }
    *seen = end;
    Some(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_of_a_log_is_seen_twice() {
        check(&[(1, 0, "abc", "0:abc"), (1, 3, "de", "3:de"), (2, 0, "x", "0:x")]);
        check(&[(1, 0, "abc", "0:abc"), (1, 1, "bcde", "3:de"), (1, 0, "abcde", "-")]);
        check(&[(1, 0, "a", "0:a"), (1, 5, "f", "5:f"), (1, 5, "f", "-")]);
    }

    fn check(chunks: &[(u32, u64, &str, &str)]) {
        let mut offsets = HashMap::new();
        for (stream, offset, data, want) in chunks {
            let chunk = v1::LogChunk {
                stream: *stream,
                offset: *offset,
                data: data.as_bytes().to_vec().into(),
                attempt: 1,
                notice: String::new(),
            };
            let got = unseen(chunk, &mut offsets).map_or("-".to_owned(), |chunk| {
                format!("{}:{}", chunk.offset, String::from_utf8_lossy(&chunk.data))
            });
            assert_eq!(got, *want);
        }
    }
}
