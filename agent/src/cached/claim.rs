//! The right to execute an action: asked for on a miss, given back with what came of it.

use std::time::Duration;

use steading_model::Digest;
use steading_model::limits::FROZEN_MS_MAX;
use steading_proto::v1::claim_action_response::{Build, Decision, Failed, Published};
use steading_proto::v1::resolve_claim_request::{Abandoned, Resolution};
use steading_proto::v1::{ClaimActionRequest, Lease, ResolveClaimRequest};
use tokio_util::sync::CancellationToken;

use super::AWAY_WAIT;
use crate::agents::Agents;

/// How long a step asks for a claim of a coordinator that is away. Its lease ends before.
const CLAIM_WAIT: Duration = Duration::from_millis(FROZEN_MS_MAX);

/// How claims are made: on whose behalf, and with whom.
#[derive(Debug, Clone)]
pub struct Claims {
    pub agents: Agents,
    pub lease: Lease,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decided {
    /// Execute it, and say what came of it.
    Build,
    /// Somebody else did: look again.
    Published,
    /// Somebody else did, and it failed; the blob with the details.
    Failed(Digest),
    /// Nobody decides just now: execute it, and owe nobody an answer.
    Unclaimed,
    Cancelled,
}

impl Claims {
    /// Waits for the decision, which may take as long as an execution. Cancelling ends
    /// the waiting, and only this one's.
    pub(super) async fn claim(&self, action: &Digest, cancel: &CancellationToken) -> Decided {
        let request =
            ClaimActionRequest { lease: Some(self.lease), action_digest: action.to_string() };
        // A coordinator that is away has forgotten nothing: who executes without it does
        // what another one is doing already.
        let ask = self.agents.call_for(CLAIM_WAIT, |mut client| {
            let request = request.clone();
            async move { client.claim_action(request).await }
        });
        let answer = tokio::select! {
            () = cancel.cancelled() => return Decided::Cancelled,
            answer = ask => answer,
        };
        let decision = match answer {
            Ok(answer) => answer.decision,
            Err(status) => {
                tracing::warn!(%action, %status, "claim not decided, the step is executed without");
                return Decided::Unclaimed;
            }
        };
        match decision {
            Some(Decision::Build(Build {})) => Decided::Build,
            Some(Decision::Published(Published {})) => Decided::Published,
            Some(Decision::Failed(Failed { detail_digest })) => {
                detail_digest.parse().map_or(Decided::Unclaimed, Decided::Failed)
            }
            None => Decided::Unclaimed,
        }
    }

    /// Tells what came of it. Who cannot be told finds out when the lease ends.
    pub(super) async fn resolve(&self, action: &Digest, resolution: Resolution) {
        let request = ResolveClaimRequest {
            lease: Some(self.lease),
            action_digest: action.to_string(),
            resolution: Some(resolution),
        };
        let tell = self.agents.call_for(AWAY_WAIT, |mut client| {
            let request = request.clone();
            async move { client.resolve_claim(request).await }
        });
        if let Err(status) = tell.await {
            tracing::warn!(%action, %status, "claim not resolved");
        }
    }
}

pub(super) fn published() -> Resolution {
    Resolution::Published(Published {})
}

pub(super) fn failed(detail: &Digest) -> Resolution {
    Resolution::Failed(Failed { detail_digest: detail.to_string() })
}

pub(super) fn abandoned() -> Resolution {
    Resolution::Abandoned(Abandoned {})
}
