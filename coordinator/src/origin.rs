//! Whether the configured origin is the one that the whole group shares.
//!
//! The first replica of a group says in the origin that it belongs to the group, the
//! others must find that there: a directory of the same name on another machine, or one
//! that is not mounted yet, would split the group's blobs, and each half would look
//! healthy. A replica that has seen its group's origin once expects it for ever after.

use std::path::Path;

use anyhow::{Context as _, bail};
use steading_cas::{Front, Origin, OriginError};

use crate::blocking::blocking;
use crate::kept_logs;
use crate::replica::{FIRST_REPLICA, Membership, Replica};

/// In the data directory: this group's origin was seen.
const SEEN: &str = "origin-seen";

/// Checks that the origin, if there is one, is the group's, and makes it so for the first
/// replica of a new group.
///
/// # Errors
///
/// The origin is another one, cannot be reached, or is missing where it must be shared.
pub(crate) async fn settle(
    front: &Front,
    data_dir: &Path,
    replica: &Replica,
) -> anyhow::Result<()> {
    let Some(origin) = front.origin() else {
        let Membership { voters, voters_outgoing, .. } = &*replica.membership();
        if voters.iter().chain(voters_outgoing).any(|voter| *voter != replica.id()) {
            bail!(
                "this coordinator is one of several, and they have no blobs in common: name \
                 their directory or bucket with --object-store"
            );
        }
        return Ok(());
    };
    let (cluster, replica) = (replica.cluster_id().to_owned(), replica.id());
    let seen = std::fs::read_to_string(data_dir.join(SEEN)).unwrap_or_default();
    match seen.trim() {
        // Seen by this group, or by the one that it goes on from: this one may have to
        // be made known there first, but the place is the same.
        known if !known.is_empty() => check(origin, known).await?,
        _ if replica != FIRST_REPLICA => check(origin, &cluster).await?,
        _ => (),
    }
    if seen.trim() != cluster {
        if replica == FIRST_REPLICA && !origin.is_adopted(&cluster).await? {
            // This coordinator may have been alone so far, and its store the origin.
            let (blobs, results) =
                front.publish_all().await.context("send the store's blobs to the origin")?;
            origin.adopt(&cluster).await?;
            tracing::info!(origin = origin.place(), blobs, results, "the group has its origin");
        }
        let earlier = Some(seen.trim()).filter(|earlier| !earlier.is_empty());
        if let Some(earlier) = earlier.filter(|_| replica == FIRST_REPLICA) {
            kept_logs::go_on_from(origin, &cluster, earlier).await?;
        }
        let dir = data_dir.to_owned();
        blocking(move || expect(&dir, &cluster)).await.map_err(anyhow::Error::from)??;
    }
    Ok(())
}

/// Notes which group's origin this directory's coordinator must find. Blocks.
pub(crate) fn expect(data_dir: &Path, cluster: &str) -> anyhow::Result<()> {
    let note = data_dir.join(SEEN);
    std::fs::write(&note, format!("{cluster}\n"))
        .with_context(|| format!("write `{}`", note.display()))
}

/// Whether this is the origin that the group shares. For whoever is about to join it.
///
/// # Errors
///
/// [`OriginError::NotShared`].
pub(crate) async fn check(origin: &Origin, cluster: &str) -> Result<(), OriginError> {
    match origin.is_adopted(cluster).await? {
        true => Ok(()),
        false => Err(OriginError::NotShared {
            place: origin.place().to_owned(),
            cluster: cluster.to_owned(),
        }),
    }
}
