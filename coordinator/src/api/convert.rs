//! Between the state's rows and the wire.

use steading_core::{Job, JobStatus, Lease, Run, State};
use steading_model::{Digest, RunId, StepCounts};
use steading_proto::v1;
use tonic::Status;

use crate::documents::Facts;
use crate::progress::Progress;

/// The lease of a message.
pub(super) fn lease(wire: Option<v1::Lease>) -> Result<Lease, Status> {
    let wire = wire.ok_or_else(|| Status::invalid_argument("`lease` is missing"))?;
    Ok(lease_of(&wire))
}

pub(super) fn lease_of(wire: &v1::Lease) -> Lease {
    Lease { work: wire.work(), epoch: wire.lease_epoch() }
}

pub(super) fn wire_lease(lease: Lease) -> v1::Lease {
    v1::Lease::new(lease.work, lease.epoch)
}

pub(super) fn digest(field: &'static str, text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("`{field}`: {error}")))
}

/// A run without its jobs.
pub(super) fn run(run: &Run, facts: &Facts) -> v1::Run {
    let request = &run.definition.request;
    v1::Run {
        run_id: run.id.counter(),
        project: request.project.to_string(),
        name: run.definition.name.clone(),
        file: run.definition.file.clone(),
        r#ref: facts.git_ref.clone(),
        sha: facts.sha.clone(),
        event_name: facts.event_name.clone(),
        conclusion: run.conclusion.map_or(v1::Conclusion::Unspecified, Into::into).into(),
        cancelling: run.cancel.is_some(),
        created_ms: run.created.as_ms(),
        finished_ms: run.finished.as_ms(),
        jobs: Vec::new(),
        principal: request.principal.to_string(),
    }
}

/// A job, with what is known of the running attempt's steps.
pub(super) fn job(state: &State, job: &Job, progress: &Progress) -> v1::Job {
    let agent = job.agent.and_then(|agent| state.agent(agent));
    let status = match job.status {
        JobStatus::Queued => v1::job::Status::Queued,
        JobStatus::Leased { .. } => v1::job::Status::Running,
        JobStatus::Done { .. } => v1::job::Status::Done,
    };
    let outcome = job.outcome();
    let conclusion = outcome.map(|outcome| outcome.conclusion);
    let class = outcome.and_then(|outcome| outcome.class);
    let counts = outcome.map_or_else(StepCounts::default, |outcome| outcome.counts);
    let result = outcome.and_then(|outcome| outcome.result);
    v1::Job {
        job_id: job.id.counter(),
        key: job.definition.key.clone(),
        name: job.definition.name.clone(),
        status: status.into(),
        conclusion: conclusion.map_or(v1::Conclusion::Unspecified, Into::into).into(),
        failure_class: class.map_or(v1::FailureClass::Unspecified, Into::into).into(),
        message: outcome.map_or_else(String::new, |outcome| outcome.message.clone()),
        attempt: job.attempts,
        agent: agent.map_or_else(String::new, |agent| agent.definition.name.clone()),
        queued_ms: job.queued.as_ms(),
        started_ms: job.started.as_ms(),
        finished_ms: job.finished.as_ms(),
        steps_executed: counts.executed,
        steps_cached: counts.cached,
        steps_skipped: counts.skipped,
        cacheable_executed: counts.cacheable_executed,
        result_digest: result.map_or_else(String::new, |digest| digest.to_string()),
        continue_on_error: job.definition.continue_on_error,
        labels: if job.is_queued() { job.definition.labels.clone() } else { Vec::new() },
        waiting: String::new(),
        steps: job.lease().map_or_else(Vec::new, |lease| progress.of(job.run, lease)),
    }
}

pub(super) fn artifacts(state: &State, run: RunId) -> v1::ListArtifactsResponse {
    let artifacts = state.artifacts_of(run).map(|(name, artifact)| v1::Artifact {
        name: name.to_owned(),
        root_digest: artifact.root.to_string(),
        files: artifact.files,
        bytes: artifact.bytes,
    });
    v1::ListArtifactsResponse { artifacts: artifacts.collect() }
}
