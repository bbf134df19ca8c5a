//! An agent that says what the story wants, on the wire.

#![allow(dead_code, reason = "every story has its own use for it")]

use steading_proto::v1;
use steading_proto::v1::agent_message::Message as FromAgent;
use steading_proto::v1::agents_client::AgentsClient;
use steading_proto::v1::coordinator_message::Message as ToAgent;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::support::soon;

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
    pub(crate) async fn register(coordinator: impl Into<Channel>, name: &str) -> Self {
        let mut client = AgentsClient::new(coordinator.into());
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
    pub(crate) async fn join(coordinator: impl Into<Channel>, name: &str) -> Self {
        let channel: Channel = coordinator.into();
        let mut agent = Self::register(channel.clone(), name).await;
        agent.connect(channel, &[]).await;
        agent
    }

    /// Opens a session that says what runs.
    pub(crate) async fn connect(
        &mut self,
        coordinator: impl Into<Channel>,
        running: &[v1::Lease],
    ) -> v1::Welcome {
        self.try_connect(coordinator, running).await.unwrap()
    }

    /// The same, which may be refused.
    pub(crate) async fn try_connect(
        &mut self,
        coordinator: impl Into<Channel>,
        running: &[v1::Lease],
    ) -> Result<v1::Welcome, Status> {
        self.client = AgentsClient::new(coordinator.into());
        let (sender, receiver) = mpsc::channel(16);
        let hello = v1::Hello {
            agent_id: self.id,
            incarnation: self.incarnation,
            running: running.to_vec(),
            name: self.name.clone(),
        };
        sender.send(message(FromAgent::Hello(hello))).await.unwrap();
        let session = self.client.session(ReceiverStream::new(receiver)).await?;
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

    pub(crate) async fn next(&mut self) -> Result<ToAgent, Status> {
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

    /// Says that it is at the last of so many steps.
    pub(crate) async fn progress(&self, lease: v1::Lease, steps: u32) {
        let steps = (0..steps).map(|index| v1::StepProgress { index, ..Default::default() });
        let progress = v1::Progress { lease: Some(lease), steps: steps.collect() };
        self.say(FromAgent::Progress(progress)).await;
    }

    pub(crate) async fn complete(
        &mut self,
        lease: v1::Lease,
        result_digest: String,
    ) -> Result<(), Status> {
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
    ) -> Result<(), Status> {
        let request = v1::CompleteAttemptRequest {
            lease: Some(lease),
            conclusion: conclusion.into(),
            failure_class: class.into(),
            ..Default::default()
        };
        self.client.complete_attempt(request).await.map(drop)
    }
}

fn message(message: FromAgent) -> v1::AgentMessage {
    v1::AgentMessage { message: Some(message) }
}
