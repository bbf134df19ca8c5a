//! The `Backups` service.

use std::path::PathBuf;
use std::sync::Arc;

use steading_core::State;
use steading_proto::v1;
use steading_proto::v1::backups_server::Backups;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use super::{Manifest, pack};
use crate::blocking::blocking;
use crate::replica::Replica;

/// Parts that wait for a slow client.
const PARTS_MAX: usize = 2;

/// Copies of the state.
#[derive(Clone, Debug)]
pub(crate) struct BackupsService {
    pub(crate) replica: Replica,
    pub(crate) data_dir: PathBuf,
    pub(crate) shared_origin: bool,
    /// Owns the tasks behind streams.
    pub(crate) tasks: TaskTracker,
}

type Parts = mpsc::Sender<Result<v1::BackupPart, Status>>;

#[tonic::async_trait]
impl Backups for BackupsService {
    type BackupStream = ReceiverStream<Result<v1::BackupPart, Status>>;

    #[tracing::instrument(name = "backup.take", skip_all)]
    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let include_keys = request.into_inner().include_keys;
        self.replica.read_barrier().await?;
        let (state, data_dir) = (self.replica.view(), self.data_dir.clone());
        let read =
            move || include_keys.then(|| std::fs::read(data_dir.join("seal.key"))).transpose();
        let key = blocking(read).await?;
        let key = key.map_err(|error| {
            tracing::error!(%error, "the key for secrets cannot be read");
            Status::internal("the key for secrets cannot be read: see the coordinator's log")
        })?;
        let (cluster_id, term) =
            (self.replica.cluster_id().to_owned(), self.replica.standing().borrow().term);
        let manifest = Manifest::of(&state, cluster_id, term, self.shared_origin);
        let (sender, receiver) = mpsc::channel(PARTS_MAX);
        self.tasks.spawn_blocking(move || send(&manifest, &state, key, &sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Ends when the client is gone. Blocks.
fn send(manifest: &Manifest, state: &Arc<State>, key: Option<Vec<u8>>, parts: &Parts) {
    let packed = pack(manifest, state, &mut |data| {
        let part = v1::BackupPart { data: data.into(), seal_key: Default::default() };
        parts.blocking_send(Ok(part)).is_ok()
    });
    let last = match (packed, key) {
        (Err(error), _) => Err(Status::internal(error.to_string())),
        (Ok(()), Some(key)) => {
            Ok(v1::BackupPart { data: Default::default(), seal_key: key.into() })
        }
        (Ok(()), None) => return,
    };
    // The client may be gone.
    let _ = parts.blocking_send(last);
}
