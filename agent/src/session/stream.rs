//! One connection to the coordinator: offers come, accepts, renewals and progress go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use steading_model::limits::{LEASE_AGENT_MS, RENEW_PERIOD_MS};
use steading_proto::v1;
use steading_proto::v1::agent_message::Message as Say;
use steading_proto::v1::coordinator_message::Message as Hear;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::attempt::attempt;
use super::held::key;
use super::{Agent, Identity};
use crate::supervisor::boottime_ms;

/// Messages on the way to the coordinator.
const OUTBOX_MAX: usize = 256;

/// Progress reports taken in one go.
const PROGRESS_BATCH: usize = 64;

/// How long a coordinator may take to open a session: one that is stopped takes the
/// request, and says nothing.
const OPEN_MAX: Duration = Duration::from_secs(3);

/// How long a renewal may go unanswered before another coordinator is asked, milliseconds:
/// a second one was sent meanwhile, and half of the lease is left for the other to answer.
const SILENCE_MS_MAX: u64 = 2 * RENEW_PERIOD_MS - RENEW_PERIOD_MS / 4;

const _: () = assert!(SILENCE_MS_MAX < LEASE_AGENT_MS / 2);

/// How a session ended.
pub(super) struct Ended {
    /// The coordinator let the agent in.
    pub(super) was_welcome: bool,
    pub(super) with: Result<(), Status>,
}

/// Runs the session until it breaks, another coordinator is to be asked, or `shutdown`.
/// The attempts that it starts go on in `attempts`.
pub(super) async fn session(
    agent: &Arc<Agent>,
    identity: Identity,
    progress: &mut mpsc::Receiver<(v1::Lease, v1::StepProgress)>,
    attempts: &mut JoinSet<()>,
    shutdown: &CancellationToken,
) -> Ended {
    let (outbox, receiver) = mpsc::channel(OUTBOX_MAX);
    let cluster = agent.agents.cluster();
    let endpoint = cluster.place().endpoint;
    let mut session = Session {
        agent,
        endpoint: endpoint.clone(),
        outbox,
        sequence: 0,
        unanswered: BTreeMap::new(),
        was_welcome: false,
    };
    let with = tokio::select! {
        with = session.run(receiver, identity, progress, attempts, shutdown) => with,
        () = cluster.left(&endpoint) => Err(Status::unavailable("another coordinator leads")),
    };
    if let Err(status) = &with {
        cluster.session_ended(&endpoint, status);
    }
    Ended { was_welcome: session.was_welcome, with }
}

struct Session<'a> {
    agent: &'a Arc<Agent>,
    /// Of the coordinator.
    endpoint: String,
    was_welcome: bool,
    outbox: mpsc::Sender<v1::AgentMessage>,
    sequence: u64,
    /// When each accept or renewal was sent, on CLOCK_BOOTTIME, milliseconds.
    unanswered: BTreeMap<u64, u64>,
}

impl Session<'_> {
    async fn run(
        &mut self,
        receiver: mpsc::Receiver<v1::AgentMessage>,
        identity: Identity,
        progress: &mut mpsc::Receiver<(v1::Lease, v1::StepProgress)>,
        attempts: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) -> Result<(), Status> {
        self.say(Say::Hello(v1::Hello {
            agent_id: identity.agent_id,
            incarnation: identity.incarnation,
            running: self.agent.held.leases(),
            name: self.agent.config.name.clone(),
        }))?;
        let mut client = self.agent.agents.client();
        let stream = client.session(ReceiverStream::new(receiver));
        let mut inbox = tokio::select! {
            opened = tokio::time::timeout(OPEN_MAX, stream) => opened
                .map_err(|_| Status::unavailable("the coordinator does not answer"))??
                .into_inner(),
            () = shutdown.cancelled() => return Ok(()),
        };
        let mut ticks = tokio::time::interval(Duration::from_millis(RENEW_PERIOD_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.reset();
        let mut reports = Vec::with_capacity(PROGRESS_BATCH);
        loop {
            // Leases before everything else.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    self.say(Say::Drain(v1::Drain {}))?;
                    return self.drain(attempts, &mut inbox).await;
                }
                _ = ticks.tick() => self.renew()?,
                message = inbox.message() => match message? {
                    Some(v1::CoordinatorMessage { message: Some(message) }) => {
                        self.hear(message, attempts).await?;
                    }
                    // Of a later version: what it says is not for this one.
                    Some(v1::CoordinatorMessage { message: None }) => (),
                    None => return Err(Status::unavailable("the coordinator ended the session")),
                },
                Some(ended) = attempts.join_next(), if !attempts.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "an attempt panicked");
                    }
                }
                count = progress.recv_many(&mut reports, PROGRESS_BATCH) => {
                    if count > 0 {
                        self.progress(&mut reports);
                    }
                }
            }
        }
    }

    fn say(&self, message: Say) -> Result<(), Status> {
        self.outbox
            .try_send(v1::AgentMessage { message: Some(message) })
            .map_err(|_| Status::unavailable("the coordinator does not take messages"))
    }

    /// The next sequence number; the lease counts from now.
    fn count(&mut self) -> u64 {
        self.sequence += 1;
        self.unanswered.insert(self.sequence, boottime_ms());
        self.sequence
    }

    fn renew(&mut self) -> Result<(), Status> {
        // A connection that is silent for so long is dead, whatever TCP thinks.
        let oldest = self.unanswered.values().next().copied();
        if oldest.is_some_and(|sent| boottime_ms() > sent + SILENCE_MS_MAX) {
            return Err(Status::unavailable("the coordinator does not answer renewals"));
        }
        let leases = self.agent.held.leases();
        if leases.is_empty() {
            return Ok(());
        }
        let sequence = self.count();
        self.say(Say::Renew(v1::Renew { sequence, leases }))
    }

    async fn hear(&mut self, message: Hear, attempts: &mut JoinSet<()>) -> Result<(), Status> {
        match message {
            Hear::Welcome(welcome) => self.welcome(welcome).await,
            Hear::Offer(offer) => self.offer(offer, attempts),
            Hear::Renewed(renewed) => {
                self.renewed(renewed).await;
                Ok(())
            }
            Hear::Revoke(revoke) => {
                self.refuse(&revoke.leases).await;
                Ok(())
            }
            Hear::Cancel(cancel) => {
                self.cancel(cancel.lease.iter());
                Ok(())
            }
            Hear::Empty(empty) => {
                self.agent.ordered(Some(empty));
                Ok(())
            }
        }
    }

    /// Both sides now know what the other knows.
    async fn welcome(&mut self, welcome: v1::Welcome) -> Result<(), Status> {
        self.was_welcome = true;
        self.agent.agents.cluster().welcomed(&self.endpoint, &welcome.endpoints);
        let should: Vec<_> = welcome.leases.iter().map(key).collect();
        for held in self.agent.held.all() {
            if !should.contains(&key(&held.lease)) {
                tracing::warn!(job = held.lease.job_id, "lease is not held any more");
                held.refuse().await;
            }
        }
        self.cancel(welcome.cancelling.iter());
        self.agent.ordered(welcome.empty);
        self.renew()
    }

    fn offer(&mut self, offer: v1::Offer, attempts: &mut JoinSet<()>) -> Result<(), Status> {
        let Some(lease) = offer.lease else {
            return Err(Status::invalid_argument("an offer without a lease"));
        };
        if self.agent.is_leaving() {
            let reason = "the agent leaves".to_owned();
            return self.say(Say::Decline(v1::Decline { lease: Some(lease), reason }));
        }
        // An offer that is repeated is accepted again: the first accept was lost.
        if let Some(held) = self.agent.held.add(lease) {
            attempts.spawn(attempt(self.agent.clone(), held, offer));
        }
        let sequence = self.count();
        self.say(Say::Accept(v1::Accept { sequence, lease: Some(lease) }))
    }

    async fn renewed(&mut self, renewed: v1::Renewed) {
        if let Some(sent_ms) = self.unanswered.remove(&renewed.sequence) {
            for lease in &renewed.leases {
                if let Some(held) = self.agent.held.get(lease) {
                    held.extend(sent_ms + LEASE_AGENT_MS).await;
                }
            }
        }
        self.refuse(&renewed.refused).await;
    }

    async fn refuse(&self, leases: &[v1::Lease]) {
        for lease in leases {
            if let Some(held) = self.agent.held.get(lease) {
                held.refuse().await;
            }
        }
    }

    fn cancel<'l>(&self, leases: impl Iterator<Item = &'l v1::Lease>) {
        for lease in leases {
            if let Some(held) = self.agent.held.get(lease) {
                held.signals.cancel.cancel();
            }
        }
    }

    /// From memory to memory: what does not fit is lost.
    fn progress(&self, reports: &mut Vec<(v1::Lease, v1::StepProgress)>) {
        let mut by_lease: BTreeMap<_, v1::Progress> = BTreeMap::new();
        for (lease, step) in reports.drain(..) {
            let progress = by_lease.entry(key(&lease)).or_default();
            progress.lease = Some(lease);
            progress.steps.push(step);
        }
        for progress in by_lease.into_values() {
            let _ = self.say(Say::Progress(progress));
        }
    }

    /// Stops what runs and gives it back, while the session keeps the leases alive.
    async fn drain(
        &mut self,
        attempts: &mut JoinSet<()>,
        inbox: &mut tonic::Streaming<v1::CoordinatorMessage>,
    ) -> Result<(), Status> {
        for held in self.agent.held.all() {
            held.signals.stop.cancel();
        }
        let mut ticks = tokio::time::interval(Duration::from_millis(RENEW_PERIOD_MS));
        while !attempts.is_empty() {
            tokio::select! {
                _ = ticks.tick() => self.renew()?,
                _ = attempts.join_next() => (),
                message = inbox.message() => match message?.map(|message| message.message) {
                    Some(Some(Hear::Renewed(renewed))) => self.renewed(renewed).await,
                    Some(Some(Hear::Revoke(revoke))) => self.refuse(&revoke.leases).await,
                    Some(_) => (),
                    None => return Ok(()),
                },
            }
        }
        Ok(())
    }
}
