//! Sends an attempt's logs to the coordinator, as far as it does not have them,
//! over and over until it has them all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;

use steading_model::limits::LOG_CHUNK_BYTES_MAX;
use steading_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::JobLogs;
use crate::agents::{Agents, Retry};

/// Chunks on the way that are not acknowledged yet.
const IN_FLIGHT_MAX: usize = 16;

/// How far the coordinator has each stream, and what is on the way.
#[derive(Debug, Default)]
struct Position {
    /// Bytes that the coordinator has.
    durable: BTreeMap<u32, u64>,
    /// Bytes that were sent on the current connection.
    sent: BTreeMap<u32, u64>,
    /// Where each chunk on the way begins, in the order of sending.
    in_flight: VecDeque<(u32, u64)>,
    /// Streams of which a new connection has yet to say how far they are there: whoever
    /// answers may have nothing of them.
    unsure: BTreeSet<u32>,
}

/// Sends the logs until they are closed and acknowledged, or `stop` says so, or the
/// lease is no longer held. Returns whether the coordinator has everything.
pub async fn ship(
    agents: Agents,
    lease: v1::Lease,
    logs: JobLogs,
    stop: CancellationToken,
) -> bool {
    let mut position = Position::default();
    let mut retry = Retry::new(agents.cluster());
    let mut changes = logs.changes();
    loop {
        // No stream is opened for a job that says nothing.
        while position.next_chunk(&logs).is_none() {
            if logs.is_closed() {
                return true;
            }
            tokio::select! {
                _ = changes.changed() => (),
                () = stop.cancelled() => return position.next_chunk(&logs).is_none(),
            }
        }
        let before = position.durable.clone();
        let shipped = tokio::select! {
            shipped = ship_once(&agents, &lease, &logs, &mut position) => shipped,
            () = stop.cancelled() => return false,
        };
        if position.durable != before {
            retry.reset();
        }
        position.broke();
        match shipped {
            Ok(()) => return true,
            Err(status) if status.code() == Code::FailedPrecondition => {
                tracing::debug!(%status, "log is not taken: the lease is not held");
                return false;
            }
            Err(status) => tracing::debug!(%status, "log stream broke"),
        }
        if stop.run_until_cancelled(retry.wait()).await.is_none() {
            return false;
        }
    }
}

/// One connection, until everything is acknowledged or it breaks.
async fn ship_once(
    agents: &Agents,
    lease: &v1::Lease,
    logs: &JobLogs,
    position: &mut Position,
) -> Result<(), Status> {
    let (appends, receiver) = mpsc::channel(IN_FLIGHT_MAX);
    let mut changes = logs.changes();
    // Before the call, for a server that answers no sooner than it hears something.
    position.send(lease, logs, &appends)?;
    let place = agents.cluster().place();
    let mut acks = agents.client().append_log(ReceiverStream::new(receiver)).await?.into_inner();
    loop {
        position.send(lease, logs, &appends)?;
        if position.in_flight.is_empty() && logs.is_closed() {
            return Ok(());
        }
        tokio::select! {
            ack = acks.message() => match ack? {
                Some(ack) if ack.refused => {
                    return Err(Status::failed_precondition("the lease is not held"));
                }
                Some(ack) => position.acknowledged(&ack),
                None => return Err(Status::unavailable("the coordinator closed the log stream")),
            },
            _ = changes.changed() => (),
            () = agents.cluster().left(&place.endpoint) => {
                return Err(Status::unavailable("another coordinator leads"));
            }
        }
    }
}

impl Position {
    /// Sends as much as may be on the way.
    fn send(
        &mut self,
        lease: &v1::Lease,
        logs: &JobLogs,
        appends: &mpsc::Sender<v1::LogAppend>,
    ) -> Result<(), Status> {
        while self.in_flight.len() < IN_FLIGHT_MAX {
            let Some((stream, offset, len)) = self.next_chunk(logs) else {
                return Ok(());
            };
            let mut data = vec![0; len];
            File::open(logs.path(stream))
                .and_then(|file| file.read_exact_at(&mut data, offset))
                .map_err(|error| Status::failed_precondition(format!("log is gone: {error}")))?;
            let append = v1::LogAppend {
                lease: Some(*lease),
                stream,
                offset,
                data: data.into(),
                last: false,
            };
            if appends.try_send(append).is_err() {
                return Ok(());
            }
            self.unsure.remove(&stream);
            self.sent.insert(stream, offset + len as u64);
            self.in_flight.push_back((stream, offset));
        }
        Ok(())
    }

    /// The connection is gone. The next one begins by asking, with no bytes, how far each
    /// stream is there, also for a job that says nothing more: a coordinator that has just
    /// taken over gets the whole log, and whoever reads it there.
    fn broke(&mut self) {
        self.sent = self.durable.clone();
        self.in_flight.clear();
        self.unsure = self.durable.keys().copied().collect();
    }

    /// The next bytes to send: stream, offset, length.
    fn next_chunk(&self, logs: &JobLogs) -> Option<(u32, u64, usize)> {
        if let Some(stream) = self.unsure.first() {
            return Some((*stream, self.sent.get(stream).copied().unwrap_or(0), 0));
        }
        logs.lengths().into_iter().find_map(|(stream, len)| {
            let sent = self.sent.get(&stream).copied().unwrap_or(0);
            let left = len.saturating_sub(sent).min(LOG_CHUNK_BYTES_MAX as u64);
            (left > 0).then_some((stream, sent, left as usize))
        })
    }

    fn acknowledged(&mut self, ack: &v1::LogAck) {
        // May be less than an earlier answer, after a crash of the coordinator.
        self.durable.insert(ack.stream, ack.durable);
        let Some(place) = self.in_flight.iter().position(|(stream, _)| *stream == ack.stream)
        else {
            return;
        };
        if let Some((stream, offset)) = self.in_flight.remove(place)
            && ack.durable < offset
        {
            // The coordinator has less than what this chunk builds on: go back to there.
            self.sent.insert(stream, ack.durable);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_that_takes_over_gets_the_whole_log_of_a_silent_job() {
        let dir = tempfile::tempdir().unwrap();
        let logs = JobLogs::new(dir.path().join("logs"));
        logs.append(0, b"hello");
        logs.append(7, b"job");
        let mut position = Position::default();
        assert_eq!(sent(&mut position, &logs), [(0, 0, "hello"), (7, 0, "job")]);
        acknowledge(&mut position, &[(0, 5), (7, 3)]);
        assert_eq!(sent(&mut position, &logs), []);

        position.broke();
        assert_eq!(sent(&mut position, &logs), [(0, 5, ""), (7, 3, "")]);
        acknowledge(&mut position, &[(0, 0), (7, 1)]);
        assert_eq!(sent(&mut position, &logs), [(0, 0, "hello"), (7, 1, "ob")]);
        acknowledge(&mut position, &[(0, 5), (7, 3)]);
        // The same one again: it has all.
        position.broke();
        assert_eq!(sent(&mut position, &logs), [(0, 5, ""), (7, 3, "")]);
        acknowledge(&mut position, &[(0, 5), (7, 3)]);
        assert_eq!(sent(&mut position, &logs), []);
    }

    fn sent(position: &mut Position, logs: &JobLogs) -> Vec<(u32, u64, &'static str)> {
        let (appends, mut receiver) = mpsc::channel(IN_FLIGHT_MAX);
        position.send(&v1::Lease::default(), logs, &appends).unwrap();
        let text = |data: &[u8]| String::from_utf8(data.to_vec()).unwrap().leak() as &str;
        std::iter::from_fn(|| receiver.try_recv().ok())
            .map(|append| (append.stream, append.offset, text(&append.data)))
            .collect()
    }

    fn acknowledge(position: &mut Position, acks: &[(u32, u64)]) {
        for &(stream, durable) in acks {
            position.acknowledged(&v1::LogAck { lease: None, stream, durable, refused: false });
        }
    }
}
