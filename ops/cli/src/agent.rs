//! `stead agent`: runs jobs for a coordinator.

use std::path::Path;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use steading_agent::limits;
use steading_agent::preemption::{Preemption, gce};
use steading_agent::uids::{self, Uids};
use steading_agent::{Cluster, dial};

use crate::args::{self, JobUser};
use crate::connect::Endpoint;
use crate::coordinator::check_token;
use crate::exit::{Ended, Failure};
use crate::local;
use crate::run::{cores, labels};
use crate::signals::Signals;

/// Blobs that the agent keeps.
const STORE_BYTES_MAX: u64 = 50 << 30;

/// Serves until it is told to stop. The first signal lets no more jobs in, and those end
/// that can within the window; the second one ends them now, the third one ends it at once.
///
/// # Errors
///
/// [`Failure`] where it cannot start, or its user may not do what `--user` asks for.
pub async fn run(args: args::Agent) -> Result<Ended, Failure> {
    let endpoints = Endpoint::read_all(&args.coordinator)?;
    let is_secure = endpoints.iter().any(|one| matches!(one, Endpoint::Tls(_)));
    if let Some(token) = args.join.as_deref().filter(|_| is_secure) {
        check_token(token)?;
    }
    let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let gce = args.gce.then_some(args.gce_metadata_host);
    let machine = match &gce {
        Some(host) => gce::machine(host).await,
        None => gce::Machine::default(),
    };
    let properties = [
        ("zone", args.zone.or(machine.zone)),
        ("machine_type", args.machine_type.or(machine.machine_type)),
        ("version", Some(env!("CARGO_PKG_VERSION").to_owned())),
    ];
    let properties =
        properties.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let name = match args.name {
        Some(name) => name,
        None => nix::unistd::gethostname()
            .context("read the host's name")?
            .to_string_lossy()
            .into_owned(),
    };
    let root = nix::unistd::Uid::effective().is_root();
    let slots = args.slots.unwrap_or_else(cores);
    // Held as long as jobs may run.
    let uids = match args.user.unwrap_or(if root { JobUser::PerSlot } else { JobUser::SelfUser }) {
        JobUser::SelfUser => None,
        JobUser::PerSlot if root => Some(Uids::take(Path::new(uids::LOCKS), None, slots)?),
        JobUser::PerSlot => {
            return Err(Failure::usage(
                "`--user per-slot` needs root, which alone can run a job as another user\n  \
                 hint: start the agent as root, or say --user self",
            ));
        }
    };
    let data_dir = std::path::absolute(args.data_dir).map_err(anyhow::Error::from)?;
    let dir = args.identity.unwrap_or_else(|| data_dir.join("identity"));
    let identity = steading_agent::identity(&dir, &name, &endpoints, args.join.as_deref()).await?;
    let dial = dial(identity.clone(), true);
    let cluster = Cluster::new(endpoints.clone(), dial).map_err(Failure::usage)?;
    // Ends with this function.
    let mut keeping = JoinSet::new();
    keeping.spawn(steading_agent::keep_identity(identity, endpoints));
    let user = match &uids {
        Some(uids) => steading_agent::RunAs::PerSlotUid { base: uids.base() },
        None => steading_agent::RunAs::SelfUser,
    };
    let config = steading_agent::Config {
        name,
        pool: args.pool,
        spot: args.spot || machine.spot,
        labels: labels(&args.labels),
        slots,
        leases_ahead: args.leases_ahead,
        limits: Some(limits::Setting { processes: args.processes_per_job }),
        data_dir,
        blobs: steading_agent::BlobsSetting::Own { bytes_max: STORE_BYTES_MAX },
        user,
        properties: properties.collect(),
        preemption: Preemption { file: args.preemption_file, gce },
        leave_window_ms: args.leave_window_ms,
        program: local::program()?,
        resources: local::resources(),
    };
    let mut signals = Signals::catch().map_err(anyhow::Error::from)?;
    let (leave, stop) = (CancellationToken::new(), CancellationToken::new());
    let serve = steading_agent::run_until(config, cluster, leave.clone(), stop.clone());
    tokio::pin!(serve);
    for step in [&leave, &stop] {
        tokio::select! {
            served = &mut serve => return served.map(|()| Ended::Success).map_err(Failure::from),
            () = signals.next() => step.cancel(),
        }
    }
    tokio::select! {
        served = serve => served?,
        () = signals.next() => return Ok(Ended::Interrupted),
    }
    Ok(Ended::Success)
}
