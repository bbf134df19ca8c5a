//! The coordinator's documents in the store, with bounded memory of the recent ones:
//! submissions, job specs, job results.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;
use steading_cas::{Front, OriginError};
use steading_model::{Digest, DigestFunction};
use steading_pipeline::job::JobResult;
use steading_pipeline::{Diagnostic, Pipeline};

use crate::cache::Cache;
use crate::github;
use crate::secrets::{Sealer, SecretsError};
use crate::submission::{Submission, SubmissionError};

/// Submissions kept in memory, bytes of their documents. A parsed one takes several times that.
const SUBMISSION_BYTES_MAX: usize = 8 << 20;
/// Job specs kept in memory, bytes: what is planned is offered soon.
const SPEC_BYTES_MAX: usize = 32 << 20;
/// Job results kept in memory, bytes.
const RESULT_BYTES_MAX: usize = 16 << 20;
/// Facts of submissions for lists of runs, number.
const FACTS_MAX: usize = 10_000;
/// A document larger than this is none of ours, bytes.
const DOCUMENT_BYTES_MAX: u64 = 64 << 20;

const FUNCTION: DigestFunction = DigestFunction::Blake3;

/// Why a document cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("{what} `{digest}` is not in the store any more")]
    Missing { what: &'static str, digest: Digest },
    #[error("{what} `{digest}` is larger than any of ours")]
    TooLarge { what: &'static str, digest: Digest },
    #[error("{what} `{digest}` is not readable: {why}")]
    Unreadable { what: &'static str, digest: Digest, why: String },
    #[error("the store failed")]
    Store(#[from] OriginError),
    #[error("the secrets of submission `{digest}` cannot be opened")]
    Secrets {
        digest: Digest,
        #[source]
        source: SecretsError,
    },
}

impl DocumentError {
    /// Whether it may be had later: the store or the origin was away, or had no room.
    pub(crate) const fn is_transient(&self) -> bool {
        let Self::Store(error) = self else { return false };
        matches!(
            error,
            OriginError::Store(_) | OriginError::Object { .. } | OriginError::NotMounted { .. }
        )
    }
}

/// A submission, parsed: all that a plan needs besides results.
pub(crate) struct Parsed {
    pub(crate) submission: Submission,
    pub(crate) pipeline: Pipeline,
    pub(crate) warnings: Vec<Diagnostic>,
    pub(crate) github: Value,
    pub(crate) inputs: Value,
    pub(crate) vars: Value,
    pub(crate) env: Vec<(String, String)>,
    secrets: OnceLock<Arc<BTreeMap<String, String>>>,
}

/// Without the values: it holds secrets.
impl std::fmt::Debug for Parsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parsed").field("file", &self.submission.file).finish_non_exhaustive()
    }
}

/// Why a submission cannot be planned. Always the submitter's mistake.
#[derive(Debug)]
pub(crate) enum ParseError {
    Diagnostics(Vec<Diagnostic>),
    Inputs(SubmissionError),
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Diagnostics(diagnostics) => {
                let lines: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
                f.write_str(&lines.join("\n"))
            }
            Self::Inputs(error) => error.fmt(f),
        }
    }
}

impl Parsed {
    /// Parses and checks everything that can be known before the run.
    pub(crate) fn new(submission: Submission) -> Result<Self, ParseError> {
        let overlay = submission.overlay.as_ref().map(String::as_bytes);
        let parsed =
            steading_pipeline::parse(&submission.file, submission.pipeline.as_bytes(), overlay)
                .map_err(ParseError::Diagnostics)?;
        let inputs = submission.inputs_context(&parsed.pipeline).map_err(ParseError::Inputs)?;
        Ok(Self {
            github: github::context(&submission, parsed.pipeline.title()),
            inputs,
            vars: serde_json::json!(submission.vars),
            env: submission.env.clone().into_iter().collect(),
            pipeline: parsed.pipeline,
            warnings: parsed.warnings,
            submission,
            secrets: OnceLock::new(),
        })
    }

    /// The secrets are at hand: they need not be read and opened again.
    pub(crate) fn know_secrets(&self, secrets: BTreeMap<String, String>) {
        // Set before: the same ones.
        let _ = self.secrets.set(Arc::new(secrets));
    }
}

/// What lists of runs tell of a submission.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) git_ref: String,
    pub(crate) sha: String,
    pub(crate) event_name: String,
}

/// What a submission names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named {
    pub(crate) source: Digest,
    pub(crate) secrets: Option<Digest>,
}

/// What the coordinator needs of a job's result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResultFacts {
    pub(crate) outputs: BTreeMap<String, String>,
    /// Logs that are blobs.
    pub(crate) logs: BTreeMap<u32, Digest>,
}

/// The documents. All methods that read the store block, and say so.
#[derive(Debug)]
pub(crate) struct Documents {
    front: Front,
    sealer: Sealer,
    submissions: Cache<Digest, Arc<Parsed>>,
    specs: Cache<Digest, Bytes>,
    results: Cache<Digest, Arc<ResultFacts>>,
    facts: Cache<Digest, Arc<Facts>>,
}

impl Documents {
    pub(crate) fn new(front: Front, sealer: Sealer) -> Self {
        Self {
            front,
            sealer,
            submissions: Cache::new(SUBMISSION_BYTES_MAX),
            specs: Cache::new(SPEC_BYTES_MAX),
            results: Cache::new(RESULT_BYTES_MAX),
            facts: Cache::new(FACTS_MAX),
        }
    }

    /// The store, with the origin behind it.
    pub(crate) fn front(&self) -> &Front {
        &self.front
    }

    pub(crate) fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Puts blobs, durable when this returns. Blocks.
    pub(crate) fn put_many<'a>(
        &self,
        blobs: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<Digest>, OriginError> {
        self.front.put_many_blocking(FUNCTION, blobs)
    }

    /// Remembers a submission that was just put.
    pub(crate) fn know_submission(&self, digest: Digest, parsed: Arc<Parsed>) {
        self.facts.insert(digest, Arc::new(facts_of(&parsed.submission)), 1);
        let weight = usize::try_from(digest.size).unwrap_or(usize::MAX);
        self.submissions.insert(digest, parsed, weight);
    }

    /// Remembers a spec that was just put.
    pub(crate) fn know_spec(&self, digest: Digest, bytes: Bytes) {
        let weight = bytes.len();
        self.specs.insert(digest, bytes, weight);
    }

    /// The submission. Blocks, unless it is remembered.
    pub(crate) fn submission(&self, digest: &Digest) -> Result<Arc<Parsed>, DocumentError> {
        if let Some(parsed) = self.submissions.get(digest) {
            return Ok(parsed);
        }
        let unreadable = |why| DocumentError::Unreadable { what: SUBMISSION, digest: *digest, why };
        let submission = self.read_submission(digest)?;
        let parsed = Parsed::new(submission).map_err(|error| unreadable(error.to_string()))?;
        let parsed = Arc::new(parsed);
        self.know_submission(*digest, Arc::clone(&parsed));
        Ok(parsed)
    }

    /// The blobs that a submission names. Blocks, unless it is remembered.
    pub(crate) fn named_by_submission(&self, digest: &Digest) -> Result<Named, DocumentError> {
        let named = |submission: &Submission| {
            let source = submission.source.parse();
            let source = source.map_err(|error| DocumentError::Unreadable {
                what: SUBMISSION,
                digest: *digest,
                why: format!("{error}"),
            })?;
            Ok(Named { source, secrets: submission.secrets.parse().ok() })
        };
        match self.submissions.get(digest) {
            Some(parsed) => named(&parsed.submission),
            None => named(&self.read_submission(digest)?),
        }
    }

    /// What lists tell of the submission. Blocks, unless it is remembered.
    pub(crate) fn facts(&self, digest: &Digest) -> Result<Arc<Facts>, DocumentError> {
        if let Some(facts) = self.facts.get(digest) {
            return Ok(facts);
        }
        let facts = Arc::new(facts_of(&self.read_submission(digest)?));
        self.facts.insert(*digest, Arc::clone(&facts), 1);
        Ok(facts)
    }

    /// The facts, if they are remembered.
    pub(crate) fn facts_known(&self, digest: &Digest) -> Option<Arc<Facts>> {
        self.facts.get(digest)
    }

    /// The secrets of a submission. Blocks, unless they are remembered.
    pub(crate) fn secrets(
        &self,
        parsed: &Parsed,
    ) -> Result<Arc<BTreeMap<String, String>>, DocumentError> {
        if let Some(secrets) = parsed.secrets.get() {
            return Ok(Arc::clone(secrets));
        }
        let secrets = match parsed.submission.secrets.as_str() {
            "" => BTreeMap::new(),
            digest => {
                let digest = digest.parse().map_err(|_| DocumentError::Unreadable {
                    what: "name of sealed secrets",
                    digest: Digest { hash: [0; 32], size: 0 },
                    why: format!("`{digest}` is no digest"),
                })?;
                let sealed = self.read("sealed secrets", &digest)?;
                self.sealer
                    .open_sealed(&sealed)
                    .map_err(|source| DocumentError::Secrets { digest, source })?
            }
        };
        Ok(Arc::clone(parsed.secrets.get_or_init(|| Arc::new(secrets))))
    }

    /// A spec's bytes, if they are remembered.
    pub(crate) fn spec_known(&self, digest: &Digest) -> Option<Bytes> {
        self.specs.get(digest)
    }

    /// The submission, if it is remembered with its secrets.
    pub(crate) fn submission_known(&self, digest: &Digest) -> Option<Arc<Parsed>> {
        self.submissions
            .get(digest)
            .filter(|parsed| parsed.submission.secrets.is_empty() || parsed.secrets.get().is_some())
    }

    /// A spec's bytes. Blocks, unless they are remembered.
    pub(crate) fn spec(&self, digest: &Digest) -> Result<Bytes, DocumentError> {
        if let Some(bytes) = self.specs.get(digest) {
            return Ok(bytes);
        }
        let bytes = self.read("job spec", digest)?;
        self.know_spec(*digest, bytes.clone());
        Ok(bytes)
    }

    /// What a job left. Blocks, unless it is remembered.
    pub(crate) fn result(&self, digest: &Digest) -> Result<Arc<ResultFacts>, DocumentError> {
        if let Some(facts) = self.results.get(digest) {
            return Ok(facts);
        }
        const WHAT: &str = "job result";
        let bytes = self.read(WHAT, digest)?;
        let result: JobResult = serde_json::from_slice(&bytes).map_err(|error| {
            DocumentError::Unreadable { what: WHAT, digest: *digest, why: error.to_string() }
        })?;
        let logs =
            result.logs.iter().filter_map(|(stream, blob)| Some((*stream, blob.parse().ok()?)));
        let facts = Arc::new(ResultFacts { logs: logs.collect(), outputs: result.outputs });
        self.results.insert(*digest, Arc::clone(&facts), bytes.len());
        Ok(facts)
    }

    /// A blob of ours. Blocks.
    pub(crate) fn read(&self, what: &'static str, digest: &Digest) -> Result<Bytes, DocumentError> {
        if digest.size > DOCUMENT_BYTES_MAX {
            return Err(DocumentError::TooLarge { what, digest: *digest });
        }
        let bytes = self.front.get_blocking(FUNCTION, digest)?;
        bytes.ok_or(DocumentError::Missing { what, digest: *digest })
    }

    fn read_submission(&self, digest: &Digest) -> Result<Submission, DocumentError> {
        let bytes = self.read(SUBMISSION, digest)?;
        serde_json::from_slice(&bytes).map_err(|error| DocumentError::Unreadable {
            what: SUBMISSION,
            digest: *digest,
            why: error.to_string(),
        })
    }
}

const SUBMISSION: &str = "submission";

fn facts_of(submission: &Submission) -> Facts {
    Facts {
        git_ref: submission.git_ref.clone(),
        sha: submission.sha.clone(),
        event_name: submission.event_name.clone(),
    }
}
