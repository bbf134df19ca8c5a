//! `stead backup`, `stead restore` and `stead recover`: the state of a farm, kept and
//! brought back.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use steading_coordinator::recovery::{self, NewGroup, Restore, Standpoint};
use steading_coordinator::{ObjectStore, backup};
use steading_proto::v1;
use steading_proto::v1::backups_client::BackupsClient;

use crate::args;
use crate::connect::failure;
use crate::exit::{Ended, Failure};
use crate::out;
use crate::reach::Reach;

/// Largest part of a backup, bytes.
const PART_BYTES_MAX: usize = 8 << 20;

/// Who may read a backup: it names people and machines.
const FILE_MODE: u32 = 0o600;

/// Takes a backup. The file is there once it was read back and checked, or not at all.
///
/// # Errors
///
/// [`Failure`] where the farm does not answer, or the file cannot be written.
pub async fn take(args: args::Backup) -> Result<Ended, Failure> {
    let keys = args.include_keys.then(|| beside(&args.file, "keys"));
    for path in [Some(&args.file), keys.as_ref()].into_iter().flatten() {
        if path.exists() {
            return Err(Failure::usage(format!(
                "`{}` is there already\n  hint: a backup replaces nothing; name another file",
                path.display()
            )));
        }
    }
    let reach = Reach::new(&args.coordinated).await?;
    let taken = receive(&reach, &args.file, keys.as_deref()).await;
    let stopped = reach.stop().await;
    let manifest = taken?;
    stopped?;
    out::line(format_args!(
        "backup of cluster {} at proposal {} in `{}`",
        manifest.cluster_id,
        manifest.index,
        args.file.display()
    ))?;
    if let Some(keys) = keys {
        out::line(format_args!("key for secrets in `{}`: keep it apart", keys.display()))?;
    }
    if !manifest.shared_origin {
        out::line(format_args!(
            "blobs are in the coordinator's own store, and not in the backup: keep a copy of its \
             folder `cas` as well"
        ))?;
    }
    Ok(Ended::Success)
}

async fn receive(
    reach: &Reach,
    path: &Path,
    keys: Option<&Path>,
) -> Result<backup::Manifest, Failure> {
    let mut client =
        BackupsClient::new(reach.coordinators.channel()).max_decoding_message_size(PART_BYTES_MAX);
    let request = v1::BackupRequest { include_keys: keys.is_some() };
    let failed = |status| failure("take a backup", status);
    let mut parts = client.backup(request).await.map_err(failed)?.into_inner();
    let tmp = beside(path, "tmp");
    let mut file = create(&tmp)?;
    let mut key = Vec::new();
    while let Some(part) = parts.message().await.map_err(failed)? {
        file.write_all(&part.data).with_context(|| format!("write `{}`", tmp.display()))?;
        key.extend_from_slice(&part.seal_key);
    }
    file.sync_all().with_context(|| format!("sync `{}`", tmp.display()))?;
    let checked = tmp.clone();
    let read = tokio::task::spawn_blocking(move || backup::read(&checked)).await;
    let (manifest, _) = read.map_err(anyhow::Error::from)?.context("read the backup back")?;
    if let Some(keys) = keys {
        let mut file = create(keys)?;
        let written = file.write_all(&key).and_then(|()| file.sync_all());
        written.with_context(|| format!("write `{}`", keys.display()))?;
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::rename(&tmp, path)
        .and_then(|()| File::open(parent)?.sync_all())
        .with_context(|| format!("write `{}`", path.display()))?;
    Ok(manifest)
}

/// Makes a farm of one coordinator from a backup.
///
/// # Errors
///
/// [`Failure`] where the backup is none or the directory is somebody's.
pub async fn restore(args: args::Restore) -> Result<Ended, Failure> {
    let restore = Restore {
        file: args.file,
        data_dir: std::path::absolute(&args.data_dir).map_err(anyhow::Error::from)?,
        object_store: args.object_store.as_deref().map(ObjectStore::from_text),
        keys: args.keys,
    };
    let without_key = restore.keys.is_none();
    let (manifest, group) = recovery::restore(restore).await?;
    out::line(format_args!(
        "restored cluster {} as of proposal {}",
        manifest.cluster_id, manifest.index
    ))?;
    tell_of(&group)?;
    if without_key {
        out::line(format_args!(
            "without --keys the secrets of what was submitted cannot be opened: those jobs fail"
        ))?;
    }
    Ok(Ended::Success)
}

/// Goes on from what one stopped coordinator holds.
///
/// # Errors
///
/// [`Failure`] where it runs, holds nothing, or nobody accepted the loss.
pub async fn recover(args: args::Recover) -> Result<Ended, Failure> {
    let dir = std::path::absolute(&args.data_dir).map_err(anyhow::Error::from)?;
    let at = dir.clone();
    let standpoint = blocking(move || recovery::standpoint(&at)).await?;
    let Standpoint { cluster_id, replica_id, term, index, open_runs } = standpoint;
    out::line(format_args!(
        "replica {replica_id} of cluster {cluster_id}: term {term}, index {index}, \
         {open_runs} open runs"
    ))?;
    if args.show {
        return Ok(Ended::Success);
    }
    if !args.i_accept_data_loss {
        return Err(Failure::usage(
            "what only the lost coordinators had is lost for ever\n  hint: look at each survivor \
             with --show, take the one with the largest term and then the largest index, and say \
             --i-accept-data-loss",
        ));
    }
    let group = blocking(move || recovery::recover(&dir)).await?;
    tell_of(&group)?;
    Ok(Ended::Success)
}

fn tell_of(group: &NewGroup) -> Result<(), Failure> {
    out::line(format_args!("cluster {} has one coordinator now", group.cluster_id))?;
    out::line(format_args!(
        "{} runs go on; agents and further coordinators have to join again",
        group.open_runs
    ))?;
    if let Some(dir) = &group.set_aside {
        out::line(format_args!("what was there before is in `{}`", dir.display()))?;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

fn create(path: &Path) -> anyhow::Result<File> {
    let made = File::options().write(true).create(true).truncate(true).mode(FILE_MODE).open(path);
    made.with_context(|| format!("write `{}`", path.display()))
}

/// `FILE.keys`, beside `FILE`.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}
