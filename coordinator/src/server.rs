//! Where the parts meet.

mod failure;
mod parts;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use raft::eraftpb::Message;
use steading_cas::{ActionCache, Store};
use steading_proto::tls;
use steading_proto::v1::agents_server::AgentsServer;
use steading_proto::v1::backups_server::BackupsServer;
use steading_proto::v1::cluster_server::ClusterServer;
use steading_proto::v1::fleet_server::FleetServer;
use steading_proto::v1::identities_server::IdentitiesServer;
use steading_proto::v1::join_server::JoinServer;
use steading_proto::v1::pipelines_server::PipelinesServer;
use steading_proto::v1::replication_server::ReplicationServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router};
use tower::layer::util::Stack;

use crate::api::agents::AgentsService;
use crate::api::cluster::ClusterService;
use crate::api::explain::Waits;
use crate::api::operate::FleetService;
use crate::api::pipelines::PipelinesService;
use crate::auth::{Gate, LeaseHolders, Trust};
use crate::backup::BackupsService;
use crate::config::Config;
use crate::dispatcher::Dispatcher;
use crate::effects::Effects;
use crate::forward::{Forward, ForwardLayer};
use crate::identity::{Credentials, IdentitiesService, JoinService};
use crate::mirror::Mirror;
use crate::peers::{self, Dialler, ReplicationService};
use crate::planner::Planner;
use crate::replica::{DirLock, Notice, ReplicaThread};
use crate::run_watch;
use crate::{away, expiry, group, kept_logs, origin, retention, unplaceable, watchdog};

use failure::Failure;
use parts::{Opened, Parts};

/// How long connections may take to end once their listener has stopped.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a start waits for the replay of the log. Without a quorum it would wait in
/// vain, and serving what is known is better than nothing.
const CURRENT_MAX: Duration = Duration::from_secs(2);
/// How long the replica may take to end: a snapshot may be under way.
const STOP_REPLICA: Duration = Duration::from_secs(30);
/// How long tasks may take to end: they wait for one proposal at most.
const STOP: Duration = Duration::from_secs(10);
/// Largest message that a client may send, bytes: a submission with all its parts at
/// their bounds, or a batch of blobs.
const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// What a client may send ahead on one stream, bytes: at 2 GB/s that is the way of
/// a loopback round trip.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// And on all streams of one connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// How often a connection is asked for a sign of life, and for how long: machines that were
/// taken away close nothing, and each would hold a file open until its certificate is over.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);

/// Largest message of somebody who may have no certificate, bytes.
const JOIN_BYTES_MAX: usize = 64 << 10;

/// What stands in front of the services.
type Layers = Stack<ForwardLayer, Stack<Gate, tower::layer::util::Identity>>;

/// One coordinator: its replica, its store, its tasks.
#[derive(Debug)]
pub struct Coordinator {
    parts: Parts,
    thread: Option<ReplicaThread>,
    /// Background tasks, which run as long as the coordinator does.
    tasks: TaskTracker,
    /// Ends the background tasks.
    stop: CancellationToken,
    /// Tasks behind streams; they end with their listener.
    streams: TaskTracker,
    /// Ends all listeners and their streams.
    stop_serving: CancellationToken,
    failure: Arc<Failure>,
    config: Config,
    /// Held while the identity is opened.
    securing: tokio::sync::Mutex<()>,
    /// One coordinator a directory.
    _lock: DirLock,
}

impl Coordinator {
    /// Opens the data directory and starts the replica and the tasks.
    ///
    /// # Errors
    ///
    /// The configuration is wrong, the directory is another coordinator's, or what is
    /// in it cannot be trusted.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        config.validate()?;
        let lock = DirLock::take(&config.data_dir).context("lock the data directory")?;
        let joined = parts::join(&config).await?;
        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || parts::open(&opening, joined)).await;
        let Opened { parts, thread, notices, outbound } =
            opened.context("open the data directory")??;
        let coordinator = Self {
            parts,
            thread: Some(thread),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            streams: TaskTracker::new(),
            stop_serving: CancellationToken::new(),
            failure: Arc::default(),
            config: config.clone(),
            securing: tokio::sync::Mutex::default(),
            _lock: lock,
        };
        let Parts { documents, replica, .. } = &coordinator.parts;
        let settled = origin::settle(documents.front(), &config.data_dir, replica).await;
        if let Err(error) = settled {
            coordinator.stop().await?;
            return Err(error);
        }
        coordinator.start_tasks(notices, outbound);
        // What the log holds is applied before the first question is answered: an agent
        // that comes back must not hear that its lease is not known. One of several must
        // be heard for that, so it serves at once, and says that it does not lead.
        let replica = &coordinator.parts.replica;
        let leads = coordinator.parts.leadership.clone().leads();
        if replica.membership().is_single(replica.id())
            && tokio::time::timeout(CURRENT_MAX, leads).await.is_err()
        {
            tracing::warn!("serving before the whole log is known to be applied");
        }
        coordinator.parts.bound_store(config.store_bytes_max).await?;
        Ok(coordinator)
    }

    /// The store, for an agent in the same process.
    pub fn store(&self) -> Store {
        self.parts.documents.front().store().clone()
    }

    /// The action cache, for an agent in the same process.
    pub fn actions(&self) -> ActionCache {
        self.parts.actions.clone()
    }

    /// Its replica, for a test that proposes what no client can.
    #[cfg(feature = "testkit")]
    pub fn replica(&self) -> crate::replica::Replica {
        self.parts.replica.clone()
    }

    /// The coordinator's certificate, and its CA; made on the first start.
    ///
    /// # Errors
    ///
    /// What is in the data directory cannot be used, or nothing can be written.
    pub async fn secure(&self) -> anyhow::Result<Arc<tls::Identity>> {
        let securing = self.securing.lock().await;
        if let Some(credentials) = self.parts.secured.get() {
            return Ok(Arc::clone(&credentials.identity));
        }
        let (secured, config) = (self.parts.secured.clone(), self.config.clone());
        let opened = move || secured.open(&config.data_dir, config.ca.as_ref());
        tokio::task::spawn_blocking(opened).await.context("open the identity")??;
        let Parts { secured, replica, connections, .. } = self.parts.clone();
        self.task("identity", Credentials::keep(secured, replica, connections, self.stop.clone()));
        drop(securing);
        let credentials = self.parts.secured.get().context("the identity was not opened")?;
        Ok(Arc::clone(&credentials.identity))
    }

    /// Like [`Coordinator::serve`], over mTLS: who calls is known by the certificate.
    ///
    /// # Errors
    ///
    /// As there, and as [`Coordinator::secure`].
    pub async fn serve_tls(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let identity = self.secure().await?;
        let connections = Arc::clone(&self.parts.connections);
        let incoming = tls::accept(listener, identity).inspect(move |accepted| {
            if let Ok(connection) = accepted {
                connections.add(connection.peer().clone());
            }
        });
        self.serve_as(Trust::Certificates, Box::pin(incoming), shutdown).await
    }

    /// Serves everything on these connections until `shutdown` resolves or the
    /// coordinator stops. May be called several times, one listener each. Who connects
    /// is believed to be an admin: for Unix sockets, memory, and loopback addresses that
    /// were allowed on purpose.
    ///
    /// # Errors
    ///
    /// The listener failed, or a part of the coordinator did.
    pub async fn serve<I, IO, E>(
        &self,
        incoming: I,
        shutdown: impl Future<Output = ()>,
    ) -> anyhow::Result<()>
    where
        I: Stream<Item = Result<IO, E>>,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        IO::ConnectInfo: Clone + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.serve_as(Trust::Local, incoming, shutdown).await
    }

    async fn serve_as<I, IO, E>(
        &self,
        trust: Trust,
        incoming: I,
        shutdown: impl Future<Output = ()>,
    ) -> anyhow::Result<()>
    where
        I: Stream<Item = Result<IO, E>>,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
        IO::ConnectInfo: Clone + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // A connection ends when its streams do, so that they hear of the end first.
        let stop = self.stop_serving.child_token();
        let router = self.router(trust, &stop)?;
        let hand_over = async {
            if let Some(peers) = &self.parts.peers {
                group::hand_over(peers, &self.parts.replica).await;
            }
        };
        let signal = async {
            tokio::select! {
                // While its peers can still answer.
                () = shutdown => hand_over.await,
                () = stop.cancelled() => (),
                () = self.failure.happened.cancelled() => (),
            }
            stop.cancel();
        };
        let overdue = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            served = router.serve_with_incoming_shutdown(incoming, signal) => {
                served.context("serve connections")?;
            }
            // A client that never closes must not keep the process.
            () = overdue => (),
        }
        match self.failure.happened.is_cancelled() {
            true => Err(self.failure.take()),
            false => Ok(()),
        }
    }

    /// Resolves when a part of the coordinator has failed, after which it serves no more.
    pub async fn failed(&self) {
        self.failure.happened.cancelled().await;
    }

    /// Stops: listeners, sessions, dispatcher, replica, stores, in this order.
    ///
    /// # Errors
    ///
    /// Something had failed before, or did not stop in time.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        // Where the disk hangs, what waits for the replica never ends; its process can.
        let hangs = self.failure.hangs.load(Ordering::Relaxed);
        let bound = |patience| if hangs { Duration::ZERO } else { patience };
        self.stop_serving.cancel();
        self.streams.close();
        let streams = tokio::time::timeout(bound(STOP), self.streams.wait()).await;
        self.stop.cancel();
        self.tasks.close();
        let tasks = tokio::time::timeout(bound(STOP), self.tasks.wait()).await;
        self.parts.replica.stop();
        if let Some(thread) = self.thread.take() {
            let joined = tokio::task::spawn_blocking(|| thread.join());
            tokio::time::timeout(bound(STOP_REPLICA), joined)
                .await
                .map_err(|_| self.failure.take_or("the replica does not stop: its disk hangs"))?
                .context("stop the replica")?
                .context("the replica failed")?;
        }
        if self.failure.happened.is_cancelled() {
            return Err(self.failure.take());
        }
        streams.context("streams did not end in time")?;
        tasks.context("background tasks did not end in time")
    }

    fn start_tasks(&self, notices: mpsc::Receiver<Notice>, outbound: mpsc::Receiver<Vec<Message>>) {
        let parts = &self.parts;
        let stop = || self.stop.clone();
        if let Some(peers) = &parts.peers {
            let (peers, replica) = (|| Arc::clone(peers), || parts.replica.clone());
            self.task("peers", peers().run(outbound, stop()));
            self.task("group", group::run(peers(), replica(), stop()));
            self.task("watchdog", watchdog::run(peers(), replica(), stop()));
            self.task("announcement", group::announce(peers(), replica(), stop()));
        }
        let run_finished = Arc::new(Notify::new());
        let dispatcher =
            Arc::new(Dispatcher::new(parts.replica.clone(), Arc::clone(&parts.sessions)));
        let planner = Arc::new(Planner::new(parts.replica.clone(), Arc::clone(&parts.documents)));
        let effects = Effects {
            replica: parts.replica.clone(),
            leadership: parts.leadership.clone(),
            sessions: Arc::clone(&parts.sessions),
            leases: Arc::clone(&parts.leases),
            claims: Arc::clone(&parts.claims),
            progress: Arc::clone(&parts.progress),
            watch: Arc::clone(&parts.watch),
            logs: Arc::clone(&parts.logs),
            dispatcher: Arc::clone(&dispatcher),
            planner: Arc::clone(&planner),
            run_finished: Arc::clone(&run_finished),
        };
        self.task("effects", effects.run(notices, stop()));
        self.task("dispatcher", dispatcher.run(stop()));
        self.task("planner", planner.run(stop()));
        self.task("disk", parts.disk.clone().run(parts.replica.clone(), stop()));
        let leases = Arc::clone(&parts.leases);
        let (replica, leadership) = (parts.replica.clone(), parts.leadership.clone());
        self.task("expiry", expiry::run(replica.clone(), leadership.clone(), leases, stop()));
        let (farm, leads, patience) = (replica.clone(), leadership.clone(), parts.unplaceable);
        let (sessions, away_max) = (Arc::clone(&parts.sessions), parts.agent_away);
        let absent = away::run(farm.clone(), leads.clone(), sessions, away_max, stop());
        self.task("absent agents", absent);
        self.task("unplaceable", unplaceable::run(farm, leads, patience, stop()));
        let watch = Arc::clone(&parts.watch);
        self.task("watches", run_watch::follow(replica, leadership, watch, stop()));
        let logs = Arc::clone(&parts.logs);
        let (replica, documents) = (parts.replica.clone(), Arc::clone(&parts.documents));
        let front = documents.front().clone();
        let kept = kept_logs::run(replica.clone(), documents, Arc::clone(&logs), stop());
        self.task("kept logs", kept);
        let keep = parts.finished_runs_kept;
        self.task("retention", retention::run(replica, logs, front, run_finished, keep, stop()));
    }

    fn task(
        &self,
        name: &'static str,
        run: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let (stop, failure) = (self.stop.clone(), Arc::clone(&self.failure));
        self.tasks.spawn(async move {
            let ended = run.await;
            if !stop.is_cancelled() {
                let error = ended.err().unwrap_or_else(|| anyhow::anyhow!("it ended by itself"));
                let error = error.context(format!("background task `{name}`"));
                tracing::error!(error = format!("{error:#}"), "the coordinator cannot go on");
                failure.report(error);
            }
        });
    }

    fn router(&self, trust: Trust, stop: &CancellationToken) -> anyhow::Result<Router<Layers>> {
        let parts = &self.parts;
        let gate = Gate { trust, replica: parts.replica.clone() };
        let join = JoinService::new(
            parts.replica.clone(),
            parts.leadership.clone(),
            parts.secured.clone(),
        );
        let identities =
            IdentitiesService { replica: parts.replica.clone(), secured: parts.secured.clone() };
        let dialler = Dialler { secured: parts.secured.clone(), identity: None };
        let dial: crate::forward::Dial = Arc::new(move |to| Ok(dialler.channel(to)?));
        let forward = Forward::new(parts.leadership.clone(), dial, stop.clone());
        let mirror = Mirror {
            replica: parts.replica.clone(),
            leadership: parts.leadership.clone(),
            forward: forward.clone(),
            watch: Arc::clone(&parts.watch),
            tasks: self.streams.clone(),
            runs: Arc::default(),
        };
        let pipelines = PipelinesService {
            replica: parts.replica.clone(),
            leadership: parts.leadership.clone(),
            documents: Arc::clone(&parts.documents),
            logs: Arc::clone(&parts.logs),
            progress: Arc::clone(&parts.progress),
            watch: Arc::clone(&parts.watch),
            waits: Waits::new(&parts.sessions, &parts.leadership),
            mirror,
            sources_are_local: parts.sources_are_local,
            disk: parts.disk.clone(),
            tasks: self.streams.clone(),
            stop: stop.clone(),
        };
        let agents = AgentsService {
            replica: parts.replica.clone(),
            leadership: parts.leadership.clone(),
            documents: Arc::clone(&parts.documents),
            logs: Arc::clone(&parts.logs),
            sessions: Arc::clone(&parts.sessions),
            leases: Arc::clone(&parts.leases),
            claims: Arc::clone(&parts.claims),
            progress: Arc::clone(&parts.progress),
            watch: Arc::clone(&parts.watch),
            tasks: self.streams.clone(),
            stop: stop.clone(),
        };
        let cluster = parts.peers.as_ref().map(|peers| {
            ClusterServer::new(ClusterService {
                replica: parts.replica.clone(),
                leadership: parts.leadership.clone(),
                peers: Arc::clone(peers),
                documents: Arc::clone(&parts.documents),
                shares_origin: parts.shares_origin,
            })
        });
        let replication = parts.peers.as_ref().map(|peers| {
            let service = ReplicationService { peers: Arc::clone(peers), stop: stop.clone() };
            ReplicationServer::new(service).max_decoding_message_size(peers::MESSAGE_BYTES_MAX)
        });
        let fleet = FleetServer::new(FleetService {
            replica: parts.replica.clone(),
            sessions: Arc::clone(&parts.sessions),
        });
        let backups = BackupsServer::new(BackupsService {
            replica: parts.replica.clone(),
            data_dir: parts.data_dir.clone(),
            shared_origin: parts.documents.front().origin().is_some(),
            tasks: self.streams.clone(),
        });
        let writers = Arc::new(LeaseHolders(parts.replica.clone()));
        let cache = steading_cas::server::services(parts.documents.front().clone(), writers);
        let (_, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(steading_proto::FILE_DESCRIPTOR_SET)
            .build_v1()
            .context("build the reflection service")?;
        let pipelines =
            PipelinesServer::new(pipelines).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let agents = AgentsServer::new(agents).max_decoding_message_size(MESSAGE_BYTES_MAX);
        // Over a network only: whoever is stopped on this machine is still there.
        let sign_of_life = (trust == Trust::Certificates).then_some(SIGN_OF_LIFE);
        Ok(Server::builder()
            .http2_keepalive_interval(sign_of_life)
            .http2_keepalive_timeout(sign_of_life)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            // First, so that nothing is reached around it.
            .layer(gate)
            .layer(ForwardLayer(forward))
            .add_service(JoinServer::new(join).max_decoding_message_size(JOIN_BYTES_MAX))
            .add_service(IdentitiesServer::new(identities))
            .add_service(pipelines)
            .add_service(agents)
            .add_service(fleet)
            .add_service(backups)
            .add_optional_service(cluster)
            .add_optional_service(replication)
            .add_service(cache.cas)
            .add_service(cache.streams)
            .add_service(cache.actions)
            .add_service(cache.capabilities)
            .add_service(health)
            .add_service(reflection))
    }
}

impl Drop for Coordinator {
    /// Its replica has a thread of its own, which would go on for nobody.
    fn drop(&mut self) {
        self.parts.replica.stop();
    }
}
