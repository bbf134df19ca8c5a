//! What a coordinator is made of, and how its data directory is opened.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use raft::eraftpb::Message;
use steading_cas::{ActionCache, Front, Store, StoreOptions};
use tokio::sync::mpsc;

use crate::auth::Connections;
use crate::claims::Claims;
use crate::config::{Config, ObjectStore};
use crate::disk::Disk;
use crate::documents::Documents;
use crate::identity::{Secured, join_cluster};
use crate::join;
use crate::leadership::Leadership;
use crate::leases::Leases;
use crate::logs::Logs;
use crate::needed;
use crate::peers::{Dialler, Me, Peers};
use crate::progress::Progress;
use crate::replica::{Joined, Notice, Options, Replica, ReplicaThread, Started, is_member};
use crate::run_watch::RunWatch;
use crate::secrets::Sealer;
use crate::sessions::Sessions;

/// What more than one service or task uses.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) replica: Replica,
    pub(super) leadership: Leadership,
    pub(super) documents: Arc<Documents>,
    pub(super) actions: ActionCache,
    pub(super) logs: Arc<Logs>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) leases: Arc<Leases>,
    pub(super) claims: Arc<Claims>,
    pub(super) progress: Arc<Progress>,
    pub(super) watch: Arc<RunWatch>,
    /// The other coordinators; none where nobody could reach this one.
    pub(super) peers: Option<Arc<Peers>>,
    pub(super) shares_origin: bool,
    pub(super) secured: Secured,
    pub(super) connections: Arc<Connections>,
    pub(super) sources_are_local: bool,
    pub(super) finished_runs_kept: usize,
    pub(super) data_dir: PathBuf,
    pub(super) disk: Disk,
    pub(super) unplaceable: Duration,
    pub(super) agent_away: Duration,
}

pub(super) struct Opened {
    pub(super) parts: Parts,
    pub(super) thread: ReplicaThread,
    pub(super) notices: mpsc::Receiver<Notice>,
    pub(super) outbound: mpsc::Receiver<Vec<Message>>,
}

impl Parts {
    /// Lets blobs go that nobody needs, where this store is the only one that has them. Not
    /// before the state can tell.
    pub(super) async fn bound_store(&self, bytes_max: u64) -> anyhow::Result<()> {
        if self.shares_origin {
            return Ok(());
        }
        let store = self.documents.front().store().clone();
        // Weak: they hold the store.
        let (replica, documents) = (self.replica.clone(), Arc::downgrade(&self.documents));
        let named = Box::new(move || needed::by_open_runs(&replica, &documents));
        let bounded = tokio::task::spawn_blocking(move || store.bound(bytes_max, named));
        bounded.await.context("bound the store")
    }
}

/// Blocks.
pub(super) fn open(config: &Config, joined: Option<Joined>) -> anyhow::Result<Opened> {
    let dir = &config.data_dir;
    let disk = Disk::new(dir, config.disk_low_bytes, config.ballast_bytes);
    disk.make_room_to_start();
    let origin = config.object_store.as_ref().map(ObjectStore::open).transpose()?;
    // In front of an origin it is a copy, and whatever is read from it is hashed.
    let durable = origin.is_none();
    // Of an origin nothing goes before it is known what must stay.
    let bytes_max = if durable { u64::MAX } else { config.store_bytes_max };
    let options = StoreOptions { bytes_max, durable };
    let store = Store::open(&dir.join("cas"), options).context("open the store")?;
    let actions = ActionCache::open(&store).context("open the action cache")?;
    let front = Front::new(store, actions.clone(), origin);
    let sealer = Sealer::open(&dir.join("seal.key")).context("open the key for secrets")?;
    let logs = Logs::open(&dir.join("logs")).context("open the logs")?;
    let options = Options {
        segment_bytes: config.segment_bytes,
        join: joined,
        feature_level: config.feature_level,
        ..Options::server(dir.join("replica"))
    };
    let Started { replica, thread, notices, outbound } =
        Replica::start(options).context("start the replica")?;
    let secured = Secured::default();
    let peers = me(config, &replica, &secured).map(|me| Arc::new(Peers::new(me, replica.clone())));
    let parts = Parts {
        leadership: Leadership::new(replica.clone()),
        replica,
        documents: Arc::new(Documents::new(front, sealer)),
        actions,
        logs: Arc::new(logs),
        sessions: Arc::default(),
        leases: Arc::default(),
        claims: Arc::default(),
        progress: Arc::default(),
        watch: Arc::default(),
        peers,
        shares_origin: config.shares_origin(),
        secured,
        connections: Arc::default(),
        sources_are_local: config.sources_are_local,
        finished_runs_kept: config.finished_runs_kept,
        data_dir: dir.clone(),
        disk,
        unplaceable: Duration::from_millis(config.unplaceable_ms),
        agent_away: Duration::from_millis(config.agent_away_ms),
    };
    Ok(Opened { parts, thread, notices, outbound })
}

/// Joins the group that an empty directory is told to join.
pub(super) async fn join(config: &Config) -> anyhow::Result<Option<Joined>> {
    if is_member(&config.data_dir) || config.join.is_empty() {
        return Ok(None);
    }
    let Some(advertise) = &config.advertise else {
        bail!("`join` wants `advertise`: the others have to reach this coordinator");
    };
    let identity = match &config.join_token {
        Some(token) => {
            let token = token.parse().context("read the join token")?;
            let dir = &config.data_dir;
            let storage_id = join::storage_id(dir).context("name the data directory")?;
            Some(join_cluster(dir, &storage_id, &config.join, &token).await?)
        }
        None => None,
    };
    let dialler = Dialler { secured: Secured::default(), identity };
    let origin = match config.object_store.clone() {
        Some(setting) => {
            let opened = tokio::task::spawn_blocking(move || setting.open()).await;
            Some(opened.context("open the origin")??)
        }
        None => None,
    };
    join::join(config, advertise, &dialler, origin.as_ref()).await.context("join").map(Some)
}

/// Who this coordinator is to others, if they can reach it: where it is told that they
/// do, or where they did before.
fn me(config: &Config, replica: &Replica, secured: &Secured) -> Option<Me> {
    let recorded = || Some(replica.view().replica(replica.id())?.endpoint.clone());
    Some(Me {
        endpoint: config.advertise.clone().or_else(recorded)?,
        cluster_id: replica.cluster_id().to_owned(),
        id: replica.id(),
        storage_id: replica.storage_id().to_owned(),
        own_origin: !config.shares_origin(),
        feature_level: config.feature_level,
        dialler: Dialler { secured: secured.clone(), identity: None },
    })
}
