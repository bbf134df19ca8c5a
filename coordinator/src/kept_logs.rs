//! Logs of attempts that ended without a result, kept where every coordinator finds them.
//!
//! A result names its logs as blobs of the origin. An attempt that was lost has no result,
//! and what there is of its log is in the files of whichever coordinator led then. So each
//! coordinator looks after what it has on its disk: when the attempt is over and no result
//! names its log, the files become blobs, and an object of the origin,
//! `logs/CLUSTER.RUN/JOB-ATTEMPT`, says which: JSON, stream to digest. It goes with the run.
//! Several clusters may have one origin, and each number its runs from one. A cluster that
//! goes on from another one says so in `logs/CLUSTER/earlier`: it reads what that one kept,
//! and leaves it alone.
//!
//! *Late*: a coordinator that was away looks after its files when it is back. *Doubled*:
//! the same object again. *From an old leader*: its files hold the head of the same log,
//! for appends are fenced by the lease; the longer one of each stream stays. Two that
//! write at once may leave the shorter one. *Power cut*: the files are settled after the
//! object is durable, or looked at again. *Hostile*: agents write no objects here. What the
//! agent had not sent yet is lost with it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use steading_cas::{Front, Origin, OriginError};
use steading_core::State;
use steading_model::{Conclusion, Digest, DigestFunction, RunId, Work};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::blocking::blocking;
use crate::documents::Documents;
use crate::logs::Logs;
use crate::replica::Replica;

/// How often it looks for attempts that are over.
const PERIOD: Duration = Duration::from_secs(2);

/// Attempts that are looked after in one go.
const PASS_MAX: usize = 256;

/// Attempts of one go that may fail before the rest is left for the next one.
const FAILURES_MAX: usize = 8;

/// Results that are looked at, and named, at a time.
const RESULTS_AT_ONCE: usize = 32;

/// Clusters that went on from one another, and are asked for a log.
const EARLIER_MAX: usize = 16;

/// Attempts that are remembered; those beyond are found on the disk by the next start.
const PENDING_MAX: usize = 1 << 20;

const FUNCTION: DigestFunction = DigestFunction::Blake3;

/// What is left of an attempt's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    /// Digests as `HASH/SIZE`.
    streams: BTreeMap<u32, String>,
}

impl Index {
    pub(crate) fn blobs(&self) -> BTreeMap<u32, Digest> {
        let parse = |(stream, text): (&u32, &String)| Some((*stream, text.parse().ok()?));
        self.streams.iter().filter_map(parse).collect()
    }

    fn of(blobs: &BTreeMap<u32, Digest>) -> Self {
        let streams = blobs.iter().map(|(stream, digest)| (*stream, digest.to_string()));
        Self { streams: streams.collect() }
    }
}

/// What to do about the log of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It goes on, or the state is not there yet.
    Wait,
    /// A result names it, or nobody will ask for it.
    Settled,
    Keep,
}

fn fate(state: &State, run: RunId, work: Work) -> Fate {
    let Some(job) = state.job(work.job).filter(|job| job.run == run) else {
        // Forgotten by a retry; retired with its run; or not known here yet.
        return if state.run(run).is_some() { Fate::Settled } else { Fate::Wait };
    };
    let live = job.lease().is_some_and(|lease| lease.work == work);
    if live || job.attempts < work.attempt {
        return Fate::Wait;
    }
    let named = job.attempts == work.attempt
        && job.outcome().is_some_and(|outcome| outcome.result.is_some());
    if named { Fate::Settled } else { Fate::Keep }
}

/// Looks after the logs on this disk until `stop`.
///
/// # Errors
///
/// None: what cannot be kept now is tried again.
pub(crate) async fn run(
    replica: Replica,
    documents: Arc<Documents>,
    logs: Arc<Logs>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if documents.front().origin().is_none() {
        // They are here, and nowhere else to be looked for.
        stop.cancelled().await;
        return Ok(());
    }
    let listing = Arc::clone(&logs);
    let mut pending = match blocking(move || listing.unsettled()).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the logs of earlier attempts cannot be listed");
            BTreeSet::new()
        }
        Err(_) => return Ok(()),
    };
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut last = None;
    let look = async {
        loop {
            ticks.tick().await;
            pending.extend(logs.take_written());
            while pending.len() > PENDING_MAX {
                pending.pop_first();
            }
            pass(&replica, &documents, &logs, &mut pending, &mut last).await;
        }
    };
    stop.run_until_cancelled(look).await;
    Ok(())
}

/// Looks after what is due behind `last`, and then from the beginning: what fails again and
/// again holds up nothing else.
async fn pass(
    replica: &Replica,
    documents: &Arc<Documents>,
    logs: &Arc<Logs>,
    pending: &mut BTreeSet<(RunId, Work)>,
    last: &mut Option<(RunId, Work)>,
) {
    let state = replica.view();
    let (mut all, mut before): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    for key in pending.iter() {
        let place = if Some(*key) > *last { &mut all } else { &mut before };
        place.push(*key);
    }
    all.append(&mut before);
    let decided = all.into_iter().map(|(run, work)| (run, work, fate(&state, run, work)));
    let mut failures = 0;
    for (run, work, fate) in decided.filter(|due| due.2 != Fate::Wait).take(PASS_MAX) {
        *last = Some((run, work));
        match look_after(replica, documents, logs, (run, work), fate).await {
            Ok(()) => {
                pending.remove(&(run, work));
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(%run, ?work, error, "the log of a lost attempt is not kept yet");
                failures += 1;
                if failures == FAILURES_MAX {
                    return;
                }
            }
        }
    }
}

async fn look_after(
    replica: &Replica,
    documents: &Arc<Documents>,
    logs: &Arc<Logs>,
    (run, work): (RunId, Work),
    fate: Fate,
) -> anyhow::Result<()> {
    if fate == Fate::Keep {
        keep(documents, logs, replica.cluster_id(), run, work).await?;
    }
    let settling = Arc::clone(logs);
    Ok(blocking(move || settling.settle(run, work)).await??)
}

/// Makes the files blobs, and names them.
async fn keep(
    documents: &Arc<Documents>,
    logs: &Arc<Logs>,
    cluster: &str,
    run: RunId,
    work: Work,
) -> anyhow::Result<()> {
    let front = documents.front().clone();
    let (store, logs) = (front.store().clone(), Arc::clone(logs));
    let put = move || -> anyhow::Result<BTreeMap<u32, Digest>> {
        let mut blobs = BTreeMap::new();
        for (stream, _) in logs.streams(run, work)? {
            blobs.insert(stream, store.put_file(FUNCTION, &logs.file(run, work, stream))?);
        }
        Ok(blobs)
    };
    let mut blobs = blocking(put).await??;
    if blobs.is_empty() {
        return Ok(());
    }
    let lost = front.publish(FUNCTION, blobs.values().copied().collect()).await?;
    anyhow::ensure!(lost.is_empty(), "the store lost what was just put");
    for (stream, known) in index(&front, cluster, run, work).await?.unwrap_or_default().blobs() {
        let ours = blobs.entry(stream).or_insert(known);
        if known.size > ours.size {
            *ours = known;
        }
    }
    Ok(put_index(&front, cluster, run, work, &blobs).await?)
}

/// A retry forgets the results of what failed: names their logs first.
///
/// # Errors
///
/// [`OriginError`].
pub(crate) async fn keep_results(
    documents: &Arc<Documents>,
    cluster: &str,
    state: &State,
    run: RunId,
) -> Result<(), OriginError> {
    if documents.front().origin().is_none() {
        return Ok(());
    }
    let failed = state.jobs_of(run).filter_map(|job| {
        let failed = job.outcome().filter(|outcome| outcome.conclusion != Conclusion::Success)?;
        Some((Work { job: job.id, attempt: job.attempts }, failed.result?))
    });
    let failed: Vec<_> = failed.collect();
    let name = |(work, result)| async move {
        let reading = Arc::clone(documents);
        // One that is lost names nothing.
        let Ok(Ok(facts)) = blocking(move || reading.result(&result)).await else { return Ok(()) };
        put_index(documents.front(), cluster, run, work, &facts.logs).await
    };
    stream::iter(failed).map(name).buffer_unordered(RESULTS_AT_ONCE).try_collect().await
}

/// Notes, in the origin that both have, that this cluster goes on from an earlier one.
///
/// # Errors
///
/// [`OriginError`].
pub(crate) async fn go_on_from(
    origin: &Origin,
    cluster: &str,
    earlier: &str,
) -> Result<(), OriginError> {
    origin.put_object([FOLDER, cluster, EARLIER], earlier.to_owned().into()).await
}

/// What is left of the log of an attempt; none where nobody kept it.
///
/// # Errors
///
/// [`OriginError`].
pub(crate) async fn index(
    front: &Front,
    cluster: &str,
    run: RunId,
    work: Work,
) -> Result<Option<Index>, OriginError> {
    let Some(origin) = front.origin() else { return Ok(None) };
    let mut cluster = cluster.to_owned();
    for _ in 0..EARLIER_MAX {
        if let Some(found) = origin.object([FOLDER, &of_run(&cluster, run), &of(work)]).await? {
            return Ok(serde_json::from_slice(&found).ok());
        }
        let Some(earlier) = origin.object([FOLDER, &cluster, EARLIER]).await? else { break };
        cluster = String::from_utf8_lossy(&earlier).into_owned();
    }
    Ok(None)
}

/// Removes what is left of the logs of a run that was retired.
///
/// # Errors
///
/// [`OriginError`].
pub(crate) async fn remove(front: &Front, cluster: &str, run: RunId) -> Result<(), OriginError> {
    match front.origin() {
        Some(origin) => origin.remove_objects([FOLDER, &of_run(cluster, run)]).await,
        None => Ok(()),
    }
}

const FOLDER: &str = "logs";

/// Names the cluster that this one goes on from.
const EARLIER: &str = "earlier";

async fn put_index(
    front: &Front,
    cluster: &str,
    run: RunId,
    work: Work,
    blobs: &BTreeMap<u32, Digest>,
) -> Result<(), OriginError> {
    let Some(origin) = front.origin() else { return Ok(()) };
    let bytes = serde_json::to_vec(&Index::of(blobs)).unwrap_or_default();
    origin.put_object([FOLDER, &of_run(cluster, run), &of(work)], bytes.into()).await
}

fn of_run(cluster: &str, run: RunId) -> String {
    format!("{cluster}.{}", run.counter())
}

fn of(work: Work) -> String {
    format!("{}-{}", work.job.counter(), work.attempt)
}
