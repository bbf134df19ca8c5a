//! The `Pipelines` service.

use std::collections::BTreeMap;
use std::sync::Arc;

use steading_core::{Proposal, Request as Identified, Run, State};
use steading_model::{Digest, DigestFunction, RunId};
use steading_proto::v1;
use steading_proto::v1::pipelines_server::Pipelines;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::explain::{self, Waits};
use super::{Answers, convert, read_log, submit, watch};
use crate::auth;
use crate::blocking::blocking;
use crate::disk::Disk;
use crate::documents::{Documents, Facts, Parsed};
use crate::forward::HOP;
use crate::kept_logs;
use crate::leadership::{LEADER_WAIT, Leadership};
use crate::logs::Logs;
use crate::mirror::Mirror;
use crate::progress::Progress;
use crate::replica::{ProposeError, Replica};
use crate::retry::keys_to_plan_again;
use crate::run_watch::RunWatch;

/// Runs on a page that asks for no number.
const PAGE_SIZE_DEFAULT: u32 = 50;
/// Most runs on a page.
const PAGE_SIZE_MAX: u32 = 1_000;
/// Longest reason for a cancel, bytes.
const REASON_BYTES_MAX: usize = 1_000;

/// What clients ask for.
#[derive(Clone, Debug)]
pub(crate) struct PipelinesService {
    pub(crate) replica: Replica,
    pub(crate) leadership: Leadership,
    pub(crate) documents: Arc<Documents>,
    pub(crate) logs: Arc<Logs>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) watch: Arc<RunWatch>,
    pub(crate) waits: Waits,
    pub(crate) mirror: Mirror,
    pub(crate) sources_are_local: bool,
    pub(crate) disk: Disk,
    /// Owns the tasks behind streams.
    pub(crate) tasks: TaskTracker,
    /// Ends the streams.
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl Pipelines for PipelinesService {
    type WatchRunStream = Answers<v1::WatchRunEvent>;
    type ReadLogStream = Answers<v1::LogChunk>;

    #[tracing::instrument(name = "run.submit", skip_all, fields(run))]
    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        let principal = auth::principal(&request)?;
        self.disk.check()?;
        let (local, request) = (self.sources_are_local, request.into_inner());
        let answer =
            submit::submit(&self.replica, &self.documents, local, principal, request).await?;
        tracing::Span::current().record("run", answer.run_id);
        Ok(Response::new(answer))
    }

    async fn get_run(
        &self,
        request: Request<v1::GetRunRequest>,
    ) -> Result<Response<v1::Run>, Status> {
        auth::principal(&request)?;
        let id = RunId::from_counter(request.into_inner().run_id);
        let state = self.current().await?;
        let row = known_run(&state, id)?;
        let mut run = convert::run(row, &*self.facts(row).await);
        let jobs = state.jobs_of(id).map(|job| convert::job(&state, job, &self.progress));
        run.jobs = jobs.collect();
        self.waits.fill(&state, &mut run.jobs);
        Ok(Response::new(run))
    }

    async fn list_runs(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        auth::principal(&request)?;
        let request = request.into_inner();
        let state = self.current().await?;
        let (rows, next_page_token) = page(&state, &request)?;
        let mut runs = Vec::with_capacity(rows.len());
        for row in rows {
            runs.push(convert::run(row, &*self.facts(row).await));
        }
        Ok(Response::new(v1::ListRunsResponse { runs, next_page_token }))
    }

    async fn watch_run(
        &self,
        request: Request<v1::WatchRunRequest>,
    ) -> Result<Response<Self::WatchRunStream>, Status> {
        auth::principal(&request)?;
        // Another replica, which wants to know what the leader alone does.
        if request.metadata().contains_key(HOP) {
            self.leadership.term()?;
        }
        let request = request.into_inner();
        let run = RunId::from_counter(request.run_id);
        let changes = self.watch.subscribe(run);
        let state = self.known(run, request.token).await?;
        let facts = self.facts(known_run(&state, run)?).await;
        let watcher = watch::Watcher {
            replica: self.replica.clone(),
            progress: Arc::clone(&self.progress),
            changes,
            run,
            token: request.token,
            progress_seen: 0,
            mirrored: self.mirror.of(run),
            mirrored_seen: 0,
            facts,
            waits: self.waits.clone(),
            waiting: BTreeMap::new(),
            waits_due: watch::first_look(),
        };
        let alone = self.leadership.clone().alone();
        Ok(Response::new(watcher.stream(&self.tasks, alone, self.stop.clone())))
    }

    #[tracing::instrument(name = "run.cancel", skip_all, fields(run = request.get_ref().run_id))]
    async fn cancel_run(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::CancelRunResponse>, Status> {
        let principal = auth::principal(&request)?;
        let v1::CancelRunRequest { run_id, request_id, reason } = request.into_inner();
        if reason.len() > REASON_BYTES_MAX {
            return Err(Status::invalid_argument(format!(
                "`reason` has {} bytes, at most {REASON_BYTES_MAX} are allowed",
                reason.len()
            )));
        }
        let run = RunId::from_counter(run_id);
        let project = known_run(&self.replica.view(), run)?.definition.request.project.clone();
        // A cancel has one effect anyway, so that a name of its own is no duty.
        let id = if request_id.is_empty() { format!("cancel-{run_id}") } else { request_id };
        let id = id
            .parse()
            .map_err(|error| Status::invalid_argument(format!("`request_id`: {error}")))?;
        let body = format!("cancel {run}");
        let body = steading_cas::hash::digest_of(DigestFunction::Blake3, body.as_bytes());
        let request = Identified { project, principal, id, body };
        self.replica.propose(Proposal::CancelRun { run, request, reason }).await?;
        Ok(Response::new(v1::CancelRunResponse {}))
    }

    async fn explain_job(
        &self,
        request: Request<v1::ExplainJobRequest>,
    ) -> Result<Response<v1::ExplainJobResponse>, Status> {
        auth::principal(&request)?;
        let v1::ExplainJobRequest { run_id, job } = request.into_inner();
        let run = RunId::from_counter(run_id);
        let state = self.current().await?;
        let submission = known_run(&state, run)?.definition.submission;
        let parsed = self.parsed(submission).await;
        if let Err(error) = &parsed {
            tracing::warn!(%run, %error, "a submission cannot be read");
        }
        let pipeline = parsed.as_ref().ok().map(|parsed| &parsed.pipeline);
        let (connected, declined) = (self.waits.connected(&state), self.waits.declined());
        let jobs = explain::explain(&state, (&connected, &declined), run, pipeline, &job);
        if jobs.is_empty() && !job.is_empty() {
            return Err(Status::not_found(format!("`{run}` has no job `{job}`")));
        }
        Ok(Response::new(v1::ExplainJobResponse { jobs }))
    }

    #[tracing::instrument(name = "run.retry", skip_all, fields(run = request.get_ref().run_id))]
    async fn retry_run(
        &self,
        request: Request<v1::RetryRunRequest>,
    ) -> Result<Response<v1::RetryRunResponse>, Status> {
        let principal = auth::principal(&request)?;
        let v1::RetryRunRequest { run_id, request_id } = request.into_inner();
        let run = RunId::from_counter(run_id);
        let state = self.current().await?;
        let row = known_run(&state, run)?;
        // One that names nothing means this end of the run.
        let id = match request_id.as_str() {
            "" => format!("retry-{run_id}-{}", row.retries),
            id => id.to_owned(),
        };
        let id = id
            .parse()
            .map_err(|error| Status::invalid_argument(format!("`request_id`: {error}")))?;
        let body = format!("retry {run}");
        let body = steading_cas::hash::digest_of(DigestFunction::Blake3, body.as_bytes());
        let project = row.definition.request.project.clone();
        let request = Identified { project, principal, id, body };
        let parsed = self.parsed(row.definition.submission).await?;
        let needs = parsed.pipeline.jobs.iter().map(|job| {
            (job.key.as_str(), job.needs.iter().map(|need| need.key.as_str()).collect())
        });
        let again = keys_to_plan_again(&needs.collect::<Vec<_>>(), &state, row);
        let revision = row.revision;
        let cluster = self.replica.cluster_id();
        kept_logs::keep_results(&self.documents, cluster, &state, run).await?;
        self.replica.propose(Proposal::RetryRun { run, request, revision, again }).await?;
        Ok(Response::new(v1::RetryRunResponse {}))
    }

    async fn read_log(
        &self,
        request: Request<v1::ReadLogRequest>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        auth::principal(&request)?;
        let request = request.into_inner();
        // Where the agents send it.
        let term = self.leadership.term()?;
        self.current().await?;
        let reader = read_log::LogReader::new(
            self.replica.clone(),
            Arc::clone(&self.documents),
            Arc::clone(&self.logs),
            self.watch.subscribe(RunId::from_counter(request.run_id)),
            request,
        )?;
        Ok(Response::new(reader.stream(&self.tasks, term, self.stop.clone())))
    }

    async fn list_artifacts(
        &self,
        request: Request<v1::ListArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        auth::principal(&request)?;
        let run = RunId::from_counter(request.into_inner().run_id);
        let state = self.current().await?;
        known_run(&state, run)?;
        Ok(Response::new(convert::artifacts(&state, run)))
    }
}

impl PipelinesService {
    async fn parsed(&self, submission: Digest) -> Result<Arc<Parsed>, Status> {
        let documents = Arc::clone(&self.documents);
        Ok(blocking(move || documents.submission(&submission)).await??)
    }

    /// The state with everything that was acknowledged before the call.
    async fn current(&self) -> Result<Arc<State>, Status> {
        match self.replica.read_barrier().await {
            Ok(()) => Ok(self.replica.view()),
            Err(ProposeError::NotLeader) => Err(self.leadership.refusal()),
            Err(error) => Err(error.into()),
        }
    }

    /// The state to begin a watch with: the leader's, or that of a replica which has seen
    /// what the client has. One that is behind is waited for, for a while.
    async fn known(&self, run: RunId, token: u64) -> Result<Arc<State>, Status> {
        if self.leadership.term().is_ok() {
            return self.current().await;
        }
        let mut changes = self.replica.changes();
        let known = async {
            loop {
                let state = self.replica.view();
                if state.version() >= token && state.run(run).is_some() {
                    return state;
                }
                if changes.changed().await.is_err() {
                    return state;
                }
            }
        };
        // The leader alone can say that there is no such run.
        tokio::time::timeout(LEADER_WAIT, known).await.map_err(|_| self.leadership.refusal())
    }

    /// What the submission says of the run. One that is lost leaves gaps, and the run
    /// can be looked at all the same.
    async fn facts(&self, run: &Run) -> Arc<Facts> {
        let digest: Digest = run.definition.submission;
        if let Some(facts) = self.documents.facts_known(&digest) {
            return facts;
        }
        let documents = Arc::clone(&self.documents);
        match blocking(move || documents.facts(&digest)).await {
            Ok(Ok(facts)) => facts,
            Ok(Err(error)) => {
                tracing::warn!(run = %run.id, %error, "a submission cannot be read");
                Arc::default()
            }
            Err(_) => Arc::default(),
        }
    }
}

/// One page of runs, newest first, and the token of the next.
fn page<'a>(
    state: &'a State,
    request: &v1::ListRunsRequest,
) -> Result<(Vec<&'a Run>, String), Status> {
    let before = match request.page_token.as_str() {
        "" => u64::MAX,
        token => {
            token.parse().map_err(|_| Status::invalid_argument("`page_token` is none of ours"))?
        }
    };
    let size = match request.page_size {
        0 => PAGE_SIZE_DEFAULT,
        size => size.min(PAGE_SIZE_MAX),
    } as usize;
    let wanted = |run: &&Run| {
        request.project.is_empty() || run.definition.request.project.as_str() == request.project
    };
    let older = state.runs_older_than(RunId::from_counter(before));
    let mut rows: Vec<&Run> = older.filter(wanted).take(size + 1).collect();
    let more = rows.len() > size;
    rows.truncate(size);
    let next = rows.last().filter(|_| more).map(|last| last.id.counter().to_string());
    Ok((rows, next.unwrap_or_default()))
}

fn known_run(state: &State, run: RunId) -> Result<&Run, Status> {
    state.run(run).ok_or_else(|| Status::not_found(format!("`{run}` is not known, or was retired")))
}
