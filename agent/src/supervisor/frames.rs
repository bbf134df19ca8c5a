//! What agent and supervisor say to each other: frames of a length (four bytes,
//! little-endian), a kind (one byte) and a payload, over two pipes.

use std::io;

use serde::{Deserialize, Serialize};

use crate::process::{Command, Exit};

/// Largest frame, bytes: above the kernel's bound for arguments and environment
/// (2 MiB), escaped as JSON.
pub(crate) const FRAME_BYTES_MAX: usize = 16 << 20;

/// Largest piece of output in one frame, bytes: what a pipe holds.
pub(crate) const OUTPUT_FRAME_BYTES_MAX: usize = 64 << 10;

const HEADER_BYTES: usize = 5;

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Run this process. One at a time.
    Run(Command),
    /// TERM, grace, KILL for the process that runs.
    Cancel,
    /// The lease lasts until then, milliseconds on CLOCK_BOOTTIME; 0: no lease holds it.
    Deadline(u64),
    /// Kill whatever is left of the job.
    EndJob,
    /// The lease is no more: kill everything at once.
    Fence,
}

/// What the supervisor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    Output(Vec<u8>),
    Exited(Exit),
    NotStarted(NotStarted),
    /// The job's tree is gone; so many processes had to be killed.
    JobEnded(u32),
    Frozen,
    Thawed,
}

/// Why a process could not be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotStarted {
    pub(crate) program: String,
    pub(crate) reason: String,
}

impl Order {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Run(command) => frame(1, &json(command)),
            Self::Cancel => frame(2, &[]),
            Self::Deadline(at_ms) => frame(3, &at_ms.to_le_bytes()),
            Self::EndJob => frame(4, &[]),
            Self::Fence => frame(5, &[]),
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> io::Result<Self> {
        match kind {
            1 => Ok(Self::Run(serde_json::from_slice(payload)?)),
            2 => Ok(Self::Cancel),
            3 => {
                let bytes = payload.try_into().map_err(|_| invalid("deadline"))?;
                Ok(Self::Deadline(u64::from_le_bytes(bytes)))
            }
            4 => Ok(Self::EndJob),
            5 => Ok(Self::Fence),
            _ => Err(invalid("kind of order")),
        }
    }
}

impl Report {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Output(bytes) => frame(1, bytes),
            Self::Exited(exit) => frame(2, &json(exit)),
            Self::NotStarted(why) => frame(3, &json(why)),
            Self::JobEnded(killed) => frame(4, &killed.to_le_bytes()),
            Self::Frozen => frame(5, &[]),
            Self::Thawed => frame(6, &[]),
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> io::Result<Self> {
        match kind {
            1 => Ok(Self::Output(payload.to_vec())),
            2 => Ok(Self::Exited(serde_json::from_slice(payload)?)),
            3 => Ok(Self::NotStarted(serde_json::from_slice(payload)?)),
            4 => {
                let bytes = payload.try_into().map_err(|_| invalid("count"))?;
                Ok(Self::JobEnded(u32::from_le_bytes(bytes)))
            }
            5 => Ok(Self::Frozen),
            6 => Ok(Self::Thawed),
            _ => Err(invalid("kind of report")),
        }
    }
}

/// Bytes received so far, from which whole frames are taken.
#[derive(Debug, Default)]
pub(crate) struct FrameBuffer {
    bytes: Vec<u8>,
    /// How much of `bytes` is taken already.
    taken: usize,
}

impl FrameBuffer {
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        // What is left is part of one frame; without this, a stream whose frames never end
        // where a read does would be kept whole.
        if self.taken == self.bytes.len() || self.taken >= OUTPUT_FRAME_BYTES_MAX {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next order, if it has arrived whole.
    pub(crate) fn order(&mut self) -> io::Result<Option<Order>> {
        self.next(Order::decode)
    }

    /// The next report, if it has arrived whole.
    pub(crate) fn report(&mut self) -> io::Result<Option<Report>> {
        self.next(Report::decode)
    }

    fn next<T>(&mut self, decode: fn(u8, &[u8]) -> io::Result<T>) -> io::Result<Option<T>> {
        let rest = &self.bytes[self.taken..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(invalid("length"));
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let message = decode(header[4], payload)?;
        self.taken += HEADER_BYTES + len;
        Ok(Some(message))
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    // A payload is bounded by what its maker may put into it, far below 4 GiB.
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(payload);
    bytes
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers always have a JSON form")
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("frame with a bad {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_whole_however_they_are_cut() {
        let orders = [
            Order::Run(Command { argv: vec!["true".into()], ..Command::default() }),
            Order::Cancel,
            Order::Deadline(7),
            Order::EndJob,
            Order::Fence,
        ];
        let wire: Vec<u8> = orders.iter().flat_map(Order::encode).collect();
        for piece in [1, 3, wire.len()] {
            let (mut buffer, mut seen) = (FrameBuffer::default(), Vec::new());
            for bytes in wire.chunks(piece) {
                buffer.extend(bytes);
                while let Some(order) = buffer.order().unwrap() {
                    seen.push(order);
                }
            }
            assert_eq!(seen, orders);
        }
    }

    #[test]
    fn a_long_stream_is_not_kept() {
        let report = Report::Output(vec![7; OUTPUT_FRAME_BYTES_MAX - 1]).encode();
        let mut buffer = FrameBuffer::default();
        buffer.extend(&report[..100]);
        for _ in 0..100 {
            buffer.extend(&report[100..]);
            buffer.extend(&report[..100]);
            assert!(buffer.report().unwrap().is_some());
            assert!(buffer.bytes.len() < 4 * OUTPUT_FRAME_BYTES_MAX, "{}", buffer.bytes.len());
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [&[255, 255, 255, 255, 1][..], &[0, 0, 0, 0, 99], &[1, 0, 0, 0, 3, 0]] {
            let mut buffer = FrameBuffer::default();
            buffer.extend(bad);
            assert!(buffer.order().is_err());
        }
    }
}
