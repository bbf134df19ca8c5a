//! How an empty directory becomes a member of a group.
//!
//! Its name is minted and stored first, so that asking again, after a crash at any point,
//! gets the same id again; then the group admits it; then the key for secrets is stored;
//! and only then the replica's own files are made, `node.json` the last of them.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use steading_cas::Origin;
use steading_proto::v1::cluster_client::ClusterClient;
use steading_proto::{leader, v1};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::config::Config;
use crate::peers::Dialler;
use crate::replica::Joined;
use crate::secrets::store_key;

/// How long the group is asked before the start is given up: an election may be going on.
const JOIN_MAX: Duration = Duration::from_secs(60);

/// How long one replica may take to answer.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);

/// Pause between rounds over all endpoints.
const PAUSE: Duration = Duration::from_millis(200);

/// Hints that are followed from one endpoint before the next is tried.
const HINTS_MAX: usize = 3;

const FILE: &str = "joining.json";

#[derive(Debug, Serialize, Deserialize)]
struct Joining {
    storage_id: String,
}

/// Asks the group to admit this directory, until it does. A sign that is left in the origin
/// meanwhile shows the leader that both see the same place.
///
/// # Errors
///
/// The group refuses, or nobody answers within [`JOIN_MAX`].
pub(crate) async fn join(
    config: &Config,
    advertise: &str,
    dialler: &Dialler,
    origin: Option<&Origin>,
) -> anyhow::Result<Joined> {
    let Config { data_dir, join: endpoints, .. } = config;
    let storage_id = storage_id(data_dir).context("name the data directory")?;
    let request = v1::AdmitReplicaRequest {
        storage_id: storage_id.clone(),
        endpoint: advertise.to_owned(),
        feature_level: config.feature_level,
        cluster_id: String::new(),
        own_origin: !config.shares_origin(),
    };
    if let Some(origin) = origin {
        origin.leave_sign(&storage_id).await.context("write to the origin")?;
    }
    let answer = ask_until_admitted(endpoints, &request, dialler).await;
    if let Some(origin) = origin
        && let Err(error) = origin.remove_sign(&storage_id).await
    {
        // It harms nobody: a name is used once.
        tracing::warn!(%error, "a sign is left in the origin");
    }
    let answer = answer?;
    store_key(&data_dir.join("seal.key"), &answer.seal_key)
        .context("store the key for secrets that the group gave")?;
    tracing::info!(replica = answer.replica_id, cluster_id = answer.cluster_id, "replica.joined");
    Ok(Joined { cluster_id: answer.cluster_id, replica_id: answer.replica_id, storage_id })
}

/// What the directory will be called when it has joined; minted where it has no name yet.
///
/// # Errors
///
/// The name cannot be read or stored.
pub(crate) fn storage_id(data_dir: &Path) -> io::Result<String> {
    let path = data_dir.join(FILE);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let joining: Joining = serde_json::from_slice(&bytes)?;
            return Ok(joining.storage_id);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(error),
    }
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| io::Error::other("no randomness"))?;
    let storage_id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = serde_json::to_vec(&Joining { storage_id: storage_id.clone() })?;
    let new = path.with_extension("new");
    std::fs::create_dir_all(data_dir)?;
    std::fs::write(&new, text)?;
    std::fs::File::open(&new)?.sync_all()?;
    std::fs::rename(&new, &path)?;
    std::fs::File::open(data_dir)?.sync_all()?;
    Ok(storage_id)
}

async fn ask_until_admitted(
    endpoints: &[String],
    request: &v1::AdmitReplicaRequest,
    dialler: &Dialler,
) -> anyhow::Result<v1::AdmitReplicaResponse> {
    let started = Instant::now();
    loop {
        let mut failed = Status::unavailable("no endpoint is known");
        for endpoint in endpoints {
            match ask(endpoint, request, dialler).await {
                Ok(answer) => return Ok(answer),
                Err(status) if is_final(&status) => {
                    bail!("the group refuses: {}", status.message())
                }
                Err(status) => failed = status,
            }
        }
        if started.elapsed() >= JOIN_MAX {
            bail!(
                "no coordinator of the group answers at {}: {}",
                endpoints.join(", "),
                failed.message()
            );
        }
        tracing::debug!(why = failed.message(), "not admitted yet");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks one replica, and the leader that it names.
async fn ask(
    endpoint: &str,
    request: &v1::AdmitReplicaRequest,
    dialler: &Dialler,
) -> Result<v1::AdmitReplicaResponse, Status> {
    let mut endpoint = endpoint.to_owned();
    let mut hints = 0;
    loop {
        let channel = dialler.channel(&endpoint);
        let channel = channel.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut client = ClusterClient::new(channel);
        let asked = timeout(ATTEMPT_MAX, client.admit_replica(request.clone()));
        let status = match asked.await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => return Err(Status::deadline_exceeded("no answer in time")),
        };
        match leader::leader_of(&status) {
            Some(hint) if hints < HINTS_MAX => {
                hints += 1;
                endpoint = hint.to_owned();
            }
            _ => return Err(status),
        }
    }
}

fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let first = storage_id(&data).unwrap();
        assert_eq!(first.len(), 32);
        assert_eq!(storage_id(&data).unwrap(), first);
        assert_ne!(storage_id(&dir.path().join("other")).unwrap(), first);
    }
}
