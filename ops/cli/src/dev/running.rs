//! The parts of the farm that run, each in the hands of a task that starts it again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use steading_proto::tls::{self, Identity};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::child::{Child, Start};
use super::entry::{Admission, Entry};

/// Between two looks at whether a certificate is due or over: a machine that slept for
/// days missed every renewal.
const CERTIFICATE_PERIOD: Duration = Duration::from_secs(60);

/// Before a part that ended is started again: the first time, and at most.
const RESTART_MIN: Duration = Duration::from_millis(200);
const RESTART_MAX: Duration = Duration::from_secs(5);

/// A part that ran for so long is not one that ends at every start.
const RAN_WELL: Duration = Duration::from_secs(10);

/// How long an agent may take to stop, which ends its jobs, and a coordinator.
const AGENT_STOP_MAX: Duration = Duration::from_secs(20);
const COORDINATOR_STOP_MAX: Duration = Duration::from_secs(15);

/// A part, and what it is let in by.
#[derive(Debug)]
pub struct Part {
    pub start: Start,
    pub admission: Admission,
    pub entry: Entry,
}

/// The parts that run, each in the hands of a task that starts it again.
#[derive(Debug)]
pub struct Running {
    /// Renews the user's certificate.
    user: JoinSet<()>,
    agents: JoinSet<()>,
    stop_agents: CancellationToken,
    coordinators: JoinSet<()>,
    stop_coordinators: CancellationToken,
    say: mpsc::Sender<String>,
}

impl Running {
    /// Nothing runs yet; what happens to parts is said to `say`.
    pub fn new(say: mpsc::Sender<String>) -> Self {
        Self {
            user: JoinSet::new(),
            agents: JoinSet::new(),
            stop_agents: CancellationToken::new(),
            coordinators: JoinSet::new(),
            stop_coordinators: CancellationToken::new(),
            say,
        }
    }

    pub fn keep_user(&mut self, entry: Entry, identity: Arc<Identity>, at: Vec<String>) {
        self.user.spawn(keep_user(entry, identity, at, self.say.clone()));
    }

    pub fn keep_agent(&mut self, part: Part, child: Child) {
        let stop = self.stop_agents.clone();
        self.agents.spawn(keep(part, child, AGENT_STOP_MAX, self.say.clone(), stop));
    }

    pub fn keep_coordinator(&mut self, part: Part, child: Child) {
        let stop = self.stop_coordinators.clone();
        self.coordinators.spawn(keep(part, child, COORDINATOR_STOP_MAX, self.say.clone(), stop));
    }

    /// Agents first: they give back what they hold.
    pub async fn stop(&mut self) {
        self.user.shutdown().await;
        self.stop_agents.cancel();
        while self.agents.join_next().await.is_some() {}
        self.stop_coordinators.cancel();
        while self.coordinators.join_next().await.is_some() {}
    }
}

impl Part {
    /// Starts it, with a token if it needs one.
    ///
    /// # Errors
    ///
    /// No token is to be had, or the system refuses.
    pub async fn start(&self) -> anyhow::Result<Child> {
        let token = self.entry.token_for(&self.admission).await;
        let token = token.with_context(|| format!("let {} in", self.start.name))?;
        self.start.start(token.as_deref())
    }
}

/// Renews the user's certificate whenever it is due: also where that is too late for a
/// renewal as others do it, for it comes by a token again.
async fn keep_user(
    entry: Entry,
    identity: Arc<Identity>,
    at: Vec<String>,
    say: mpsc::Sender<String>,
) {
    loop {
        tokio::time::sleep(CERTIFICATE_PERIOD).await;
        // Whoever used it may have renewed it meanwhile.
        if identity.reload().is_ok() && !tls::is_due(&identity) {
            continue;
        }
        if let Err(error) = entry.admit_user(&at, identity.dir()).await {
            // Nobody reads any more: fine.
            let _ = say.try_send(format!("your certificate was not renewed: {error:#}"));
        }
    }
}

/// Keeps a part running until `stop`.
async fn keep(
    part: Part,
    mut child: Child,
    patience: Duration,
    say: mpsc::Sender<String>,
    stop: CancellationToken,
) {
    let name = &part.start.name;
    // Nobody reads any more: fine.
    let say = |line: String| drop(say.try_send(line));
    let mut pause = RESTART_MIN;
    loop {
        let began = Instant::now();
        tokio::select! {
            () = stop.cancelled() => {
                if !child.stop(patience).await {
                    say(format!("{name} did not stop, and was killed"));
                }
                return;
            }
            ended = child.ended() => {
                let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                say(format!("{name} ended ({how}), and starts again"));
            }
            () = certificate_over(&part.admission) => {
                say(format!("{name}'s certificate is over, and it starts again for a new one"));
                child.stop(patience).await;
            }
        }
        if began.elapsed() > RAN_WELL {
            pause = RESTART_MIN;
        }
        child = loop {
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(RESTART_MAX);
            let started = stop.run_until_cancelled(part.start()).await;
            match started {
                None => return,
                Some(Ok(child)) => break child,
                Some(Err(error)) => say(format!("{name} does not start: {error:#}")),
            }
        };
        say(format!("{name} runs again{}", pid(&child)));
    }
}

async fn certificate_over(admission: &Admission) {
    loop {
        tokio::time::sleep(CERTIFICATE_PERIOD).await;
        if admission.is_over() {
            return;
        }
    }
}

/// For people who want to signal it.
pub fn pid(child: &Child) -> String {
    child.pid().map(|pid| format!(", pid {pid}")).unwrap_or_default()
}
