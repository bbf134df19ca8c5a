//! `stead artifacts get`: fetches named outputs of a run.

use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use steading_cas::tree::{self, Materialize};
use steading_cas::{Blobs, Store, StoreOptions};
use steading_model::{Digest, RunId};
use steading_proto::v1;

use crate::args;
use crate::connect::{FIRST_ANSWER_MAX, failure};
use crate::coordinators::{Coordinators, with_blobs};
use crate::exit::{Ended, Failure};
use crate::out;
use crate::reach::{Reach, run_id};
use crate::text::{bytes, clean, count};

/// Bound of the store that holds a fetched artifact while it is written out. It is
/// thrown away afterwards, so only the disk bounds it.
const PASSING_BYTES_MAX: u64 = u64::MAX;

/// Fetches one artifact, or all of them.
///
/// # Errors
///
/// [`Failure`] where there is no such run or artifact, or it cannot be written.
pub async fn run(args: args::ArtifactsGet) -> Result<Ended, Failure> {
    let id = run_id(&args.run)?;
    let reach = Reach::new(&args.coordinated).await?;
    let fetched = async {
        reach.run(id).await?;
        fetch(&reach.coordinators, &reach.blobs, id, args.name.as_deref(), &args.dir).await
    };
    let fetched = fetched.await;
    let stopped = reach.stop().await;
    for line in fetched? {
        out::line(line)?;
    }
    stopped?;
    Ok(Ended::Success)
}

/// Puts the run's artifacts into `dir`, each in a folder of its name, and says so of each.
///
/// # Errors
///
/// [`Failure::Usage`] where an artifact is named that the run does not have.
pub async fn fetch(
    coordinators: &Coordinators,
    blobs: &Blobs,
    run: RunId,
    name: Option<&str>,
    dir: &Path,
) -> Result<Vec<String>, Failure> {
    let request = v1::ListArtifactsRequest { run_id: run.counter() };
    let listed = coordinators
        .call(FIRST_ANSWER_MAX, |mut client| async move { client.list_artifacts(request).await });
    let listed = listed.await.map_err(|status| failure("list the artifacts", status))?;
    let all = listed.artifacts;
    let wanted: Vec<&v1::Artifact> =
        all.iter().filter(|artifact| name.is_none_or(|name| name == artifact.name)).collect();
    if let (Some(name), true) = (name, wanted.is_empty()) {
        let names: Vec<_> = all.iter().map(|artifact| clean(&artifact.name)).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(Failure::usage(format!("{run} has no artifact `{name}`; it has: {names}")));
    }
    let mut lines = Vec::new();
    for artifact in wanted {
        let dest = dir.join(folder_of(&artifact.name)?);
        write_out(blobs, artifact, dest.clone())
            .await
            .with_context(|| format!("cannot fetch the artifact `{}`", clean(&artifact.name)))?;
        let (files, size) = (count(u64::from(artifact.files), "file"), bytes(artifact.bytes));
        lines.push(format!(
            "artifact {}: {files}, {size} in {}",
            clean(&artifact.name),
            dest.display()
        ));
    }
    Ok(lines)
}

async fn write_out(blobs: &Blobs, artifact: &v1::Artifact, dest: PathBuf) -> anyhow::Result<()> {
    let root: Digest = artifact.root_digest.parse()?;
    let (store, _passing) = match blobs {
        Blobs::Local(store) => (store.clone(), None),
        Blobs::Tiered { local, .. } => {
            with_blobs(FIRST_ANSWER_MAX, || blobs.fetch_tree(&root)).await?;
            (local.clone(), None)
        }
        Blobs::Remote(remote) => {
            let folder = tempfile::tempdir()?;
            let options = StoreOptions { bytes_max: PASSING_BYTES_MAX, durable: false };
            let local = Store::open(folder.path(), options)?;
            let tiered = Blobs::Tiered { local: local.clone(), remote: remote.clone() };
            with_blobs(FIRST_ANSWER_MAX, || tiered.fetch_tree(&root)).await?;
            (local, Some(folder))
        }
    };
    let write = move || tree::materialize(&store, &root, &dest, &Materialize::WRITABLE);
    tokio::task::spawn_blocking(write).await??;
    Ok(())
}

/// The artifact's name as the name of one folder: it comes from a job, and must not
/// lead out of where artifacts are put.
fn folder_of(name: &str) -> Result<&Path, Failure> {
    let path = Path::new(name);
    let mut parts = path.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) if !name.contains('/') => Ok(path),
        _ => Err(Failure::Farm(anyhow::anyhow!(
            "the artifact `{}` has a name that no folder can have",
            clean(name)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifacts_name_leads_nowhere() {
        for name in ["dist", "a b", "..x"] {
            assert!(folder_of(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "/etc", "a/b", "../x", "a/"] {
            assert!(folder_of(name).is_err(), "{name}");
        }
    }
}
