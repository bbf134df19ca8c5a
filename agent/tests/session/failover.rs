//! How an agent finds the coordinator that leads.

use steading_proto::leader::not_leader;

use super::*;

#[tokio::test]
async fn an_agent_moves_to_a_new_leader_with_what_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (mut old, mut new) = (Peer::start(&dir, "old"), Peer::start(&dir, "new"));
    old.leads(1);
    let mut agent = start_agent(&dir, &[&old, &new]);
    assert_eq!(old.hello().await, []);
    old.say(Say::Welcome(v1::Welcome::default())).await;
    let go = dir.path().join("go").display().to_string();
    old.offer(&format!("while [ ! -e {go} ]; do sleep 0.01; done")).await;
    let sequence = old.accepted().await;
    let (leases, refused) = (vec![lease(1)], Vec::new());
    old.say(Say::Renewed(v1::Renewed { sequence, leases, refused })).await;

    // The old one is stopped: its connections stay open, and say nothing.
    new.leads(2);
    assert_eq!(new.hello().await, [lease(1)]);
    // What it says afterwards of its own term is not believed.
    old.leads(1);
    new.say(Say::Welcome(v1::Welcome { leases: vec![lease(1)], ..<_>::default() })).await;
    std::fs::write(&go, "").unwrap();
    assert!(matches!(new.event().await, Event::Completed(_)));
    stop(&mut agent).await;
}

#[tokio::test]
async fn a_hint_is_followed_to_a_coordinator_that_was_not_known() {
    let dir = tempfile::tempdir().unwrap();
    let (follower, mut leader) = (Peer::start(&dir, "follower"), Peer::start(&dir, "leader"));
    follower.known.lock().unwrap().refusal = Some(not_leader(Some(&leader.endpoint)));
    let mut agent = start_agent(&dir, &[&follower]);
    assert_eq!(leader.hello().await, []);
    stop(&mut agent).await;
}

#[tokio::test]
async fn where_one_cannot_be_reached_the_next_one_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (gone, mut there) = (Peer::start(&dir, "gone"), Peer::start(&dir, "there"));
    std::fs::remove_file(dir.path().join("gone")).unwrap();
    let mut agent = start_agent(&dir, &[&gone, &there]);
    assert_eq!(there.hello().await, []);
    stop(&mut agent).await;
}

/// One of several coordinators.
struct Peer {
    endpoint: String,
    events: mpsc::Receiver<Event>,
    known: Arc<Mutex<Known>>,
    _server: JoinSet<()>,
}

impl Peer {
    fn start(dir: &TempDir, name: &str) -> Self {
        let (sender, events) = mpsc::channel(1_000);
        let known = Arc::new(Mutex::new(Known::default()));
        let coordinator = Coordinator { events: sender, known: known.clone() };
        let path = dir.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let server = tonic::transport::Server::builder();
            let server = { server }.add_service(AgentsServer::new(coordinator));
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });
        Self { endpoint: format!("unix:{}", path.display()), events, known, _server: server }
    }

    fn leads(&self, term: u64) {
        let said = v1::Leadership { term, here: true, ..v1::Leadership::default() };
        self.known.lock().unwrap().leadership.send_replace(said);
    }

    async fn say(&self, message: Say) {
        let session = self.known.lock().unwrap().session.clone().unwrap();
        session.send(Ok(v1::CoordinatorMessage { message: Some(message) })).await.unwrap();
    }

    async fn offer(&self, script: &str) {
        let mut step = run_step(script);
        step.id = "s0".to_owned();
        let spec = serde_json::to_vec(&spec(vec![step])).unwrap();
        self.say(Say::Offer(v1::Offer {
            lease: Some(lease(1)),
            run_id: 1,
            project: "default".to_owned(),
            spec: spec.into(),
            ..v1::Offer::default()
        }))
        .await;
    }

    /// What it holds that says hello.
    async fn hello(&mut self) -> Vec<v1::Lease> {
        match self.event().await {
            Event::Said(Said::Hello(hello)) => hello.running,
            other => panic!("not a hello: {other:?}"),
        }
    }

    async fn accepted(&mut self) -> u64 {
        match self.event().await {
            Event::Said(Said::Accept(accept)) => accept.sequence,
            other => panic!("not an accept: {other:?}"),
        }
    }

    /// The next event; renewals and progress are passed over.
    async fn event(&mut self) -> Event {
        let next = async {
            loop {
                match self.events.recv().await.unwrap() {
                    Event::Said(Said::Renew(_) | Said::Progress(_)) => (),
                    event => return event,
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("the agent does it")
    }
}

type Running = (JoinSet<anyhow::Result<()>>, CancellationToken);

fn start_agent(dir: &TempDir, peers: &[&Peer]) -> Running {
    let options = StoreOptions { bytes_max: 1 << 30, durable: false };
    let store = Store::open(&dir.path().join("cas"), options).unwrap();
    let config = Config {
        name: "agent".to_owned(),
        pool: "pool".to_owned(),
        spot: false,
        labels: Vec::new(),
        slots: 1,
        leases_ahead: 0,
        limits: None,
        resources: Resources { cpu_milli: 1000, memory_mib: 1000 },
        data_dir: dir.path().join("agent"),
        blobs: BlobsSetting::Shared(store),
        user: RunAs::SelfUser,
        properties: BTreeMap::new(),
        preemption: Preemption::default(),
        leave_window_ms: 30_000,
        program: vec![env!("CARGO_BIN_EXE_steading-agent").to_owned()],
    };
    let endpoints = peers.iter().map(|peer| peer.endpoint.clone()).collect();
    let cluster = Cluster::new(endpoints, dial(None, false)).unwrap();
    let (mut running, shutdown) = (JoinSet::new(), CancellationToken::new());
    running.spawn(steading_agent::run(config, cluster, shutdown.clone()));
    (running, shutdown)
}

async fn stop((running, shutdown): &mut Running) {
    shutdown.cancel();
    let ended = tokio::time::timeout(PATIENCE, running.join_next()).await;
    ended.expect("the agent ends").unwrap().unwrap().unwrap();
}
