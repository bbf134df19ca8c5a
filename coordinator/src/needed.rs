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

use crate::documents::{DocumentError, Documents};
use crate::replica::Replica;

const FUNCTION: DigestFunction = DigestFunction::Blake3;

/// Lists them; none while the state may not be all there, or something cannot be read that
/// may be read later: nobody can tell now, and nothing goes. Blocks.
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
        if let Err(error) = needed.add_run(&state, run) {
            tracing::warn!(
                run_id = %run.id,
                error = &*error as &dyn std::error::Error,
                "cannot tell what an open run needs: nothing is evicted"
            );
            return None;
        }
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
    /// What is gone or unreadable for ever names nothing: the run fails where it needs it.
    ///
    /// # Errors
    ///
    /// The store failed, so that what it names is not known.
    fn add_run(&mut self, state: &State, run: &Run) -> anyhow::Result<()> {
        let submission = run.definition.submission;
        self.blobs.insert(submission);
        if let Some(named) = unless_gone(self.documents.named_by_submission(&submission))? {
            self.add_tree(named.source)?;
            self.blobs.extend(named.secrets);
        }
        for job in state.jobs_of(run.id) {
            self.blobs.insert(job.definition.spec);
            if let Some(result) = job.outcome().and_then(|outcome| outcome.result) {
                self.blobs.insert(result);
                if let Some(facts) = unless_gone(self.documents.result(&result))? {
                    self.blobs.extend(facts.logs.values());
                }
            }
        }
        for (_, artifact) in state.artifacts_of(run.id) {
            self.add_tree(artifact.root)?;
        }
        Ok(())
    }

    fn add_tree(&mut self, root: Digest) -> anyhow::Result<()> {
        if self.roots.insert(root) {
            self.blobs.extend(self.documents.front().tree_blobs(FUNCTION, &root)?);
        }
        Ok(())
    }
}

/// A document; none where it is gone, or is none of ours. An error where that is not known.
fn unless_gone<T>(read: Result<T, DocumentError>) -> Result<Option<T>, DocumentError> {
    match read {
        Ok(document) => Ok(Some(document)),
        Err(error) if error.is_transient() => Err(error),
        Err(_) => Ok(None),
    }
}
