//! One agent's session: the full sets first, then offers down and renewals up.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::FuturesUnordered;
use steading_core::{Agent, Job, JobStatus, Lease, Proposal, State};
use steading_model::{AgentId, FailureClass, Incarnation, Timestamp};
use steading_proto::v1;
use steading_proto::v1::agent_message::Message as FromAgent;
use steading_proto::v1::coordinator_message::Message as ToAgent;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use super::{Answers, convert, fleet};
use crate::auth::Caller;
use crate::leadership::Term;
use crate::leases::Leases;
use crate::offers::{Offered, Offers};
use crate::progress::Progress;
use crate::replica::{ProposeError, Replica};
use crate::run_watch::RunWatch;
use crate::sessions::{Notice, Session, Sessions};

/// Messages that wait for a slow agent.
const SENT_MAX: usize = 256;
/// How long a connection may stay silent before it says who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Renewals and accepts that wait for one wave. An agent sends one every three seconds,
/// and one per offer.
const WAITING_MAX: usize = 4_096;

/// What sessions need.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) replica: Replica,
    pub(super) sessions: Arc<Sessions>,
    pub(super) leases: Arc<Leases>,
    pub(super) offers: Offers,
    pub(super) progress: Arc<Progress>,
    pub(super) watch: Arc<RunWatch>,
}

/// Why a session ends: the connection, or what to tell the agent.
enum End {
    Gone,
    Told(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Told(status)
    }
}

/// A `Renew` or an `Accept`, waiting for its wave.
struct Asked {
    sequence: u64,
    leases: Vec<Lease>,
}

type Making = Pin<Box<dyn Future<Output = (Lease, Offered)> + Send>>;

type Barrier = Pin<Box<dyn Future<Output = Result<(), ProposeError>> + Send>>;

/// Runs the session beside the call; its messages are the answer.
pub(super) fn stream(
    parts: Parts,
    caller: Caller,
    inbound: impl Stream<Item = Result<v1::AgentMessage, Status>> + Send + Unpin + 'static,
    tasks: &TaskTracker,
    term: Term,
    stop: CancellationToken,
) -> Answers<v1::CoordinatorMessage> {
    let (sender, receiver) = mpsc::channel(SENT_MAX);
    tasks.spawn(async move {
        let end = tokio::select! {
            end = run(&parts, &caller, inbound, &sender) => end,
            () = sender.closed() => End::Gone,
            refusal = term.over() => End::Told(refusal),
            () = stop.cancelled() => End::Told(Status::unavailable("the coordinator stops")),
        };
        if let End::Told(status) = end {
            // Full: the agent sees the connection end.
            let _ = sender.try_send(Err(status));
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

type Sender = mpsc::Sender<Result<v1::CoordinatorMessage, Status>>;

async fn run(
    parts: &Parts,
    caller: &Caller,
    mut inbound: impl Stream<Item = Result<v1::AgentMessage, Status>> + Send + Unpin,
    sender: &Sender,
) -> End {
    let mut hello = match tokio::time::timeout(HELLO_TIMEOUT, inbound.next()).await {
        Ok(Some(Ok(v1::AgentMessage { message: Some(FromAgent::Hello(hello)) }))) => hello,
        Ok(Some(Ok(_))) => {
            return End::Told(Status::invalid_argument("a session begins with `Hello`"));
        }
        Ok(Some(Err(_)) | None) => return End::Gone,
        Err(_) => return End::Told(Status::deadline_exceeded("no `Hello` came")),
    };
    // Whoever says nothing of its name must still be the agent of that id.
    match caller.agent() {
        Some(name) if hello.name.is_empty() => hello.name = name.to_owned(),
        Some(_) | None => {
            if let Err(status) = caller.speaks_for(&hello.name) {
                return End::Told(status);
            }
        }
    }
    let agent = AgentId::from_counter(hello.agent_id);
    let incarnation = Incarnation::from_counter(hello.incarnation);
    // Of an earlier start, or another agent: it must not push aside the session of the
    // present one. What this replica does not know yet is looked at behind the barrier.
    if let Some(known) = parts.replica.view().agent(agent)
        && (known.incarnation > incarnation || !is_named(known, &hello.name))
    {
        return End::Told(not_current(known, &hello.name));
    }
    // Before the state is read: what is granted from now on comes as a notice.
    let session = parts.sessions.open(agent, incarnation);
    let known = hello.running.iter().map(convert::lease_of).collect();
    let (waiting, making) = (Vec::new(), FuturesUnordered::new());
    let mut connected = Connected { parts, sender, session, agent, waiting, known, making };
    if let Err(end) = connected.welcome(incarnation, &hello.name).await {
        return end;
    }
    tracing::info!(%agent, %incarnation, "agent connected");
    let end = connected.converse(inbound).await;
    tracing::info!(%agent, %incarnation, "agent disconnected");
    end
}

struct Connected<'a> {
    parts: &'a Parts,
    sender: &'a Sender,
    session: Session,
    agent: AgentId,
    /// Asked since the last barrier began.
    waiting: Vec<Asked>,
    /// Leases that the agent has, or was offered on this connection: offered once.
    known: BTreeSet<Lease>,
    /// Offers that wait for the store or the origin, at most one for each lease. Nothing
    /// else waits for them: renewals least of all.
    making: FuturesUnordered<Making>,
}

impl Connected<'_> {
    /// The full sets: what the agent should hold, and offers of what it does not.
    async fn welcome(&mut self, incarnation: Incarnation, name: &str) -> Result<(), End> {
        self.parts.replica.read_barrier().await.map_err(Status::from)?;
        let state = self.parts.replica.view();
        match state.agent(self.agent) {
            Some(agent) if agent.incarnation == incarnation && is_named(agent, name) => {
                let idle = state.leases_of(self.agent).next().is_none();
                if agent.removed && idle {
                    return Err(End::Told(Status::permission_denied("the agent was removed")));
                }
                // It was away for so long that it was given up. It gets no work before it
                // registers, and has nothing to lose.
                if agent.retired && !agent.removed && idle {
                    return Err(End::Told(unknown_agent()));
                }
            }
            Some(agent) => return Err(End::Told(not_current(agent, name))),
            None => return Err(End::Told(unknown_agent())),
        }
        let held: Vec<&Job> = state.leases_of(self.agent).collect();
        let leases = || held.iter().filter_map(|job| job.lease());
        let cancelling = held.iter().filter(|job| is_cancelling(job)).filter_map(|job| job.lease());
        let welcome = v1::Welcome {
            leases: leases().map(convert::wire_lease).collect(),
            cancelling: cancelling.map(convert::wire_lease).collect(),
            endpoints: fleet::endpoints(&state),
            empty: state.agent(self.agent).and_then(|agent| fleet::empty(agent, now())),
        };
        let leases: Vec<Lease> = leases().collect();
        self.tell(ToAgent::Welcome(welcome)).await?;
        for lease in leases {
            self.offer(lease).await?;
        }
        Ok(())
    }

    async fn converse(
        &mut self,
        mut inbound: impl Stream<Item = Result<v1::AgentMessage, Status>> + Send + Unpin,
    ) -> End {
        // One quorum round for everything that was asked before it began.
        let mut wave: Option<(Barrier, Vec<Asked>)> = None;
        loop {
            if wave.is_none() && !self.waiting.is_empty() {
                let replica = self.parts.replica.clone();
                let barrier = Box::pin(async move { replica.read_barrier().await });
                wave = Some((barrier, std::mem::take(&mut self.waiting)));
            }
            let step = tokio::select! {
                () = self.session.close.cancelled() => {
                    Err(End::Told(Status::aborted("another session of the agent took over")))
                }
                passed = passed(&mut wave) => match passed {
                    (Ok(()), asked) => self.renew(asked).await,
                    // A leader that cannot confirm that it leads acknowledges nothing.
                    (Err(error), _) => Err(End::Told(error.into())),
                },
                Some(notice) = self.session.outbox.recv() => self.pass_on(notice).await,
                Some((lease, offered)) = self.making.next(), if !self.making.is_empty() => {
                    self.offered(lease, offered).await
                }
                message = inbound.next() => match message {
                    Some(Ok(message)) => self.heard(message).await,
                    Some(Err(_)) | None => Err(End::Gone),
                },
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn heard(&mut self, message: v1::AgentMessage) -> Result<(), End> {
        match message.message {
            Some(FromAgent::Renew(renew)) => {
                let leases = renew.leases.iter().map(convert::lease_of).collect();
                self.ask(Asked { sequence: renew.sequence, leases })
            }
            Some(FromAgent::Accept(accept)) => {
                let leases = vec![convert::lease(accept.lease)?];
                self.session.accepted();
                self.ask(Asked { sequence: accept.sequence, leases })
            }
            Some(FromAgent::Decline(decline)) => {
                let lease = convert::lease(decline.lease)?;
                tracing::info!(agent = %self.agent, work = %lease.work, reason = decline.reason, "offer declined");
                self.session.declined(&decline.reason);
                // Only what it was offered may it decline.
                if is_held_by(&self.parts.replica.view(), lease, self.agent) {
                    give_back(self.parts, lease).await;
                }
                Ok(())
            }
            Some(FromAgent::Progress(progress)) => {
                let lease = convert::lease(progress.lease)?;
                let state = self.parts.replica.view();
                if let Some(job) = state.leased_job(lease)
                    && is_held_by(&state, lease, self.agent)
                {
                    self.parts.progress.update(job.run, lease, progress.steps);
                    self.parts.watch.changed(job.run);
                }
                Ok(())
            }
            Some(FromAgent::Drain(_)) => {
                self.session.drain();
                Ok(())
            }
            Some(FromAgent::Hello(_)) => {
                Err(End::Told(Status::invalid_argument("a session has one `Hello`")))
            }
            // Of a later version: what it says is not for this one.
            None => Ok(()),
        }
    }

    fn ask(&mut self, asked: Asked) -> Result<(), End> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(End::Told(Status::resource_exhausted("too many renewals wait")));
        }
        self.waiting.push(asked);
        Ok(())
    }

    /// Acknowledges what is still held. The deadline is set first: an agent never counts
    /// on a lease for longer than this coordinator does.
    async fn renew(&mut self, asked: Vec<Asked>) -> Result<(), End> {
        let state = self.parts.replica.view();
        // What a removed agent holds ends when it gives it back, or soon by itself.
        let removed = state.agent(self.agent).is_some_and(|agent| agent.removed);
        let mut answers = Vec::with_capacity(asked.len());
        for Asked { sequence, leases } in asked {
            let (held, refused): (Vec<Lease>, Vec<Lease>) =
                leases.into_iter().partition(|lease| is_held_by(&state, *lease, self.agent));
            // One that was chosen for expiry meanwhile is left out, and one whose expiry was
            // applied since the state was read.
            let held = if removed { Vec::new() } else { held };
            let mut renewed = self.parts.leases.renew(&held);
            let now = self.parts.replica.view();
            renewed.retain(|lease| now.leased_job(*lease).is_some());
            answers.push(v1::Renewed {
                sequence,
                leases: renewed.into_iter().map(convert::wire_lease).collect(),
                refused: refused.into_iter().map(convert::wire_lease).collect(),
            });
        }
        self.known.retain(|lease| state.leased_job(*lease).is_some());
        drop(state);
        for answer in answers {
            self.tell(ToAgent::Renewed(answer)).await?;
        }
        Ok(())
    }

    async fn pass_on(&mut self, notice: Notice) -> Result<(), End> {
        match notice {
            Notice::Offer(lease) => self.offer(lease).await,
            Notice::Revoke(lease) => {
                let leases = vec![convert::wire_lease(lease)];
                self.tell(ToAgent::Revoke(v1::Revoke { leases })).await
            }
            Notice::Cancel(lease) => self.pass_on_cancel(lease).await,
            Notice::Empty => {
                let state = self.parts.replica.view();
                let empty = state.agent(self.agent).and_then(|agent| fleet::empty(agent, now()));
                self.tell(ToAgent::Empty(empty.unwrap_or_default())).await
            }
        }
    }

    /// Unless the agent knows of it.
    async fn offer(&mut self, lease: Lease) -> Result<(), End> {
        if !self.known.insert(lease) {
            return Ok(());
        }
        let offers = self.parts.offers.clone();
        let mut making: Making = Box::pin(async move { (lease, offers.offer(lease).await) });
        // From memory, mostly.
        if let Some((lease, offered)) = (&mut making).now_or_never() {
            return self.offered(lease, offered).await;
        }
        self.making.push(making);
        Ok(())
    }

    async fn offered(&mut self, lease: Lease, offered: Offered) -> Result<(), End> {
        let state = self.parts.replica.view();
        if !is_held_by(&state, lease, self.agent) {
            return Ok(());
        }
        match offered {
            Offered::Ready(offer) => self.tell(ToAgent::Offer(offer)).await?,
            Offered::Nothing => return Ok(()),
            Offered::NotNow => {
                self.session.rest();
                give_back(self.parts, lease).await;
                return Ok(());
            }
        }
        // What was said of it before, the agent did not know what to do with.
        if state.is_cancelling(lease) {
            return self.pass_on_cancel(lease).await;
        }
        Ok(())
    }

    async fn pass_on_cancel(&mut self, lease: Lease) -> Result<(), End> {
        let lease = Some(convert::wire_lease(lease));
        self.tell(ToAgent::Cancel(v1::Cancel { lease })).await
    }

    async fn tell(&mut self, message: ToAgent) -> Result<(), End> {
        let message = v1::CoordinatorMessage { message: Some(message) };
        self.sender.send(Ok(message)).await.map_err(|_| End::Gone)
    }
}

/// Puts the job back into the queue.
async fn give_back(parts: &Parts, lease: Lease) {
    // Nothing was started, so that the class counts for nothing.
    let (class, started) = (FailureClass::Preempted, false);
    match parts.replica.propose(Proposal::ReleaseLease { lease, class, started }).await {
        Ok(_) => parts.leases.ended(lease),
        // It expires by itself.
        Err(error) => tracing::debug!(%error, "a lease was not given back"),
    }
}

/// The end of the wave under way; never, where there is none.
async fn passed(
    wave: &mut Option<(Barrier, Vec<Asked>)>,
) -> (Result<(), ProposeError>, Vec<Asked>) {
    let Some((barrier, _)) = wave else {
        return std::future::pending().await;
    };
    let passed = barrier.await;
    let asked = wave.take().map(|(_, asked)| asked);
    (passed, asked.unwrap_or_default())
}

/// Whether it is the agent that the one who says hello takes itself for.
fn is_named(agent: &Agent, name: &str) -> bool {
    name.is_empty() || agent.definition.name == name
}

/// The incarnation is not the agent's current one. Where another process registered under
/// the same name, this one is to end: registering again would take the name back, and
/// end what runs there.
fn not_current(agent: &Agent, name: &str) -> Status {
    if agent.definition.name == name { displaced(name) } else { unknown_agent() }
}

/// Another process registered under the name.
pub(super) fn displaced(name: &str) -> Status {
    Status::already_exists(format!("another agent registered as `{name}`: leave"))
}

fn unknown_agent() -> Status {
    Status::failed_precondition(
        "the incarnation is not the agent's current one: stop everything and register",
    )
}

fn is_held_by(state: &State, lease: Lease, agent: AgentId) -> bool {
    let holder = state.leased_job(lease).map(|job| &job.status);
    matches!(holder, Some(JobStatus::Leased { agent: holder, .. }) if *holder == agent)
}

/// By this machine's clock, which is near the one that stamps proposals.
fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::from_ms(since.map_or(0, |since| since.as_millis() as u64))
}

fn is_cancelling(job: &Job) -> bool {
    matches!(job.status, JobStatus::Leased { cancelling: true, .. })
}
