//! What an execution gave, as the cache keeps it.
//!
//! A success is a REAPI `ActionResult`: the layer as its one output directory, the log
//! as standard output, side effects as output files under reserved names. A failure is
//! a document of our own, kept for those who waited for it and for nobody else.

use std::time::{SystemTime, UNIX_EPOCH};

use bazel_remote_apis::google::protobuf::Timestamp;
use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use steading_cas::{Blobs, BlobsError, tree};
use steading_model::Digest;
use steading_proto::{blob_digest, reapi, reapi_digest};

use super::{CachedError, SideEffects};
use crate::process::Exit;

/// Before the names of side effects among the output files.
const EFFECTS_PREFIX: &str = ".steading/";

/// What an execution gave; its blobs are in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// Why it failed although its command did not.
    pub failure: Option<String>,
    #[serde(with = "text")]
    pub layer: Digest,
    #[serde(with = "text")]
    pub log: Digest,
    /// Side effects by name; empty ones are left out.
    pub effects: Vec<(String, String)>,
    pub undeclared: Vec<String>,
}

impl Outcome {
    pub(super) fn exit(&self) -> Exit {
        Exit { code: self.code, signal: self.signal, ..Exit::default() }
    }

    pub(super) fn succeeded(&self) -> bool {
        self.exit().succeeded() && self.failure.is_none()
    }

    /// As a result for the action cache. The tree's message is put into the cache for it.
    pub(super) async fn to_action_result(
        &self,
        blobs: &Blobs,
        agent: &str,
    ) -> Result<reapi::ActionResult, CachedError> {
        let store = blobs.local().cloned().ok_or(BlobsError::NoStore)?;
        let layer = self.layer;
        let message = off_thread(move || tree::tree_message(&store, &layer)).await?;
        let tree = blobs.put(message.encode_to_vec().into()).await?;
        let output_files = self.effects.iter().filter_map(|(name, digest)| {
            Some(reapi::OutputFile {
                path: format!("{EFFECTS_PREFIX}{name}"),
                digest: Some(reapi_digest(&digest.parse().ok()?)),
                ..reapi::OutputFile::default()
            })
        });
        let now = UNIX_EPOCH.elapsed().unwrap_or_default();
        Ok(reapi::ActionResult {
            output_files: output_files.collect(),
            output_directories: vec![reapi::OutputDirectory {
                tree_digest: Some(reapi_digest(&tree)),
                root_directory_digest: Some(reapi_digest(&self.layer)),
                ..reapi::OutputDirectory::default()
            }],
            stdout_digest: Some(reapi_digest(&self.log)),
            execution_metadata: Some(reapi::ExecutedActionMetadata {
                worker: agent.to_owned(),
                execution_completed_timestamp: Some(Timestamp {
                    seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
                    ..Timestamp::default()
                }),
                ..reapi::ExecutedActionMetadata::default()
            }),
            ..reapi::ActionResult::default()
        })
    }

    /// None for a result that is not one of ours.
    pub(super) fn of_action_result(result: &reapi::ActionResult) -> Option<Self> {
        let digest = |digest: &Option<reapi::Digest>| blob_digest("digest", digest.as_ref()?).ok();
        let directory = result.output_directories.first()?;
        let effects = result.output_files.iter().filter_map(|file| {
            let name = file.path.strip_prefix(EFFECTS_PREFIX)?.to_owned();
            Some((name, digest(&file.digest)?.to_string()))
        });
        Some(Self {
            code: Some(result.exit_code),
            signal: None,
            failure: None,
            layer: digest(&directory.root_directory_digest)?,
            log: digest(&result.stdout_digest)?,
            effects: effects.collect(),
            undeclared: Vec::new(),
        })
    }
}

/// When a result was made; none where it does not say.
pub(super) fn executed_at(result: &reapi::ActionResult) -> Option<SystemTime> {
    let at = result.execution_metadata.as_ref()?.execution_completed_timestamp.as_ref()?;
    let seconds = u64::try_from(at.seconds).ok()?;
    UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds))
}

/// Puts the side effects that are not empty into the cache.
pub(super) async fn put_effects(
    blobs: &Blobs,
    effects: &SideEffects,
) -> Result<Vec<(String, String)>, CachedError> {
    let named: Vec<(&str, &Vec<u8>)> =
        effects.named().into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
    let bytes = named.iter().map(|(_, bytes)| Bytes::copy_from_slice(bytes)).collect();
    let digests = blobs.put_many(bytes).await?;
    let names = named.iter().map(|(name, _)| (*name).to_owned());
    Ok(names.zip(digests.iter().map(Digest::to_string)).collect())
}

/// Gets them back. Nobody has one of them: [`BlobsError::Missing`].
pub(super) async fn get_effects(
    blobs: &Blobs,
    named: &[(String, String)],
) -> Result<SideEffects, CachedError> {
    let mut effects = SideEffects::default();
    for (name, digest) in named {
        let Ok(digest) = digest.parse::<Digest>() else { continue };
        let bytes = blobs.get(&digest).await?.ok_or(BlobsError::Missing(vec![digest]))?;
        effects.set(name, &bytes);
    }
    Ok(effects)
}

impl SideEffects {
    /// By the name of its file.
    pub(super) fn set(&mut self, name: &str, bytes: &[u8]) {
        let place = match name {
            "output" => &mut self.output,
            "env" => &mut self.env,
            "path" => &mut self.path,
            "state" => &mut self.state,
            "summary" => &mut self.summary,
            // Of a later version, which keys differently if it matters.
            _ => return,
        };
        *place = bytes.to_vec();
    }

    /// By the names of their files.
    pub(super) fn named(&self) -> [(&'static str, &Vec<u8>); 5] {
        [
            ("output", &self.output),
            ("env", &self.env),
            ("path", &self.path),
            ("state", &self.state),
            ("summary", &self.summary),
        ]
    }
}

/// Runs what waits for the disk off the threads that serve the network.
pub(super) async fn off_thread<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only when the runtime is going down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}

mod text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use steading_model::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
