//! `steading-coordinator`: arguments, configuration, signals.

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use steading_coordinator::{Config, Coordinator, ObjectStore};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tracing_subscriber::EnvFilter;

/// Who may connect to the socket: whoever may write to it.
const SOCKET_MODE: u32 = 0o660;

/// Decides who runs what, and serves the cache.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Everything that outlives the process
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    data_dir: Option<PathBuf>,
    /// A JSON file with the configuration; other arguments win over what it says
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where blobs are durable, for several coordinators: a directory that all of them see,
    /// or gs://NAME/PREFIX or s3://NAME/PREFIX
    #[arg(long, value_name = "DIR|URL")]
    object_store: Option<String>,
    /// Where to listen: unix:PATH, or 127.0.0.1:PORT with --insecure-loopback
    #[arg(long, value_name = "ENDPOINT", default_value = "unix:steading.sock")]
    listen: Endpoint,
    /// Allow plain text on loopback, where every user of this machine can connect
    #[arg(long)]
    insecure_loopback: bool,
    /// Where the other coordinators reach this one [default: where it listens]
    #[arg(long, value_name = "ENDPOINT")]
    advertise: Option<String>,
    /// Coordinators whose group an empty directory joins, separated by commas
    #[arg(long, value_name = "ENDPOINT,...", value_delimiter = ',')]
    join: Vec<String>,
    /// Print the values in force and exit
    #[arg(long)]
    print_config: bool,
}

/// Where a coordinator may listen without mTLS.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Endpoint {
    Unix(PathBuf),
    Loopback(SocketAddr),
}

/// How long what was told to stop may hold up the end.
const EXIT_MAX: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Runtime::new().context("start the runtime");
    let ended = runtime.and_then(|runtime| {
        let ended = runtime.block_on(run(args));
        // All connections are closed when this returns; a write that hangs is not waited for.
        runtime.shutdown_timeout(EXIT_MAX);
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let config = config(&args)?;
    if args.print_config {
        println!("{}", serde_json::to_string_pretty(&config)?);
        return Ok(());
    }
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let told_to_stop = async {
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
        }
    };
    tokio::pin!(told_to_stop);
    // Bound first, so that the others can be told where this one is, whatever port it got.
    match &args.listen {
        Endpoint::Loopback(address) if !args.insecure_loopback => bail!(
            "`{address}` is open to every user of this machine: listen on unix:PATH, or say \
             --insecure-loopback"
        ),
        Endpoint::Loopback(address) => {
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("listen on {address}"))?;
            let endpoint = format!("http://{}", listener.local_addr()?);
            let coordinator = tokio::select! {
                started = start(config, &endpoint) => started?,
                // One that joins may wait for the others for minutes.
                () = &mut told_to_stop => return Ok(()),
            };
            println!("listening on {endpoint}");
            let served = coordinator.serve(TcpListenerStream::new(listener), told_to_stop).await;
            served.and(coordinator.stop().await)
        }
        Endpoint::Unix(path) => {
            let path = &std::path::absolute(path)?;
            let listener = bind_unix(path).await?;
            let endpoint = format!("unix:{}", path.display());
            let coordinator = tokio::select! {
                started = start(config, &endpoint) => started?,
                () = &mut told_to_stop => {
                    // As below.
                    let _ = std::fs::remove_file(path);
                    return Ok(());
                }
            };
            println!("listening on {endpoint}");
            let served = coordinator.serve(UnixListenerStream::new(listener), told_to_stop).await;
            // Best effort: the next one to listen there removes it, too.
            let _ = std::fs::remove_file(path);
            served.and(coordinator.stop().await)
        }
    }
}

async fn start(mut config: Config, endpoint: &str) -> anyhow::Result<Coordinator> {
    config.advertise.get_or_insert_with(|| endpoint.to_owned());
    Coordinator::start(config).await
}

fn config(args: &Args) -> anyhow::Result<Config> {
    let mut config = match (&args.config, &args.data_dir) {
        (Some(file), _) => Config::load(file)?,
        (None, Some(dir)) => Config::new(dir),
        (None, None) => bail!("say where the data is: --data-dir DIR"),
    };
    if let Some(dir) = &args.data_dir {
        config.data_dir = dir.clone();
    }
    if let Some(text) = &args.object_store {
        config.object_store = Some(ObjectStore::from_text(text));
    }
    if args.advertise.is_some() {
        config.advertise = args.advertise.clone();
    }
    if !args.join.is_empty() {
        config.join = args.join.clone();
    }
    config.validate()?;
    Ok(config)
}

/// Listens on a socket; one that nobody listens on any more is replaced.
async fn bind_unix(path: &Path) -> anyhow::Result<UnixListener> {
    let failed = || format!("listen on `{}`", path.display());
    if UnixStream::connect(path).await.is_ok() {
        bail!("another process listens on `{}`", path.display());
    }
    // What a killed process left. A file that is no socket stays: then bind says so.
    let left = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if left {
        std::fs::remove_file(path).with_context(failed)?;
    }
    let listener = UnixListener::bind(path).with_context(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))
        .with_context(failed)?;
    Ok(listener)
}

impl std::str::FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///path` is what gRPC's own names look like.
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path {
                "" => Err("no path behind `unix:`".to_owned()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let address = text.strip_prefix("http://").unwrap_or(text);
        match address.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Loopback(address)),
            Ok(_) => Err("plain text does not leave this machine: want 127.0.0.1:PORT".to_owned()),
            Err(_) => Err("want unix:PATH or 127.0.0.1:PORT".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_socket_or_on_loopback() {
        check("unix:/run/s.sock", Ok(Endpoint::Unix("/run/s.sock".into())));
        check("unix:///run/s.sock", Ok(Endpoint::Unix("/run/s.sock".into())));
        check("http://127.0.0.1:80", Ok(Endpoint::Loopback(([127, 0, 0, 1], 80).into())));
        check("127.0.0.1:0", Ok(Endpoint::Loopback(([127, 0, 0, 1], 0).into())));
        check("unix:", Err("no path behind `unix:`"));
        check("0.0.0.0:80", Err("plain text does not leave this machine: want 127.0.0.1:PORT"));
        check("localhost", Err("want unix:PATH or 127.0.0.1:PORT"));
    }

    fn check(text: &str, want: Result<Endpoint, &str>) {
        assert_eq!(text.parse(), want.map_err(str::to_owned), "{text}");
    }
}
