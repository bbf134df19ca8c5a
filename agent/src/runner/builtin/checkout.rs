//! `actions/checkout`: puts the run's source tree into the workspace.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use steading_cas::Dir;
use steading_cas::tree::{Materialize, materialize_in};
use steading_model::{Conclusion, Digest, FailureClass};

use super::super::Host;
use super::super::effects::Written;
use super::super::output::StepOutput;
use super::super::state::JobState;
use super::super::step::{Executed, StepEnd};
use super::{flag, input};
use crate::blocking::blocking;
use crate::workspace::leaves_workspace;

pub(super) async fn run(
    state: &mut JobState<'_>,
    host: &mut Host<'_>,
    with: &BTreeMap<String, String>,
    output: &mut StepOutput,
) -> Executed {
    refuse_other_sources(state, with)?;
    let clean = flag(with, "clean", true)?;
    let source: Digest = state.spec.source.parse().map_err(|error| config(format!("{error}")))?;
    let path = input(with, "path").unwrap_or(".");
    let inside = destination(&state.workspace.dir(), path)?;

    let tree = host.blobs.fetch_tree(&source).await.map_err(|error| StepEnd {
        class: Some(FailureClass::Cache),
        ..StepEnd::failure(format!("the source tree cannot be had: {error}"))
    })?;
    let store = host.blobs.local().cloned().ok_or_else(|| config("no local store".to_owned()))?;
    let options = Materialize { owner: state.workspace.user(), ..Materialize::WRITABLE };
    let (root, owner) = (state.workspace.dir(), state.workspace.user());
    let put = move || {
        // Opened once: what a process of the job does to its name does not move it.
        let dest = Dir::open(&root).and_then(|root| root.make_beneath(&inside, owner))?;
        if clean {
            dest.clear()?;
        }
        materialize_in(&store, &source, &dest, &options).map_err(anyhow::Error::from)
    };
    let summary = blocking(put).await.map_err(|error| config(error.to_string()))?.map_err(
        |error| match error.downcast_ref().is_some_and(leaves_workspace) {
            true => config(format!("actions/checkout: `path: {path}` leaves the workspace")),
            false => StepEnd::failure(format!("the source tree cannot be written: {error:#}")),
        },
    )?;
    drop(tree);

    output.line(&format!(
        "source {} with {} files, {} bytes (no .git: this version does not make one)",
        state.spec.source, summary.files, summary.bytes
    ));
    let mut end = StepEnd::new(Conclusion::Success, "");
    for (name, member) in [("ref", "ref"), ("commit", "sha")] {
        let value = state.github_member(member).unwrap_or_default();
        end.outputs.insert(name.to_owned(), value);
    }
    Ok((end, Written::default()))
}

/// The tree of the run is the only one that is here.
fn refuse_other_sources(
    state: &JobState<'_>,
    with: &BTreeMap<String, String>,
) -> Result<(), StepEnd> {
    for (name, members) in
        [("repository", &["repository"][..]), ("ref", &["ref", "ref_name", "sha", "head_ref"])]
    {
        let Some(value) = input(with, name) else {
            continue;
        };
        let known = members.iter().filter_map(|member| state.github_member(member));
        if !known.into_iter().any(|known| known.eq_ignore_ascii_case(value)) {
            return Err(config(format!(
                "actions/checkout with `{name}: {value}` is not supported yet: only the run's own \
                 source can be checked out"
            )));
        }
    }
    match input(with, "sparse-checkout") {
        Some(_) => {
            Err(config("actions/checkout with `sparse-checkout` is not supported yet".to_owned()))
        }
        None => Ok(()),
    }
}

/// Where the tree goes, relative to the workspace. Links on the way are looked at when
/// it is opened.
fn destination(workspace: &Path, path: &str) -> Result<PathBuf, StepEnd> {
    let relative = Path::new(path);
    let relative = relative.strip_prefix(workspace).unwrap_or(relative);
    let stays =
        relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if stays {
        Ok(relative.to_owned())
    } else {
        Err(config(format!("actions/checkout: `path: {path}` leaves the workspace")))
    }
}

fn config(message: String) -> StepEnd {
    StepEnd { class: Some(FailureClass::Config), ..StepEnd::failure(message) }
}
