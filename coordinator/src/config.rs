//! The coordinator's configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use steading_model::limits::FINISHED_RUNS_MAX;

/// Smallest segment of the write-ahead log, bytes: one wave of proposals must fit.
const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// Largest segment, bytes: it is preallocated, and a start reads the last one whole.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;
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

impl Config {
    /// The defaults, for this data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            segment_bytes: segment_bytes_default(),
            store_bytes_max: store_bytes_max_default(),
            sources_are_local: false,
            finished_runs_kept: finished_runs_kept_default(),
        }
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
        check(r#"{"data_dir": "/d", "segments": 1}"#, "unknown field `segments`");
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
