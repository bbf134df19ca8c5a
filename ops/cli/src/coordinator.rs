//! `stead coordinator`: decides who runs what, and serves the cache.

use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use steading_coordinator::{Config, Coordinator, ObjectStore};
use steading_proto::tls::{self, JoinToken};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;

use crate::Edition;
use crate::args;
use crate::connect::Endpoint;
use crate::exit::{Ended, Failure};
use crate::out;
use crate::signals::Signals;

/// How long the removal of sockets may take: the next start does it again.
const REMOVE_MAX: Duration = Duration::from_secs(1);

/// The socket in the data directory on which admins are served.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// Who may connect to the socket: whoever may write to it.
const SOCKET_MODE: u32 = 0o660;

/// Of the data directory, where this makes it.
const DATA_DIR_MODE: u32 = 0o750;

/// Serves until it is told to stop.
///
/// # Errors
///
/// [`Failure`] for an address that may not be listened on, and where it cannot start.
pub async fn run(args: args::Coordinator, edition: Edition) -> Result<Ended, Failure> {
    let addresses: Vec<Address> = args
        .listen
        .iter()
        .map(|text| Address::read(text, args.insecure_loopback))
        .collect::<Result<_, _>>()?;
    let mut config = config(args)?;
    config.feature_level = edition.feature_level;
    check_others(&config, &addresses)?;
    config.validate().map_err(Failure::Usage)?;
    let data_dir = std::path::absolute(&config.data_dir).map_err(anyhow::Error::from)?;
    config.data_dir.clone_from(&data_dir);
    let (addresses, socket) = with_admin_socket(addresses, &data_dir);
    // The socket lies in it, and is bound first.
    make_data_dir(&data_dir)?;
    open_as_many_files_as_allowed();
    let mut signals = Signals::catch().map_err(anyhow::Error::from)?;
    // Bound first, so that the others can be told where this one is, whatever port it got.
    let mut listeners = Vec::new();
    for address in &addresses {
        let (endpoint, listener) = bind(address).await?;
        config.advertise.get_or_insert_with(|| endpoint.clone());
        listeners.push((endpoint, listener));
    }
    let coordinator = tokio::select! {
        started = Coordinator::start(config) => Arc::new(started?),
        // One that joins may wait for the others for minutes. What is half made the next
        // start goes on with, as behind a kill.
        () = signals.next() => {
            remove_sockets(&addresses);
            return Ok(Ended::Interrupted);
        }
    };
    (edition.started)(&coordinator, &data_dir);
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    for (endpoint, listener) in listeners {
        let (coordinator, stop) = (coordinator.clone(), stop.clone().cancelled_owned());
        if let Listener::Tls(_) = listener {
            let identity = coordinator.secure().await?;
            tracing::info!(id = %identity.current().certified.id, "certificate in force");
        }
        serving.spawn(async move {
            match listener {
                Listener::Unix(unix) => {
                    coordinator.serve(UnixListenerStream::new(unix), stop).await
                }
                Listener::Tcp(tcp) => coordinator.serve(TcpListenerStream::new(tcp), stop).await,
                Listener::Tls(tcp) => coordinator.serve_tls(tcp, stop).await,
            }
        });
        out::line(format_args!("listening on {endpoint}"))?;
    }
    if let Some(socket) = socket {
        // For people, once: whoever reads the answer by program looks at stdout.
        eprintln!(
            "to operate it from elsewhere, get an admin's certificate:\n  \
             stead token create --role admin --name NAME --coordinator unix:{}",
            socket.display()
        );
    }
    // A signal, or a listener that ends before it is told to.
    let early = tokio::select! {
        () = signals.next() => Ok(()),
        Some(ended) = serving.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("a listener ended by itself")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error.into()),
        },
    };
    stop.cancel();
    while serving.join_next().await.is_some() {}
    // Where the disk hangs this does, too.
    let removed = tokio::task::spawn_blocking(move || remove_sockets(&addresses));
    let _ = tokio::time::timeout(REMOVE_MAX, removed).await;
    let stopped = match Arc::try_unwrap(coordinator) {
        Ok(coordinator) => coordinator.stop().await,
        Err(_) => Err(anyhow::anyhow!("a listener still holds the coordinator")),
    };
    early.and(stopped)?;
    Ok(Ended::Success)
}

/// Best effort: the next one to listen there removes it, too.
fn remove_sockets(addresses: &[Address]) {
    for address in addresses {
        if let Address::Unix(path) = address {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The settings of the file, if there is one, and over them what the command line says.
fn config(args: args::Coordinator) -> Result<Config, Failure> {
    let mut config = match (&args.config, &args.data_dir) {
        (Some(file), _) => Config::load(file).map_err(Failure::Usage)?,
        (None, Some(dir)) => Config::new(dir),
        (None, None) => {
            return Err(Failure::usage(
                "where the data is has to be said\n  hint: say --data-dir DIR, or --config FILE",
            ));
        }
    };
    if let Some(dir) = args.data_dir {
        config.data_dir = dir;
    }
    if let Some(text) = &args.object_store {
        config.object_store = Some(ObjectStore::from_text(text));
    }
    if !args.join.is_empty() {
        config.join = args.join;
    }
    config.advertise = args.advertise.or(config.advertise);
    config.join_token = args.token.or(config.join_token);
    Ok(config)
}

/// What is said of the other coordinators can be, before anything is made of it.
fn check_others(config: &Config, addresses: &[Address]) -> Result<(), Failure> {
    for endpoint in config.join.iter().chain(&config.advertise) {
        endpoint.parse::<Endpoint>().map_err(Failure::usage)?;
    }
    if let (Some(token), false) = (&config.join_token, config.join.is_empty()) {
        check_token(token)?;
    }
    // Whoever is told of it would look for this coordinator on his own machine.
    match addresses.first() {
        Some(Address::Tls(authority))
            if config.advertise.is_none()
                && authority.parse::<SocketAddr>().is_ok_and(|at| at.ip().is_unspecified()) =>
        {
            Err(Failure::usage(format!(
                "others cannot reach this one at `https://{authority}`\n  \
                 hint: say where they can, with --advertise https://HOST:PORT"
            )))
        }
        _ => Ok(()),
    }
}

/// Whether a text is a join token at all.
///
/// # Errors
///
/// [`Failure::Usage`], without the text, which may be most of a secret.
pub fn check_token(text: &str) -> Result<(), Failure> {
    let token = text.parse::<JoinToken>();
    token.map(drop).map_err(|error| Failure::usage(format!("that is no join token: {error}")))
}

/// What lies in it are sources, logs and the state: for the group that may operate it at most.
fn make_data_dir(dir: &Path) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(DATA_DIR_MODE).create(dir);
    Ok(made.with_context(|| format!("cannot make `{}`", dir.display()))?)
}

/// Every agent and client is an open file or two, and a shell's limit is a thousand. Best
/// effort: with fewer, those that come last wait.
fn open_as_many_files_as_allowed() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Whoever listens for members is also to be reached by an admin of this machine, who
/// makes the first join token. Says where, before anybody was made one.
fn with_admin_socket(
    mut addresses: Vec<Address>,
    data_dir: &Path,
) -> (Vec<Address>, Option<PathBuf>) {
    let is_tls = addresses.iter().any(|address| matches!(address, Address::Tls(_)));
    let unix = addresses.iter().find_map(|address| match address {
        Address::Unix(path) => Some(path.clone()),
        Address::Loopback(_) | Address::Tls(_) => None,
    });
    if !is_tls {
        return (addresses, None);
    }
    let is_first = !data_dir.join("identity").exists();
    let socket = unix.unwrap_or_else(|| {
        let socket = data_dir.join(ADMIN_SOCKET);
        addresses.push(Address::Unix(socket.clone()));
        socket
    });
    (addresses, is_first.then_some(socket))
}

/// A bound listener.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
    Tls(TcpListener),
}

/// Binds the address; says as which endpoint others reach it.
async fn bind(address: &Address) -> Result<(String, Listener), Failure> {
    let (listener, wanted) = match address {
        Address::Unix(path) => {
            let path = std::path::absolute(path).map_err(anyhow::Error::from)?;
            let listener = bind_unix(&path).await?;
            return Ok((format!("unix:{}", path.display()), Listener::Unix(listener)));
        }
        Address::Loopback(address) => (TcpListener::bind(address).await, address.to_string()),
        Address::Tls(authority) => (TcpListener::bind(authority).await, authority.to_string()),
    };
    let listener = listener.with_context(|| format!("cannot listen on {wanted}"))?;
    let bound = listener.local_addr().map_err(anyhow::Error::from)?;
    Ok(match address {
        Address::Tls(_) => (format!("https://{bound}"), Listener::Tls(listener)),
        Address::Unix(_) | Address::Loopback(_) => {
            (format!("http://{bound}"), Listener::Tcp(listener))
        }
    })
}

/// Listens on a socket; one that nobody listens on any more is replaced.
async fn bind_unix(path: &Path) -> Result<UnixListener, Failure> {
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            return Err(Failure::usage(format!("another process listens on `{}`", path.display())));
        }
        // What a killed process left. A file that is no socket stays: then bind says so.
        let socket = std::fs::symlink_metadata(path)
            .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
        if socket {
            let _ = std::fs::remove_file(path);
        }
    }
    let failed = || format!("cannot listen on `{}`", path.display());
    let listener = UnixListener::bind(path).with_context(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))
        .with_context(failed)?;
    Ok(listener)
}

/// Where a coordinator may listen: without mTLS on this machine only.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Unix(PathBuf),
    Loopback(SocketAddr),
    /// `HOST:PORT`, mTLS.
    Tls(String),
}

impl Address {
    fn read(text: &str, insecure_loopback: bool) -> Result<Self, Failure> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.is_empty() {
                return Ok(Self::Unix(path.into()));
            }
        }
        if text.starts_with("https://") {
            return tls::authority(text).map(Self::Tls).map_err(Failure::usage);
        }
        let address = text.strip_prefix("http://").unwrap_or(text);
        let Ok(address) = address.parse::<SocketAddr>() else {
            return Err(Failure::usage(format!(
                "`{text}` is no address\n  hint: write https://HOST:PORT, unix:PATH or 127.0.0.1:PORT"
            )));
        };
        if !address.ip().is_loopback() {
            return Err(Failure::usage(format!(
                "`{text}` is not on this machine, and plain text does not leave it\n  \
                 hint: write unix:PATH or 127.0.0.1:PORT"
            )));
        }
        if !insecure_loopback {
            return Err(Failure::usage(format!(
                "on `{text}` every user of this machine could connect\n  \
                 hint: listen on unix:PATH, or say --insecure-loopback"
            )));
        }
        Ok(Self::Loopback(address))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn plain_text_stays_on_this_machine_and_loopback_has_to_be_allowed() {
        check("unix:/run/s", false, "Unix(\"/run/s\")");
        check("unix:rel", false, "Unix(\"rel\")");
        check("127.0.0.1:0", true, "Loopback(127.0.0.1:0)");
        check("http://[::1]:7", true, "Loopback([::1]:7)");
        check("127.0.0.1:0", false, "every user");
        check("0.0.0.0:7", true, "not on this machine");
        check("https://0.0.0.0:7000", false, "Tls(\"0.0.0.0:7000\")");
        check("https://farm", false, "no endpoint");
        check("localhost", true, "no address");
        check("unix:", true, "no address");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(bind_unix(&path).await.unwrap());
        let held = bind_unix(&path).await.unwrap();
        assert!(bind_unix(&path).await.is_err());
        drop(held);
        let file = dir.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        assert!(bind_unix(&file).await.is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn other_users_do_not_look_into_the_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a").join("data");
        make_data_dir(&data).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&data) & 0o027, 0);
        // One that is there is its owner's business.
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
        make_data_dir(&data).unwrap();
        assert_eq!(mode(&data), 0o755);
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("farm.json");
        let settings = r#"{"data_dir": "/of-file", "store_bytes_max": 100000000,
            "finished_runs_kept": 7, "disk_low_bytes": 8, "advertise": "unix:/of-file",
            "object_store": {"directory": "/blobs"}, "join": ["unix:/a"]}"#;
        std::fs::write(&file, settings).unwrap();
        let read = |words: &str| {
            let words = format!("stead coordinator --listen unix:s {words}");
            let words = words.replace("FILE", &file.display().to_string());
            match args::Cli::try_parse_from(words.split_whitespace()).unwrap().verb {
                args::Verb::Coordinator(args) => config(args),
                verb => panic!("{verb:?}"),
            }
        };
        let of_file = Config {
            store_bytes_max: 100_000_000,
            finished_runs_kept: 7,
            disk_low_bytes: Some(8),
            advertise: Some("unix:/of-file".to_owned()),
            object_store: Some(ObjectStore::from_text("/blobs")),
            join: vec!["unix:/a".to_owned()],
            ..Config::new("/of-file")
        };
        assert_eq!(read("--config FILE").unwrap(), of_file);
        let said = Config {
            data_dir: "d".into(),
            object_store: Some(ObjectStore::from_text("gs://b/p")),
            advertise: Some("unix:/s".to_owned()),
            join: vec!["unix:/b".to_owned()],
            join_token: Some("t".to_owned()),
            ..of_file
        };
        let words = "--data-dir d --object-store gs://b/p --advertise unix:/s --join unix:/b";
        assert_eq!(read(&format!("--config FILE --token t {words}")).unwrap(), said);
        assert_eq!(read("--data-dir d").unwrap(), Config::new("d"));
        std::fs::write(&file, r#"{"data_dir": "/d", "store_bytes": 1}"#).unwrap();
        let refused = read("--config FILE").unwrap_err().to_string();
        assert!(refused.contains("store_bytes"), "{refused}");
    }

    fn check(text: &str, insecure_loopback: bool, want: &str) {
        let got = match Address::read(text, insecure_loopback) {
            Ok(address) => format!("{address:?}"),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(want), "{text}: {got}");
    }
}
