//! The agent itself: registers, holds a session, runs what it is offered.

mod attempt;
mod departure;
mod held;
mod home;
mod slots;
mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use steading_cas::client::Actions;
use steading_cas::{ActionCache, Blobs, RemoteBlobs, Store, StoreOptions};
use steading_proto::v1;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::agents::{Agents, Retry, is_transient};
use crate::blocking::blocking;
use crate::cached::platform::Platform;
use crate::cluster::Cluster;
use crate::config::{BlobsSetting, Config};
use crate::limits::Limits;
use crate::workspace::Workspace;
use departure::Departure;
use held::AllHeld;
use home::{Home, TRACKING_VARIABLE};
use slots::Slots;
use stream::session;

/// Progress reports that wait for the session.
const PROGRESS_MAX: usize = 1_024;

/// How long a leaving agent waits for its jobs' processes to end, milliseconds: the
/// grace between TERM and KILL, and time to say so.
const LEAVE_MS_MAX: u64 = 10_000;

/// PATH of steps that inherit none.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Prefixes of variables that speak of the agent or of another runner, and not of the
/// machine: steps do not inherit them.
const NOT_INHERITED: [&str; 4] = ["STEADING_", "GITHUB_", "RUNNER_", "ACTIONS_"];

/// One start of the agent, as the coordinator knows it.
#[derive(Clone, Copy, Debug)]
struct Identity {
    agent_id: u64,
    incarnation: u64,
}

/// What all parts of a running agent share.
#[derive(Debug)]
struct Agent {
    config: Config,
    home: Home,
    blobs: Blobs,
    actions: Actions,
    platform: Arc<Platform>,
    agents: Agents,
    held: AllHeld,
    slots: Slots,
    limits: Limits,
    progress: mpsc::Sender<(v1::Lease, v1::StepProgress)>,
    has_bash: bool,
    departure: Departure,
}

/// Runs an agent until `shutdown`, over whatever breaks in between.
///
/// Registers once everything that an earlier start left behind is gone. On `shutdown`
/// it stops what runs and gives it back.
///
/// # Errors
///
/// What no retry helps with: the data directory is in use or cannot be written, the
/// coordinator refuses the agent, or another one of its name took its place.
pub async fn run(
    config: Config,
    cluster: Cluster,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    Box::pin(run_until(config, cluster, CancellationToken::new(), shutdown)).await
}

/// As [`run`], until `leave`: then it gives back what it has not started, lets end what
/// ends within the window of its configuration, stops the rest, and ends.
///
/// # Errors
///
/// As [`run`].
pub async fn run_until(
    config: Config,
    cluster: Cluster,
    leave: CancellationToken,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let home = Home::take(&config).await?;
    let blobs = open_blobs(&config, &cluster).await?;
    let limits = take_limits(&config).await?;
    let (progress, mut reports) = mpsc::channel(PROGRESS_MAX);
    let agent = Arc::new(Agent {
        slots: Slots::new(config.slots.max(1)),
        has_bash: has_bash(),
        platform: Arc::new(Platform::new(config.data_dir.join("fingerprint"), inherited(&config))),
        actions: open_actions(&config, &cluster)?,
        agents: Agents::new(cluster.clone()),
        held: AllHeld::default(),
        limits,
        config,
        home,
        blobs,
        progress,
        departure: Departure::default(),
    });
    let mut attempts = JoinSet::new();
    // Ends with `shutdown`, or when the agent has departed.
    let stop = shutdown.child_token();
    let served = CancellationToken::new();
    let serve = async {
        let _ended = served.clone().drop_guard();
        let ended = agent.serve(&mut reports, &mut attempts, &stop).await;
        agent.leave(&mut attempts).await;
        ended
    };
    let depart = async {
        let notice = async {
            let notice = agent.config.preemption.noticed().await;
            tracing::warn!(notice, "the machine is about to go");
            leave.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = agent.depart(&leave, &stop) => (),
            () = notice => (),
        }
    };
    let depart = served.run_until_cancelled(depart);
    tokio::join!(serve, depart, cluster.keep_warm(served.clone())).0
}

impl Agent {
    async fn serve(
        self: &Arc<Self>,
        reports: &mut mpsc::Receiver<(v1::Lease, v1::StepProgress)>,
        attempts: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut retry = Retry::new(self.agents.cluster());
        let mut identity = None;
        while !shutdown.is_cancelled() {
            let known = match identity {
                Some(known) => known,
                None => {
                    let Some(registered) = shutdown.run_until_cancelled(self.register()).await
                    else {
                        return Ok(());
                    };
                    let registered = registered?;
                    self.departure.registered(registered);
                    *identity.insert(registered)
                }
            };
            let ended = Box::pin(session(self, known, reports, attempts, shutdown)).await;
            if ended.was_welcome {
                retry.reset();
            }
            match ended.with {
                Ok(()) => return Ok(()),
                Err(status) if status.code() == Code::FailedPrecondition => {
                    tracing::warn!(%status, "this incarnation is over: stopping everything");
                    self.stop_everything(attempts).await;
                    identity = None;
                }
                // To register again would end what the other one runs, and so on for ever.
                Err(status) if status.code() == Code::AlreadyExists => {
                    self.stop_everything(attempts).await;
                    return Err(self.displaced());
                }
                Err(status) => tracing::info!(%status, "session broke, connecting again"),
            }
            shutdown.run_until_cancelled(retry.wait()).await;
        }
        Ok(())
    }

    async fn register(&self) -> anyhow::Result<Identity> {
        let request = self.registration();
        let response = self
            .agents
            .call(|mut client| {
                let request = request.clone();
                async move { client.register(request).await }
            })
            .await
            .map_err(|status: Status| {
                debug_assert!(!is_transient(&status));
                match status.code() {
                    Code::AlreadyExists => self.displaced(),
                    _ => anyhow::anyhow!(
                        "the coordinator refuses agent `{}`: {}",
                        self.config.name,
                        status.message()
                    ),
                }
            })?;
        tracing::info!(
            agent_id = response.agent_id,
            incarnation = response.incarnation,
            "agent registered"
        );
        Ok(Identity { agent_id: response.agent_id, incarnation: response.incarnation })
    }

    fn displaced(&self) -> anyhow::Error {
        anyhow::anyhow!(
            "another agent registered as `{}` and took this one's place: give one of them another \
             name (`--name`); if there is no other one, start this one again",
            self.config.name
        )
    }

    fn registration(&self) -> v1::RegisterRequest {
        let config = &self.config;
        let mut labels = config.labels.clone();
        for own in ["self-hosted", "linux", &architecture().to_ascii_lowercase()] {
            if !labels.iter().any(|label| label.eq_ignore_ascii_case(own)) {
                labels.push(own.to_owned());
            }
        }
        v1::RegisterRequest {
            name: config.name.clone(),
            pool: config.pool.clone(),
            spot: config.spot,
            labels,
            slots: config.slots.max(1).saturating_add(config.leases_ahead),
            cpu_milli: config.resources.cpu_milli,
            memory_mib: config.resources.memory_mib,
            properties: config.properties.clone().into_iter().collect(),
            start: crate::backoff::random(),
        }
    }

    /// Kills everything and waits for it: the leases are no more.
    async fn stop_everything(&self, attempts: &mut JoinSet<()>) {
        for held in self.held.all() {
            held.refuse().await;
        }
        while attempts.join_next().await.is_some() {}
    }

    /// Stops what still runs, gives it back, and ends the supervisors.
    async fn leave(&self, attempts: &mut JoinSet<()>) {
        for held in self.held.all() {
            held.signals.stop.cancel();
        }
        let wait = async { while attempts.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_millis(LEAVE_MS_MAX), wait).await.is_err() {
            tracing::warn!("jobs do not end: their processes are killed");
            for held in self.held.all() {
                held.refuse().await;
            }
            attempts.shutdown().await;
        }
        self.slots.stop().await;
        self.limits.leave();
        self.home.leave();
    }

    /// What the environment of every step starts from.
    fn environment(&self, workspace: &Workspace, slot: u32) -> BTreeMap<String, String> {
        let mut environment = inherited(&self.config);
        if workspace.user().is_some() {
            let home = workspace.home().to_string_lossy().into_owned();
            environment.insert("HOME".to_owned(), home);
        }
        environment.insert(TRACKING_VARIABLE.to_owned(), self.home.tracking(slot));
        environment
    }

    /// The `runner` context.
    fn runner_context(&self, workspace: &Workspace) -> BTreeMap<String, String> {
        let temp = workspace.temp().to_string_lossy().into_owned();
        let tools = self.home.tool_cache().to_string_lossy().into_owned();
        let values = [
            ("name", self.config.name.clone()),
            ("os", "Linux".to_owned()),
            ("arch", architecture().to_owned()),
            ("temp", temp),
            ("tool_cache", tools),
            ("environment", "self-hosted".to_owned()),
        ];
        values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// What steps inherit of the agent's own environment: all that does not speak of the
/// agent, or, where they are somebody else, next to nothing.
fn inherited(config: &Config) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    if config.user.of_slot(0).is_none() {
        let all = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        environment.extend(
            all.filter(|(name, _)| !NOT_INHERITED.iter().any(|prefix| name.starts_with(prefix))),
        );
    } else {
        let given =
            [("LANG", "C.UTF-8"), ("SHELL", "/bin/sh"), ("USER", "runner"), ("LOGNAME", "runner")];
        environment.extend(given.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    environment.entry("PATH".to_owned()).or_insert_with(|| PATH_DEFAULT.to_owned());
    environment
}

async fn take_limits(config: &Config) -> anyhow::Result<Limits> {
    let (setting, slots) = (config.limits, config.slots.max(1));
    let (own_user, program) = (config.user.of_slot(0).is_none(), config.program.clone());
    Ok(blocking(move || Limits::take(setting, slots, own_user, &program)).await?)
}

fn open_actions(config: &Config, cluster: &Cluster) -> anyhow::Result<Actions> {
    match &config.blobs {
        // The coordinator's own, without the way over the wire.
        BlobsSetting::Shared(store) => {
            Ok(Actions::Local(ActionCache::open(store).context("cannot open the action cache")?))
        }
        BlobsSetting::Own { .. } => Ok(Actions::remote(cluster.any(number_of(config)))),
    }
}

async fn open_blobs(config: &Config, cluster: &Cluster) -> anyhow::Result<Blobs> {
    match &config.blobs {
        BlobsSetting::Shared(store) => Ok(Blobs::Local(store.clone())),
        BlobsSetting::Own { bytes_max } => {
            let (dir, bytes_max) = (config.data_dir.join("cas"), *bytes_max);
            // What the agent keeps can be had again, so nothing waits for the disk.
            let open = move || Store::open(&dir, StoreOptions { bytes_max, durable: false });
            let local = blocking(open).await?.context("cannot open the agent's store")?;
            let remote = RemoteBlobs::new(cluster.any(number_of(config)), String::new());
            Ok(Blobs::Tiered { local, remote })
        }
    }
}

/// By which an agent chooses a replica to ask for blobs: agents choose differently.
fn number_of(config: &Config) -> u64 {
    let hash = blake3::hash(config.name.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash is longer"))
}

/// In the workflow language's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "X64",
        "aarch64" => "ARM64",
        "arm" => "ARM",
        "x86" => "X86",
        other => other,
    }
}

fn has_bash() -> bool {
    let path = std::env::var("PATH").unwrap_or_else(|_| PATH_DEFAULT.to_owned());
    path.split(':').any(|folder| std::path::Path::new(folder).join("bash").is_file())
}
