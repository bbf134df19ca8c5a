//! A coordinator that decides claims by a script.

use std::collections::VecDeque;
use std::sync::Mutex;

use steading_proto::v1::agents_server::Agents;
use steading_proto::v1::claim_action_response::Decision;
use steading_proto::v1::resolve_claim_request::Resolution;
use steading_proto::v1::{self, ClaimActionResponse, ResolveClaimResponse};
use tokio::sync::mpsc;

/// What a scripted coordinator was told.
pub(crate) struct Coordinator {
    pub(crate) said: mpsc::Receiver<Resolution>,
    pub(crate) detail: String,
}

impl Coordinator {
    pub(crate) async fn resolved(&mut self) -> &'static str {
        match self.said.recv().await.unwrap() {
            Resolution::Published(_) => "published",
            Resolution::Failed(failed) => {
                self.detail = failed.detail_digest;
                "failed"
            }
            Resolution::Abandoned(_) => "abandoned",
        }
    }
}

/// The coordinator's end of claims, as a script.
pub(crate) struct Script {
    pub(crate) decisions: Mutex<VecDeque<Decision>>,
    pub(crate) say: mpsc::Sender<Resolution>,
}

fn unscripted<T>() -> Result<tonic::Response<T>, tonic::Status> {
    Err(tonic::Status::unimplemented("not in the script"))
}

#[tonic::async_trait]
impl Agents for Script {
    type SessionStream = tokio_stream::Empty<Result<v1::CoordinatorMessage, tonic::Status>>;
    type AppendLogStream = tokio_stream::Empty<Result<v1::LogAck, tonic::Status>>;

    type WatchLeaderStream = tokio_stream::Empty<Result<v1::Leadership, tonic::Status>>;

    async fn watch_leader(
        &self,
        _: tonic::Request<v1::WatchLeaderRequest>,
    ) -> Result<tonic::Response<Self::WatchLeaderStream>, tonic::Status> {
        unscripted()
    }

    async fn hand_back(
        &self,
        _: tonic::Request<v1::HandBackRequest>,
    ) -> Result<tonic::Response<v1::HandBackResponse>, tonic::Status> {
        unscripted()
    }

    async fn claim_action(
        &self,
        _: tonic::Request<v1::ClaimActionRequest>,
    ) -> Result<tonic::Response<ClaimActionResponse>, tonic::Status> {
        let decision = self.decisions.lock().unwrap().pop_front();
        let decision = decision.ok_or_else(|| tonic::Status::failed_precondition("not held"))?;
        Ok(tonic::Response::new(ClaimActionResponse { decision: Some(decision) }))
    }

    async fn resolve_claim(
        &self,
        request: tonic::Request<v1::ResolveClaimRequest>,
    ) -> Result<tonic::Response<ResolveClaimResponse>, tonic::Status> {
        self.say.send(request.into_inner().resolution.unwrap()).await.unwrap();
        Ok(tonic::Response::new(ResolveClaimResponse {}))
    }

    async fn register(
        &self,
        _: tonic::Request<v1::RegisterRequest>,
    ) -> Result<tonic::Response<v1::RegisterResponse>, tonic::Status> {
        unscripted()
    }

    async fn session(
        &self,
        _: tonic::Request<tonic::Streaming<v1::AgentMessage>>,
    ) -> Result<tonic::Response<Self::SessionStream>, tonic::Status> {
        unscripted()
    }

    async fn complete_attempt(
        &self,
        _: tonic::Request<v1::CompleteAttemptRequest>,
    ) -> Result<tonic::Response<v1::CompleteAttemptResponse>, tonic::Status> {
        unscripted()
    }

    async fn release_lease(
        &self,
        _: tonic::Request<v1::ReleaseLeaseRequest>,
    ) -> Result<tonic::Response<v1::ReleaseLeaseResponse>, tonic::Status> {
        unscripted()
    }

    async fn record_artifact(
        &self,
        _: tonic::Request<v1::RecordArtifactRequest>,
    ) -> Result<tonic::Response<v1::RecordArtifactResponse>, tonic::Status> {
        unscripted()
    }

    async fn list_run_artifacts(
        &self,
        _: tonic::Request<v1::ListRunArtifactsRequest>,
    ) -> Result<tonic::Response<v1::ListArtifactsResponse>, tonic::Status> {
        unscripted()
    }

    async fn append_log(
        &self,
        _: tonic::Request<tonic::Streaming<v1::LogAppend>>,
    ) -> Result<tonic::Response<Self::AppendLogStream>, tonic::Status> {
        unscripted()
    }
}
