//! Stories of an agent and a coordinator that says what the story wants.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails its test")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steading_agent::preemption::Preemption;
use steading_agent::{BlobsSetting, Cluster, Config, RunAs, dial};
use steading_cas::{Store, StoreOptions};
use steading_model::{DigestFunction, Resources};
use steading_pipeline::job::{DIALECT, JobResult, JobSpec, StepKind, StepSpec, Text};
use steading_proto::v1;
use steading_proto::v1::agent_message::Message as Said;
use steading_proto::v1::agents_server::{Agents, AgentsServer};
use steading_proto::v1::coordinator_message::Message as Say;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Longest that a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

mod departures;
mod failover;
mod stories;

/// What the agent did.
#[derive(Debug)]
enum Event {
    Said(Said),
    HandedBack(v1::HandBackRequest),
    Completed(Box<v1::CompleteAttemptRequest>),
    Released(v1::ReleaseLeaseRequest),
}

/// What the coordinator knows.
#[derive(Debug, Default)]
struct Known {
    /// Of the current session; none breaks it.
    session: Option<mpsc::Sender<Result<v1::CoordinatorMessage, Status>>>,
    logs: BTreeMap<(u64, u32), Vec<u8>>,
    artifacts: Vec<v1::Artifact>,
    /// What it says of who leads.
    leadership: watch::Sender<v1::Leadership>,
    /// How it answers who wants a session.
    refusal: Option<Status>,
    /// What serves its streams.
    tasks: JoinSet<()>,
}

#[derive(Clone, Debug)]
struct Coordinator {
    events: mpsc::Sender<Event>,
    known: Arc<Mutex<Known>>,
}

#[tonic::async_trait]
impl Agents for Coordinator {
    async fn register(
        &self,
        _: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        Ok(Response::new(v1::RegisterResponse { agent_id: 1, incarnation: 1 }))
    }

    type SessionStream = ReceiverStream<Result<v1::CoordinatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, receiver) = mpsc::channel(64);
        let mut known = self.known.lock().unwrap();
        if let Some(refusal) = &known.refusal {
            return Err(refusal.clone());
        }
        known.session = Some(sender);
        let (events, mut said) = (self.events.clone(), request.into_inner());
        known.tasks.spawn(async move {
            while let Some(Ok(message)) = said.next().await {
                if let Some(message) = message.message {
                    events.send(Event::Said(message)).await.unwrap_or_default();
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn complete_attempt(
        &self,
        request: Request<v1::CompleteAttemptRequest>,
    ) -> Result<Response<v1::CompleteAttemptResponse>, Status> {
        let report = Event::Completed(Box::new(request.into_inner()));
        self.events.send(report).await.unwrap_or_default();
        Ok(Response::new(v1::CompleteAttemptResponse {}))
    }

    async fn release_lease(
        &self,
        request: Request<v1::ReleaseLeaseRequest>,
    ) -> Result<Response<v1::ReleaseLeaseResponse>, Status> {
        self.events.send(Event::Released(request.into_inner())).await.unwrap_or_default();
        Ok(Response::new(v1::ReleaseLeaseResponse {}))
    }

    type WatchLeaderStream = ReceiverStream<Result<v1::Leadership, Status>>;

    async fn watch_leader(
        &self,
        _: Request<v1::WatchLeaderRequest>,
    ) -> Result<Response<Self::WatchLeaderStream>, Status> {
        let mut known = self.known.lock().unwrap();
        let mut leadership = known.leadership.subscribe();
        let (sender, receiver) = mpsc::channel(8);
        known.tasks.spawn(async move {
            loop {
                let said = leadership.borrow_and_update().clone();
                if sender.send(Ok(said)).await.is_err() || leadership.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn hand_back(
        &self,
        request: Request<v1::HandBackRequest>,
    ) -> Result<Response<v1::HandBackResponse>, Status> {
        self.events.send(Event::HandedBack(request.into_inner())).await.unwrap_or_default();
        Ok(Response::new(v1::HandBackResponse {}))
    }

    async fn claim_action(
        &self,
        _: Request<v1::ClaimActionRequest>,
    ) -> Result<Response<v1::ClaimActionResponse>, Status> {
        Err(Status::unimplemented("no story claims"))
    }

    async fn resolve_claim(
        &self,
        _: Request<v1::ResolveClaimRequest>,
    ) -> Result<Response<v1::ResolveClaimResponse>, Status> {
        Err(Status::unimplemented("no story claims"))
    }

    async fn record_artifact(
        &self,
        request: Request<v1::RecordArtifactRequest>,
    ) -> Result<Response<v1::RecordArtifactResponse>, Status> {
        self.known.lock().unwrap().artifacts.extend(request.into_inner().artifact);
        Ok(Response::new(v1::RecordArtifactResponse {}))
    }

    async fn list_run_artifacts(
        &self,
        _: Request<v1::ListRunArtifactsRequest>,
    ) -> Result<Response<v1::ListArtifactsResponse>, Status> {
        let artifacts = self.known.lock().unwrap().artifacts.clone();
        Ok(Response::new(v1::ListArtifactsResponse { artifacts }))
    }

    type AppendLogStream = Pin<Box<dyn Stream<Item = Result<v1::LogAck, Status>> + Send>>;

    async fn append_log(
        &self,
        request: Request<Streaming<v1::LogAppend>>,
    ) -> Result<Response<Self::AppendLogStream>, Status> {
        let known = self.known.clone();
        let acks = request.into_inner().map(move |append| {
            let append = append?;
            let mut known = known.lock().unwrap();
            let job = append.lease.unwrap().job_id;
            let log = known.logs.entry((job, append.stream)).or_default();
            assert_eq!(log.len() as u64, append.offset, "no gap and no repetition");
            log.extend_from_slice(&append.data);
            let durable = log.len() as u64;
            Ok(v1::LogAck { lease: append.lease, stream: append.stream, durable, refused: false })
        });
        Ok(Response::new(Box::pin(acks)))
    }
}

/// One coordinator and one agent.
struct Farm {
    dir: TempDir,
    user: RunAs,
    window_ms: u64,
    store: Store,
    known: Arc<Mutex<Known>>,
    events: mpsc::Receiver<Event>,
    leave: CancellationToken,
    shutdown: CancellationToken,
    agent: JoinSet<anyhow::Result<()>>,
    _server: JoinSet<()>,
}

impl Farm {
    async fn start() -> Self {
        Self::start_as(RunAs::SelfUser).await
    }

    async fn start_as(user: RunAs) -> Self {
        Self::start_with(user, 30_000).await
    }

    async fn start_with(user: RunAs, window_ms: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Others pass through; temporary folders are closed by themselves.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let options = StoreOptions { bytes_max: 1 << 30, durable: false };
        let store = Store::open(&dir.path().join("cas"), options).unwrap();
        let (sender, events) = mpsc::channel(1_000);
        let known = Arc::new(Mutex::new(Known::default()));
        let coordinator = Coordinator { events: sender, known: known.clone() };
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let server = tonic::transport::Server::builder();
            let server = { server }.add_service(AgentsServer::new(coordinator));
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        let shutdown = CancellationToken::new();
        let mut farm = Self {
            dir,
            user,
            window_ms,
            store,
            known,
            events,
            leave: CancellationToken::new(),
            shutdown: shutdown.clone(),
            agent: JoinSet::new(),
            _server: server,
        };
        let run =
            steading_agent::run_until(farm.config(), farm.cluster(), farm.leave.clone(), shutdown);
        farm.agent.spawn(run);
        farm.event(|event| matches!(event, Event::Said(Said::Hello(_)))).await;
        farm
    }

    fn cluster(&self) -> Cluster {
        let endpoint = format!("unix:{}", self.dir.path().join("socket").display());
        Cluster::new(vec![endpoint], dial(None, false)).unwrap()
    }

    fn config(&self) -> Config {
        Config {
            name: "agent".to_owned(),
            pool: "pool".to_owned(),
            spot: false,
            labels: Vec::new(),
            slots: 1,
            leases_ahead: 0,
            limits: None,
            resources: Resources { cpu_milli: 1000, memory_mib: 1000 },
            data_dir: self.dir.path().join("agent"),
            blobs: BlobsSetting::Shared(self.store.clone()),
            user: self.user,
            properties: BTreeMap::new(),
            preemption: Preemption { file: Some(self.dir.path().join("notice")), gce: None },
            leave_window_ms: self.window_ms,
            program: vec![env!("CARGO_BIN_EXE_steading-agent").to_owned()],
        }
    }

    /// Welcomes the agent as holding these jobs. The first hello is heard by `start`.
    async fn hello(&mut self, jobs: &[u64]) {
        if !jobs.is_empty() {
            assert_eq!(self.said_hello().await, leases(jobs));
        }
        let welcome = v1::Welcome { leases: leases(jobs), ..v1::Welcome::default() };
        self.say(Say::Welcome(welcome)).await;
    }

    async fn said_hello(&mut self) -> Vec<v1::Lease> {
        match self.event(|event| matches!(event, Event::Said(Said::Hello(_)))).await {
            Event::Said(Said::Hello(hello)) => hello.running,
            other => panic!("not a hello: {other:?}"),
        }
    }

    async fn offer(&self, job: u64, scripts: &[&str]) {
        self.offer_steps(job, scripts.iter().map(|script| run_step(script)).collect()).await;
    }

    async fn offer_steps(&self, job: u64, mut steps: Vec<StepSpec>) {
        for (index, step) in steps.iter_mut().enumerate() {
            step.id = format!("s{index}");
            if let StepKind::Run { script, .. } = &mut step.kind {
                let path = |name| self.dir.path().join(name).display().to_string();
                let text = script.value.replace("MARK", &path("mark"));
                script.value = text.replace("GO", &path("go"));
            }
        }
        let spec = serde_json::to_vec(&spec(steps)).unwrap();
        self.say(Say::Offer(v1::Offer {
            lease: Some(lease(job)),
            run_id: 1,
            project: "default".to_owned(),
            spec: spec.into(),
            ..v1::Offer::default()
        }))
        .await;
    }

    /// The sequence of the accept.
    async fn accepted(&mut self, job: u64) -> u64 {
        match self.event(|event| matches!(event, Event::Said(Said::Accept(_)))).await {
            Event::Said(Said::Accept(accept)) => {
                assert_eq!(accept.lease, Some(lease(job)));
                accept.sequence
            }
            other => panic!("not an accept: {other:?}"),
        }
    }

    async fn acknowledge(&self, sequence: u64, jobs: &[u64]) {
        let (leases, refused) = (leases(jobs), Vec::new());
        self.say(Say::Renewed(v1::Renewed { sequence, leases, refused })).await;
    }

    async fn run(&mut self, job: u64, scripts: &[&str]) {
        self.offer(job, scripts).await;
        let sequence = self.accepted(job).await;
        self.acknowledge(sequence, &[job]).await;
    }

    async fn run_steps(&mut self, job: u64, steps: Vec<StepSpec>) {
        self.offer_steps(job, steps).await;
        let sequence = self.accepted(job).await;
        self.acknowledge(sequence, &[job]).await;
    }

    async fn completed(&mut self) -> v1::CompleteAttemptRequest {
        match self.event(|event| matches!(event, Event::Completed(_))).await {
            Event::Completed(report) => *report,
            other => panic!("not a report: {other:?}"),
        }
    }

    async fn handed_back(&mut self) -> v1::HandBackRequest {
        match self.event(|event| matches!(event, Event::HandedBack(_))).await {
            Event::HandedBack(request) => request,
            other => panic!("nothing handed back: {other:?}"),
        }
    }

    async fn released(&mut self) -> v1::ReleaseLeaseRequest {
        match self.event(|event| matches!(event, Event::Released(_))).await {
            Event::Released(request) => request,
            other => panic!("nothing released: {other:?}"),
        }
    }

    async fn ended(&mut self) {
        let ended = tokio::time::timeout(PATIENCE, self.agent.join_next()).await;
        ended.expect("the agent ends").unwrap().unwrap().unwrap();
    }

    async fn say(&self, message: Say) {
        let session = self.known.lock().unwrap().session.clone().unwrap();
        session.send(Ok(v1::CoordinatorMessage { message: Some(message) })).await.unwrap();
    }

    fn break_session(&self) {
        self.known.lock().unwrap().session = None;
    }

    /// The next event of this kind; renewals and progress on the way are passed over.
    async fn event(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let next = async {
            loop {
                let event = self.events.recv().await.unwrap();
                if wanted(&event) {
                    return event;
                }
                let passing = matches!(
                    event,
                    Event::Said(Said::Renew(_) | Said::Progress(_) | Said::Drain(_))
                );
                assert!(passing, "out of turn: {event:?}");
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("the agent does it")
    }

    fn mark(&self) -> PathBuf {
        self.dir.path().join("mark")
    }

    /// What the job wrote to its mark.
    async fn until_marked(&self) -> String {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        let wait = async {
            loop {
                let text = std::fs::read_to_string(self.mark()).unwrap_or_default();
                if text.ends_with('\n') {
                    return text.trim().to_owned();
                }
                ticks.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the job starts")
    }

    fn log(&self, job: u64) -> String {
        self.log_of(job, 0)
    }

    fn log_of(&self, job: u64, stream: u32) -> String {
        let known = self.known.lock().unwrap();
        String::from_utf8(known.logs.get(&(job, stream)).cloned().unwrap_or_default()).unwrap()
    }

    fn blob(&self, digest: &str) -> Vec<u8> {
        let digest = digest.parse().unwrap();
        self.store.get(DigestFunction::Blake3, &digest).unwrap().unwrap().to_vec()
    }

    fn result(&self, report: &v1::CompleteAttemptRequest) -> JobResult {
        serde_json::from_slice(&self.blob(&report.result_digest)).unwrap()
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.agent.join_next()).await;
        ended.expect("the agent ends").unwrap().unwrap().unwrap();
    }
}

fn lease(job: u64) -> v1::Lease {
    v1::Lease { job_id: job, attempt: 1, epoch: job }
}

fn leases(jobs: &[u64]) -> Vec<v1::Lease> {
    jobs.iter().map(|job| lease(*job)).collect()
}

fn spec(steps: Vec<StepSpec>) -> JobSpec {
    JobSpec {
        dialect: DIALECT.to_owned(),
        file: "ci.yml".to_owned(),
        key: "job".to_owned(),
        name: "job".to_owned(),
        source: String::new(),
        contexts: serde_json::json!({"github": {}}),
        env: Vec::new(),
        steps,
        outputs: Vec::new(),
        default_shell: None,
        default_working_directory: None,
        timeout_ms: 60_000,
        cpu_milli: 0,
        memory_mib: 0,
    }
}

fn run_step(script: &str) -> StepSpec {
    step(StepKind::Run { script: text(script), shell: None, working_directory: None })
}

fn uses(action: &str, with: &[(&str, &str)]) -> StepSpec {
    let with = with.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect();
    step(StepKind::Uses { action: action.to_owned(), with })
}

fn step(kind: StepKind) -> StepSpec {
    StepSpec {
        id: String::new(),
        name: None,
        condition: None,
        kind,
        env: Vec::new(),
        continue_on_error: None,
        timeout_minutes: None,
        cache: None,
        line: 0,
    }
}

fn text(value: &str) -> Text {
    Text { value: value.to_owned(), line: 1, column: 1 }
}
