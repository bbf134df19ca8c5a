//! What an agent is offered: the job's spec and its secrets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use steading_core::{Job, Lease, Outcome, Proposal, State};
use steading_model::{Conclusion, Digest, FailureClass, StepCounts};
use steading_proto::v1;
use tokio::time::Instant;

use crate::documents::{DocumentError, Documents, Parsed};
use crate::replica::Replica;

/// Specs up to this many bytes travel in the offer; larger ones are fetched.
const INLINE_SPEC_BYTES_MAX: usize = 256 << 10;

/// How long what an offer needs is asked for where the origin is away. Shorter than a
/// lease: the job is better off in the queue than lost with its lease, which counts.
const ORIGIN_WAIT: Duration = Duration::from_secs(5);
/// Before it is asked for again.
const RETRY: Duration = Duration::from_millis(250);

/// What became of an offer.
#[derive(Debug)]
pub(crate) enum Offered {
    Ready(v1::Offer),
    /// The lease is no longer held, or its job cannot be offered at all, and has ended.
    Nothing,
    /// What it needs cannot be had for now.
    NotNow,
}

/// Makes offers of leases.
#[derive(Clone, Debug)]
pub(crate) struct Offers {
    pub(crate) replica: Replica,
    pub(crate) documents: Arc<Documents>,
}

impl Offers {
    /// The offer of this lease. Where the job cannot be offered at all, its attempt ends
    /// here, with the reason. It may take as long as the origin does.
    pub(crate) async fn offer(&self, lease: Lease) -> Offered {
        let until = Instant::now() + ORIGIN_WAIT;
        loop {
            let state = self.replica.view();
            let Some(job) = state.leased_job(lease) else { return Offered::Nothing };
            match self.documents_of(&state, job).await {
                Ok((parsed, spec)) => {
                    let offer = self.assemble(&state, job, lease, &parsed, spec);
                    return offer.map_or(Offered::Nothing, Offered::Ready);
                }
                Err(error) if error.is_transient() => {
                    tracing::warn!(job = %job.id, %error, "what a job needs cannot be had for now");
                    if Instant::now() >= until {
                        return Offered::NotNow;
                    }
                }
                Err(error) => {
                    tracing::error!(job = %job.id, %error, "a job cannot be offered");
                    self.give_up(lease, &error).await;
                    return Offered::Nothing;
                }
            }
            drop(state);
            tokio::time::sleep(RETRY).await;
        }
    }

    fn assemble(
        &self,
        state: &State,
        job: &Job,
        lease: Lease,
        parsed: &Parsed,
        spec: Bytes,
    ) -> Option<v1::Offer> {
        let run = state.run(job.run)?;
        // At hand: `documents_of` saw to it.
        let secrets = self.documents.secrets(parsed).ok()?;
        let inline = spec.len() <= INLINE_SPEC_BYTES_MAX;
        Some(v1::Offer {
            lease: Some(v1::Lease::new(lease.work, lease.epoch)),
            run_id: job.run.counter(),
            project: run.definition.request.project.to_string(),
            spec_digest: job.definition.spec.to_string(),
            secrets: secrets.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            spec: if inline { spec } else { Bytes::new() },
        })
    }

    /// From memory, mostly: what was planned a moment ago.
    async fn documents_of(
        &self,
        state: &State,
        job: &Job,
    ) -> Result<(Arc<Parsed>, Bytes), DocumentError> {
        let submission: Digest = match state.run(job.run) {
            Some(run) => run.definition.submission,
            None => job.definition.spec,
        };
        let spec = job.definition.spec;
        let documents = &self.documents;
        if let (Some(parsed), Some(bytes)) =
            (documents.submission_known(&submission), documents.spec_known(&spec))
        {
            return Ok((parsed, bytes));
        }
        let documents = Arc::clone(documents);
        let read = tokio::task::spawn_blocking(move || {
            let parsed = documents.submission(&submission)?;
            documents.secrets(&parsed)?;
            Ok((parsed, documents.spec(&spec)?))
        });
        match read.await {
            Ok(read) => read,
            Err(error) => Err(DocumentError::Unreadable {
                what: "job spec",
                digest: spec,
                why: error.to_string(),
            }),
        }
    }

    async fn give_up(&self, lease: Lease, error: &DocumentError) {
        let outcome = Outcome {
            conclusion: Conclusion::Failure,
            class: Some(FailureClass::Config),
            result: None,
            counts: StepCounts::default(),
            message: format!("the job cannot be started: {error}"),
        };
        if let Err(error) = self.replica.propose(Proposal::CompleteAttempt { lease, outcome }).await
        {
            // The lease expires, and the next attempt ends up here again.
            tracing::warn!(%error, "a job that cannot be offered was not ended");
        }
    }
}
