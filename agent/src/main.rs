//! `steading-agent`: runs jobs for a coordinator.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use steading_agent::limits;
use steading_agent::preemption::Preemption;
use steading_agent::uids::{self, Uids};
use steading_agent::{BlobsSetting, Cluster, Config, LEAVE_WINDOW_MS_DEFAULT, RunAs, dial};
use steading_model::Resources;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What the agent's store may take on disk unless told, GiB.
const STORE_GIB_DEFAULT: u64 = 20;

/// Runs jobs for a Steading coordinator.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where coordinators are: https://HOST:PORT, unix:/PATH, or http://127.0.0.1:PORT,
    /// separated by commas.
    #[arg(long, env = "STEADING_COORDINATOR", value_delimiter = ',', required = true)]
    coordinator: Vec<String>,
    /// A join token, for https. Needed once.
    #[arg(long, env = "STEADING_TOKEN", hide_env_values = true)]
    join: Option<String>,
    /// Allow plain text to a loopback address.
    #[arg(long)]
    insecure_loopback: bool,
    /// Unique in the cluster; the host's name unless given.
    #[arg(long)]
    name: Option<String>,
    #[arg(long, default_value = "default")]
    pool: String,
    /// This machine may be taken away.
    #[arg(long)]
    spot: bool,
    /// What `runs-on` may ask for; may be repeated.
    #[arg(long = "label")]
    labels: Vec<String>,
    /// Jobs to run at once; the number of processors unless given.
    #[arg(long)]
    slots: Option<u32>,
    /// Processes and threads that one job may have at once.
    #[arg(long, default_value_t = limits::PROCESSES_DEFAULT)]
    processes_per_job: u32,
    /// Where everything is kept.
    #[arg(long)]
    data_dir: PathBuf,
    /// Bound of the local store, GiB.
    #[arg(long, default_value_t = STORE_GIB_DEFAULT)]
    store_gib: u64,
    /// First user id of the jobs' users, one per slot; needs root, which has a free range
    /// from 70000 on unless given.
    #[arg(long, conflicts_with = "run_as_self")]
    uid_base: Option<u32>,
    /// When this file appears, the machine is about to go away.
    #[arg(long)]
    preemption_file: Option<PathBuf>,
    /// How long after TERM or a notice of preemption the machine is still there, milliseconds.
    #[arg(long, default_value_t = LEAVE_WINDOW_MS_DEFAULT)]
    leave_window_ms: u64,
    /// Run jobs as the agent's own user, to which all of the agent's state is open.
    #[arg(long)]
    run_as_self: bool,
}

fn main() -> ExitCode {
    if let Some(code) = steading_agent::hidden_main(std::env::args_os()) {
        return code;
    }
    steading_proto::tls::install_crypto_provider();
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steading-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let (endpoints, token) = (arguments.coordinator.clone(), arguments.join.clone());
    let insecure_loopback = arguments.insecure_loopback;
    let (leave, shutdown) = (CancellationToken::new(), CancellationToken::new());
    let (config, _uids) = config(arguments)?;
    let identity = steading_agent::identity(
        &config.data_dir.join("identity"),
        &config.name,
        &endpoints,
        token.as_deref(),
    )
    .await?;
    let cluster = Cluster::new(endpoints.clone(), dial(identity.clone(), insecure_loopback))?;
    let agent = steading_agent::run_until(config, cluster, leave.clone(), shutdown.clone());
    // Ends with this function.
    let mut keeping = JoinSet::new();
    keeping.spawn(steading_agent::keep_identity(identity, endpoints));
    tokio::pin!(agent);
    let mut terminate = signal(SignalKind::terminate())?;
    // TERM is how a machine's end is announced; a second signal, or a person's, has no time.
    tokio::select! {
        ended = &mut agent => return ended,
        _ = terminate.recv() => leave.cancel(),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            shutdown.cancel();
        }
    }
    tokio::select! {
        ended = &mut agent => return ended,
        _ = terminate.recv() => (),
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    shutdown.cancel();
    agent.await
}

fn config(arguments: Arguments) -> anyhow::Result<(Config, Option<Uids>)> {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    let name = match arguments.name {
        Some(name) => name,
        None => {
            let host = nix::unistd::gethostname().context("cannot read the host's name")?;
            host.to_string_lossy().into_owned()
        }
    };
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let root = nix::unistd::geteuid().is_root();
    let slots = arguments.slots.unwrap_or(processors).max(1);
    let take = |base| Uids::take(Path::new(uids::LOCKS), base, slots);
    let uids = match arguments.uid_base {
        Some(_) if !root => anyhow::bail!(
            "`--uid-base` needs root, which alone can run a job as another user: start the agent \
             as root, or leave it out"
        ),
        Some(base) => Some(take(Some(base))?),
        // Whoever starts the agent as root does not mean jobs to be root.
        None if root && !arguments.run_as_self => Some(take(None)?),
        None => None,
    };
    let user = match &uids {
        Some(uids) => RunAs::PerSlotUid { base: uids.base() },
        None => RunAs::SelfUser,
    };
    let config = Config {
        name,
        pool: arguments.pool,
        spot: arguments.spot,
        labels: arguments.labels,
        slots,
        leases_ahead: 0,
        limits: Some(limits::Setting { processes: arguments.processes_per_job }),
        resources: Resources { cpu_milli: processors * 1000, memory_mib: memory_mib() },
        data_dir: arguments.data_dir,
        blobs: BlobsSetting::Own { bytes_max: arguments.store_gib << 30 },
        user,
        properties: Default::default(),
        preemption: Preemption { file: arguments.preemption_file, gce: None },
        leave_window_ms: arguments.leave_window_ms,
        program: vec![program.to_string_lossy().into_owned()],
    };
    Ok((config, uids))
}

/// What the machine has; 0 where it does not say.
fn memory_mib() -> u32 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    (kib.unwrap_or(0) / 1024) as u32
}
