//! Who watches a run at a replica that follows sees what the leader is told.

use steading_proto::v1;
use steading_proto::v1::agent_message::Message as FromAgent;
use steading_proto::v1::agents_client::AgentsClient;
use steading_proto::v1::coordinator_message::Message as ToAgent;
use steading_proto::v1::pipelines_client::PipelinesClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::support::{Member, Place, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn one_watch_at_a_follower_shows_every_step_whoever_leads() {
    let place = Place::new();
    let [a, b, c] = place.three().await;
    let run_id = a.submit("one").await;
    let mut early = watch(&b, run_id).await;
    assert_eq!(seen(&mut early, |job| job.status() == v1::job::Status::Queued).await.attempt, 0);
    // The leader alone knows who is connected.
    let mut agent = Agent::register(&a).await;
    seen(&mut early, |job| job.waiting.ends_with("are not connected: agent")).await;

    agent.connect(&a, &[]).await;
    let lease = agent.accept().await;
    agent.progress(lease, 1).await;
    assert_eq!(seen(&mut early, |job| job.steps.len() == 1).await.attempt, 1);
    // Who comes later sees all of it.
    let mut late = watch(&b, run_id).await;
    seen(&mut late, |job| job.steps.len() == 1).await;
    agent.progress(lease, 2).await;
    seen(&mut late, |job| job.steps.len() == 2).await;
    drop(late);

    transfer(&a, 3).await;
    agent.connect(&c, &[lease]).await;
    agent.progress(lease, 3).await;
    seen(&mut early, |job| job.steps.len() == 3).await;

    // The one that is watched at leads, and then follows again.
    transfer(&c, 2).await;
    agent.connect(&b, &[lease]).await;
    agent.progress(lease, 4).await;
    seen(&mut early, |job| job.steps.len() == 4).await;
    transfer(&b, 1).await;
    agent.connect(&a, &[lease]).await;
    agent.progress(lease, 5).await;
    seen(&mut early, |job| job.steps.len() == 5).await;

    agent.complete(lease).await;
    let done = seen(&mut early, |job| job.status() == v1::job::Status::Done).await;
    assert_eq!((done.conclusion(), done.attempt), (v1::Conclusion::Success, 1));
    while soon("the end of the watch", early.message()).await.unwrap().is_some() {}
    crate::stop([vec![a, b, c]]).await;
}

/// A leader that was elected just now has not heard of everybody yet.
async fn transfer(leader: &Member, to: u64) {
    let request = v1::TransferLeadershipRequest { replica_id: to };
    until("a transfer", async || leader.cluster().transfer_leadership(request).await.ok()).await;
}

async fn watch(member: &Member, run_id: u64) -> Streaming<v1::WatchRunEvent> {
    let request = v1::WatchRunRequest { run_id, token: 0 };
    PipelinesClient::new(member.channel()).watch_run(request).await.unwrap().into_inner()
}

/// Reads until the run's one job is so.
async fn seen(
    events: &mut Streaming<v1::WatchRunEvent>,
    wanted: impl Fn(&v1::Job) -> bool,
) -> v1::Job {
    soon("what is wanted of the job", async {
        loop {
            let event = events.message().await.unwrap().expect("the watch goes on");
            if let Some(job) = event.jobs.into_iter().find(|job| wanted(job)) {
                return job;
            }
        }
    })
    .await
}

/// An agent that says what the story wants.
struct Agent {
    client: AgentsClient<Channel>,
    known: v1::RegisterResponse,
    session: Option<(mpsc::Sender<v1::AgentMessage>, Streaming<v1::CoordinatorMessage>)>,
}

const NAME: &str = "agent";

impl Agent {
    async fn register(leader: &Member) -> Self {
        let mut client = AgentsClient::new(leader.channel());
        let request = v1::RegisterRequest {
            name: NAME.into(),
            pool: "test".into(),
            labels: vec!["ubuntu-latest".into()],
            slots: 4,
            cpu_milli: 64_000,
            memory_mib: 64_000,
            ..Default::default()
        };
        let known = client.register(request).await.unwrap().into_inner();
        Self { client, known, session: None }
    }

    /// Opens a session with this leader.
    async fn connect(&mut self, leader: &Member, running: &[v1::Lease]) {
        self.client = AgentsClient::new(leader.channel());
        let hello = v1::Hello {
            agent_id: self.known.agent_id,
            incarnation: self.known.incarnation,
            running: running.to_vec(),
            name: NAME.to_owned(),
        };
        let welcome = until("a welcome", async || {
            let (sender, receiver) = mpsc::channel(16);
            sender.send(message(FromAgent::Hello(hello.clone()))).await.unwrap();
            let mut client = self.client.clone();
            // It may not lead yet.
            let mut session =
                client.session(ReceiverStream::new(receiver)).await.ok()?.into_inner();
            match session.message().await.ok()??.message? {
                ToAgent::Welcome(welcome) => Some((sender, session, welcome)),
                other => panic!("want a welcome, got {other:?}"),
            }
        });
        let (sender, session, welcome) = welcome.await;
        assert!(running.iter().all(|lease| welcome.leases.contains(lease)), "{welcome:?}");
        self.session = Some((sender, session));
    }

    /// Takes the next offer.
    async fn accept(&mut self) -> v1::Lease {
        let lease = match self.next().await {
            ToAgent::Offer(offer) => offer.lease.unwrap(),
            other => panic!("want an offer, got {other:?}"),
        };
        let accept = v1::Accept { sequence: 1, lease: Some(lease) };
        self.say(FromAgent::Accept(accept)).await;
        match self.next().await {
            ToAgent::Renewed(renewed) => assert_eq!(renewed.leases, [lease]),
            other => panic!("want an acknowledgement, got {other:?}"),
        }
        lease
    }

    /// Says that it is at the last of so many steps.
    async fn progress(&mut self, lease: v1::Lease, steps: u32) {
        let steps = (0..steps).map(|index| v1::StepProgress { index, ..Default::default() });
        let progress = v1::Progress { lease: Some(lease), steps: steps.collect() };
        self.say(FromAgent::Progress(progress)).await;
    }

    async fn complete(&mut self, lease: v1::Lease) {
        let conclusion = v1::Conclusion::Success.into();
        let request =
            v1::CompleteAttemptRequest { lease: Some(lease), conclusion, ..Default::default() };
        self.client.complete_attempt(request).await.unwrap();
    }

    async fn say(&self, from_agent: FromAgent) {
        let (sender, _) = self.session.as_ref().expect("connected");
        sender.send(message(from_agent)).await.unwrap();
    }

    async fn next(&mut self) -> ToAgent {
        let (_, session) = self.session.as_mut().expect("connected");
        let message = soon("a message to the agent", session.message()).await.unwrap();
        message.expect("the session goes on").message.expect("a known message")
    }
}

fn message(message: FromAgent) -> v1::AgentMessage {
    v1::AgentMessage { message: Some(message) }
}
