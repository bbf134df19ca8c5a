//! `actions/checkout`: puts the run's source tree into the workspace.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use steading_cas::tree::{Materialize, materialize};
use steading_model::{Conclusion, Digest, FailureClass};

use super::super::Host;
use super::super::effects::Written;
use super::super::output::StepOutput;
use super::super::state::JobState;
use super::super::step::{Executed, StepEnd};
use super::{flag, input};
use crate::blocking::blocking;
use crate::workspace::empty;

pub(super) async fn run(
    state: &mut JobState<'_>,
    host: &mut Host<'_>,
    with: &BTreeMap<String, String>,
    output: &mut StepOutput,
) -> Executed {
    refuse_other_sources(state, with)?;
    let clean = flag(with, "clean", true)?;
    let source: Digest = state.spec.source.parse().map_err(|error| config(format!("{error}")))?;
    let dest = destination(&state.workspace.dir(), input(with, "path").unwrap_or("."))?;

    let tree = host.blobs.fetch_tree(&source).await.map_err(|error| StepEnd {
        class: Some(FailureClass::Cache),
        ..StepEnd::failure(format!("the source tree cannot be had: {error}"))
    })?;
    let store = host.blobs.local().cloned().ok_or_else(|| config("no local store".to_owned()))?;
    let options = Materialize { owner: state.workspace.user(), ..Materialize::WRITABLE };
    let target = dest.clone();
    let put = move || {
        if clean {
            empty(&target).map_err(|error| error.to_string())?;
        }
        materialize(&store, &source, &target, &options).map_err(|error| error.to_string())
    };
    let summary = blocking(put)
        .await
        .map_err(|error| config(error.to_string()))?
        .map_err(|error| StepEnd::failure(format!("the source tree cannot be written: {error}")))?;
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

/// Where the tree goes: inside the workspace, and through no link that leads out of it.
fn destination(workspace: &Path, path: &str) -> Result<PathBuf, StepEnd> {
    let outside = || config(format!("actions/checkout: `path: {path}` leaves the workspace"));
    let relative = Path::new(path);
    let relative = relative.strip_prefix(workspace).unwrap_or(relative);
    let mut dest = workspace.to_owned();
    for component in relative.components() {
        match component {
            Component::Normal(name) => dest.push(name),
            Component::CurDir => continue,
            _ => return Err(outside()),
        }
        if fs::symlink_metadata(&dest).is_ok_and(|meta| !meta.is_dir()) {
            return Err(outside());
        }
    }
    Ok(dest)
}

fn config(message: String) -> StepEnd {
    StepEnd { class: Some(FailureClass::Config), ..StepEnd::failure(message) }
}
