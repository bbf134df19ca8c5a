//! The other coordinators of the group: what Raft says to them and hears from them.
//!
//! One [`Link`] a peer with one bounded queue. Snapshots go their own way ([`ship`]), so
//! that no heartbeat waits behind one. What can go wrong: a message late, lost or doubled
//! is Raft's daily business; one from an older leader carries its term; one for another
//! directory at the same address, or of another group, is refused by its `Sender`; a
//! hostile caller needs a coordinator's certificate, and can speak for its own id only.

mod clock;
mod connect;
mod link;
mod outbox;
pub(crate) mod policy;
mod service;
mod ship;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use steading_model::limits::REPLICAS_MAX;
use steading_proto::v1;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::replica::Replica;
pub(crate) use connect::{Dialler, check_endpoint};
use link::{Link, Place};
pub(crate) use service::ReplicationService;

/// Largest message between replicas, bytes: one of Raft's with the largest entry.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How long another member leads since it said so. It says so several times a second.
const LED_MAX: Duration = Duration::from_secs(2);

/// Who this replica is.
#[derive(Clone, Debug)]
pub(crate) struct Me {
    pub(crate) cluster_id: String,
    pub(crate) id: u64,
    pub(crate) storage_id: String,
    /// Where it listens, as others reach it.
    pub(crate) endpoint: String,
    /// It shares no place for blobs with others.
    pub(crate) own_origin: bool,
    /// The newest one that this version knows.
    pub(crate) feature_level: u32,
    pub(crate) dialler: Dialler,
}

impl Me {
    fn sender(&self, to: u64, to_storage_id: &str) -> v1::Sender {
        v1::Sender {
            cluster_id: self.cluster_id.clone(),
            from: self.id,
            from_storage_id: self.storage_id.clone(),
            to,
            to_storage_id: to_storage_id.to_owned(),
            from_endpoint: self.endpoint.clone(),
        }
    }
}

/// The links to all peers.
#[derive(Debug)]
pub(crate) struct Peers {
    me: Arc<Me>,
    replica: Replica,
    links: Mutex<BTreeMap<u64, Arc<Link>>>,
    /// Held while a snapshot is taken in.
    receiving: tokio::sync::Mutex<()>,
    /// When another member last spoke as the leader of a term that is not over here.
    led: Mutex<Option<Instant>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Peers {
    pub(crate) fn new(me: Me, replica: Replica) -> Self {
        Self {
            me: Arc::new(me),
            replica,
            links: Mutex::default(),
            receiving: tokio::sync::Mutex::default(),
            led: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    pub(crate) fn me(&self) -> &Me {
        &self.me
    }

    /// Sends what Raft has to say, and follows the rows of the peers, until `stop`.
    ///
    /// # Errors
    ///
    /// None: it ends with the replica.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut outbound: mpsc::Receiver<Vec<Message>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut changes = self.replica.changes();
        let follow = async {
            self.refresh();
            loop {
                tokio::select! {
                    messages = outbound.recv() => match messages {
                        Some(messages) => messages.into_iter().for_each(|message| self.send(message)),
                        None => return,
                    },
                    changed = changes.changed() => match changed {
                        Ok(()) => self.refresh(),
                        Err(_) => return,
                    },
                }
            }
        };
        stop.run_until_cancelled(follow).await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        // The replica stops first where it failed, and then says so itself.
        stop.cancelled().await;
        Ok(())
    }

    /// How far the clocks of the peers are ahead of ours, as far as that is known.
    pub(crate) fn clocks_ahead_ms(&self) -> BTreeMap<u64, i64> {
        let links = self.lock();
        links.iter().filter_map(|(id, link)| Some((*id, link.ahead_ms()?))).collect()
    }

    /// Whose clock is too far off the others' for it to lead, this replica's among them.
    pub(crate) fn clocks_off(&self) -> BTreeSet<u64> {
        clock::who_is_off(self.me.id, &self.clocks_ahead_ms())
    }

    /// Whether another member leads, whatever this replica knows of it yet.
    pub(crate) fn others_go_on(&self) -> bool {
        let led = *self.led.lock().unwrap_or_else(PoisonError::into_inner);
        led.is_some_and(|at| at.elapsed() <= LED_MAX)
    }

    /// Another member spoke as the leader.
    fn is_led_now(&self) {
        *self.led.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago the peer answered.
    pub(crate) fn silent(&self, peer: u64) -> Option<Duration> {
        self.lock().get(&peer)?.silent()
    }

    fn send(&self, message: Message) {
        let link = self.link(message.to);
        if message.get_msg_type() == MessageType::MsgSnapshot {
            // Raft sends nothing else until it hears how this went, so that there is one at
            // a time for each peer.
            let (me, replica) = (Arc::clone(&self.me), self.replica.clone());
            let stop = link.stop.clone();
            self.tasks.spawn(ship::send(link, me, replica, message, stop));
            return;
        }
        let Ok(bytes) = message.write_to_bytes() else {
            tracing::error!(peer = message.to, "a message cannot be encoded");
            return;
        };
        let has_entries = message.get_msg_type() == MessageType::MsgAppend;
        if !link.outbox.push(Bytes::from(bytes), has_entries) {
            self.replica.report_unreachable(message.to);
        }
    }

    /// The link to a peer, made where there is none.
    fn link(&self, peer: u64) -> Arc<Link> {
        let mut links = self.lock();
        let link = links.entry(peer).or_insert_with(|| {
            let link = Arc::new(Link::new(peer, self.stop.child_token()));
            let (me, replica) = (Arc::clone(&self.me), self.replica.clone());
            self.tasks.spawn(Arc::clone(&link).run(me, replica));
            link
        });
        Arc::clone(link)
    }

    /// Whether there is a link to this peer, or room for one.
    fn may_link(&self, peer: u64) -> bool {
        let links = self.lock();
        links.contains_key(&peer) || links.len() < 2 * REPLICAS_MAX
    }

    /// Follows the rows: a link to everybody who is to be reached, and to nobody else.
    fn refresh(&self) {
        let state = self.replica.view();
        let membership = self.replica.membership();
        let mut wanted: BTreeSet<u64> = membership.all().collect();
        for row in state.replicas().filter(|row| row.id != self.me.id) {
            if row.removed && !wanted.contains(&row.id) {
                continue;
            }
            wanted.insert(row.id);
            self.link(row.id).is_recorded_at(Place {
                endpoint: row.endpoint.clone(),
                storage_id: row.storage_id.clone(),
            });
        }
        // Somebody that this replica has not heard of yet may have called, and stays.
        let gone = |id: &u64| !wanted.contains(id) && state.replica(*id).is_some();
        self.lock().retain(|id, link| {
            let keep = !gone(id);
            if !keep {
                link.stop.cancel();
            }
            keep
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The clock on the wall, milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}
