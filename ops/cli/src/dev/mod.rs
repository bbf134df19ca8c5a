//! `stead dev`: a farm of several coordinators and agents on this machine, each a
//! process of its own, for trying out and for killing.

mod child;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use nix::fcntl::Flock;
use steading_proto::v1;
use steading_proto::v1::cluster_client::ClusterClient;
use steading_proto::v1::cluster_member::Role;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connect::failure;
use crate::context::{self, Context};
use crate::exit::{Ended, Failure};
use crate::follow::quoted;
use crate::local;
use crate::out;
use crate::signals::Signals;
use crate::text::count;
use child::{Child, Start};

/// Where each coordinator listens, in the farm's folder.
const ADDRESSES: &str = "addresses.json";

/// Of the farm's folder.
const DIR_MODE: u32 = 0o711;

/// An address that the system chooses.
const ANY_ADDRESS: &str = "127.0.0.1:0";

/// Lines about parts that wait to be printed.
const SAID_MAX: usize = 64;

/// How long the coordinators may take to become one group.
const GROUP_MAX: Duration = Duration::from_secs(60);

/// Between two looks at the group that comes about.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Before a part that ended is started again: the first time, and at most.
const RESTART_MIN: Duration = Duration::from_millis(200);
const RESTART_MAX: Duration = Duration::from_secs(5);

/// A part that ran for so long is not one that ends at every start.
const RAN_WELL: Duration = Duration::from_secs(10);

/// How long an agent may take to stop, which ends its jobs, and a coordinator.
const AGENT_STOP_MAX: Duration = Duration::from_secs(20);
const COORDINATOR_STOP_MAX: Duration = Duration::from_secs(15);

/// A farm of several processes.
#[derive(clap::Args, Debug)]
pub struct Dev {
    /// Coordinators; an odd number of them decides together
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=7))]
    pub coordinators: u32,
    /// Agents
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub agents: u32,
    /// Jobs that each agent runs at once [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub slots: Option<u32>,
    /// Where everything is kept; a farm that was there before goes on
    #[arg(long, value_name = "DIR", default_value = ".steading/dev")]
    pub dir: PathBuf,
}

/// The farm's folder, and what its parts are started with.
#[derive(Debug)]
struct Farm {
    dir: PathBuf,
    program: String,
    coordinators: u32,
    agents: u32,
    slots: Option<u32>,
    /// Where each coordinator listens, by its name: members find each other there.
    addresses: BTreeMap<String, String>,
    /// Nobody else uses the folder.
    _lock: Flock<File>,
}

/// The parts that run, each in the hands of a task that starts it again.
#[derive(Debug)]
struct Running {
    agents: JoinSet<()>,
    stop_agents: CancellationToken,
    coordinators: JoinSet<()>,
    stop_coordinators: CancellationToken,
    say: mpsc::Sender<String>,
}

/// Starts the farm, and keeps it until it is told to stop.
///
/// # Errors
///
/// [`Failure`] where it does not come about, or its folder cannot be used.
pub async fn run(args: Dev) -> Result<Ended, Failure> {
    let mut signals = Signals::catch().map_err(anyhow::Error::from)?;
    let mut farm = Farm::new(&args)?;
    let (say, mut said) = mpsc::channel(SAID_MAX);
    let mut running = Running::new(say);
    let served = tokio::select! {
        started = farm.start(&mut running) => started,
        () = signals.next() => Ok(()),
    };
    let told = match &served {
        Ok(()) if !running.agents.is_empty() => farm.tell().map(|()| true),
        Ok(()) | Err(_) => Ok(false),
    };
    let served = served.and(told);
    while let Ok(true) = served {
        tokio::select! {
            () = signals.next() => break,
            Some(line) = said.recv() => out::line(line)?,
        }
    }
    tokio::select! {
        () = running.stop() => (),
        () = signals.next() => return Ok(Ended::Interrupted),
    }
    while let Ok(line) = said.try_recv() {
        out::line(line)?;
    }
    served.map(|_| Ended::Success)
}

impl Farm {
    fn new(args: &Dev) -> Result<Self, Failure> {
        let dir = std::path::absolute(&args.dir).map_err(anyhow::Error::from)?;
        let made = local::make_state(&dir).with_context(|| format!("make `{}`", dir.display()));
        made?;
        // Jobs that run as users of their own pass through it; the parts keep theirs private.
        let open = std::fs::Permissions::from_mode(DIR_MODE);
        std::fs::set_permissions(&dir, open).map_err(anyhow::Error::from)?;
        let lock = local::lock(&dir)?;
        let program = local::program()?.remove(0);
        let addresses = match std::fs::read(dir.join(ADDRESSES)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("read `{}`", dir.join(ADDRESSES).display()))?,
            Err(_) => BTreeMap::new(),
        };
        let Dev { coordinators, agents, slots, .. } = *args;
        Ok(Self { dir, program, coordinators, agents, slots, addresses, _lock: lock })
    }

    async fn start(&mut self, running: &mut Running) -> Result<(), Failure> {
        for number in 1..=self.coordinators {
            self.start_coordinator(number, running).await?;
        }
        self.write_context()?;
        self.wait_for_group().await?;
        for number in 1..=self.agents {
            let start = self.agent(number);
            let child = start.start()?;
            running.keep_agent(start, child);
        }
        Ok(())
    }

    async fn start_coordinator(
        &mut self,
        number: u32,
        running: &mut Running,
    ) -> Result<(), Failure> {
        let name = format!("coordinator-{number}");
        let mut child = self.coordinator(number).start()?;
        let at = child
            .listening(1)
            .await
            .with_context(|| format!("see `{}`", self.log(&name).display()))?;
        if let Some(address) = at.into_iter().next() {
            out::line(format_args!("{name} listens on {address}"))?;
            self.addresses.insert(name, address);
        }
        let text = serde_json::to_vec_pretty(&self.addresses).map_err(anyhow::Error::from)?;
        std::fs::write(self.dir.join(ADDRESSES), text).map_err(anyhow::Error::from)?;
        // With the address that it has now: it is started again there.
        running.keep_coordinator(self.coordinator(number), child);
        Ok(())
    }

    /// Who has an address listens there again; who has none is given one by the system.
    fn coordinator(&self, number: u32) -> Start {
        let name = format!("coordinator-{number}");
        let address = self.addresses.get(&name).map_or(ANY_ADDRESS, String::as_str);
        let mut arguments = vec![
            "coordinator".to_owned(),
            "--data-dir".to_owned(),
            self.path(&name),
            "--listen".to_owned(),
            address.to_owned(),
            "--insecure-loopback".to_owned(),
            "--object-store".to_owned(),
            self.path("origin"),
        ];
        if number > 1 {
            arguments.extend(["--join".to_owned(), self.endpoints(&name)]);
        }
        self.part(name, arguments)
    }

    fn agent(&self, number: u32) -> Start {
        let name = format!("agent-{number}");
        let mut arguments = vec![
            "agent".to_owned(),
            "--coordinator".to_owned(),
            self.endpoints(""),
            "--data-dir".to_owned(),
            self.path(&name),
            "--name".to_owned(),
            name.clone(),
        ];
        if let Some(slots) = self.slots {
            arguments.extend(["--slots".to_owned(), slots.to_string()]);
        }
        self.part(name, arguments)
    }

    fn part(&self, name: String, arguments: Vec<String>) -> Start {
        let log = self.log(&name);
        Start { name, program: self.program.clone(), arguments, log }
    }

    /// Of all coordinators but this one, separated by commas.
    fn endpoints(&self, but: &str) -> String {
        let others = self.addresses.iter().filter(|(name, _)| *name != but);
        others.map(|(_, address)| address.as_str()).collect::<Vec<_>>().join(",")
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn context(&self) -> PathBuf {
        self.dir.join("context.json")
    }

    fn write_context(&self) -> Result<(), Failure> {
        let coordinators = self.addresses.values().cloned().collect();
        let context = Context { coordinators, identity: None };
        let text = serde_json::to_vec_pretty(&context).map_err(anyhow::Error::from)?;
        let written = std::fs::write(self.context(), text);
        Ok(written.with_context(|| format!("write `{}`", self.context().display()))?)
    }

    /// Until every coordinator votes, or as many as make an odd number.
    async fn wait_for_group(&self) -> Result<(), Failure> {
        let wanted = (self.coordinators - 1) / 2 * 2 + 1;
        let named = context::load(&self.context())?;
        let mut cluster = ClusterClient::new(named.channel());
        let deadline = Instant::now() + GROUP_MAX;
        loop {
            let status = cluster.get_cluster_status(v1::GetClusterStatusRequest {}).await;
            let status = match status {
                Ok(status) => {
                    let members = status.into_inner().members;
                    let voters =
                        members.iter().filter(|member| member.role() == Role::Voter).count();
                    if voters >= wanted as usize {
                        return Ok(());
                    }
                    tonic::Status::unavailable(format!("{voters} of {wanted} coordinators vote"))
                }
                Err(status) => status,
            };
            if Instant::now() > deadline {
                return Err(failure("make the coordinators one group", status));
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    /// What to do with the farm.
    fn tell(&self) -> Result<(), Failure> {
        let context = quoted(&self.context().to_string_lossy());
        out::line(format_args!(
            "{} and {} run in {}; ctrl-c stops them, and who is killed starts again",
            count(u64::from(self.coordinators), "coordinator"),
            count(u64::from(self.agents), "agent"),
            self.dir.display()
        ))?;
        out::line(format_args!("stead submit --wait --context {context} ops/examples/c-program"))
    }
}

impl Running {
    fn new(say: mpsc::Sender<String>) -> Self {
        Self {
            agents: JoinSet::new(),
            stop_agents: CancellationToken::new(),
            coordinators: JoinSet::new(),
            stop_coordinators: CancellationToken::new(),
            say,
        }
    }

    fn keep_agent(&mut self, start: Start, child: Child) {
        let stop = self.stop_agents.clone();
        self.agents.spawn(keep(start, child, AGENT_STOP_MAX, self.say.clone(), stop));
    }

    fn keep_coordinator(&mut self, start: Start, child: Child) {
        let stop = self.stop_coordinators.clone();
        self.coordinators.spawn(keep(start, child, COORDINATOR_STOP_MAX, self.say.clone(), stop));
    }

    /// Agents first: they give back what they hold.
    async fn stop(&mut self) {
        self.stop_agents.cancel();
        while self.agents.join_next().await.is_some() {}
        self.stop_coordinators.cancel();
        while self.coordinators.join_next().await.is_some() {}
    }
}

/// Keeps a part running until `stop`.
async fn keep(
    start: Start,
    mut child: Child,
    patience: Duration,
    say: mpsc::Sender<String>,
    stop: CancellationToken,
) {
    let name = &start.name;
    let mut pause = RESTART_MIN;
    loop {
        let began = Instant::now();
        let ended = tokio::select! {
            () = stop.cancelled() => {
                if !child.stop(patience).await {
                    // Nobody reads any more: fine, here as below.
                    let _ = say.try_send(format!("{name} did not stop, and was killed"));
                }
                return;
            }
            ended = child.ended() => ended,
        };
        let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
        let _ = say.try_send(format!("{name} ended ({how}), and starts again"));
        if began.elapsed() > RAN_WELL {
            pause = RESTART_MIN;
        }
        child = loop {
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(RESTART_MAX);
            match start.start() {
                Ok(child) => break child,
                Err(error) => {
                    let _ = say.try_send(format!("{name} does not start: {error:#}"));
                }
            }
        };
    }
}
