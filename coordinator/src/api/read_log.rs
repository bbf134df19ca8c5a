//! `ReadLog`: the bytes of an attempt's log streams, while it runs and after.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use steading_core::Job;
use steading_model::{Digest, DigestFunction, JobId, RunId, Work};
use steading_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::Answers;
use crate::blocking::blocking;
use crate::documents::Documents;
use crate::kept_logs::{self, Index};
use crate::leadership::Term;
use crate::logs::Logs;
use crate::replica::Replica;

/// Bytes of one message.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks read in one go.
const CHUNKS_MAX: usize = 16;
/// Chunks that wait for a slow client.
const SENT_MAX: usize = 16;

/// One client that reads the log of one job.
#[derive(Debug)]
pub(super) struct LogReader {
    replica: Replica,
    source: Source,
    changes: watch::Receiver<u64>,
    job: JobId,
    /// The attempt asked for; none: the last one, and with `follow` those after it.
    asked: Option<u32>,
    /// The attempt being read.
    attempt: Option<u32>,
    /// How far each of its streams was sent.
    offsets: BTreeMap<u32, u64>,
    /// What the origin has of the attempt being read, once it is over without a result.
    kept: Option<Option<Index>>,
    follow: bool,
}

/// Where the bytes come from.
#[derive(Clone, Debug)]
struct Source {
    documents: Arc<Documents>,
    logs: Arc<Logs>,
    run: RunId,
}

impl LogReader {
    /// # Errors
    ///
    /// NOT_FOUND: no such job in the run, or no such attempt.
    pub(super) fn new(
        replica: Replica,
        documents: Arc<Documents>,
        logs: Arc<Logs>,
        changes: watch::Receiver<u64>,
        request: v1::ReadLogRequest,
    ) -> Result<Self, Status> {
        let (run, job) = (RunId::from_counter(request.run_id), JobId::from_counter(request.job_id));
        let asked = (request.attempt > 0).then_some(request.attempt);
        {
            let state = replica.view();
            let row = state.job(job).filter(|row| row.run == run);
            let row = row.ok_or_else(|| Status::not_found(format!("`{run}` has no `{job}`")))?;
            if let Some(attempt) = asked.filter(|attempt| *attempt > row.attempts) {
                return Err(Status::not_found(format!("`{job}` has no attempt {attempt}")));
            }
        }
        Ok(Self {
            replica,
            source: Source { documents, logs, run },
            changes,
            job,
            asked,
            attempt: asked,
            offsets: request.offsets.into_iter().collect(),
            kept: None,
            follow: request.follow,
        })
    }

    pub(super) fn stream(
        self,
        tasks: &TaskTracker,
        term: Term,
        stop: CancellationToken,
    ) -> Answers<v1::LogChunk> {
        let (sender, receiver) = mpsc::channel(SENT_MAX);
        tasks.spawn(async move {
            let ended = tokio::select! {
                ended = self.send(&sender) => ended,
                () = sender.closed() => return,
                refusal = term.over() => Err(refusal),
                () = stop.cancelled() => Err(Status::unavailable("the coordinator stops")),
            };
            if let Err(status) = ended {
                // Full: the client sees the connection end.
                let _ = sender.try_send(Err(status));
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    async fn send(
        mut self,
        sender: &mpsc::Sender<Result<v1::LogChunk, Status>>,
    ) -> Result<(), Status> {
        loop {
            self.changes.mark_unchanged();
            let state = self.replica.view();
            let Some(job) = state.job(self.job) else {
                return Ok(());
            };
            let Some(attempt) = self.attempt.or((job.attempts > 0).then_some(job.attempts)) else {
                if !self.follow || job.outcome().is_some() || !self.changed(None).await {
                    return Ok(());
                }
                continue;
            };
            self.attempt = Some(attempt);
            let work = Work { job: self.job, attempt };
            let live = job.lease().is_some_and(|lease| lease.work == work);
            // Before the read, so that what is appended after it is heard of.
            let appended = (live && self.follow).then(|| self.source.logs.follow(work));
            let blobs = self.log_blobs(job, attempt, live).await?;
            if !self.send_new(sender, work, blobs).await? {
                return Ok(());
            }
            if self.offsets.is_empty() && self.kept == Some(None) && !self.tell(sender).await {
                return Ok(());
            }
            if !self.follow {
                return Ok(());
            }
            if !live && self.ends_with(job, attempt) {
                return Ok(());
            }
            if !live && job.attempts > attempt {
                self.attempt = Some(attempt + 1);
                self.offsets.clear();
                self.kept = None;
                continue;
            }
            if !self.changed(appended).await {
                return Ok(());
            }
        }
    }

    /// Whether nothing more will come once this attempt is over.
    fn ends_with(&self, job: &Job, attempt: u32) -> bool {
        self.asked.is_some() || (job.outcome().is_some() && job.attempts == attempt)
    }

    /// Waits for appends, or for a change of the run. False: neither will ever come.
    async fn changed(&mut self, appended: Option<watch::Receiver<u64>>) -> bool {
        let appended = async {
            match appended {
                // An error is a change as well: the attempt's log was closed.
                Some(mut appended) => drop(appended.changed().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = appended => true,
            changed = self.changes.changed() => changed.is_ok(),
        }
    }

    /// Complete logs that the attempt's result names: for what a crash took of the files. Of
    /// an attempt without a result, what a coordinator kept of it.
    async fn log_blobs(
        &mut self,
        job: &Job,
        attempt: u32,
        live: bool,
    ) -> Result<BTreeMap<u32, Digest>, Status> {
        let result = job.outcome().filter(|_| job.attempts == attempt);
        let Some(digest) = result.and_then(|outcome| outcome.result) else {
            if !live && self.kept.is_none() {
                let work = Work { job: job.id, attempt };
                let (front, run) = (self.source.documents.front(), self.source.run);
                let cluster = self.replica.cluster_id();
                self.kept = Some(kept_logs::index(front, cluster, run, work).await?);
            }
            return Ok(self.kept.iter().flatten().next().map(Index::blobs).unwrap_or_default());
        };
        let documents = Arc::clone(&self.source.documents);
        // A result that is lost takes nothing from the files.
        let facts = blocking(move || documents.result(&digest)).await?;
        Ok(facts.map(|facts| facts.logs.clone()).unwrap_or_default())
    }

    /// Says that there is nothing to read, and why. False: the client is gone.
    async fn tell(&mut self, sender: &mpsc::Sender<Result<v1::LogChunk, Status>>) -> bool {
        let attempt = self.attempt.unwrap_or_default();
        // Once.
        self.kept = Some(Some(Index::default()));
        let notice = format!(
            "attempt {attempt} ended without a result, and nothing of its log is left: it had \
             printed nothing, or the coordinator that had it is lost or away"
        );
        sender.send(Ok(v1::LogChunk { attempt, notice, ..Default::default() })).await.is_ok()
    }

    /// Sends all that is there beyond the offsets. False: the client is gone.
    async fn send_new(
        &mut self,
        sender: &mpsc::Sender<Result<v1::LogChunk, Status>>,
        work: Work,
        blobs: BTreeMap<u32, Digest>,
    ) -> Result<bool, Status> {
        loop {
            let (source, offsets) = (self.source.clone(), self.offsets.clone());
            let blobs = blobs.clone();
            let chunks = blocking(move || source.read(work, &offsets, &blobs)).await??;
            if chunks.is_empty() {
                return Ok(true);
            }
            for chunk in chunks {
                self.offsets.insert(chunk.stream, chunk.offset + chunk.data.len() as u64);
                if sender.send(Ok(chunk)).await.is_err() {
                    return Ok(false);
                }
            }
        }
    }
}

impl Source {
    /// The next chunks, stream by stream. Blocks.
    fn read(
        &self,
        work: Work,
        offsets: &BTreeMap<u32, u64>,
        blobs: &BTreeMap<u32, Digest>,
    ) -> Result<Vec<v1::LogChunk>, Status> {
        let internal = |error: crate::logs::LogError| Status::internal(error.to_string());
        let files: BTreeMap<u32, u64> =
            self.logs.streams(self.run, work).map_err(internal)?.into_iter().collect();
        let streams: BTreeSet<u32> = files.keys().chain(blobs.keys()).copied().collect();
        let mut chunks = Vec::new();
        for stream in streams {
            let mut offset = offsets.get(&stream).copied().unwrap_or(0);
            let len = files.get(&stream).copied().unwrap_or(0);
            while chunks.len() < CHUNKS_MAX {
                let data = match blobs.get(&stream) {
                    Some(blob) if offset >= len => self.read_blob(blob, offset)?,
                    _ if offset >= len => break,
                    _ => self
                        .logs
                        .read(self.run, work, stream, offset, CHUNK_BYTES)
                        .map_err(internal)?,
                };
                if data.is_empty() {
                    break;
                }
                let next = offset + data.len() as u64;
                chunks.push(v1::LogChunk {
                    stream,
                    offset,
                    data: data.into(),
                    attempt: work.attempt,
                    notice: String::new(),
                });
                offset = next;
            }
        }
        Ok(chunks)
    }

    /// Bytes of a log that is a blob; none where it is lost as well.
    fn read_blob(&self, blob: &Digest, offset: u64) -> Result<Vec<u8>, Status> {
        if offset >= blob.size {
            return Ok(Vec::new());
        }
        let internal = |error: &dyn std::error::Error| Status::internal(error.to_string());
        let Some(file) = self.documents.front().open_blocking(DigestFunction::Blake3, blob)? else {
            return Ok(Vec::new());
        };
        let mut data = vec![0; CHUNK_BYTES];
        let len = file.read_at(&mut data, offset).map_err(|error| internal(&error))?;
        data.truncate(len);
        Ok(data)
    }
}
