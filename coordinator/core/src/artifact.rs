//! Artifacts: named outputs of runs.

use std::sync::Arc;

use steading_model::Digest;
use steading_model::limits::NAME_BYTES_MAX;

use crate::effect::Rejection;
use crate::limits::ARTIFACTS_PER_RUN_MAX;
use crate::proposal::Lease;
use crate::rows::Artifact;
use crate::run::at_most;
use crate::state::{State, Turn};

impl State {
    pub(crate) fn record_artifact(
        &mut self,
        turn: &Turn,
        lease: Lease,
        name: String,
        root: Digest,
        files: u32,
        bytes: u64,
    ) -> Result<(), Rejection> {
        let job = self.leased_job(lease).ok_or(Rejection::LeaseStale)?;
        let (run, job) = (job.run, job.id);
        at_most("size of an artifact's name", name.len(), NAME_BYTES_MAX)?;
        let key = (run, name);
        if self.artifacts.get(&key).is_none() {
            let recorded = self.run(run).map_or(0, |run| run.artifacts as usize);
            at_most("number of artifacts of the run", recorded + 1, ARTIFACTS_PER_RUN_MAX)?;
            self.edit_run(turn, run, |run| run.artifacts += 1);
        } else {
            self.edit_run(turn, run, |_| ());
        }
        let row = Artifact { root, files, bytes, job, at: turn.now };
        self.artifacts.set(&key, Some(Arc::new(row)));
        Ok(())
    }
}
