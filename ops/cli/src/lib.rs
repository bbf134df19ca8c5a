//! `stead`: arguments, dispatch, exit code. A library only so that the process
//! tests can start the very same program under their own name.
#![allow(
    unreachable_pub,
    reason = "nothing of a program is reached from outside; `pub` means its module's API"
)]

mod agent;
mod args;
mod artifacts;
mod backup;
mod cancel;
mod cluster;
mod connect;
mod context;
mod coordinator;
mod coordinators;
mod dev;
mod diagnostics;
mod exit;
mod explain;
mod expr;
mod find;
mod fleet;
mod follow;
mod id;
mod lint;
mod local;
mod login;
mod logs;
mod out;
mod pairs;
mod reach;
mod retry;
mod run;
mod runs;
mod screen;
mod signals;
mod submission;
mod submit;
mod summary;
mod text;
mod token;
mod watch;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use steading_coordinator::Coordinator;
use steading_core::FEATURE_LEVEL;

use crate::args::{ArtifactsVerb, Cli, Verb};
use crate::exit::{Ended, Failure};

/// Threads that move bytes. What computes or waits for the disk has its own.
const RUNTIME_THREADS: usize = 2;

/// What a program made of this library is, besides what its arguments say. There is one
/// released; tests of upgrades have programs of the next version, too.
#[derive(Clone, Copy, Debug)]
pub struct Edition {
    /// The newest feature level that its coordinators know.
    pub feature_level: u32,
    /// Told of every coordinator that it started, and where its data is.
    pub started: fn(&Coordinator, &Path),
}

impl Edition {
    /// This version.
    pub const CURRENT: Self = Self { feature_level: FEATURE_LEVEL, started: |_, _| () };
}

/// Runs the program of this version.
pub fn main() -> ExitCode {
    main_of(Edition::CURRENT)
}

/// Runs the program: the hidden sub-commands of supervisor and sandbox, or a verb.
pub fn main_of(edition: Edition) -> ExitCode {
    // Before anything else: these must be the only thread of their process.
    if let Some(code) = steading_agent::hidden_main(std::env::args_os()) {
        return code;
    }
    // clap's own errors exit with 2, which is what bad usage is here.
    steading_proto::tls::install_crypto_provider();
    let cli = Cli::parse();
    start_tracing();
    exit::code(match cli.verb {
        Verb::Lint(args) => lint::run(&args),
        Verb::Expr(args) => expr::run(&args),
        verb => in_runtime(verb, edition),
    })
}

/// How long a coordinator that was told to stop may hold up the end.
const EXIT_MAX: Duration = Duration::from_secs(1);

fn in_runtime(verb: Verb, edition: Edition) -> Result<Ended, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)?;
    let serves = matches!(verb, Verb::Coordinator(_));
    let ended = runtime.block_on(async {
        // The futures are large, and a stack is not the place for them.
        match verb {
            Verb::Run(args) => Box::pin(run::run(args)).await,
            Verb::Coordinator(args) => Box::pin(coordinator::run(args, edition)).await,
            Verb::Agent(args) => match (args.verb, args.serve) {
                (Some(verb), _) => Box::pin(fleet::run(verb)).await,
                (None, Some(serve)) => Box::pin(agent::run(serve)).await,
                (None, None) => Err(Failure::usage("`stead agent` wants --data-dir")),
            },
            Verb::Agents(args) => Box::pin(fleet::list(args)).await,
            Verb::Submit(args) => Box::pin(submit::run(args)).await,
            Verb::Watch(args) => Box::pin(watch::run(args)).await,
            Verb::Logs(args) => Box::pin(logs::run(args)).await,
            Verb::Runs(args) => Box::pin(runs::run(args)).await,
            Verb::Cancel(args) => Box::pin(cancel::run(args)).await,
            Verb::Explain(args) => Box::pin(explain::run(args)).await,
            Verb::Retry(args) => Box::pin(retry::run(args)).await,
            Verb::Dev(args) => Box::pin(dev::run(args)).await,
            Verb::Cluster(args) => Box::pin(cluster::run(args)).await,
            Verb::Artifacts(args) => {
                let ArtifactsVerb::Get(args) = args.verb;
                Box::pin(artifacts::run(args)).await
            }
            Verb::Backup(args) => Box::pin(backup::take(args)).await,
            Verb::Restore(args) => Box::pin(backup::restore(args)).await,
            Verb::Recover(args) => Box::pin(backup::recover(args)).await,
            Verb::Token(args) => Box::pin(token::run(args)).await,
            Verb::Deny(args) => Box::pin(token::deny(args)).await,
            Verb::Allow(args) => Box::pin(token::allow(args)).await,
            Verb::Login(args) => Box::pin(login::run(args)).await,
            Verb::Lint(args) => lint::run(&args),
            Verb::Expr(args) => expr::run(&args),
        }
    });
    // What still runs has been told to stop, and a blocking call must not hold the exit. Those
    // who are connected to a coordinator hear of its end even if its last write never ends.
    runtime.shutdown_timeout(if serves { EXIT_MAX } else { Duration::ZERO });
    ended
}

/// Warnings of the farm's parts go to stderr; `STEADING_LOG` says what else does.
fn start_tracing() {
    let filter = std::env::var("STEADING_LOG").unwrap_or_else(|_| "warn".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .init();
}
