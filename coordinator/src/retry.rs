//! What of an ended run is planned again when it is retried.

use std::collections::BTreeSet;

use steading_core::{Run, State};
use steading_model::Conclusion;

/// Which keys a retry of the run plans again: those that depend, directly or not, on one
/// that is tried again, and what was skipped because the run was cancelled. `pipeline`: every
/// key of it, with those that it needs.
pub fn keys_to_plan_again<'a>(
    pipeline: &[(&'a str, Vec<&'a str>)],
    state: &'a State,
    run: &Run,
) -> Vec<String> {
    let (mut tried_again, mut again) = (BTreeSet::new(), BTreeSet::new());
    for job in state.jobs_of(run.id) {
        let key = job.definition.key.as_str();
        match job.outcome().map(|outcome| outcome.conclusion) {
            Some(Conclusion::Failure | Conclusion::Cancelled) => {
                tried_again.insert(key);
            }
            Some(Conclusion::Skipped) if run.cancel.is_some() => {
                again.insert(key);
            }
            Some(Conclusion::Success | Conclusion::Skipped) | None => {}
        }
    }
    loop {
        let depends = pipeline.iter().filter(|(key, needs)| {
            let needs = |keys: &BTreeSet<&str>| needs.iter().any(|need| keys.contains(need));
            !again.contains(key) && (needs(&tried_again) || needs(&again))
        });
        let more: Vec<&str> = depends.map(|(key, _)| *key).collect();
        if more.is_empty() {
            return again.into_iter().map(str::to_owned).collect();
        }
        again.extend(more);
    }
}
