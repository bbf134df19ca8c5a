//! Which blobs open runs need, where the coordinator's own store is the only place that
//! has them: an eviction leaves these.
//!
//! What nobody evicts: submissions with their secrets and sources, specs, results with
//! their logs, and artifacts, each of runs that go on. What ended runs left, and results of
//! actions, goes when it was not used for long, as in any cache.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use steading_core::{Run, State};
use steading_model::{Digest, DigestFunction};

use crate::documents::Documents;
use crate::replica::Replica;

const FUNCTION: DigestFunction = DigestFunction::Blake3;

/// Lists them; none while the state may not be all there. Blocks.
pub(crate) fn by_open_runs(
    replica: &Replica,
    documents: &Weak<Documents>,
) -> Option<Vec<(DigestFunction, Digest)>> {
    let documents = documents.upgrade()?;
    if !replica.standing().borrow().leads {
        return None;
    }
    let state = replica.view();
    let mut needed = Needed { documents, blobs: HashSet::new(), roots: HashSet::new() };
    for run in state.open_runs() {
        needed.add_run(&state, run);
    }
    Some(needed.blobs.into_iter().map(|digest| (FUNCTION, digest)).collect())
}

struct Needed {
    documents: Arc<Documents>,
    blobs: HashSet<Digest>,
    /// Trees that were walked.
    roots: HashSet<Digest>,
}

impl Needed {
    /// What cannot be read any more names nothing: the run fails where it needs it.
    fn add_run(&mut self, state: &State, run: &Run) {
        let submission = run.definition.submission;
        self.blobs.insert(submission);
        if let Ok(named) = self.documents.named_by_submission(&submission) {
            self.add_tree(named.source);
            self.blobs.extend(named.secrets);
        }
        for job in state.jobs_of(run.id) {
            self.blobs.insert(job.definition.spec);
            if let Some(result) = job.outcome().and_then(|outcome| outcome.result) {
                self.blobs.insert(result);
                if let Ok(facts) = self.documents.result(&result) {
                    self.blobs.extend(facts.logs.values());
                }
            }
        }
        for (_, artifact) in state.artifacts_of(run.id) {
            self.add_tree(artifact.root);
        }
    }

    fn add_tree(&mut self, root: Digest) {
        if self.roots.insert(root) {
            self.blobs.extend(self.documents.front().tree_blobs(FUNCTION, &root));
        }
    }
}
