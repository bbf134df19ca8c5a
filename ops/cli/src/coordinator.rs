//! `stead coordinator`: decides who runs what, and serves the cache.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use steading_coordinator::{Config, Coordinator, ObjectStore};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;

use crate::args;
use crate::exit::{Ended, Failure};
use crate::out;
use crate::signals::Signals;

/// Who may connect to the socket: whoever may write to it.
const SOCKET_MODE: u32 = 0o660;

/// Serves until it is told to stop.
///
/// # Errors
///
/// [`Failure`] for an address that may not be listened on, and where it cannot start.
pub async fn run(args: args::Coordinator) -> Result<Ended, Failure> {
    let addresses: Vec<Address> = args
        .listen
        .iter()
        .map(|text| Address::read(text, args.insecure_loopback))
        .collect::<Result<_, _>>()?;
    let data_dir = std::path::absolute(&args.data_dir).map_err(anyhow::Error::from)?;
    let mut signals = Signals::catch().map_err(anyhow::Error::from)?;
    let mut config = Config::new(data_dir);
    config.object_store = args.object_store.as_deref().map(ObjectStore::from_text);
    let coordinator = Arc::new(Coordinator::start(config).await?);
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    for address in &addresses {
        listen(address, coordinator.clone(), &stop, &mut serving).await?;
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
    for address in &addresses {
        if let Address::Unix(path) = address {
            // Best effort: the next one to listen there removes it, too.
            let _ = std::fs::remove_file(path);
        }
    }
    let stopped = match Arc::try_unwrap(coordinator) {
        Ok(coordinator) => coordinator.stop().await,
        Err(_) => Err(anyhow::anyhow!("a listener still holds the coordinator")),
    };
    early.and(stopped)?;
    Ok(Ended::Success)
}

async fn listen(
    address: &Address,
    coordinator: Arc<Coordinator>,
    stop: &CancellationToken,
    serving: &mut JoinSet<anyhow::Result<()>>,
) -> Result<(), Failure> {
    let stop = stop.clone().cancelled_owned();
    match address {
        Address::Unix(path) => {
            let listener = bind_unix(path).await?;
            serving.spawn(async move {
                coordinator.serve(UnixListenerStream::new(listener), stop).await
            });
            out::line(format_args!("listening on unix:{}", path.display()))?;
        }
        Address::Loopback(address) => {
            let listener = TcpListener::bind(address).await;
            let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
            let bound = listener.local_addr().map_err(anyhow::Error::from)?;
            serving.spawn(async move {
                coordinator.serve(TcpListenerStream::new(listener), stop).await
            });
            out::line(format_args!("listening on http://{bound}"))?;
        }
    }
    Ok(())
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

/// Where a coordinator may listen without mTLS.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Unix(PathBuf),
    Loopback(SocketAddr),
}

impl Address {
    fn read(text: &str, insecure_loopback: bool) -> Result<Self, Failure> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.is_empty() {
                return Ok(Self::Unix(path.into()));
            }
        }
        let address = text.strip_prefix("http://").unwrap_or(text);
        let Ok(address) = address.parse::<SocketAddr>() else {
            return Err(Failure::usage(format!(
                "`{text}` is no address\n  hint: write unix:PATH or 127.0.0.1:PORT"
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
    use super::*;

    #[test]
    fn plain_text_stays_on_this_machine_and_loopback_has_to_be_allowed() {
        check("unix:/run/s", false, "Unix(\"/run/s\")");
        check("unix:rel", false, "Unix(\"rel\")");
        check("127.0.0.1:0", true, "Loopback(127.0.0.1:0)");
        check("http://[::1]:7", true, "Loopback([::1]:7)");
        check("127.0.0.1:0", false, "every user");
        check("0.0.0.0:7", true, "not on this machine");
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

    fn check(text: &str, insecure_loopback: bool, want: &str) {
        let got = match Address::read(text, insecure_loopback) {
            Ok(address) => format!("{address:?}"),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(want), "{text}: {got}");
    }
}
