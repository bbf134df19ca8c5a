//! A whole farm in this process: the coordinator, and an agent if jobs are to run,
//! talking over memory with the services that a fleet uses.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use steading_cas::{Blobs, Store};
use steading_coordinator::Coordinator;
use steading_model::Resources;
use tokio::io::DuplexStream;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Uri};

use crate::connect::no_address;
use crate::exit::Failure;

/// Where `stead run` keeps its state, in the source.
pub const STATE: &str = ".steading/state";

/// Bytes in flight in each direction of a connection in memory. Large enough for the
/// biggest batch of blobs' frames to pass without a switch for each.
const DUPLEX_BYTES: usize = 256 << 10;

/// Connections in memory that wait to be accepted.
const CONNECTIONS_MAX: usize = 8;

/// Segments of the log of a farm of one: it holds a few thousand runs, and is made
/// and zeroed on a person's disk at the first run.
const SEGMENT_BYTES: u64 = 4 << 20;

/// Ended runs that `stead run` still knows: every start loads them.
const FINISHED_RUNS_KEPT: usize = 100;

/// Blobs that a farm of one keeps.
const STORE_BYTES_MAX: u64 = 10 << 30;

/// The one agent of a farm of one, and its pool.
const AGENT_NAME: &str = "local";

/// Leases that the one agent holds ahead for each slot: while short jobs run, the ends
/// of those before and the starts of those after are committed several at a time.
const LEASES_AHEAD_PER_SLOT: u32 = 3;

/// What a host is taken to have that does not say, MiB.
const MEMORY_MIB_UNKNOWN: u32 = 1024;

/// Longest process id in a lock file, bytes.
const PID_BYTES_MAX: u64 = 20;

/// How long the parts may take to stop.
const STOP_MAX: Duration = Duration::from_secs(10);

/// The agent of a farm of one.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub slots: u32,
    pub labels: Vec<String>,
}

/// A coordinator in this process, with or without an agent.
#[derive(Debug)]
pub struct Farm {
    coordinator: Arc<Coordinator>,
    serving: JoinSet<anyhow::Result<()>>,
    stop_serving: CancellationToken,
    agent: JoinSet<anyhow::Result<()>>,
    stop_agent: CancellationToken,
    connect: mpsc::Sender<std::io::Result<DuplexStream>>,
    data_dir: PathBuf,
    /// Held until everything has stopped.
    _lock: Flock<File>,
}

impl Farm {
    /// Starts the coordinator on the state in `data_dir`, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// What keeps it from starting: above all, that another process uses the state.
    pub async fn start(data_dir: &Path) -> Result<Self, Failure> {
        // Jobs are told of it, and run elsewhere.
        let data_dir = &std::path::absolute(data_dir).map_err(anyhow::Error::from)?;
        make_state(data_dir)
            .with_context(|| format!("cannot make the state in `{}`", data_dir.display()))?;
        let lock = lock(data_dir)?;
        let mut config = steading_coordinator::Config::new(data_dir.join("coordinator"));
        config.segment_bytes = SEGMENT_BYTES;
        config.store_bytes_max = STORE_BYTES_MAX;
        config.sources_are_local = true;
        config.finished_runs_kept = FINISHED_RUNS_KEPT;
        // A person's own disk: its owner knows how full it may be.
        (config.disk_low_bytes, config.ballast_bytes) = (Some(0), 0);
        let coordinator = Arc::new(Coordinator::start(config).await?);
        let stop_serving = CancellationToken::new();
        let (connect, accept) = mpsc::channel(CONNECTIONS_MAX);
        let mut serving = JoinSet::new();
        let (server, stop) = (coordinator.clone(), stop_serving.clone().cancelled_owned());
        serving.spawn(async move { server.serve(ReceiverStream::new(accept), stop).await });
        Ok(Self {
            coordinator,
            serving,
            stop_serving,
            agent: JoinSet::new(),
            stop_agent: CancellationToken::new(),
            connect,
            data_dir: data_dir.to_owned(),
            _lock: lock,
        })
    }

    /// A connection over memory.
    pub fn channel(&self) -> Channel {
        let connect = self.connect.clone();
        no_address().connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let connect = connect.clone();
            async move {
                let (here, there) = tokio::io::duplex(DUPLEX_BYTES);
                let gone = |_| std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
                connect.send(Ok(there)).await.map_err(gone)?;
                Ok::<_, std::io::Error>(TokioIo::new(here))
            }
        }))
    }

    /// The coordinator's own store: nothing is copied to reach it.
    pub fn store(&self) -> Store {
        self.coordinator.store()
    }

    pub fn blobs(&self) -> Blobs {
        Blobs::Local(self.store())
    }

    /// Starts the agent, which registers by itself.
    ///
    /// # Errors
    ///
    /// This program's own path cannot be found out.
    pub fn start_agent(&mut self, options: AgentOptions) -> Result<(), Failure> {
        let config = steading_agent::Config {
            name: AGENT_NAME.to_owned(),
            pool: AGENT_NAME.to_owned(),
            spot: false,
            labels: options.labels,
            slots: options.slots,
            limits: None,
            leases_ahead: options.slots.saturating_mul(LEASES_AHEAD_PER_SLOT),
            data_dir: self.data_dir.join("agent"),
            blobs: steading_agent::BlobsSetting::Shared(self.store()),
            user: steading_agent::RunAs::SelfUser,
            properties: Default::default(),
            preemption: Default::default(),
            leave_window_ms: steading_agent::LEAVE_WINDOW_MS_DEFAULT,
            program: program()?,
            resources: resources(),
        };
        let cluster = steading_agent::Cluster::single(self.channel());
        let stop = self.stop_agent.clone();
        self.agent.spawn(async move { steading_agent::run(config, cluster, stop).await });
        Ok(())
    }

    /// Lets other processes of this user read logs and cancel while the run goes on.
    /// Where that cannot be, as in a folder with a very long path, they have to wait.
    pub fn listen(&mut self) {
        let path = socket(&self.data_dir);
        // What a killed process left; the lock says that it is nobody's.
        let _ = std::fs::remove_file(&path);
        match UnixListener::bind(&path) {
            Ok(listener) => {
                let server = self.coordinator.clone();
                let stop = self.stop_serving.clone().cancelled_owned();
                let incoming = UnixListenerStream::new(listener);
                self.serving.spawn(async move { server.serve(incoming, stop).await });
            }
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "cannot listen on a socket");
            }
        }
    }

    /// Resolves when the agent has ended by itself, which it should not.
    pub async fn agent_ended(&mut self) -> anyhow::Error {
        match self.agent.join_next().await {
            None => std::future::pending().await,
            Some(Ok(Ok(()))) => anyhow::anyhow!("the agent ended by itself"),
            Some(Ok(Err(error))) => error.context("the agent failed"),
            Some(Err(error)) => anyhow::Error::from(error).context("the agent failed"),
        }
    }

    /// Stops the agent, the listeners and the coordinator, in this order.
    ///
    /// # Errors
    ///
    /// What a part says that could not stop well, or in time.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let stop = async {
            self.stop_agent.cancel();
            let agent = join(&mut self.agent).await;
            self.stop_serving.cancel();
            let serving = join(&mut self.serving).await;
            // Best effort: the next one to listen removes it, too.
            let _ = std::fs::remove_file(socket(&self.data_dir));
            let coordinator = match Arc::try_unwrap(self.coordinator) {
                Ok(coordinator) => coordinator.stop().await,
                Err(_) => Err(anyhow::anyhow!("a listener still holds the coordinator")),
            };
            agent.and(serving).and(coordinator)
        };
        tokio::time::timeout(STOP_MAX, stop).await.context("stop within ten seconds")?
    }
}

/// How this program starts itself again for its hidden sub-commands.
///
/// # Errors
///
/// Its own path cannot be found out, or is no text.
pub fn program() -> anyhow::Result<Vec<String>> {
    let path = std::env::current_exe().context("find this program's own path")?;
    let path = path.into_os_string().into_string();
    Ok(vec![path.map_err(|path| anyhow::anyhow!("the path {path:?} of this program is no text"))?])
}

/// What this host has for jobs.
pub fn resources() -> Resources {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_mib = memory_mib(&meminfo).unwrap_or(MEMORY_MIB_UNKNOWN);
    Resources { cpu_milli: crate::run::cores().saturating_mul(1000), memory_mib }
}

fn memory_mib(meminfo: &str) -> Option<u32> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    u32::try_from(kib / 1024).ok()
}

/// The socket of a farm of one, while it runs.
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("socket")
}

async fn join(set: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    while let Some(ended) = set.join_next().await {
        outcome = outcome.and(ended.map_err(anyhow::Error::from).and_then(|ended| ended));
    }
    outcome
}

/// The folder, for this user only, and ignored by git whatever the project's own
/// `.gitignore` says. Those above it are as open as any: others may have something there.
pub fn make_state(data_dir: &Path) -> std::io::Result<()> {
    if let Some(above) = data_dir.parent() {
        std::fs::create_dir_all(above)?;
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    let ignore = data_dir.join(".gitignore");
    if !ignore.exists() {
        std::fs::write(ignore, "*\n")?;
    }
    Ok(())
}

/// Takes the state for this process. The lock ends with the process, however it ends.
pub fn lock(data_dir: &Path) -> Result<Flock<File>, Failure> {
    let path = data_dir.join("LOCK");
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open `{}`", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let write = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
            write.with_context(|| format!("cannot write `{}`", path.display()))?;
            Ok(lock)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            // Who it is helps; that it is someone is known without.
            let _ = Read::by_ref(&mut file).take(PID_BYTES_MAX).read_to_string(&mut holder);
            Err(Failure::Farm(anyhow::anyhow!(
                "the state in `{}` is in use by process {}\n  \
                 hint: wait until it ends, or give another --data-dir",
                data_dir.display(),
                if holder.is_empty() { "?" } else { holder.trim() },
            )))
        }
        Err((_, errno)) => Err(Failure::Farm(
            anyhow::Error::from(errno).context(format!("lock `{}`", path.display())),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_host_says_how_much_memory_it_has() {
        assert_eq!(memory_mib("MemTotal:       24606712 kB\nMemFree: 1 kB\n"), Some(24_029));
        assert_eq!(memory_mib("MemTotal: much\n"), None);
    }

    #[test]
    fn the_state_is_ignored_by_git_and_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        make_state(&state).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        std::fs::create_dir(dir.path().join("other")).unwrap();
        assert_eq!(mode(&state), 0o700, "of this user alone");
        assert_eq!(mode(&dir.path().join("a")), mode(&dir.path().join("other")));
        assert_eq!(std::fs::read_to_string(state.join(".gitignore")).unwrap(), "*\n");
        let first = lock(&state).unwrap();
        let second = lock(&state).unwrap_err().to_string();
        assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
        drop(first);
        lock(&state).unwrap();
    }
}
