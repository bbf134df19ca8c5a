//! The connection to one peer: kept warm, and made again as soon as it can be.
//!
//! Nothing that is sent is acknowledged here. When the connection breaks, what waited
//! for it is dropped and Raft is told that the peer cannot be reached: it then probes
//! until an answer comes, and repeats what is missing.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{self, FuturesUnordered, StreamExt as _};
use steading_proto::v1;
use steading_proto::v1::replication_client::ReplicationClient;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::outbox::Outbox;
use super::{MESSAGE_BYTES_MAX, Me, clock};
use crate::replica::Replica;

/// How often the peer is asked for a sign of life.
const PING_PERIOD: Duration = Duration::from_millis(500);

/// How long it may take to give one. A stopped process keeps its connections open, and
/// is as good as gone.
const PING_MAX: Duration = Duration::from_secs(2);

/// Pause between the starts of two attempts to connect: a peer that comes back must not
/// miss the election that its absence caused.
const ATTEMPT_PERIOD: Duration = Duration::from_millis(50);

/// The same for a peer that is there and does not want to hear from us.
const REFUSED_PERIOD: Duration = Duration::from_secs(1);

/// Attempts that are under way at once: where packets vanish, one that was made before
/// the network healed would wait for TCP's next try, a new one gets through at once.
const ATTEMPTS_MAX: usize = 8;

/// How long one attempt may take, its first ping included.
const ATTEMPT_MAX: Duration = Duration::from_secs(1);

/// Most that a pause is lengthened at random, milliseconds.
const JITTER_MS_MAX: u64 = 25;

/// No clock was read yet.
const CLOCK_UNKNOWN: i64 = i64::MIN;

/// One peer.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) peer: u64,
    pub(crate) outbox: Outbox,
    places: Mutex<Places>,
    /// The places changed.
    moved: Notify,
    started: Instant,
    /// When the last ping came back, milliseconds after `started`; 0 if none did.
    answered_ms: AtomicU64,
    /// By how much its clock is ahead, as the last quick ping said.
    ahead_ms: AtomicI64,
    pub(crate) stop: CancellationToken,
}

/// Where the peer may be, and what its directory is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Places {
    /// As its row says.
    row: Option<Place>,
    /// As it said itself when it last called.
    heard: Option<Place>,
}

/// Where a replica says that it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) endpoint: String,
    pub(crate) storage_id: String,
}

impl Link {
    pub(crate) fn new(peer: u64, stop: CancellationToken) -> Self {
        Self {
            peer,
            outbox: Outbox::default(),
            places: Mutex::default(),
            moved: Notify::new(),
            started: Instant::now(),
            answered_ms: AtomicU64::new(0),
            ahead_ms: AtomicI64::new(CLOCK_UNKNOWN),
            stop,
        }
    }

    /// The peer's row says this.
    pub(crate) fn is_recorded_at(&self, place: Place) {
        self.move_to(|places| places.row = Some(place));
    }

    /// The peer itself said this when it called.
    pub(crate) fn was_heard_from(&self, place: Place) {
        self.move_to(|places| places.heard = Some(place));
    }

    fn move_to(&self, change: impl FnOnce(&mut Places)) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let before = places.clone();
        change(&mut places);
        let moved = *places != before;
        drop(places);
        if moved {
            self.moved.notify_waiters();
        }
    }

    /// Where to try, one after the other.
    pub(crate) fn candidates(&self) -> Vec<Place> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all: Vec<Place> = places.heard.into_iter().chain(places.row).collect();
        all.dedup();
        all
    }

    /// How long ago it answered.
    pub(crate) fn silent(&self) -> Option<Duration> {
        match self.answered_ms.load(Ordering::Relaxed) {
            0 => None,
            at => Some(self.started.elapsed().saturating_sub(Duration::from_millis(at))),
        }
    }

    /// How far its clock is ahead of ours, if that was seen of late.
    pub(crate) fn ahead_ms(&self) -> Option<i64> {
        let ahead = self.ahead_ms.load(Ordering::Relaxed);
        let fresh = self.silent().is_some_and(|silent| silent <= 4 * PING_PERIOD);
        (fresh && ahead != CLOCK_UNKNOWN).then_some(ahead)
    }

    /// Keeps the connection until the link is stopped.
    pub(crate) async fn run(self: Arc<Self>, me: Arc<Me>, replica: Replica) {
        let stop = self.stop.clone();
        let keep = async {
            loop {
                let (channel, place) = self.connect(&me).await;
                self.outbox.connected();
                let why = self.talk(&me, channel, &place).await;
                self.outbox.disconnected();
                replica.report_unreachable(self.peer);
                tracing::debug!(peer = self.peer, why = why.message(), "peer.lost");
                tokio::time::sleep(jitter()).await;
            }
        };
        stop.run_until_cancelled(keep).await;
    }

    /// Tries until one attempt succeeds.
    async fn connect(&self, me: &Me) -> (Channel, Place) {
        let mut attempts = FuturesUnordered::new();
        let mut next = 0;
        let mut due = interval(ATTEMPT_PERIOD);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refused = false;
        loop {
            tokio::select! {
                Some(outcome) = attempts.next() => match outcome {
                    Ok(found) => return found,
                    Err(status) => {
                        let status: Status = status;
                        refused = matches!(status.code(), Code::FailedPrecondition | Code::PermissionDenied);
                        tracing::trace!(peer = self.peer, why = status.message(), "peer.unreachable");
                    }
                },
                _ = due.tick() => {
                    // Made before the look, so that no move in between is missed.
                    let moved = self.moved.notified();
                    let candidates = self.candidates();
                    if candidates.is_empty() {
                        moved.await;
                    } else if attempts.len() < ATTEMPTS_MAX {
                        let place = candidates[next % candidates.len()].clone();
                        next += 1;
                        attempts.push(self.attempt(me, place));
                    }
                    let pause = if refused { REFUSED_PERIOD } else { ATTEMPT_PERIOD };
                    due.reset_after(pause + jitter());
                }
            }
        }
    }

    async fn attempt(&self, me: &Me, place: Place) -> Result<(Channel, Place), Status> {
        let channel = me.dialler.channel(&place.endpoint);
        let channel = channel.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut client = ReplicationClient::new(channel.clone());
        match timeout(ATTEMPT_MAX, self.ping(me, &mut client, &place)).await {
            Ok(answer) => answer.map(|()| (channel, place)),
            Err(_) => Err(Status::deadline_exceeded("the attempt took too long")),
        }
    }

    /// Sends whatever there is until the connection breaks; returns why it did.
    async fn talk(&self, me: &Me, channel: Channel, place: &Place) -> Status {
        let mut client =
            ReplicationClient::new(channel.clone()).max_encoding_message_size(MESSAGE_BYTES_MAX);
        let first = v1::ReplicationBatch {
            sender: Some(me.sender(self.peer, &place.storage_id)),
            messages: Vec::new(),
        };
        // The stream outlives this borrow in tonic's eyes only: it ends with the call.
        let (batches, incoming) = tokio::sync::mpsc::channel(1);
        let rest = tokio_stream::wrappers::ReceiverStream::new(incoming);
        let sent = client.send(stream::iter([first]).chain(rest));
        let fill = async {
            while let Ok(room) = batches.reserve().await {
                let messages = self.outbox.batch().await;
                room.send(v1::ReplicationBatch { sender: None, messages });
            }
            // Whoever took the batches says why it does no more.
            std::future::pending::<()>().await;
        };
        let pings = async {
            let mut client = ReplicationClient::new(channel);
            let mut due = interval(PING_PERIOD);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                due.tick().await;
                match timeout(PING_MAX, self.ping(me, &mut client, place)).await {
                    Ok(Ok(())) => (),
                    Ok(Err(status)) => return status,
                    Err(_) => return Status::deadline_exceeded("no answer to a ping"),
                }
            }
        };
        tokio::select! {
            ended = sent => match ended {
                Ok(_) => Status::unavailable("the peer ended the stream"),
                Err(status) => status,
            },
            () = fill => Status::unavailable("the stream ended"),
            status = pings => status,
        }
    }

    async fn ping(
        &self,
        me: &Me,
        client: &mut ReplicationClient<Channel>,
        place: &Place,
    ) -> Result<(), Status> {
        let sender = me.sender(self.peer, &place.storage_id);
        let sent_ms = super::now_ms();
        let answer = client.ping(v1::PingRequest { sender: Some(sender) }).await?.into_inner();
        if let Some(ahead) = clock::ahead_ms(sent_ms, answer.now_ms, super::now_ms()) {
            self.ahead_ms.store(ahead, Ordering::Relaxed);
        }
        let at = self.started.elapsed().as_millis() as u64;
        self.answered_ms.store(at.max(1), Ordering::Relaxed);
        Ok(())
    }
}

/// Up to [`JITTER_MS_MAX`], so that two who lost each other do not keep step.
fn jitter() -> Duration {
    let mut byte = [0];
    // Without randomness they may keep step.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    Duration::from_millis(u64::from(byte[0]) * JITTER_MS_MAX / 255)
}
