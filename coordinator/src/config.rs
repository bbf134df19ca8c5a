//! The coordinator's configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use steading_cas::{Origin, OriginError};
use steading_core::FEATURE_LEVEL;
use steading_model::limits::FINISHED_RUNS_MAX;

use crate::peers::check_endpoint;

/// Smallest segment of the write-ahead log, bytes: one wave of proposals must fit.
const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// Largest segment, bytes: it is preallocated, and a start reads the last one whole.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Largest ballast, bytes.
const BALLAST_BYTES_MAX: u64 = 16 << 30;
/// Smallest store that can hold one run's source and results, bytes.
const STORE_BYTES_MIN: u64 = 64 << 20;

/// The coordinator's configuration file (JSON). `steading-coordinator --print-config`
/// shows the values in force.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Everything that outlives the process. One coordinator at a time.
    pub data_dir: PathBuf,
    /// Size of one segment of the write-ahead log, bytes. Preallocated, so that an
    /// append needs no change of the file's metadata.
    #[serde(default = "segment_bytes_default")]
    pub segment_bytes: u64,
    /// The blobs' bound, bytes. Least recently used go first.
    #[serde(default = "store_bytes_max_default")]
    pub store_bytes_max: u64,
    /// Clients put source trees straight into this process' store, so that a
    /// submission's tree need not be walked to know that it is complete.
    #[serde(default)]
    pub sources_are_local: bool,
    /// Ended runs that are still known, at most [`FINISHED_RUNS_MAX`]; the oldest go first.
    #[serde(default = "finished_runs_kept_default")]
    pub finished_runs_kept: usize,
    /// A CA of the operator's, instead of one that is made on the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<GivenCa>,
    /// With less than this free on its disk, bytes, a coordinator leads no more and takes no
    /// submissions, and with an eighth of it it stops. Zero: it never looks. None: a tenth
    /// and a fiftieth of the disk, but no more than 4 GiB and 512 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_low_bytes: Option<u64>,
    /// Kept free, bytes, so that a coordinator whose disk ran full can start and compact its
    /// log. Zero: nothing is.
    #[serde(default = "ballast_bytes_default")]
    pub ballast_bytes: u64,
    /// How long a job stays in the queue that no agent which is known could ever run,
    /// milliseconds; then it fails with class `config`. That it waits so is told at once.
    #[serde(default = "unplaceable_ms_default")]
    pub unplaceable_ms: u64,
    /// How long an agent may be away before it is taken to be gone for good, milliseconds.
    #[serde(default = "agent_away_ms_default")]
    pub agent_away_ms: u64,
    /// Where blobs and results of actions are durable. None: in this coordinator's own
    /// store, which several coordinators cannot share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStore>,
    /// Where other coordinators reach this one. None: as it was told before, or nowhere,
    /// and then it stays alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// Coordinators of the group that an empty directory joins. One that has joined
    /// keeps to its group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub join: Vec<String>,
    /// The token that gets it a certificate first, where the others want one.
    /// Never printed.
    #[serde(default, skip_serializing)]
    pub join_token: Option<String>,
    /// The newest feature level that this version knows. No setting, but what the program is.
    #[serde(skip, default = "feature_level_default")]
    pub feature_level: u32,
}

/// The files of a CA, PEM.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenCa {
    /// Its certificate, then those of the CAs above it, if others are to follow a chain.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Where blobs are durable: exactly one of `directory` and `bucket`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectStore {
    /// A directory that every coordinator sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// `gs://NAME` or `s3://NAME`. Who we are there comes from the environment, as the
    /// cloud's own tools have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Before every object of the bucket.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

impl ObjectStore {
    /// Of what a person writes: a directory, or `gs://NAME/PREFIX` or `s3://NAME/PREFIX`.
    pub fn from_text(text: &str) -> Self {
        match text.split_once("://") {
            Some((scheme, rest)) => {
                let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let bucket = Some(format!("{scheme}://{name}"));
                Self { bucket, prefix: prefix.to_owned(), directory: None }
            }
            None => Self { directory: Some(text.into()), ..Self::default() },
        }
    }

    fn validate(&self) -> anyhow::Result<()> {
        match (&self.directory, &self.bucket) {
            (Some(dir), None) if dir.as_os_str().is_empty() || !self.prefix.is_empty() => {
                bail!("`object_store` wants a directory's path, and no prefix beside it")
            }
            (Some(_), None) => Ok(()),
            (None, Some(url)) if url.starts_with("gs://") || url.starts_with("s3://") => Ok(()),
            (None, Some(url)) => bail!("`object_store.bucket` is `{url}`, want gs://… or s3://…"),
            _ => bail!("`object_store` wants either `directory` or `bucket`"),
        }
    }

    /// Opens it. Blocks.
    pub(crate) fn open(&self) -> Result<Origin, OriginError> {
        match (&self.directory, &self.bucket) {
            (Some(dir), _) => Origin::directory(dir),
            (None, bucket) => Origin::bucket(bucket.as_deref().unwrap_or_default(), &self.prefix),
        }
    }
}

const fn segment_bytes_default() -> u64 {
    64 << 20
}

const fn store_bytes_max_default() -> u64 {
    50 << 30
}

const fn finished_runs_kept_default() -> usize {
    FINISHED_RUNS_MAX
}

const fn ballast_bytes_default() -> u64 {
    64 << 20
}

const fn feature_level_default() -> u32 {
    FEATURE_LEVEL
}

/// A day, as GitHub gives a job that waits for a runner of one's own.
const fn unplaceable_ms_default() -> u64 {
    24 * 3_600_000
}

const fn agent_away_ms_default() -> u64 {
    3_600_000
}

impl Config {
    /// The defaults, for this data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            segment_bytes: segment_bytes_default(),
            store_bytes_max: store_bytes_max_default(),
            sources_are_local: false,
            finished_runs_kept: finished_runs_kept_default(),
            ca: None,
            disk_low_bytes: None,
            ballast_bytes: ballast_bytes_default(),
            agent_away_ms: agent_away_ms_default(),
            unplaceable_ms: unplaceable_ms_default(),
            object_store: None,
            advertise: None,
            join: Vec::new(),
            join_token: None,
            feature_level: FEATURE_LEVEL,
        }
    }

    /// Whether other coordinators can have what this one takes. Without it a coordinator
    /// stays alone.
    pub const fn shares_origin(&self) -> bool {
        self.object_store.is_some()
    }

    /// Reads and checks a configuration file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is no JSON object of this shape, or has a value
    /// outside its bounds; each says which and what is wanted.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("read `{}`", path.display()))?;
        let config: Self =
            serde_json::from_slice(&text).with_context(|| format!("parse `{}`", path.display()))?;
        config.validate().with_context(|| format!("check `{}`", path.display()))?;
        Ok(config)
    }

    /// Checks every bound.
    ///
    /// # Errors
    ///
    /// The first value outside its bounds.
    pub fn validate(&self) -> anyhow::Result<()> {
        if self.data_dir.as_os_str().is_empty() {
            bail!("`data_dir` is empty, want a directory");
        }
        within("segment_bytes", self.segment_bytes, SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)?;
        within("store_bytes_max", self.store_bytes_max, STORE_BYTES_MIN, u64::MAX)?;
        if let Some(object_store) = &self.object_store {
            object_store.validate()?;
        }
        for endpoint in self.advertise.iter().chain(&self.join) {
            check_endpoint(endpoint)?;
        }
        within("ballast_bytes", self.ballast_bytes, 0, BALLAST_BYTES_MAX)?;
        within("agent_away_ms", self.agent_away_ms, 1, u64::MAX)?;
        within("unplaceable_ms", self.unplaceable_ms, 1, u64::MAX)?;
        let kept = self.finished_runs_kept as u64;
        within("finished_runs_kept", kept, 1, FINISHED_RUNS_MAX as u64)
    }
}

fn within(name: &str, value: u64, min: u64, max: u64) -> anyhow::Result<()> {
    if value < min || value > max {
        bail!("`{name}` is {value}, want {min} to {max}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_says_what_is_wrong_with_it() {
        check(r#"{"data_dir": "/d"}"#, "ok");
        check(r#"{"data_dir": ""}"#, "`data_dir` is empty, want a directory");
        check(
            r#"{"data_dir": "/d", "segment_bytes": 1}"#,
            "`segment_bytes` is 1, want 4194304 to 1073741824",
        );
        check(
            r#"{"data_dir": "/d", "store_bytes_max": 0}"#,
            "`store_bytes_max` is 0, want 67108864 to",
        );
        let object_store =
            |value: &str| format!(r#"{{"data_dir": "/d", "object_store": {value}}}"#);
        check(&object_store(r#"{"directory": "/o"}"#), "ok");
        check(&object_store(r#"{"bucket": "s3://b", "prefix": "farm"}"#), "ok");
        check(&object_store("{}"), "wants either `directory` or `bucket`");
        check(&object_store(r#"{"bucket": "b"}"#), "is `b`, want gs://… or s3://…");
        check(&object_store(r#"{"directory": "/o", "prefix": "p"}"#), "no prefix beside it");
        check(r#"{"data_dir": "/d", "join": ["unix:/a"], "advertise": "unix:/b"}"#, "ok");
        check(r#"{"data_dir": "/d", "advertise": "b"}"#, "`b` is no endpoint");
        check(r#"{"data_dir": "/d", "segments": 1}"#, "unknown field `segments`");
    }

    #[test]
    fn an_object_store_is_a_directory_or_a_bucket() {
        for (text, directory, bucket, prefix) in [
            ("/o", Some("/o"), None, ""),
            ("o/p", Some("o/p"), None, ""),
            ("s3://b", None, Some("s3://b"), ""),
            ("gs://b/farm/one", None, Some("gs://b"), "farm/one"),
        ] {
            let got = ObjectStore::from_text(text);
            assert_eq!(got.directory.as_deref(), directory.map(Path::new), "{text}");
            assert_eq!((got.bucket.as_deref(), got.prefix.as_str()), (bucket, prefix), "{text}");
        }
    }

    fn check(text: &str, want: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coordinator.json");
        std::fs::write(&path, text).unwrap();
        match Config::load(&path) {
            Ok(_) => assert_eq!(want, "ok", "{text} was accepted"),
            Err(error) => {
                let error = format!("{error:#}");
                assert!(error.contains(want), "{text}: {error}");
            }
        }
    }
}
