//! Snapshots on their way from one replica to another.
//!
//! The bytes are a file that the sender verified when it made it, in chunks of 1 MiB with a digest
//! each. The receiver writes them beside its own snapshots and hands the whole to its
//! replica, which reads it again before it believes it. What ends early, stalls or is
//! wrong is thrown away, and Raft is told in any case: it asks again while it must. The
//! sender then reads its file once more: what rotted since is made anew.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use steading_proto::v1;
use steading_proto::v1::replication_client::ReplicationClient;
use steading_proto::v1::snapshot_part::Part;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use super::link::Link;
use super::{Me, Peers};
use crate::blocking::blocking;
use crate::replica::{Replica, Shipped};

/// Bytes of a chunk, all but the last one's.
const CHUNK_BYTES: usize = 1 << 20;

/// Chunks that are read ahead of the network.
const CHUNKS_AHEAD: usize = 2;

/// Largest snapshot that is taken in, bytes.
const SNAPSHOT_BYTES_MAX: u64 = 64 << 30;

/// Longest pause between two chunks: one that stalls must be given up, since Raft sends
/// nothing else meanwhile.
const STALL_MAX: Duration = Duration::from_secs(10);

/// How long the receiver may take from the last chunk to its answer: it reads all of it.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// Sends the snapshot that Raft's message speaks of, and tells Raft how it went.
pub(super) async fn send(
    link: Arc<Link>,
    me: Arc<Me>,
    replica: Replica,
    message: Message,
    stop: CancellationToken,
) {
    let peer = link.peer;
    let index = message.get_snapshot().get_metadata().index;
    let sent = stop.run_until_cancelled(try_send(&link, &me, &replica, message)).await;
    match &sent {
        Some(Ok(bytes)) => tracing::info!(peer, bytes, "snapshot.sent"),
        Some(Err(status)) => tracing::warn!(peer, why = status.message(), "snapshot.not_sent"),
        None => (),
    }
    let shipped = match sent {
        Some(Ok(_)) => Shipped::Taken,
        Some(Err(status)) if matches!(status.code(), Code::Aborted | Code::DataLoss) => {
            Shipped::Refused
        }
        Some(Err(_)) | None => Shipped::Lost,
    };
    replica.report_snapshot(peer, index, shipped).await;
}

async fn try_send(
    link: &Link,
    me: &Me,
    replica: &Replica,
    message: Message,
) -> Result<u64, Status> {
    let place = link.candidates().into_iter().next();
    let place = place.ok_or_else(|| Status::unavailable("nobody knows where the peer is"))?;
    let channel = me.dialler.channel(&place.endpoint);
    let channel = channel.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let metadata = message.get_snapshot().get_metadata();
    let (index, term) = (metadata.index, metadata.term);
    let encoded = message.write_to_bytes();
    let encoded = encoded.map_err(|_| Status::internal("a message cannot be encoded"))?;
    let replica = replica.clone();
    let opened = blocking(move || {
        let file = replica.open_snapshot(index)?;
        let bytes = file.metadata()?.len();
        Ok::<_, std::io::Error>((file, bytes))
    });
    let (file, bytes) = opened.await?.map_err(|error| Status::aborted(error.to_string()))?;
    let sender = Some(me.sender(link.peer, &place.storage_id));
    let manifest = v1::SnapshotManifest { sender, message: encoded.into(), index, term, bytes };
    let (parts, incoming) = mpsc::channel(CHUNKS_AHEAD);
    let mut client = ReplicationClient::new(channel);
    let answer = client.snapshot(ReceiverStream::new(incoming));
    let feed = async {
        feed(parts, manifest, file).await?;
        tokio::time::sleep(ANSWER_MAX).await;
        Err(Status::deadline_exceeded("no answer to the last chunk"))
    };
    tokio::select! {
        // The one who takes it knows best why it ended.
        biased;
        answer = answer => answer.map(|_| bytes),
        fed = feed => fed,
    }
}

async fn feed(
    parts: mpsc::Sender<v1::SnapshotPart>,
    manifest: v1::SnapshotManifest,
    mut file: File,
) -> Result<(), Status> {
    let mut next = Part::Manifest(manifest);
    let mut number = 0;
    loop {
        let part = v1::SnapshotPart { part: Some(next) };
        match timeout(STALL_MAX, parts.send(part)).await {
            Ok(Ok(())) => (),
            // Its answer says why.
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(Status::deadline_exceeded("the peer takes no chunks")),
        }
        let read = blocking(move || {
            let mut data = Vec::with_capacity(CHUNK_BYTES);
            let read = (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut data);
            read.map(|_| (data, file))
        });
        let data;
        (data, file) = read.await?.map_err(|error| Status::aborted(error.to_string()))?;
        if data.is_empty() {
            return Ok(());
        }
        let digest = Bytes::copy_from_slice(blake3::hash(&data).as_bytes());
        next = Part::Chunk(v1::SnapshotChunk { number, digest, data: data.into() });
        number += 1;
    }
}

impl Peers {
    /// Takes in a snapshot.
    pub(super) async fn receive(
        &self,
        caller: Option<&str>,
        mut parts: Streaming<v1::SnapshotPart>,
    ) -> Result<(), Status> {
        let Some(Part::Manifest(manifest)) = next(&mut parts).await? else {
            return Err(Status::invalid_argument("the manifest has to come first"));
        };
        let from = self.check(caller, manifest.sender.as_ref())?;
        let message = Message::parse_from_bytes(&manifest.message)
            .map_err(|_| Status::invalid_argument("the message cannot be decoded"))?;
        let fits = message.get_msg_type() == MessageType::MsgSnapshot
            && message.from == from
            && message.to == self.me().id
            && message.get_snapshot().get_metadata().index == manifest.index;
        if !fits {
            return Err(Status::permission_denied("the message is not of this snapshot"));
        }
        if manifest.bytes > SNAPSHOT_BYTES_MAX {
            return Err(Status::invalid_argument("the snapshot is too large"));
        }
        // One at a time: the second would be as old as the first, or newer than needed.
        let Ok(_turn) = self.receiving.try_lock() else {
            return Err(Status::resource_exhausted("another snapshot is being taken in"));
        };
        let replica = self.replica.clone();
        let mut incoming = blocking(move || replica.incoming_snapshot()).await?.map_err(failed)?;
        let (mut number, mut bytes) = (0, 0);
        while let Some(part) = next(&mut parts).await? {
            let Part::Chunk(chunk) = part else {
                return Err(Status::invalid_argument("one manifest is enough"));
            };
            bytes += chunk.data.len() as u64;
            // Empty ones would keep others waiting for ever.
            let fits = (1..=CHUNK_BYTES).contains(&chunk.data.len()) && bytes <= manifest.bytes;
            if chunk.number != number || !fits {
                return Err(Status::invalid_argument("a chunk does not fit the manifest"));
            }
            number += 1;
            incoming = blocking(move || {
                if blake3::hash(&chunk.data).as_bytes()[..] != chunk.digest[..] {
                    return Err(Status::data_loss("a chunk has another digest"));
                }
                incoming.write_all(&chunk.data).map_err(failed)?;
                Ok(incoming)
            })
            .await??;
        }
        if bytes != manifest.bytes {
            return Err(Status::aborted("the snapshot ended early"));
        }
        self.replica.install_snapshot(incoming, message).await.map_err(|error| {
            tracing::warn!(from, %error, "snapshot.refused");
            Status::aborted(error.to_string())
        })
    }
}

async fn next(parts: &mut Streaming<v1::SnapshotPart>) -> Result<Option<Part>, Status> {
    match timeout(STALL_MAX, parts.message()).await {
        Ok(part) => Ok(part?.and_then(|part| part.part)),
        Err(_) => Err(Status::deadline_exceeded("no chunk came")),
    }
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}
