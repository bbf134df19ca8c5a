//! One attempt at a job, from the acknowledged accept to the report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use steading_cas::BlobsError;
use steading_model::{Conclusion, Digest, FailureClass, Resources};
use steading_pipeline::job::{JobResult, JobSpec};
use steading_proto::v1;
use tokio::sync::SemaphorePermit;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::Agent;
use super::held::Held;
use super::home::TRACKING_VARIABLE;
use super::slots::Slot;
use crate::backoff::{Backoff, patiently};
use crate::blocking::blocking;
use crate::cached::Claims;
use crate::logs::{JobLogs, ship};
use crate::runner::{CacheHost, Host, JobEnd, run};
use crate::supervisor::Supervisor;
use crate::workspace::Workspace;

/// How long a report waits for the last log bytes, milliseconds. They are in the
/// result as well, so nothing is lost by not waiting longer.
const LOG_WAIT_MS: u64 = 5_000;

/// How long a lease is tried to be given back, milliseconds, unless the agent ends before;
/// then it runs out by itself.
const RELEASE_WAIT_MS: u64 = 5_000;

/// How long a result is told that comes too late, milliseconds: nothing but the record
/// of it depends on that.
const LATE_MS_MAX: u64 = 10_000;

/// What is known of a job.
struct Job {
    project: String,
    spec: JobSpec,
    secrets: BTreeMap<String, String>,
}

/// Runs the offered job and reports it. Ends early, and silently, where the lease is
/// refused; but a job that had ended by then is reported, for the record.
pub(super) async fn attempt(agent: Arc<Agent>, held: Arc<Held>, offer: v1::Offer) {
    tokio::select! {
        biased;
        () = held.refused.cancelled() => return agent.held.remove(&held.lease),
        () = held.signals.stop.cancelled() => return give_back(&agent, &held, FailureClass::Preempted).await,
        () = held.acknowledged() => (),
    }
    let (mut slot, permit) = tokio::select! {
        biased;
        () = held.refused.cancelled() => return agent.held.remove(&held.lease),
        () = held.signals.stop.cancelled() => return give_back(&agent, &held, FailureClass::Preempted).await,
        // Not begun, so there is nothing to end.
        () = held.signals.cancel.cancelled() => return give_back(&agent, &held, FailureClass::Preempted).await,
        taken = agent.slots.take() => taken,
    };
    if !held.begin() {
        // Given back meanwhile, together with others.
        agent.slots.give(slot, permit);
        return agent.held.remove(&held.lease);
    }
    let logs = JobLogs::new(agent.home.logs(slot.index));
    let mut shipping = JoinSet::new();
    let stop_shipping = CancellationToken::new();
    shipping.spawn(ship(agent.agents.clone(), held.lease, logs.clone(), stop_shipping.clone()));

    let end = execute(&agent, &held, &mut slot, offer, &logs).await;
    logs.close();
    let mut place = Some((slot, permit));
    if logs.lengths().is_empty() {
        // Nothing of this job is left there: the next one need not wait for its report.
        vacate(&agent, &mut place).await;
    }
    let leaving = held.signals.stop.is_cancelled();
    let refused = held.refused.is_cancelled();
    if refused && end.lost {
        agent.held.remove(&held.lease);
    } else if !refused && (leaving || end.lost) {
        let class = if leaving { FailureClass::Preempted } else { FailureClass::AgentLost };
        give_back(&agent, &held, class).await;
    } else {
        let wait = Duration::from_millis(LOG_WAIT_MS);
        if !logs.lengths().is_empty() {
            let _ = tokio::time::timeout(wait, shipping.join_next()).await;
        }
        report(&agent, &held, end, &logs).await;
    }
    stop_shipping.cancel();
    while shipping.join_next().await.is_some() {}
    logs.remove();
    vacate(&agent, &mut place).await;
}

/// Clears the slot and gives it to whoever waits for it.
async fn vacate<'a>(agent: &'a Agent, place: &mut Option<(Slot, SemaphorePermit<'a>)>) {
    if let Some((slot, permit)) = place.take() {
        clean_up(agent, slot.index).await;
        agent.slots.give(slot, permit);
    }
}

/// Runs the job's steps; when this returns, all of its processes are gone.
async fn execute(
    agent: &Arc<Agent>,
    held: &Arc<Held>,
    slot: &mut Slot,
    offer: v1::Offer,
    logs: &JobLogs,
) -> JobEnd {
    let job = match load(agent, offer).await {
        Ok(job) => job,
        Err((class, message)) => return failed(class, message),
    };
    let index = slot.index;
    let user = agent.config.user.of_slot(index);
    let root = agent.home.slot(index);
    let made = blocking(move || Workspace::create(root, user)).await;
    let workspace = match made.map_err(|error| error.to_string()) {
        Ok(Ok(workspace)) => workspace,
        Ok(Err(error)) => {
            return failed(FailureClass::Config, format!("the workspace cannot be made: {error}"));
        }
        Err(error) => return failed(FailureClass::Config, error),
    };
    let asked = Resources { cpu_milli: job.spec.cpu_milli, memory_mib: job.spec.memory_mib };
    agent.limits.set(index, asked, agent.config.resources, agent.config.slots.max(1));
    let confinement = agent.limits.confinement(index, user.is_none());
    let start = || {
        let marks = [(TRACKING_VARIABLE.to_owned(), agent.home.tracking(index))];
        Supervisor::start(&agent.config.program, &marks, &confinement)
    };
    let supervisor = match slot.supervisor(start) {
        Ok(supervisor) => supervisor,
        Err(error) => return failed(FailureClass::Config, error.to_string()),
    };
    held.supervised_by(Some(supervisor.lease())).await;
    let host = Host {
        supervisor,
        blobs: &agent.blobs,
        agents: agent.agents.clone(),
        lease: held.lease,
        environment: agent.environment(&workspace, index),
        runner: agent.runner_context(&workspace),
        has_bash: agent.has_bash,
        cache: CacheHost {
            actions: &agent.actions,
            claims: Some(Claims { agents: agent.agents.clone(), lease: held.lease }),
            platform: &agent.platform,
            program: &agent.config.program,
            scratch: agent.home.slot(index).join("x"),
            agent: &agent.config.name,
            scope: job.project.clone(),
            secrets: &job.secrets,
            isolation_told: false,
        },
    };
    let progress = |step: v1::StepProgress| {
        held.mark_started();
        // From memory to memory: a full queue loses it.
        let _ = agent.progress.try_send((held.lease, step));
    };
    let mut end =
        Box::pin(run(&job.spec, &job.secrets, &workspace, host, logs, &held.signals, &progress))
            .await;
    // What was cut short is no result.
    let whole =
        end.result.steps.len() == job.spec.steps.len() && end.conclusion != Conclusion::Cancelled;
    end.lost |= held.refused.is_cancelled() && !whole;
    end.lost |= !end_processes(agent, slot).await;
    held.supervised_by(None).await;
    end
}

/// Kills what the job left. False where the supervisor itself was lost; then what it
/// left is gone too.
async fn end_processes(agent: &Agent, slot: &mut Slot) -> bool {
    match slot.end_job().await {
        Ok(0) => true,
        Ok(killed) => {
            tracing::info!(killed, "killed what a job left running");
            true
        }
        Err(error) => {
            tracing::warn!(%error, "supervisor is lost");
            slot.discard().await;
            agent.home.end_slot(slot.index).await;
            false
        }
    }
}

async fn load(agent: &Agent, offer: v1::Offer) -> Result<Job, (FailureClass, String)> {
    let bytes: Bytes = if offer.spec.is_empty() {
        let digest: Digest = offer
            .spec_digest
            .parse()
            .map_err(|error| (FailureClass::Config, format!("the job's digest: {error}")))?;
        let got = agent.blobs.get(&digest).await;
        got.map_err(|error| (FailureClass::Cache, format!("the job's spec: {error}")))?
            .ok_or_else(|| (FailureClass::Cache, format!("the job's spec {digest} is gone")))?
    } else {
        offer.spec
    };
    let mut spec: JobSpec = serde_json::from_slice(&bytes).map_err(|error| {
        (FailureClass::Config, format!("the job's spec is unreadable: {error}"))
    })?;
    name_run(&mut spec, offer.run_id);
    Ok(Job { project: offer.project, spec, secrets: offer.secrets.into_iter().collect() })
}

/// Which run it is, which the spec does not say: equal jobs of two runs have the same one.
fn name_run(spec: &mut JobSpec, run_id: u64) {
    if let Some(github) = spec.contexts.get_mut("github").and_then(|github| github.as_object_mut())
    {
        for name in ["run_id", "run_number"] {
            github.insert(name.to_owned(), run_id.to_string().into());
        }
    }
}

fn failed(class: FailureClass, message: String) -> JobEnd {
    JobEnd { class: Some(class), message, conclusion: Conclusion::Failure, ..JobEnd::empty() }
}

/// Gives the lease back, its processes gone.
async fn give_back(agent: &Agent, held: &Held, class: FailureClass) {
    let request = v1::ReleaseLeaseRequest {
        lease: Some(held.lease),
        failure_class: v1::FailureClass::from(class).into(),
        started: held.was_started(),
    };
    let release =
        agent.agents.call(|mut client| async move { client.release_lease(request).await });
    match tokio::time::timeout(Duration::from_millis(RELEASE_WAIT_MS), release).await {
        Ok(Ok(_)) => (),
        Ok(Err(status)) => tracing::debug!(%status, "lease is not taken back"),
        Err(_) => tracing::warn!("coordinator is away: a lease is left to run out"),
    }
    agent.held.remove(&held.lease);
}

/// Reports the end, over and over until it is accepted or refused. Where the lease is
/// refused first, the coordinator shall still hear that there was a result.
async fn report(agent: &Agent, held: &Held, end: JobEnd, logs: &JobLogs) {
    let work = async {
        let result_digest = store_result(agent, end.result, logs).await;
        let request = v1::CompleteAttemptRequest {
            lease: Some(held.lease),
            conclusion: v1::Conclusion::from(end.conclusion).into(),
            failure_class: end
                .class
                .map_or(v1::FailureClass::Unspecified, v1::FailureClass::from)
                .into(),
            result_digest,
            steps_executed: end.counts.executed,
            steps_cached: end.counts.cached,
            steps_skipped: end.counts.skipped,
            cacheable_executed: end.counts.cacheable_executed,
            message: end.message,
        };
        agent
            .agents
            .call(|mut client| {
                let request = request.clone();
                async move { client.complete_attempt(request).await }
            })
            .await
    };
    tokio::pin!(work);
    let reported = tokio::select! {
        biased;
        reported = &mut work => reported,
        () = held.refused.cancelled() => {
            agent.held.remove(&held.lease);
            let late = tokio::time::timeout(Duration::from_millis(LATE_MS_MAX), work);
            late.await.unwrap_or_else(|_| Err(Status::unavailable("the coordinator is away")))
        }
        () = held.signals.stop.cancelled() => return give_back(agent, held, FailureClass::Preempted).await,
    };
    match reported {
        Ok(_) => (),
        Err(status) if status.code() == Code::FailedPrecondition => {
            tracing::info!(job = held.lease.job_id, "report is refused: the lease is not held");
        }
        Err(status) if held.refused.is_cancelled() => {
            tracing::info!(%status, job = held.lease.job_id, "a late result is not told");
        }
        Err(status) => tracing::error!(%status, "report of an attempt is not accepted"),
    }
    agent.held.remove(&held.lease);
}

/// Puts logs and result into the CAS, over and over until that works: what the
/// coordinator does not have of a log yet, it has only so. A log that cannot be read is
/// left out.
async fn store_result(agent: &Agent, mut result: JobResult, logs: &JobLogs) -> String {
    let mut backoff = Backoff::default();
    for stream in logs.lengths().into_keys() {
        let path = logs.path(stream);
        let put =
            patiently(Duration::MAX, BlobsError::is_transient, || agent.blobs.put_file(&path));
        match put.await {
            Ok(digest) => {
                result.logs.insert(stream, digest.to_string());
            }
            Err(error) => tracing::warn!(%error, stream, "log is not kept in the CAS"),
        }
    }
    let json = serde_json::to_vec(&result).expect("texts and numbers always have a JSON form");
    let json = Bytes::from(json);
    loop {
        match agent.blobs.put(json.clone()).await {
            Ok(digest) => return digest.to_string(),
            Err(error) => {
                tracing::warn!(%error, "result cannot be stored, trying again");
                backoff.wait().await;
            }
        }
    }
}

/// Removes what the job left on disk.
async fn clean_up(agent: &Agent, slot: u32) {
    let (root, user) = (agent.home.slot(slot), agent.config.user.of_slot(slot));
    let cleaned = blocking(move || Workspace::create(root, user).map(drop));
    if let Ok(Err(error)) = cleaned.await {
        tracing::warn!(%error, "workspace cannot be cleared");
    }
}
