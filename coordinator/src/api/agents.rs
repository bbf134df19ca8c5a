//! The `Agents` service.

use std::collections::BTreeMap;
use std::sync::Arc;

use steading_core::{Effect, Lease, NewAgent, Outcome, Proposal, Rejection, Resolution};
use steading_model::{
    AgentId, Digest, DigestFunction, FailureClass, Incarnation, ProjectName, Provisioning,
    Resources, RunId, StepCounts,
};
use steading_proto::v1;
use steading_proto::v1::agents_server::Agents;
use steading_proto::v1::claim_action_response::{
    Build, Decision as WireDecision, Failed, Published,
};
use steading_proto::v1::resolve_claim_request::Resolution as WireResolution;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::{Answers, append_log, convert, fleet, session};
use crate::auth;
use crate::blocking::blocking;
use crate::claims::{Claims, Decision, Wait};
use crate::documents::{DocumentError, Documents};
use crate::leadership::{Leadership, Term};
use crate::leases::Leases;
use crate::logs::Logs;
use crate::offers::Offers;
use crate::progress::Progress;
use crate::replica::{ProposeError, Replica};
use crate::run_watch::RunWatch;
use crate::sessions::Sessions;

/// Longest name, label or property of an agent, bytes.
const TEXT_BYTES_MAX: usize = 1_000;

/// What agents ask for.
#[derive(Clone, Debug)]
pub(crate) struct AgentsService {
    pub(crate) replica: Replica,
    pub(crate) leadership: Leadership,
    pub(crate) documents: Arc<Documents>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) claims: Arc<Claims>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) watch: Arc<RunWatch>,
    /// Owns the tasks behind streams.
    pub(crate) tasks: TaskTracker,
    /// Ends the streams.
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl Agents for AgentsService {
    type SessionStream = Answers<v1::CoordinatorMessage>;
    type WatchLeaderStream = Answers<v1::Leadership>;
    type AppendLogStream = Answers<v1::LogAck>;

    #[tracing::instrument(name = "agent.register", skip_all, fields(name = request.get_ref().name))]
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        self.leadership.term()?;
        let caller = auth::caller(&request)?;
        let agent = new_agent(request.into_inner())?;
        self.may_register(&caller, &agent)?;
        let name = agent.name.clone();
        let effects = match self.replica.propose(Proposal::RegisterAgent { agent }).await {
            Err(ProposeError::Rejected(Rejection::IncarnationStale)) => {
                return Err(session::displaced(&name));
            }
            answer => answer?,
        };
        let registered = effects.iter().find_map(|effect| match effect {
            Effect::Registered { agent, incarnation } => Some((*agent, *incarnation)),
            _ => None,
        });
        let (agent, incarnation) = registered
            .ok_or_else(|| Status::internal("the agent was registered without an answer"))?;
        Ok(Response::new(v1::RegisterResponse {
            agent_id: agent.counter(),
            incarnation: incarnation.counter(),
        }))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let term = self.leadership.term()?;
        let parts = session::Parts {
            replica: self.replica.clone(),
            sessions: Arc::clone(&self.sessions),
            leases: Arc::clone(&self.leases),
            offers: Offers {
                replica: self.replica.clone(),
                documents: Arc::clone(&self.documents),
            },
            progress: Arc::clone(&self.progress),
            watch: Arc::clone(&self.watch),
        };
        let caller = auth::caller(&request)?;
        let (inbound, stop) = (request.into_inner(), self.stop.clone());
        Ok(Response::new(session::stream(parts, caller, inbound, &self.tasks, term, stop)))
    }

    #[tracing::instrument(name = "attempt.complete", skip_all, fields(work))]
    async fn complete_attempt(
        &self,
        request: Request<v1::CompleteAttemptRequest>,
    ) -> Result<Response<v1::CompleteAttemptResponse>, Status> {
        self.leadership.term()?;
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let lease = convert::lease(request.lease)?;
        caller.held(&self.replica.view(), lease)?;
        tracing::Span::current().record("work", tracing::field::display(lease.work));
        let outcome = outcome(request)?;
        let covered = self.durable_logs(&outcome).await?;
        let run = self.replica.view().leased_job(lease).map(|job| job.run);
        let synced = self.finish_logs(lease, covered);
        let proposal = Proposal::CompleteAttempt { lease, outcome: outcome.clone() };
        let (synced, proposed) = tokio::join!(synced, self.replica.propose(proposal));
        match proposed {
            Ok(_) => self.lease_ended(run, lease),
            Err(ProposeError::Rejected(Rejection::LeaseStale))
                if self.was_reported(lease, &outcome) => {}
            Err(error @ ProposeError::Rejected(Rejection::LeaseStale)) => {
                let late = Proposal::RecordStale { lease, outcome };
                if let Err(error) = self.replica.propose(late).await {
                    tracing::debug!(%error, "a late result is not remembered");
                }
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        }
        synced?;
        Ok(Response::new(v1::CompleteAttemptResponse {}))
    }

    #[tracing::instrument(name = "lease.release", skip_all, fields(work))]
    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Result<Response<v1::ReleaseLeaseResponse>, Status> {
        self.leadership.term()?;
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let lease = convert::lease(request.lease)?;
        caller.holds(&self.replica.view(), lease)?;
        tracing::Span::current().record("work", tracing::field::display(lease.work));
        let class = request.failure_class().to_model().unwrap_or(FailureClass::Preempted);
        let started = request.started;
        let run = self.replica.view().leased_job(lease).map(|job| job.run);
        self.replica.propose(Proposal::ReleaseLease { lease, class, started }).await?;
        self.lease_ended(run, lease);
        self.finish_logs(lease, BTreeMap::new()).await?;
        Ok(Response::new(v1::ReleaseLeaseResponse {}))
    }

    async fn watch_leader(
        &self,
        _: Request<v1::WatchLeaderRequest>,
    ) -> Result<Response<Self::WatchLeaderStream>, Status> {
        let (replica, leadership) = (self.replica.clone(), self.leadership.clone());
        let said = fleet::watch_leader(replica, leadership, &self.tasks, self.stop.clone());
        Ok(Response::new(said))
    }

    #[tracing::instrument(name = "agent.hand_back", skip_all, fields(agent_id = request.get_ref().agent_id))]
    async fn hand_back(
        &self,
        request: Request<v1::HandBackRequest>,
    ) -> Result<Response<v1::HandBackResponse>, Status> {
        self.leadership.term()?;
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        caller.is_agent(&self.replica.view(), AgentId::from_counter(request.agent_id))?;
        let leases: Vec<Lease> = request.unstarted.iter().map(convert::lease_of).collect();
        let proposal = Proposal::HandBack {
            agent: AgentId::from_counter(request.agent_id),
            incarnation: Incarnation::from_counter(request.incarnation),
            leases: leases.clone(),
            window_ms: request.window_ms,
            preempted: request.preempted,
        };
        self.replica.propose(proposal).await?;
        let state = self.replica.view();
        for lease in leases.into_iter().filter(|lease| state.leased_job(*lease).is_none()) {
            let run = state.job(lease.work.job).map(|job| job.run);
            self.lease_ended(run, lease);
        }
        Ok(Response::new(v1::HandBackResponse {}))
    }

    async fn claim_action(
        &self,
        request: Request<v1::ClaimActionRequest>,
    ) -> Result<Response<v1::ClaimActionResponse>, Status> {
        let term = self.leadership.term()?;
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let lease = convert::lease(request.lease)?;
        caller.holds(&self.replica.view(), lease)?;
        let action = convert::digest("action_digest", &request.action_digest)?;
        let scope = self.scope(lease)?;
        let decision = self.claim(term, (lease, scope, action)).await?;
        let decision = match decision {
            Decision::Build => WireDecision::Build(Build {}),
            Decision::Published => WireDecision::Published(Published {}),
            Decision::Failed(detail) => {
                WireDecision::Failed(Failed { detail_digest: detail.to_string() })
            }
            Decision::LeaseEnded => return Err(lease_stale()),
            Decision::AskAgain => {
                return Err(Status::unavailable("the decision was missed: ask again"));
            }
        };
        Ok(Response::new(v1::ClaimActionResponse { decision: Some(decision) }))
    }

    async fn resolve_claim(
        &self,
        request: Request<v1::ResolveClaimRequest>,
    ) -> Result<Response<v1::ResolveClaimResponse>, Status> {
        self.leadership.term()?;
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let lease = convert::lease(request.lease)?;
        caller.holds(&self.replica.view(), lease)?;
        let action = convert::digest("action_digest", &request.action_digest)?;
        let resolution = match request.resolution {
            Some(WireResolution::Published(_)) => Resolution::Published,
            Some(WireResolution::Failed(failed)) => Resolution::Failed {
                detail: convert::digest("detail_digest", &failed.detail_digest)?,
            },
            Some(WireResolution::Abandoned(_)) => Resolution::Abandoned,
            None => return Err(Status::invalid_argument("`resolution` is missing")),
        };
        let scope = self.scope(lease)?;
        let proposal = Proposal::ResolveClaim { scope, action, lease, resolution };
        match self.replica.propose(proposal).await {
            // Resolved before, by the first try of this report.
            Ok(_) | Err(ProposeError::Rejected(Rejection::ClaimNotHeld)) => {
                Ok(Response::new(v1::ResolveClaimResponse {}))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn record_artifact(
        &self,
        request: Request<v1::RecordArtifactRequest>,
    ) -> Result<Response<v1::RecordArtifactResponse>, Status> {
        self.leadership.term()?;
        let caller = auth::caller(&request)?;
        let request = request.into_inner();
        let lease = convert::lease(request.lease)?;
        caller.holds(&self.replica.view(), lease)?;
        let v1::Artifact { name, root_digest, files, bytes } =
            request.artifact.ok_or_else(|| Status::invalid_argument("`artifact` is missing"))?;
        let root = convert::digest("root_digest", &root_digest)?;
        self.present("root_digest", root).await?;
        self.replica.propose(Proposal::RecordArtifact { lease, name, root, files, bytes }).await?;
        Ok(Response::new(v1::RecordArtifactResponse {}))
    }

    async fn list_run_artifacts(
        &self,
        request: Request<v1::ListRunArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        self.leadership.term()?;
        let caller = auth::caller(&request)?;
        let lease = convert::lease(request.into_inner().lease)?;
        // What an upload was acknowledged for is seen.
        self.replica.read_barrier().await?;
        let state = self.replica.view();
        caller.holds(&state, lease)?;
        let job = state.leased_job(lease).ok_or_else(lease_stale)?;
        Ok(Response::new(convert::artifacts(&state, job.run)))
    }

    async fn append_log(
        &self,
        request: Request<Streaming<v1::LogAppend>>,
    ) -> Result<Response<Self::AppendLogStream>, Status> {
        let term = self.leadership.term()?;
        let caller = auth::caller(&request)?;
        Ok(Response::new(append_log::stream(
            self.replica.clone(),
            caller,
            Arc::clone(&self.logs),
            request.into_inner(),
            &self.tasks,
            term,
            self.stop.clone(),
        )))
    }
}

impl AgentsService {
    /// An agent registers under its own name, and in the pool that its token was for.
    fn may_register(&self, caller: &auth::Caller, agent: &NewAgent) -> Result<(), Status> {
        caller.speaks_for(&agent.name)?;
        let state = self.replica.view();
        let pool = state.member(caller.role, &caller.id).map_or("", |member| member.pool.as_str());
        if pool.is_empty() || pool == agent.pool {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "agent `{}` joined for pool `{pool}`, not for `{}`",
            agent.name, agent.pool
        )))
    }

    /// The result must be here before it is named in the log, and what it names of the
    /// logs need not be kept twice.
    async fn durable_logs(&self, outcome: &Outcome) -> Result<BTreeMap<u32, u64>, Status> {
        let Some(digest) = outcome.result else {
            return Ok(BTreeMap::new());
        };
        let documents = Arc::clone(&self.documents);
        let covered = blocking(move || {
            let result = documents.result(&digest)?;
            let mut named: Vec<Digest> = result.logs.values().copied().collect();
            named.push(digest);
            let nowhere = documents.front().publish_blocking(DigestFunction::Blake3, &named)?;
            if nowhere.contains(&digest) {
                return Err(DocumentError::Missing { what: "job result", digest });
            }
            let stored = result.logs.iter().filter(|(_, blob)| !nowhere.contains(blob));
            Ok::<_, DocumentError>(stored.map(|(stream, blob)| (*stream, blob.size)).collect())
        });
        Ok(covered.await??)
    }

    async fn finish_logs(&self, lease: Lease, covered: BTreeMap<u32, u64>) -> Result<(), Status> {
        if !self.logs.is_open(lease.work) {
            return Ok(());
        }
        let logs = Arc::clone(&self.logs);
        let finished = blocking(move || logs.finish(lease.work, &covered)).await?;
        finished.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "a log cannot be synced");
            Status::unavailable(error.to_string())
        })
    }

    fn lease_ended(&self, run: Option<RunId>, lease: Lease) {
        self.leases.ended(lease);
        self.claims.lease_ended(lease);
        // What comes now is refused.
        self.logs.close(lease.work);
        if let Some(run) = run {
            self.progress.ended(run, lease);
        }
    }

    /// Whether this very report was accepted before.
    fn was_reported(&self, lease: Lease, outcome: &Outcome) -> bool {
        let state = self.replica.view();
        let job = state.job(lease.work.job).filter(|job| job.attempts == lease.work.attempt);
        let known = job.and_then(|job| job.outcome());
        known.is_some_and(|known| {
            known.conclusion == outcome.conclusion && known.result == outcome.result
        })
    }

    /// The cache scope of a lease: its run's project.
    fn scope(&self, lease: Lease) -> Result<ProjectName, Status> {
        let state = self.replica.view();
        let run = state.leased_job(lease).and_then(|job| state.run(job.run));
        run.map(|run| run.definition.request.project.clone()).ok_or_else(lease_stale)
    }

    async fn claim(&self, term: Term, wait: Wait) -> Result<Decision, Status> {
        // Declared first, so that it is dropped last.
        let _forget = ForgetOnDrop { claims: &self.claims, wait: &wait };
        // Before the proposal: the decision may be made before its answer is read.
        let decided = self.claims.wait(wait.clone());
        let (lease, scope, action) = wait.clone();
        let proposed = self.replica.propose(Proposal::ClaimAction { scope, action, lease }).await;
        let granted = |effect: &Effect| matches!(effect, Effect::ClaimGranted { lease: holder, .. } if *holder == lease);
        if proposed?.iter().any(granted) {
            return Ok(Decision::Build);
        }
        tokio::select! {
            decision = decided => Ok(decision.unwrap_or(Decision::AskAgain)),
            // The decision is made elsewhere from now on.
            refusal = term.over() => Err(refusal),
            () = self.stop.cancelled() => Err(Status::unavailable("the coordinator stops")),
        }
    }

    async fn present(&self, field: &'static str, digest: Digest) -> Result<(), Status> {
        let nowhere = self.documents.front().publish(DigestFunction::Blake3, vec![digest]);
        match nowhere.await?.is_empty() {
            true => Ok(()),
            false => Err(Status::not_found(format!(
                "`{field}` names `{digest}`, which is not in the store: put it and ask again"
            ))),
        }
    }
}

/// Forgets a wait whose caller went away. The receiver must be dropped before.
struct ForgetOnDrop<'a> {
    claims: &'a Claims,
    wait: &'a Wait,
}

impl Drop for ForgetOnDrop<'_> {
    fn drop(&mut self) {
        self.claims.forget(self.wait);
    }
}

fn lease_stale() -> Status {
    ProposeError::Rejected(Rejection::LeaseStale).into()
}

fn outcome(request: v1::CompleteAttemptRequest) -> Result<Outcome, Status> {
    let conclusion = request
        .conclusion()
        .to_model()
        .ok_or_else(|| Status::invalid_argument("`conclusion` is missing"))?;
    let class = request.failure_class().to_model();
    let result = match request.result_digest.as_str() {
        "" => None,
        digest => Some(convert::digest("result_digest", digest)?),
    };
    let counts = StepCounts {
        executed: request.steps_executed,
        cached: request.steps_cached,
        skipped: request.steps_skipped,
        cacheable_executed: request.cacheable_executed,
    };
    Ok(Outcome { conclusion, class, result, counts, message: request.message })
}

fn new_agent(request: v1::RegisterRequest) -> Result<NewAgent, Status> {
    let properties: BTreeMap<String, String> = request.properties.into_iter().collect();
    let texts = [&request.name, &request.pool].into_iter().chain(&request.labels);
    let texts = texts.chain(properties.iter().flat_map(|(name, value)| [name, value]));
    for text in texts {
        if text.len() > TEXT_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "a name, label or property has {} bytes, at most {TEXT_BYTES_MAX} are allowed",
                text.len()
            )));
        }
    }
    if request.name.is_empty() {
        return Err(Status::invalid_argument("`name` is empty"));
    }
    if request.slots == 0 {
        return Err(Status::invalid_argument("`slots` is 0: the agent could run nothing"));
    }
    Ok(NewAgent {
        name: request.name,
        pool: request.pool,
        provisioning: if request.spot { Provisioning::Spot } else { Provisioning::OnDemand },
        labels: request.labels,
        slots: request.slots,
        resources: Resources { cpu_milli: request.cpu_milli, memory_mib: request.memory_mib },
        cache_endpoint: String::new(),
        properties,
        start: request.start,
    })
}
