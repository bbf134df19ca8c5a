//! What waits to be sent to one peer. Raft repeats whatever matters, so that a message
//! too many is dropped rather than kept.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Bytes in one batch, unless its one message is larger.
pub(crate) const BATCH_BYTES_MAX: usize = 1 << 20;

/// Messages in one batch.
const BATCH_MESSAGES_MAX: usize = 1024;

/// Entries on their way to a peer that takes them slowly, bytes.
const ENTRIES_BYTES_MAX: usize = 32 << 20;

/// Messages without entries: heartbeats, votes, answers.
const SHORT_MAX: usize = 4096;

/// Of these, what is kept for a peer that is not connected. Older ones are of no use to it.
const SHORT_UNCONNECTED_MAX: usize = 16;

/// A queue that never makes its writer wait.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    connected: bool,
    /// Go first: a leader that is busy sending must not look like a dead one.
    short: VecDeque<Bytes>,
    entries: VecDeque<Bytes>,
    entries_bytes: usize,
}

impl Outbox {
    /// Takes a message. `false`: it was dropped, and Raft should hear that the peer
    /// cannot be reached.
    pub(crate) fn push(&self, message: Bytes, has_entries: bool) -> bool {
        let mut queue = self.lock();
        if has_entries {
            let room = queue.entries_bytes + message.len() <= ENTRIES_BYTES_MAX;
            if !queue.connected || !(room || queue.entries.is_empty()) {
                return false;
            }
            queue.entries_bytes += message.len();
            queue.entries.push_back(message);
        } else {
            let max = if queue.connected { SHORT_MAX } else { SHORT_UNCONNECTED_MAX };
            while queue.short.len() >= max {
                queue.short.pop_front();
            }
            queue.short.push_back(message);
        }
        drop(queue);
        self.filled.notify_one();
        true
    }

    /// Waits for messages and takes as many as go into a batch.
    pub(crate) async fn batch(&self) -> Vec<Bytes> {
        loop {
            let filled = self.filled.notified();
            let batch = self.take();
            if !batch.is_empty() {
                return batch;
            }
            filled.await;
        }
    }

    /// From now on entries are taken.
    pub(crate) fn connected(&self) {
        self.lock().connected = true;
    }

    /// Forgets what was meant for a connection that is no more.
    pub(crate) fn disconnected(&self) {
        *self.lock() = Queue::default();
    }

    fn take(&self) -> Vec<Bytes> {
        let queue = &mut *self.lock();
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(next) = queue.short.front().or(queue.entries.front()) {
            bytes += next.len();
            if !batch.is_empty() && (bytes > BATCH_BYTES_MAX || batch.len() >= BATCH_MESSAGES_MAX) {
                break;
            }
            if let Some(message) = queue.short.pop_front() {
                batch.push(message);
            } else if let Some(message) = queue.entries.pop_front() {
                queue.entries_bytes -= message.len();
                batch.push(message);
            }
        }
        batch
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_overtakes_entries_and_batches_are_bounded() {
        let outbox = Outbox::default();
        outbox.connected();
        let half = Bytes::from(vec![0; BATCH_BYTES_MAX / 2 + 1]);
        assert!(outbox.push(half.clone(), true));
        assert!(outbox.push(half.clone(), true));
        assert!(outbox.push(Bytes::from_static(b"beat"), false));
        assert_eq!(outbox.take(), [Bytes::from_static(b"beat"), half.clone()]);
        assert_eq!(outbox.take(), [half]);
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn a_slow_peer_is_reported_and_one_message_of_any_size_passes() {
        let outbox = Outbox::default();
        outbox.connected();
        let huge = Bytes::from(vec![0; ENTRIES_BYTES_MAX + 1]);
        assert!(outbox.push(huge.clone(), true), "the first, whatever its size");
        assert!(!outbox.push(Bytes::from_static(b"entry"), true));
        assert_eq!(outbox.take(), [huge]);
        assert!(outbox.push(Bytes::from_static(b"entry"), true), "there is room again");
    }

    #[test]
    fn for_a_peer_that_is_not_connected_only_the_newest_short_messages_wait() {
        let outbox = Outbox::default();
        assert!(!outbox.push(Bytes::from_static(b"entry"), true));
        for n in 0..=SHORT_UNCONNECTED_MAX as u8 {
            assert!(outbox.push(Bytes::from(vec![n]), false));
        }
        let batch = outbox.take();
        assert_eq!(batch.len(), SHORT_UNCONNECTED_MAX);
        assert_eq!(batch[0], [1][..]);
        outbox.push(Bytes::from_static(b"beat"), false);
        outbox.disconnected();
        assert!(outbox.take().is_empty());
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_a_message() {
        let outbox = Outbox::default();
        let (batch, ()) = tokio::join!(outbox.batch(), async {
            tokio::task::yield_now().await;
            outbox.push(Bytes::from_static(b"vote"), false);
        });
        assert_eq!(batch, [Bytes::from_static(b"vote")]);
    }
}
