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
use steading_proto::v1::agent_message::Message as FromAgent;
use steading_proto::v1::agents_client::AgentsClient;
use steading_proto::v1::coordinator_message::Message as ToAgent;
use steading_proto::v1::pipelines_client::PipelinesClient;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint, Uri};

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

pub(crate) struct Agent {
    pub(crate) client: AgentsClient<Channel>,
    pub(crate) id: u64,
    pub(crate) incarnation: u64,
    pub(crate) name: String,
    session: Option<(mpsc::Sender<v1::AgentMessage>, Streaming<v1::CoordinatorMessage>)>,
    sequence: u64,
}

impl Agent {
    /// Registers; no session yet.
    pub(crate) async fn register(farm: &Farm, name: &str) -> Self {
        let mut client = AgentsClient::new(farm.channel());
        let request = v1::RegisterRequest {
            name: name.into(),
            pool: "test".into(),
            labels: vec!["ubuntu-latest".into()],
            slots: 4,
            cpu_milli: 64_000,
            memory_mib: 64_000,
            ..Default::default()
        };
        let answer = client.register(request).await.unwrap().into_inner();
        let (id, incarnation) = (answer.agent_id, answer.incarnation);
        let name = name.to_owned();
        Self { client, id, incarnation, name, session: None, sequence: 0 }
    }

    /// Registers and opens a session.
    pub(crate) async fn join(farm: &Farm, name: &str) -> Self {
        let mut agent = Self::register(farm, name).await;
        agent.connect(farm, &[]).await;
        agent
    }

    /// Opens a session that says what runs.
    pub(crate) async fn connect(&mut self, farm: &Farm, running: &[v1::Lease]) -> v1::Welcome {
        self.try_connect(farm, running).await.unwrap()
    }

    /// The same, which may be refused.
    pub(crate) async fn try_connect(
        &mut self,
        farm: &Farm,
        running: &[v1::Lease],
    ) -> Result<v1::Welcome, tonic::Status> {
        self.client = AgentsClient::new(farm.channel());
        let (sender, receiver) = mpsc::channel(16);
        let hello = v1::Hello {
            agent_id: self.id,
            incarnation: self.incarnation,
            running: running.to_vec(),
            name: self.name.clone(),
        };
        sender.send(message(FromAgent::Hello(hello))).await.unwrap();
        let session = self.client.session(ReceiverStream::new(receiver)).await.unwrap();
        self.session = Some((sender, session.into_inner()));
        match self.next().await? {
            ToAgent::Welcome(welcome) => Ok(welcome),
            other => panic!("want a welcome, got {other:?}"),
        }
    }

    /// The connection breaks.
    pub(crate) fn close(&mut self) {
        self.session = None;
    }

    pub(crate) async fn next(&mut self) -> Result<ToAgent, tonic::Status> {
        let (_, session) = self.session.as_mut().expect("connected");
        let message = soon("a message to the agent", session.message()).await?;
        Ok(message.expect("the session goes on").message.expect("a known message"))
    }

    pub(crate) async fn say(&self, from_agent: FromAgent) {
        let (sender, _) = self.session.as_ref().expect("connected");
        sender.send(message(from_agent)).await.unwrap();
    }

    pub(crate) async fn offer(&mut self) -> v1::Offer {
        match self.next().await.unwrap() {
            ToAgent::Offer(offer) => offer,
            other => panic!("want an offer, got {other:?}"),
        }
    }

    /// Accepts, and waits until that is acknowledged.
    pub(crate) async fn accept(&mut self, offer: &v1::Offer) -> v1::Lease {
        let lease = offer.lease.unwrap();
        self.sequence += 1;
        let accept = v1::Accept { sequence: self.sequence, lease: Some(lease) };
        self.say(FromAgent::Accept(accept)).await;
        let renewed = self.renewed().await;
        assert_eq!((renewed.leases, renewed.refused), (vec![lease], vec![]));
        lease
    }

    pub(crate) async fn renew(&mut self, leases: &[v1::Lease]) -> v1::Renewed {
        self.sequence += 1;
        let renew = v1::Renew { sequence: self.sequence, leases: leases.to_vec() };
        self.say(FromAgent::Renew(renew)).await;
        self.renewed().await
    }

    async fn renewed(&mut self) -> v1::Renewed {
        loop {
            match self.next().await.unwrap() {
                ToAgent::Renewed(renewed) if renewed.sequence == self.sequence => return renewed,
                ToAgent::Renewed(_) => (),
                other => panic!("want an acknowledgement, got {other:?}"),
            }
        }
    }

    pub(crate) async fn complete(
        &mut self,
        lease: v1::Lease,
        result_digest: String,
    ) -> Result<(), tonic::Status> {
        let request = v1::CompleteAttemptRequest {
            lease: Some(lease),
            conclusion: v1::Conclusion::Success.into(),
            result_digest,
            steps_executed: 1,
            ..Default::default()
        };
        self.client.complete_attempt(request).await.map(drop)
    }

    /// Reports another end than success.
    pub(crate) async fn end(
        &mut self,
        lease: v1::Lease,
        conclusion: v1::Conclusion,
        class: v1::FailureClass,
    ) -> Result<(), tonic::Status> {
        let request = v1::CompleteAttemptRequest {
            lease: Some(lease),
            conclusion: conclusion.into(),
            failure_class: class.into(),
            ..Default::default()
        };
        self.client.complete_attempt(request).await.map(drop)
    }

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

fn message(message: FromAgent) -> v1::AgentMessage {
    v1::AgentMessage { message: Some(message) }
}

/// The conclusions of a run's jobs by name, and its own.
pub(crate) fn ended(run: &v1::Run) -> (BTreeMap<String, v1::Conclusion>, v1::Conclusion) {
    let jobs = run.jobs.iter().map(|job| (job.name.clone(), job.conclusion()));
    (jobs.collect(), run.conclusion())
}
