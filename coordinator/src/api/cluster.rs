//! The `Cluster` service: the group of coordinators, for operators and those who join.

use std::sync::Arc;
use std::time::Duration;

use steading_core::{Proposal, Rejection};
use steading_proto::v1;
use steading_proto::v1::cluster_member::Role;
use steading_proto::v1::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use crate::documents::Documents;
use crate::group::Declined;
use crate::leadership::Leadership;
use crate::peers::policy::may_leave;
use crate::peers::{Peers, check_endpoint};
use crate::replica::{ProposeError, Replica};
use crate::{auth, group};

/// How long a removal or transfer is waited for.
const CHANGE_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(crate) struct ClusterService {
    pub(crate) replica: Replica,
    pub(crate) leadership: Leadership,
    pub(crate) peers: Arc<Peers>,
    pub(crate) documents: Arc<Documents>,
    /// Other coordinators can have the blobs that this one takes.
    pub(crate) shares_origin: bool,
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn get_cluster_status(
        &self,
        request: Request<v1::GetClusterStatusRequest>,
    ) -> Result<Response<v1::ClusterStatus>, Status> {
        auth::principal(&request)?;
        self.leadership.term()?;
        let status = self.replica.status().await.map_err(|error| self.refused(error))?;
        let state = self.replica.view();
        let clocks = self.peers.clocks_ahead_ms();
        let me = self.peers.me().id;
        let members = state.replicas().map(|row| {
            let progress = status.progress.get(&row.id);
            let matched = progress.map_or(0, |progress| progress.matched);
            let silent = self.peers.silent(row.id);
            v1::ClusterMember {
                replica_id: row.id,
                storage_id: row.storage_id.clone(),
                endpoint: row.endpoint.clone(),
                role: match row.id {
                    id if status.membership.votes(id) => Role::Voter,
                    id if status.membership.contains(id) => Role::Learner,
                    _ => Role::None,
                }
                .into(),
                leader: row.id == me,
                removed: row.removed,
                matched,
                lag: status.commit.saturating_sub(matched),
                active: row.id == me || progress.is_some_and(|progress| progress.active),
                silent_ms: match (row.id == me, silent) {
                    (true, _) => 0,
                    (false, None) => -1,
                    (false, Some(silent)) => i64::try_from(silent.as_millis()).unwrap_or(i64::MAX),
                },
                clock_ahead_ms: clocks.get(&row.id).copied().unwrap_or_default(),
                feature_level: row.level,
                admitted_ms: row.admitted.as_ms(),
            }
        });
        Ok(Response::new(v1::ClusterStatus {
            cluster_id: self.peers.me().cluster_id.clone(),
            term: status.term,
            commit: status.commit,
            joint: status.membership.is_joint(),
            members: members.collect(),
            feature_level: state.feature_level(),
        }))
    }

    async fn admit_replica(
        &self,
        request: Request<v1::AdmitReplicaRequest>,
    ) -> Result<Response<v1::AdmitReplicaResponse>, Status> {
        let caller = auth::coordinator(&request)?;
        let request = request.into_inner();
        if caller.is_some_and(|caller| caller != request.storage_id) {
            return Err(Status::permission_denied("the caller speaks for another replica"));
        }
        let me = self.peers.me();
        if !request.cluster_id.is_empty() && request.cluster_id != me.cluster_id {
            return Err(Status::failed_precondition("this replica is of another group"));
        }
        check_endpoint(&request.endpoint)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if request.own_origin || !self.shares_origin {
            return Err(Status::failed_precondition(
                "several coordinators need one place for blobs that all of them see: start each of \
                 them with the same `object_store`",
            ));
        }
        self.leadership.term()?;
        self.check_sees_origin(&request.storage_id).await?;
        // The founder first, so that others find it.
        if self.replica.view().replica(me.id).is_none() {
            self.propose(group::update(me)).await?;
        }
        let v1::AdmitReplicaRequest { storage_id, endpoint, feature_level: level, .. } = request;
        if self.leaves(&storage_id) {
            // Its vote counts until it is out: it goes on for so long.
            return Err(Status::unavailable(
                "the replica was removed, and is needed until others are there",
            ));
        }
        let admit = Proposal::AdmitReplica { storage_id: storage_id.clone(), endpoint, level };
        self.replica.propose(admit).await.map_err(|error| match error {
            ProposeError::Rejected(Rejection::FeatureLevel { level, current }) => {
                Status::failed_precondition(format!(
                    "the group is at feature level {current}, and the version of this coordinator \
                     knows no later one than {level}: start a later version"
                ))
            }
            other => self.refused(other),
        })?;
        let state = self.replica.view();
        let row = state.replica_by_storage(&storage_id);
        let row = row.ok_or_else(|| Status::aborted("the replica was removed meanwhile"))?;
        tracing::info!(replica = row.id, endpoint = row.endpoint, "replica.admitted");
        Ok(Response::new(v1::AdmitReplicaResponse {
            cluster_id: me.cluster_id.clone(),
            replica_id: row.id,
            seal_key: self.documents.sealer().key().to_vec().into(),
        }))
    }

    async fn remove_replica(
        &self,
        request: Request<v1::RemoveReplicaRequest>,
    ) -> Result<Response<v1::RemoveReplicaResponse>, Status> {
        let principal = auth::principal(&request)?;
        let v1::RemoveReplicaRequest { replica_id: id, force } = request.into_inner();
        self.leadership.term()?;
        let seen = group::seen(&self.peers, &self.replica, &Declined::new()).await;
        let seen = seen.map_err(|error| self.refused(error))?;
        let known = self.replica.view().replica(id).map(|row| row.removed);
        if known == Some(false) && !force && !may_leave(&seen, id) {
            return Err(Status::failed_precondition(format!(
                "without replica {id} the number of voters would be even, or no majority would \
                 answer, and no learner is up to date that could take its place"
            )));
        }
        self.propose(Proposal::RemoveReplica { replica: id, force }).await?;
        tracing::info!(replica = id, %principal, force, "replica.removed");
        let mut changes = self.replica.membership_changes();
        let mut standing = self.replica.standing();
        tokio::select! {
            gone = changes.wait_for(|membership| !membership.contains(id)) => {
                gone.map_err(|_| self.refused(ProposeError::Stopped))?;
            }
            // It goes on under the next leader, who may be asked the same again.
            _ = standing.wait_for(|standing| !standing.leads) => return Err(self.leadership.refusal()),
            () = tokio::time::sleep(CHANGE_MAX) => return Err(Status::deadline_exceeded(
                "the replica was asked to leave, and the others have not agreed on that yet; ask again",
            )),
        }
        // Once more, which changes nothing: that it is committed shows that a majority of
        // those who stay has the change on its disks as one that holds. Until then, after
        // a loss of power, they would need the one that is about to be thrown away.
        match self.replica.propose(Proposal::RemoveReplica { replica: id, force }).await {
            Ok(_) | Err(ProposeError::Rejected(_)) => {
                Ok(Response::new(v1::RemoveReplicaResponse {}))
            }
            Err(error) => Err(self.refused(error)),
        }
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        auth::principal(&request)?;
        let to = request.into_inner().replica_id;
        self.leadership.term()?;
        let group = group::seen(&self.peers, &self.replica, &Declined::new()).await;
        let group = group.map_err(|error| self.refused(error))?;
        let to = match to {
            0 => group.successor().ok_or_else(|| {
                Status::failed_precondition("no other voter answers, so nobody else can lead")
            })?,
            to if to == group.leader => {
                return Ok(Response::new(v1::TransferLeadershipResponse { replica_id: to }));
            }
            to if !group.membership.votes(to) => {
                return Err(Status::failed_precondition(format!("replica {to} is no voter")));
            }
            to if !group.members.get(&to).is_some_and(|member| member.active) => {
                return Err(Status::failed_precondition(format!("replica {to} does not answer")));
            }
            to => to,
        };
        self.replica.transfer(Some(to)).await.map_err(|error| match error {
            ProposeError::Busy => {
                Status::aborted(format!("replica {to} did not take over in time"))
            }
            other => self.refused(other),
        })?;
        Ok(Response::new(v1::TransferLeadershipResponse { replica_id: to }))
    }
}

impl ClusterService {
    /// Who is new must see the place where the group has its blobs, not one of the same name:
    /// it has left its sign there.
    async fn check_sees_origin(&self, storage_id: &str) -> Result<(), Status> {
        let Some(origin) = self.documents.front().origin() else { return Ok(()) };
        if self.replica.view().replica_by_storage(storage_id).is_some() {
            return Ok(());
        }
        match origin.is_seen_by(storage_id).await? {
            true => Ok(()),
            false => Err(Status::failed_precondition(format!(
                "the new coordinator's `object_store` is another place than the group's, `{}` of \
                 the leader: all coordinators must see the same directory or bucket, and it has to \
                 be mounted before they start",
                origin.place()
            ))),
        }
    }

    async fn propose(&self, proposal: Proposal) -> Result<(), Status> {
        self.replica.propose(proposal).await.map(drop).map_err(|error| self.refused(error))
    }

    /// Whether who has this directory was removed, and Raft still counts on it.
    fn leaves(&self, storage_id: &str) -> bool {
        let state = self.replica.view();
        let row = state.replica_by_storage(storage_id).filter(|row| row.removed);
        row.is_some_and(|row| self.replica.membership().contains(row.id))
    }

    fn refused(&self, error: ProposeError) -> Status {
        match error {
            ProposeError::NotLeader => self.leadership.refusal(),
            other => other.into(),
        }
    }
}
