//! Logs of one attempt: kept on disk until the coordinator has them.

mod ship;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use steading_model::limits::STEP_LOG_BYTES_MAX;
use tokio::sync::watch;

pub use ship::ship;

/// What stands at the end of a log that was cut.
const CUT_NOTICE: &[u8] = b"\n[steading] the log is longer than 256 MiB: the rest is dropped\n";

/// The logs of one attempt, one stream per step. Cloned freely.
#[derive(Clone, Debug)]
pub struct JobLogs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    streams: Mutex<BTreeMap<u32, Stream>>,
    /// Nothing follows.
    closed: AtomicBool,
    /// Counts changes, so that the shipper need not look in vain.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Stream {
    file: Option<File>,
    /// Bytes in the file.
    len: u64,
}

impl JobLogs {
    /// Logs under `dir`, which is made when the first byte comes.
    pub fn new(dir: PathBuf) -> Self {
        let shared = Shared {
            dir,
            streams: Mutex::default(),
            closed: AtomicBool::new(false),
            changed: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Appends to a stream. A log that cannot be written never fails its job: what
    /// happened is traced and the bytes are lost.
    pub fn append(&self, stream: u32, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Err(error) = self.try_append(stream, bytes) {
            tracing::warn!(stream, %error, "log cannot be written");
        }
        self.shared.changed.send_modify(|count| *count += 1);
    }

    /// Nothing follows in any stream.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.lock().values_mut().for_each(|stream| stream.file = None);
        self.shared.changed.send_modify(|count| *count += 1);
    }

    /// Streams that hold anything, with their length in bytes.
    pub fn lengths(&self) -> BTreeMap<u32, u64> {
        self.lock().iter().map(|(stream, state)| (*stream, state.len)).collect()
    }

    /// The file of a stream.
    pub fn path(&self, stream: u32) -> PathBuf {
        self.shared.dir.join(stream.to_string())
    }

    /// Empties all files. They stay: the next job of the slot uses them again, which
    /// spares the file system an inode for each.
    pub fn remove(&self) {
        for stream in self.lengths().into_keys() {
            let emptied = OpenOptions::new().write(true).truncate(true).open(self.path(stream));
            if let Err(error) = emptied {
                tracing::debug!(stream, %error, "log is not emptied");
            }
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::SeqCst)
    }

    fn try_append(&self, stream: u32, bytes: &[u8]) -> io::Result<()> {
        let mut streams = self.lock();
        let state = streams.entry(stream).or_default();
        if self.is_closed() || state.len > STEP_LOG_BYTES_MAX {
            return Ok(());
        }
        if state.file.is_none() {
            state.file = Some(create(&self.shared.dir, &self.path(stream))?);
        }
        let Some(file) = &mut state.file else {
            return Ok(());
        };
        let room = STEP_LOG_BYTES_MAX.saturating_sub(state.len) as usize;
        if bytes.len() <= room {
            file.write_all(bytes)?;
            state.len += bytes.len() as u64;
            return Ok(());
        }
        file.write_all(&bytes[..room])?;
        file.write_all(CUT_NOTICE)?;
        // Now above the bound, so nothing more is taken.
        state.len += (room + CUT_NOTICE.len()) as u64;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Stream>> {
        self.shared.streams.lock().expect("nothing panics while it holds the lock")
    }
}

fn create(dir: &Path, path: &Path) -> io::Result<File> {
    // Logs of other jobs are not for the user of this one.
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    OpenOptions::new().create(true).write(true).truncate(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn streams_are_files_that_begin_with_their_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let logs = JobLogs::new(dir.path().join("logs"));
        logs.append(0, b"");
        assert!(logs.lengths().is_empty() && !dir.path().join("logs").exists());
        logs.append(3, b"one ");
        logs.append(3, b"two");
        assert_eq!(logs.lengths(), BTreeMap::from([(3, 7)]));
        logs.close();
        logs.append(3, b"late");
        assert_eq!(fs::read(logs.path(3)).unwrap(), b"one two");
    }
}
