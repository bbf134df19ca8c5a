//! What the peers say: checked, and told to Raft.

use std::sync::Arc;

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use steading_proto::v1;
use steading_proto::v1::replication_server::Replication;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::link::Place;
use super::{Peers, now_ms};
use crate::auth;

/// The service that coordinators offer each other.
#[derive(Clone, Debug)]
pub(crate) struct ReplicationService {
    pub(crate) peers: Arc<Peers>,
    /// The listener ends.
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl Replication for ReplicationService {
    async fn send(
        &self,
        request: Request<Streaming<v1::ReplicationBatch>>,
    ) -> Result<Response<v1::ReplicationSent>, Status> {
        let caller = auth::coordinator(&request)?;
        let mut batches = request.into_inner();
        let mut sender = None;
        loop {
            let batch = tokio::select! {
                batch = batches.message() => batch?,
                () = self.stop.cancelled() => return Err(Status::unavailable("the coordinator stops")),
            };
            let Some(batch) = batch else { return Ok(Response::new(v1::ReplicationSent {})) };
            if sender.is_none() {
                sender = batch.sender;
            }
            // Each time: it may have been removed since.
            let from = self.peers.check(caller.as_deref(), sender.as_ref())?;
            for bytes in &batch.messages {
                self.peers.hear(from, bytes)?;
            }
        }
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotPart>>,
    ) -> Result<Response<v1::SnapshotTaken>, Status> {
        let caller = auth::coordinator(&request)?;
        let taken = self.peers.receive(caller.as_deref(), request.into_inner());
        match self.stop.run_until_cancelled(taken).await {
            Some(taken) => taken.map(|()| Response::new(v1::SnapshotTaken {})),
            None => Err(Status::unavailable("the coordinator stops")),
        }
    }

    async fn ping(
        &self,
        request: Request<v1::PingRequest>,
    ) -> Result<Response<v1::PingResponse>, Status> {
        let caller = auth::coordinator(&request)?;
        self.peers.check(caller.as_deref(), request.get_ref().sender.as_ref())?;
        Ok(Response::new(v1::PingResponse { now_ms: now_ms() }))
    }
}

impl Peers {
    /// Who calls, if it may. `caller` is the directory that its certificate names.
    pub(super) fn check(
        &self,
        caller: Option<&str>,
        sender: Option<&v1::Sender>,
    ) -> Result<u64, Status> {
        let sender = sender.ok_or_else(|| Status::invalid_argument("nobody says who calls"))?;
        if caller.is_some_and(|caller| caller != sender.from_storage_id) {
            return Err(Status::permission_denied("the caller speaks for another replica"));
        }
        let me = self.me();
        let refused = |why: &str| Err(Status::failed_precondition(why));
        if sender.cluster_id != me.cluster_id {
            return refused("this replica is of another group");
        }
        let other_directory =
            !sender.to_storage_id.is_empty() && sender.to_storage_id != me.storage_id;
        if sender.to != me.id || other_directory {
            return refused("this is another replica");
        }
        if sender.from == me.id {
            return refused("the caller has this replica's id");
        }
        let state = self.replica.view();
        match state.replica(sender.from) {
            Some(row) if row.storage_id != sender.from_storage_id => {
                return refused("the caller's id belongs to another directory");
            }
            // Until it is out of the configuration its vote may be needed.
            Some(row) if row.removed && !self.replica.membership().contains(sender.from) => {
                return refused("the caller was removed from the group");
            }
            Some(_) => (),
            None if state.replica_by_storage(&sender.from_storage_id).is_some() => {
                return refused("the caller's directory has another id");
            }
            // This replica is new, or behind: what it does not know yet it must not refuse,
            // unless there are more of them than any group has.
            None if !self.may_link(sender.from) => {
                return Err(Status::resource_exhausted("too many replicas that are not known"));
            }
            None => (),
        }
        self.link(sender.from).was_heard_from(Place {
            endpoint: sender.from_endpoint.clone(),
            storage_id: sender.from_storage_id.clone(),
        });
        Ok(sender.from)
    }

    fn hear(&self, from: u64, bytes: &[u8]) -> Result<(), Status> {
        let message = Message::parse_from_bytes(bytes)
            .map_err(|_| Status::invalid_argument("a message cannot be decoded"))?;
        if message.from != from || message.to != self.me().id {
            return Err(Status::permission_denied(
                "a message is not from its sender to this replica",
            ));
        }
        let leads =
            matches!(message.get_msg_type(), MessageType::MsgHeartbeat | MessageType::MsgAppend);
        if leads && message.term >= self.replica.standing().borrow().term {
            self.is_led_now();
        }
        // One too many is dropped: Raft repeats it.
        let _ = self.replica.step(message);
        Ok(())
    }
}
