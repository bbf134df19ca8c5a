//! A coordinator over memory, and an agent that does what the story says.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use steading_coordinator::{Config, Coordinator};
use steading_model::DigestFunction;
use steading_pipeline::job::{JobResult, JobSpec};
use steading_proto::v1;
use steading_proto::v1::pipelines_client::PipelinesClient;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

pub(crate) use crate::agent::Agent;

/// A story that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come"),
    }
}

pub(crate) struct Farm {
    pub(crate) coordinator: Arc<Coordinator>,
    connect: mpsc::Sender<std::io::Result<DuplexStream>>,
    serving: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
}

/// Takes work however full the disk is that tests run on.
pub(crate) fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    (config.disk_low_bytes, config.ballast_bytes) = (Some(0), 0);
    config
}

impl Farm {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_with(config(dir)).await
    }

    pub(crate) async fn start_with(mut config: Config) -> Self {
        config.segment_bytes = 4 << 20;
        let coordinator = Arc::new(Coordinator::start(config).await.unwrap());
        let stop = CancellationToken::new();
        let (connect, accept) = mpsc::channel(16);
        let mut serving = JoinSet::new();
        let (server, shutdown) = (Arc::clone(&coordinator), stop.clone().cancelled_owned());
        serving.spawn(async move { server.serve(ReceiverStream::new(accept), shutdown).await });
        Self { coordinator, connect, serving, stop }
    }

    /// Stops as a signal would make it; clients see their connections end.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = soon("the end of serving", self.serving.join_next()).await {
            ended.unwrap().unwrap();
        }
        let coordinator = Arc::into_inner(self.coordinator).expect("nobody else holds it");
        soon("the end of the coordinator", coordinator.stop()).await.unwrap();
    }

    pub(crate) fn channel(&self) -> Channel {
        let connect = self.connect.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let connect = connect.clone();
            async move {
                let (here, there) = tokio::io::duplex(1 << 20);
                let refused = |_| std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
                connect.send(Ok(there)).await.map_err(refused)?;
                Ok::<_, std::io::Error>(TokioIo::new(here))
            }
        });
        Endpoint::from_static("http://memory").connect_with_connector_lazy(connector)
    }

    pub(crate) fn pipelines(&self) -> PipelinesClient<Channel> {
        PipelinesClient::new(self.channel())
    }

    /// A request that is admitted; the source is an empty tree.
    pub(crate) fn request(&self, id: &str, pipeline: &str) -> v1::SubmitRequest {
        let source = self.coordinator.store().put(DigestFunction::Blake3, b"").unwrap();
        v1::SubmitRequest {
            request_id: id.into(),
            file: "ci.yml".into(),
            pipeline: pipeline.as_bytes().to_vec().into(),
            source_digest: source.to_string(),
            event_name: "push".into(),
            ..Default::default()
        }
    }

    pub(crate) async fn submit(&self, id: &str, pipeline: &str) -> u64 {
        let request = self.request(id, pipeline);
        self.pipelines().submit(request).await.unwrap().into_inner().run_id
    }

    pub(crate) async fn run(&self, run_id: u64) -> v1::Run {
        let request = v1::GetRunRequest { run_id };
        self.pipelines().get_run(request).await.unwrap().into_inner()
    }

    /// Watches from the token until the end, and returns all events.
    pub(crate) async fn watch(&self, run_id: u64, token: u64) -> Vec<v1::WatchRunEvent> {
        let request = v1::WatchRunRequest { run_id, token };
        let mut events = self.pipelines().watch_run(request).await.unwrap().into_inner();
        let mut seen = Vec::new();
        while let Some(event) = soon("an event", events.message()).await.unwrap() {
            seen.push(event);
        }
        seen
    }

    /// Puts a result with these outputs, and returns its name.
    pub(crate) fn put_result(&self, outputs: &[(&str, &str)]) -> String {
        let outputs = outputs.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let result = JobResult { outputs: outputs.collect(), ..Default::default() };
        let bytes = serde_json::to_vec(&result).unwrap();
        self.coordinator.store().put(DigestFunction::Blake3, &bytes).unwrap().to_string()
    }
}

impl From<&Farm> for Channel {
    fn from(farm: &Farm) -> Self {
        farm.channel()
    }
}

impl Agent {
    /// Takes the next offer and reports success with these outputs.
    pub(crate) async fn work(&mut self, farm: &Farm, outputs: &[(&str, &str)]) -> JobSpec {
        let offer = self.offer().await;
        let lease = self.accept(&offer).await;
        self.complete(lease, farm.put_result(outputs)).await.unwrap();
        spec(&offer)
    }
}

pub(crate) fn spec(offer: &v1::Offer) -> JobSpec {
    serde_json::from_slice(&offer.spec).unwrap()
}

/// The conclusions of a run's jobs by name, and its own.
pub(crate) fn ended(run: &v1::Run) -> (BTreeMap<String, v1::Conclusion>, v1::Conclusion) {
    let jobs = run.jobs.iter().map(|job| (job.name.clone(), job.conclusion()));
    (jobs.collect(), run.conclusion())
}
