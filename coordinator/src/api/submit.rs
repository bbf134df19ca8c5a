//! `Submit`: from a request to an admitted run.

use std::sync::Arc;
use std::time::SystemTime;

use steading_cas::tree::{self, Entry, TreeError};
use steading_cas::{BlobsError, Front, Pin};
use steading_core::{Effect, NewJob, NewRun, Proposal, Rejection, Request};
use steading_model::limits::{JOBS_PER_PROPOSAL_MAX, JOBS_PER_RUN_MAX};
use steading_model::{Digest, DigestFunction, Principal, RunId, Timestamp};
use steading_pipeline::job::DIALECT;
use steading_proto::v1;
use tonic::Status;

use crate::blocking::blocking;
use crate::documents::{Documents, Parsed};
use crate::planner::{self, Planned};
use crate::replica::{ProposeError, Replica};
use crate::submission::Received;

/// A submission, checked and planned, all its documents durable.
struct Prepared {
    run: NewRun,
    planned: Planned,
    warnings: Vec<String>,
    /// Keeps the source's blobs until the state names them.
    _held: Option<Pin>,
}

/// Admits the run that the request asks for, or finds the one that it got before.
pub(super) async fn submit(
    replica: &Replica,
    documents: &Arc<Documents>,
    sources_are_local: bool,
    principal: Principal,
    request: v1::SubmitRequest,
) -> Result<v1::SubmitResponse, Status> {
    let received = Received::from_wire(request)?;
    let body = body_digest(documents, &received);
    if let Some(run) = answered(replica, &received, &principal, &body)? {
        // The run is there already, with all its jobs.
        return Ok(v1::SubmitResponse { run_id: run.counter(), warnings: Vec::new() });
    }
    let prepared = {
        let documents = Arc::clone(documents);
        blocking(move || prepare(&documents, sources_are_local, principal, body, received))
            .await??
    };
    let Prepared { run, planned, warnings, _held } = prepared;
    let run = admit(replica, run, planned).await?;
    Ok(v1::SubmitResponse { run_id: run.counter(), warnings })
}

/// The run that this request was answered with, if it is sealed.
fn answered(
    replica: &Replica,
    received: &Received,
    principal: &Principal,
    body: &Digest,
) -> Result<Option<RunId>, Status> {
    let key = (received.project.clone(), principal.clone(), received.request_id.clone());
    let state = replica.view();
    let run = state.answered(now(), key, body).map_err(ProposeError::Rejected)?;
    Ok(run.filter(|run| state.run(*run).is_some_and(|run| run.sealed)))
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Names what was asked for: with the secrets' values, but not with their ciphertext,
/// which differs each time.
fn body_digest(documents: &Documents, received: &Received) -> Digest {
    let submission = received.submission.to_bytes();
    let mut parts: Vec<&[u8]> = vec![&submission];
    for (name, value) in &received.secrets {
        parts.extend([name.as_bytes(), value.as_bytes()]);
    }
    let size = parts.iter().map(|part| part.len() as u64).sum();
    Digest { hash: documents.sealer().body_name(&parts), size }
}

/// Parses, plans and stores. Blocks.
fn prepare(
    documents: &Documents,
    sources_are_local: bool,
    principal: Principal,
    body: Digest,
    received: Received,
) -> Result<Prepared, Status> {
    let Received { project, request_id, source, mut submission, secrets } = received;
    let internal = |error: &dyn std::error::Error| Status::internal(error.to_string());
    let mut sealed = None;
    if !secrets.is_empty() {
        let bytes = documents.sealer().seal(&secrets).map_err(|error| internal(&error))?;
        let digest = steading_cas::hash::digest_of(DigestFunction::Blake3, &bytes);
        submission.secrets = digest.to_string();
        sealed = Some(bytes);
    }
    let parsed =
        Parsed::new(submission).map_err(|error| Status::invalid_argument(error.to_string()))?;
    parsed.know_secrets(secrets);
    let held = match sources_are_local {
        true => None,
        false => check_source(documents.front(), &source)?,
    };
    let planned = planner::first_plan(documents, &parsed)?;
    if planned.jobs.len() > JOBS_PER_RUN_MAX {
        return Err(Status::invalid_argument(format!(
            "{}: the pipeline has {} jobs, at most {JOBS_PER_RUN_MAX} are allowed",
            parsed.submission.file,
            planned.jobs.len()
        )));
    }
    let concurrency =
        planner::run_concurrency(&parsed, request_id.as_str()).map_err(Status::invalid_argument)?;
    let document = parsed.submission.to_bytes();
    let blobs = sealed.as_deref().into_iter().chain([document.as_slice()]);
    let digests = documents.put_many(blobs)?;
    let digest = digests.last().copied().ok_or_else(|| Status::internal("nothing was stored"))?;
    let run = NewRun {
        request: Request { project, principal, id: request_id, body },
        name: parsed.pipeline.title().to_owned(),
        file: parsed.submission.file.clone(),
        submission: digest,
        dialect: DIALECT.to_owned(),
        priority: parsed.pipeline.priority,
        concurrency,
    };
    let warnings = parsed.warnings.iter().map(ToString::to_string).collect();
    documents.know_submission(digest, Arc::new(parsed));
    Ok(Prepared { run, planned, warnings, _held: held })
}

/// Whether every blob of the source tree is durable; it stays so while the guard lives.
/// Blocks.
fn check_source(front: &Front, root: &Digest) -> Result<Option<Pin>, Status> {
    let (nowhere, held) = match front.publish_tree_blocking(DigestFunction::Blake3, root) {
        Ok(found) => found,
        Err(BlobsError::Origin(error)) => return Err(error.into()),
        Err(BlobsError::Tree(error @ TreeError::Malformed { .. })) => {
            return Err(Status::invalid_argument(format!("`source_digest`: {error}")));
        }
        Err(error) => return Err(Status::internal(error.to_string())),
    };
    let Some(first) = nowhere.first() else { return Ok(held) };
    let mut at = None;
    let walked = tree::walk(front.store(), root, &mut |path, entry| match entry {
        Entry::File(file) if at.is_none() && file.digest == *first => at = Some(path.to_owned()),
        _ => (),
    });
    let at = at.filter(|_| walked.is_ok()).unwrap_or_else(|| "a directory".to_owned());
    Err(Status::failed_precondition(format!(
        "blob `{first}` of the source is missing ({at}): put it and submit again"
    )))
}

/// Proposes the run, a large one in chunks. A repetition goes on where the first try
/// stopped.
async fn admit(replica: &Replica, run: NewRun, planned: Planned) -> Result<RunId, Status> {
    let complete = planned.complete;
    let mut chunks = chunks(planned.jobs).into_iter().peekable();
    let jobs = chunks.next().unwrap_or_default();
    let sealed = chunks.peek().is_none();
    let mut admitted = jobs.len();
    let effects = replica.propose(Proposal::AdmitRun { run, jobs, sealed, complete }).await?;
    let run = effects.iter().find_map(|effect| match effect {
        Effect::Admitted { run, .. } => Some(*run),
        _ => None,
    });
    let run = run.ok_or_else(|| Status::internal("the run was admitted without an answer"))?;
    while let Some(jobs) = chunks.next() {
        let (offset, after) = (admitted as u32, admitted + jobs.len());
        let sealed = chunks.peek().is_none();
        match replica.propose(Proposal::AppendJobs { run, offset, jobs, sealed }).await {
            // Sealed by another try, or cancelled meanwhile.
            Err(ProposeError::Rejected(Rejection::RunSealed | Rejection::RunEnded)) => break,
            // This chunk was taken by an earlier try.
            Err(ProposeError::Rejected(Rejection::ChunkOffset { admitted: there, .. }))
                if there as usize >= after => {}
            other => drop(other?),
        }
        admitted = after;
    }
    Ok(run)
}

/// At least one chunk, empty where there are no jobs.
fn chunks(jobs: Vec<NewJob>) -> Vec<Vec<NewJob>> {
    let mut chunks = vec![Vec::new()];
    for job in jobs {
        match chunks.last_mut() {
            Some(chunk) if chunk.len() < JOBS_PER_PROPOSAL_MAX => chunk.push(job),
            _ => chunks.push(vec![job]),
        }
    }
    chunks
}
