//! `stead dev`: a farm of several coordinators and agents on this machine, each a
//! process of its own, for trying out and for killing.

mod child;
mod entry;
mod running;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use nix::fcntl::Flock;
use steading_coordinator::replica::is_member;
use steading_proto::v1;
use steading_proto::v1::cluster_client::ClusterClient;
use steading_proto::v1::cluster_member::Role;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::connect::failure;
use crate::context::{self, Context};
use crate::coordinator::ADMIN_SOCKET;
use crate::exit::{Ended, Failure};
use crate::follow::quoted;
use crate::local;
use crate::out;
use crate::signals::Signals;
use crate::text::count;
use child::Start;
use entry::{Admission, Entry};
use running::{Part, Running, pid};

/// Where each coordinator listens, in the farm's folder.
const ADDRESSES: &str = "addresses.json";

/// Of the farm's folder, and of folders above it that root makes for it.
const DIR_MODE: u32 = 0o711;

/// An address that the system chooses.
const ANY_ADDRESS: &str = "https://127.0.0.1:0";

/// The user's certificate, in the farm's folder.
const IDENTITY: &str = "identity";

/// Longest path of a socket, bytes: what the system has room for.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Lines about parts that wait to be printed.
const SAID_MAX: usize = 64;

/// How long the coordinators may take to become one group.
const GROUP_MAX: Duration = Duration::from_secs(60);

/// Between two looks at the group that comes about.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

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
    // Whether all of it runs: a signal that comes before that ends it, whatever runs already.
    let started = tokio::select! {
        started = farm.start(&mut running) => started.map(|()| true),
        () = signals.next() => Ok(false),
    };
    let served = match started {
        Ok(true) => farm.tell().map(|()| true),
        Ok(false) | Err(_) => started,
    };
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
        if nix::unistd::Uid::effective().is_root() {
            make_way(&dir)?;
        }
        let made = local::make_state(&dir).with_context(|| format!("make `{}`", dir.display()));
        made?;
        // Jobs that run as users of their own pass through it; the parts keep theirs private.
        let open = std::fs::Permissions::from_mode(DIR_MODE);
        std::fs::set_permissions(&dir, open).map_err(anyhow::Error::from)?;
        let lock = local::lock(&dir)?;
        let program = local::program()?.remove(0);
        let addresses: BTreeMap<String, String> = match std::fs::read(dir.join(ADDRESSES)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("read `{}`", dir.join(ADDRESSES).display()))?,
            Err(_) => BTreeMap::new(),
        };
        let Dev { coordinators, agents, slots, .. } = *args;
        let farm = Self { dir, program, coordinators, agents, slots, addresses, _lock: lock };
        farm.check()?;
        Ok(farm)
    }

    /// What would go wrong later, and not say why.
    fn check(&self) -> Result<(), Failure> {
        let dir = self.dir.display();
        let known = self.addresses.len();
        if self.coordinators as usize <= known / 2 {
            return Err(Failure::usage(format!(
                "the farm in `{dir}` has {known} coordinators, and {} of them cannot decide \
                 anything\n  hint: say --coordinators {known}, or another --dir",
                self.coordinators
            )));
        }
        let socket = self.socket(self.coordinators);
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(Failure::usage(format!(
                "`{}` is too long for the path of a socket\n  hint: say a shorter --dir",
                socket.display()
            )));
        }
        Ok(())
    }

    async fn start(&mut self, running: &mut Running) -> Result<(), Failure> {
        // Who belongs to the group already has to be there for those who join it.
        let mut numbers: Vec<u32> = (1..=self.coordinators).collect();
        numbers.sort_by_key(|number| !is_member(&self.data_dir(*number)));
        let founder = numbers.first().copied().filter(|first| !is_member(&self.data_dir(*first)));
        for number in numbers {
            self.start_coordinator(number, founder == Some(number), running).await?;
        }
        self.write_context()?;
        let (entry, at) = (self.entry(), self.addresses.values().cloned().collect::<Vec<_>>());
        let identity = entry.admit_user(&at, &self.dir.join(IDENTITY)).await?;
        running.keep_user(entry, identity, at);
        self.wait_for_group().await?;
        for number in 1..=self.agents {
            let part = self.agent(number);
            let child = part.start().await?;
            out::line(format_args!("{} runs{}", part.start.name, pid(&child)))?;
            running.keep_agent(part, child);
        }
        Ok(())
    }

    async fn start_coordinator(
        &mut self,
        number: u32,
        founds: bool,
        running: &mut Running,
    ) -> Result<(), Failure> {
        let name = coordinator_name(number);
        let mut child = self.coordinator(number, founds).start().await?;
        // The second one is the admin socket, from which tokens come.
        let at = child
            .listening(2)
            .await
            .with_context(|| format!("see `{}`", self.log(&name).display()))?;
        if let Some(address) = at.into_iter().next() {
            out::line(format_args!("{name} listens on {address}{}", pid(&child)))?;
            self.addresses.insert(name, address);
        }
        let text = serde_json::to_vec_pretty(&self.addresses).map_err(anyhow::Error::from)?;
        std::fs::write(self.dir.join(ADDRESSES), text).map_err(anyhow::Error::from)?;
        // With the address that it has now: it is started again there.
        running.keep_coordinator(self.coordinator(number, false), child);
        Ok(())
    }

    /// Who has an address listens there again; who has none is given one by the system.
    fn coordinator(&self, number: u32, founds: bool) -> Part {
        let name = coordinator_name(number);
        let data_dir = self.data_dir(number);
        let address = self.addresses.get(&name).map_or(ANY_ADDRESS, String::as_str);
        let mut arguments = vec![
            "coordinator".to_owned(),
            "--data-dir".to_owned(),
            self.path(&name),
            "--listen".to_owned(),
            address.to_owned(),
            "--object-store".to_owned(),
            self.path("origin"),
        ];
        let others = self.endpoints(&name);
        if !founds && !others.is_empty() {
            arguments.extend(["--join".to_owned(), others]);
        }
        let admission = match founds {
            true => Admission::Founder,
            false => Admission::Coordinator { data_dir },
        };
        self.part(name, arguments, admission)
    }

    fn agent(&self, number: u32) -> Part {
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
        let identity = self.dir.join(&name).join("identity");
        self.part(name.clone(), arguments, Admission::Agent { name, identity })
    }

    fn part(&self, name: String, arguments: Vec<String>, admission: Admission) -> Part {
        let log = self.log(&name);
        let start = Start { name, program: self.program.clone(), arguments, log };
        Part { start, admission, entry: self.entry() }
    }

    fn entry(&self) -> Entry {
        Entry::new((1..=self.coordinators).map(|number| self.socket(number)))
    }

    fn data_dir(&self, number: u32) -> PathBuf {
        self.dir.join(coordinator_name(number))
    }

    fn socket(&self, number: u32) -> PathBuf {
        self.data_dir(number).join(ADMIN_SOCKET)
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
        let context = Context { coordinators, identity: Some(IDENTITY.into()) };
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
        out::line("in a folder with a pipeline, submit it with")?;
        out::line(format_args!("stead submit --wait --context {context}"))
    }
}

/// Makes the folders above the farm's, and sees to it that others pass through all of them:
/// where this is root, agents run jobs as users of their own.
fn make_way(dir: &Path) -> Result<(), Failure> {
    let Some(above) = dir.parent() else { return Ok(()) };
    let failed = || format!("make the folders above `{}`", dir.display());
    let closed = steading_agent::closed_to_others(above).with_context(failed)?;
    if let Some(first) = closed.first() {
        return Err(Failure::usage(format!(
            "jobs run as users of their own, and `{}` does not let them pass to `{}`\n  \
             hint: say `{}`, or another --dir",
            first.display(),
            dir.display(),
            steading_agent::command_to_open(&closed)
        )));
    }
    let missing: Vec<&Path> = above.ancestors().take_while(|folder| !folder.exists()).collect();
    for folder in missing.into_iter().rev() {
        std::fs::create_dir(folder).with_context(failed)?;
        // Whatever the umask is.
        let open = std::fs::Permissions::from_mode(DIR_MODE);
        std::fs::set_permissions(folder, open).with_context(failed)?;
    }
    Ok(())
}

fn coordinator_name(number: u32) -> String {
    format!("coordinator-{number}")
}
