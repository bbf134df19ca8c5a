//! Notices that the machine is about to be taken away: from GCE's metadata server, and
//! from a file (other clouds' hooks, and people). TERM, the third one, is heard by
//! whoever owns the process.
//!
//! A notice that is missed costs an attempt's work, one that is made up costs an idle
//! machine. So nothing but the exact words is a notice, and no failure to ask is one.

pub mod gce;

use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the file is looked for: a small part of the shortest window there is.
const FILE_POLL: Duration = Duration::from_millis(100);

/// Where notices come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preemption {
    /// When this file is there, the machine is about to go.
    pub file: Option<PathBuf>,
    /// `HOST` or `HOST:PORT` of GCE's metadata server.
    pub gce: Option<String>,
}

impl Preemption {
    /// Waits for the first notice, for ever where none can come. Returns who gave it.
    pub async fn noticed(&self) -> &'static str {
        let file = async {
            match &self.file {
                Some(path) => appears(path).await,
                None => std::future::pending().await,
            }
        };
        let gce = async {
            match &self.gce {
                Some(host) => gce::noticed(host).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = file => "file",
            notice = gce => notice,
        }
    }
}

async fn appears(path: &Path) {
    let mut ticks = tokio::time::interval(FILE_POLL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // What cannot be looked at is not there.
        if tokio::fs::try_exists(path).await.unwrap_or(false) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_appears_is_a_notice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notice");
        let preemption = Preemption { file: Some(path.clone()), gce: None };
        let none = tokio::time::timeout(FILE_POLL * 2, preemption.noticed()).await;
        assert!(none.is_err());
        std::fs::write(&path, "").unwrap();
        assert_eq!(preemption.noticed().await, "file");
    }
}
