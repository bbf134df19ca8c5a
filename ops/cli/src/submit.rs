//! `stead submit`: a pipeline for a farm. With `--wait` this is the line that a CI
//! server calls.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use steading_cas::source::{self, Source};
use steading_cas::{Blobs, RemoteBlobs, Store, StoreOptions};

use crate::args;
use crate::artifacts;
use crate::connect::{AWAY_MAX, FIRST_ANSWER_MAX};
use crate::context;
use crate::coordinators::{Coordinators, with_blobs};
use crate::exit::{Ended, Failure};
use crate::follow::{self, Options};
use crate::local::STATE;
use crate::out;
use crate::screen::{Screen, Stream};
use crate::signals::Signals;
use crate::submission::{self, Event};
use crate::watch::conclude;

/// What the client keeps of trees that it has taken, bytes: so that the next submission
/// of the same tree reads only what changed.
const STORE_BYTES_MAX: u64 = 10 << 30;

/// Submits the pipeline and, with `--wait`, follows the run to its end.
///
/// # Errors
///
/// [`Failure`] for a bad pipeline, or a farm that refuses or stays away.
pub async fn run(args: args::Submit) -> Result<Ended, Failure> {
    let started = Instant::now();
    let farm = context::require(&args.farm)?;
    let event = Event { name: args.event_name.clone(), payload: args.event.clone() };
    let prepared = submission::prepare(&args.submission, &event)?;
    let mut signals = Signals::catch().map_err(anyhow::Error::from)?;
    let coordinators = &farm.coordinators;

    let request = tokio::select! {
        tree = upload(&prepared.found.source, coordinators) => prepared.with_source(&tree?),
        () = signals.next() => return Ok(Ended::Interrupted),
    };
    // A signal in between would leave a run that nobody knows of: it is looked at
    // when the run has its id, and then cancels it.
    let id = submission::submit(coordinators, &request, AWAY_MAX).await?;
    let json = args.submission.json;
    if !args.wait {
        if json {
            out::line(serde_json::json!({ "run": id.to_string() }))?;
        } else {
            out::line(id)?;
        }
        return Ok(Ended::Success);
    }
    let mut screen = Screen::plain(if json { Stream::Stderr } else { Stream::Stdout });
    screen.line(format!("{id} on {}", farm.name));
    let options = Options {
        // A CI server's own log is where people look.
        verbose: true,
        cancel_on_signal: true,
        logs_command: format!("stead logs{} {id}", farm.arguments),
        only_labels: None,
    };
    let blobs = coordinators.blobs();
    let followed = coordinators.clone();
    let over =
        follow::follow(followed, blobs.clone(), id, options, &mut screen, &mut signals).await?;
    if let Some(dir) = &args.artifacts {
        for line in artifacts::fetch(coordinators, &blobs, id, None, dir).await? {
            screen.line(line);
        }
    }
    conclude(&screen, &over, json, started)?;
    Ok(over.ended())
}

/// Takes the tree and brings to the farm what it lacks of it.
async fn upload(dir: &Path, coordinators: &Coordinators) -> Result<Source, Failure> {
    let place = Place::new(dir)?;
    let options = StoreOptions { bytes_max: STORE_BYTES_MAX, durable: false };
    let store = Store::open(&place.path().join("cas"), options).map_err(anyhow::Error::from)?;
    let (local, from, memo) = (store.clone(), dir.to_owned(), place.path().join("source-memo"));
    let taken = tokio::task::spawn_blocking(move || source::snapshot(&local, &from, &memo)).await;
    let taken = taken
        .map_err(anyhow::Error::from)?
        .with_context(|| format!("cannot take the source `{}`", dir.display()))?;
    let remote = RemoteBlobs::new(coordinators.channel(), String::new());
    let blobs = Blobs::Tiered { local: store, remote };
    let uploaded = with_blobs(FIRST_ANSWER_MAX, || blobs.upload_tree(&taken.root)).await;
    uploaded.context("cannot bring the source to the farm")?;
    Ok(taken)
}

/// Where the client keeps what it took: beside the tree for the first process, and in
/// a folder of its own for one that comes while that is busy, or may not write there.
#[derive(Debug)]
enum Place {
    Kept { path: std::path::PathBuf, _lock: Flock<std::fs::File> },
    Passing(tempfile::TempDir),
}

impl Place {
    fn new(source: &Path) -> Result<Self, Failure> {
        let path = source.join(STATE).join("submit");
        match Self::kept(&path) {
            Ok(lock) => Ok(Self::Kept { path, _lock: lock }),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "the tree is taken afresh");
                Ok(Self::Passing(tempfile::tempdir().map_err(anyhow::Error::from)?))
            }
        }
    }

    fn kept(path: &Path) -> std::io::Result<Flock<std::fs::File>> {
        crate::local::make_state(path.parent().unwrap_or(path))?;
        std::fs::create_dir_all(path)?;
        let file = std::fs::File::create(path.join("LOCK"))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno): (_, Errno)| std::io::Error::from(errno))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept { path, .. } => path,
            Self::Passing(dir) => dir.path(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_takes_the_tree_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let first = Place::new(dir.path()).unwrap();
        let second = Place::new(dir.path()).unwrap();
        assert!(first.path().starts_with(dir.path()));
        assert!(!second.path().starts_with(dir.path()));
        drop(first);
        assert!(Place::new(dir.path()).unwrap().path().starts_with(dir.path()));
    }
}
