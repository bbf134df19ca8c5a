//! Coordinators in this process, each with a runtime of its own, so that one can be
//! lost as a whole.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use steading_coordinator::{Config, Coordinator, ObjectStore};
use steading_proto::v1;
use steading_proto::v1::cluster_client::ClusterClient;
use steading_proto::v1::cluster_member::Role;
use steading_proto::v1::pipelines_client::PipelinesClient;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

/// A story that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often something is asked again that comes by itself.
const POLL: Duration = Duration::from_millis(10);

/// Waits, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}

/// Asks until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let mut ticks = tokio::time::interval(POLL);
    soon(what, async {
        loop {
            ticks.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    })
    .await
}

/// Where all members of a story live.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn endpoint(&self, name: &str) -> String {
        format!("unix:{}", self.dir.path().join(name).with_extension("sock").display())
    }

    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn found(&self, name: &str) -> Member {
        self.start(name, &[]).await.unwrap()
    }

    pub(crate) async fn join(&self, name: &str, through: &Member) -> Member {
        self.start(name, std::slice::from_ref(&through.endpoint)).await.unwrap()
    }

    /// Starts what is there again.
    pub(crate) async fn restart(&self, name: &str) -> Member {
        self.start(name, &[]).await.unwrap()
    }

    /// Three voters.
    pub(crate) async fn three(&self) -> [Member; 3] {
        let a = self.found("a").await;
        let (b, c) = (self.join("b", &a).await, self.join("c", &a).await);
        a.voters("three voters", &[1, 2, 3]).await;
        [a, b, c]
    }

    pub(crate) async fn start(&self, name: &str, join: &[String]) -> anyhow::Result<Member> {
        self.start_at(name, join, &self.dir.path().join("origin")).await
    }

    pub(crate) async fn start_at(
        &self,
        name: &str,
        join: &[String],
        origin: &Path,
    ) -> anyhow::Result<Member> {
        let mut config = Config::new(self.data(name));
        // However full the disk is that tests run on.
        (config.disk_low_bytes, config.ballast_bytes) = (Some(0), 0);
        config.segment_bytes = 4 << 20;
        config.advertise = Some(self.endpoint(name));
        config.join = join.to_vec();
        config.object_store = Some(ObjectStore::from_text(&origin.display().to_string()));
        Member::start(config).await
    }
}

pub(crate) struct Member {
    pub(crate) endpoint: String,
    coordinator: Arc<Coordinator>,
    runtime: Runtime,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Member {
    async fn start(config: Config) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let endpoint = config.advertise.clone().unwrap();
        let path = PathBuf::from(endpoint.strip_prefix("unix:").unwrap());
        let _ = std::fs::remove_file(&path);
        let stop = CancellationToken::new();
        let shutdown = stop.clone().cancelled_owned();
        let (started, start) = tokio::sync::oneshot::channel();
        let serving = runtime.spawn(async move {
            let listener = UnixListener::bind(path).unwrap();
            // What was killed just before holds its directory for a moment.
            let coordinator = loop {
                match Coordinator::start(config.clone()).await {
                    Ok(coordinator) => break Arc::new(coordinator),
                    Err(error) if format!("{error:#}").contains("used by another process") => {
                        tokio::time::sleep(POLL).await;
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return Ok(());
                    }
                }
            };
            let _ = started.send(Ok(Arc::clone(&coordinator)));
            coordinator.serve(UnixListenerStream::new(listener), shutdown).await
        });
        match soon("the start", start).await.unwrap() {
            Ok(coordinator) => Ok(Self { endpoint, coordinator, runtime, serving, stop }),
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Loses it: no task of it runs on, and nobody was told.
    pub(crate) async fn kill(self) {
        let Self { coordinator, runtime, .. } = self;
        drop(coordinator);
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
    }

    /// Stops it as a signal would.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        soon("the end of serving", self.serving).await.unwrap().unwrap();
        let coordinator = Arc::into_inner(self.coordinator).expect("nobody else holds it");
        let stopped = self.runtime.spawn(coordinator.stop());
        soon("the end of the coordinator", stopped).await.unwrap().unwrap();
        self.runtime.shutdown_background();
    }

    /// Waits until it ends by itself, and says why.
    pub(crate) async fn ends(self) -> String {
        let ended = soon("its end", self.serving).await.unwrap();
        self.runtime.shutdown_background();
        format!("{:#}", ended.expect_err("it ends by itself"))
    }

    pub(crate) fn channel(&self) -> Channel {
        let path = Path::new(self.endpoint.strip_prefix("unix:").unwrap()).to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://member").connect_with_connector_lazy(connector)
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel())
    }

    /// What it says of the group, if it leads it.
    pub(crate) async fn status(&self) -> Result<v1::ClusterStatus, Status> {
        let request = v1::GetClusterStatusRequest {};
        Ok(self.cluster().get_cluster_status(request).await?.into_inner())
    }

    /// Waits until the group has exactly these voters, who all answer.
    pub(crate) async fn voters(&self, what: &str, want: &[u64]) -> v1::ClusterStatus {
        until(what, async || {
            let status = self.status().await.ok()?;
            let voters = status.members.iter().filter(|member| member.role() == Role::Voter);
            let there: Vec<u64> =
                voters.filter(|member| member.active).map(|member| member.replica_id).collect();
            (there == want && !status.joint).then_some(status)
        })
        .await
    }

    /// Submits until it is accepted.
    pub(crate) async fn submit(&self, id: &str) -> u64 {
        until("an accepted submission", async || match self.try_submit(id).await {
            Ok(run) => Some(run),
            Err(status) => {
                let again = [Code::Unavailable, Code::Unknown, Code::ResourceExhausted];
                assert!(again.contains(&status.code()), "{status:?}");
                None
            }
        })
        .await
    }

    pub(crate) async fn try_submit(&self, id: &str) -> Result<u64, Status> {
        let store = self.coordinator.store();
        let source = store.put(steading_model::DigestFunction::Blake3, b"").unwrap();
        let request = v1::SubmitRequest {
            request_id: id.into(),
            file: "ci.yml".into(),
            pipeline: PIPELINE.as_bytes().to_vec().into(),
            source_digest: source.to_string(),
            event_name: "push".into(),
            ..Default::default()
        };
        Ok(PipelinesClient::new(self.channel()).submit(request).await?.into_inner().run_id)
    }

    pub(crate) async fn has_run(&self, run_id: u64) -> bool {
        // Nobody may lead for a moment.
        until("an answer", async || {
            let request = v1::GetRunRequest { run_id };
            match PipelinesClient::new(self.channel()).get_run(request).await {
                Ok(_) => Some(true),
                Err(status) => (status.code() == Code::NotFound).then_some(false),
            }
        })
        .await
    }
}

const PIPELINE: &str = "
on: push
jobs:
  only:
    runs-on: ubuntu-latest
    steps: [{run: 'true'}]
";

/// Waits until one of them leads; its place among them.
pub(crate) async fn leader(members: &[Member]) -> usize {
    until("a leader", async || {
        for (at, member) in members.iter().enumerate() {
            // Others may pass the question on, and answer as well.
            let status = member.status().await.ok();
            let leads = status.into_iter().flat_map(|status| status.members);
            if leads.into_iter().any(|it| it.leader && it.endpoint == member.endpoint) {
                return Some(at);
            }
        }
        None
    })
    .await
}
