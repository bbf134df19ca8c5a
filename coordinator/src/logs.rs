//! Logs of attempts: one file per stream, `RUN/JOB/ATTEMPT-STREAM`.
//!
//! An append is acknowledged once the file has it. Files are synced when the
//! attempt ends, as far as its result does not name the log as a blob; until then the
//! agent has it all, and goes back to where the file ends after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirEntry, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use steading_model::limits::{JOB_LOG_STREAM, STEP_LOG_BYTES_MAX, STEPS_PER_JOB_MAX};
use steading_model::{JobId, RunId, Work};
use tokio::sync::watch;

/// Behind an attempt's number: its log is settled. Lost by a power cut it is settled again.
const SETTLED: &str = ".settled";

/// Why an append was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("`{0}` is no log stream: want a step's number or {JOB_LOG_STREAM}")]
    Stream(u32),
    #[error("cannot use the log `{path}`")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The logs under one folder.
#[derive(Debug)]
pub(crate) struct Logs {
    dir: PathBuf,
    /// Those being written or followed. Bounded by the live leases and readers.
    open: Mutex<BTreeMap<Work, Arc<AttemptLog>>>,
    /// Attempts that were written to since somebody asked for them. Bounded by the leases
    /// that were live since.
    written: Mutex<BTreeSet<(RunId, Work)>>,
}

/// The log of one attempt while it runs.
#[derive(Debug)]
struct AttemptLog {
    streams: Mutex<BTreeMap<u32, Stream>>,
    /// Counts appends, to wake followers.
    appended: watch::Sender<u64>,
}

#[derive(Debug)]
struct Stream {
    path: PathBuf,
    /// None before the first byte, and after the last.
    file: Option<File>,
    len: u64,
    /// Bytes were written since the last sync.
    dirty: bool,
}

impl Logs {
    /// The logs under `dir`.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.into(), open: Mutex::default(), written: Mutex::default() })
    }

    /// Appends what is new of `data`, which begins at `offset` of the stream, and
    /// returns how far the stream goes now. An offset beyond the end changes nothing:
    /// the answer says where to go on.
    ///
    /// Bytes beyond [`STEP_LOG_BYTES_MAX`] count as taken and are dropped, since an
    /// agent that does not stop by itself must not be told to repeat them for ever.
    pub(crate) fn append(
        &self,
        run: RunId,
        work: Work,
        stream: u32,
        offset: u64,
        data: &[u8],
        last: bool,
    ) -> Result<u64, LogError> {
        if stream != JOB_LOG_STREAM && stream as usize >= STEPS_PER_JOB_MAX {
            return Err(LogError::Stream(stream));
        }
        let attempt = self.attempt(work);
        let mut streams = lock(&attempt.streams);
        let entry = streams.entry(stream).or_insert_with(|| {
            let path = self.stream_path(run, work, stream);
            let len = std::fs::metadata(&path).map_or(0, |meta| meta.len());
            lock(&self.written).insert((run, work));
            Stream { path, file: None, len, dirty: false }
        });
        let end = offset.saturating_add(data.len() as u64);
        let full = entry.len >= STEP_LOG_BYTES_MAX;
        if offset > entry.len && !full {
            return Ok(entry.len);
        }
        let wrote = entry
            .extend(offset, data)
            .map_err(|source| LogError::Io { path: entry.path.clone(), source })?;
        if last {
            entry.file = None;
        }
        let taken = entry.len.max(if entry.len >= STEP_LOG_BYTES_MAX { end } else { 0 });
        drop(streams);
        if wrote || last {
            attempt.appended.send_modify(|count| *count += 1);
        }
        Ok(taken)
    }

    /// Up to `max` bytes of the stream from `offset`. Empty at its end.
    pub(crate) fn read(
        &self,
        run: RunId,
        work: Work,
        stream: u32,
        offset: u64,
        max: usize,
    ) -> Result<Vec<u8>, LogError> {
        let path = self.stream_path(run, work, stream);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other,
        };
        let read = file.and_then(|file| {
            let mut bytes = vec![0; max];
            let len = read_up_to(&file, offset, &mut bytes)?;
            bytes.truncate(len);
            Ok(bytes)
        });
        read.map_err(|source| LogError::Io { path, source })
    }

    /// The attempt's streams that have bytes, by number, with their lengths.
    pub(crate) fn streams(&self, run: RunId, work: Work) -> Result<Vec<(u32, u64)>, LogError> {
        let dir = self.job_dir(run, work);
        let prefix = format!("{}-", work.attempt);
        let mut streams = Vec::new();
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(streams),
            other => other.map_err(|source| LogError::Io { path: dir.clone(), source })?,
        };
        for entry in entries {
            let entry = entry.map_err(|source| LogError::Io { path: dir.clone(), source })?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(&prefix));
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                let len = entry.metadata().map_or(0, |meta| meta.len());
                streams.push((number, len));
            }
        }
        streams.sort_unstable();
        Ok(streams)
    }

    /// Changes with every append to the attempt, until it ends.
    pub(crate) fn follow(&self, work: Work) -> watch::Receiver<u64> {
        self.attempt(work).appended.subscribe()
    }

    /// The attempt has ended: makes durable what `covered` (streams and bytes that its
    /// result names) does not, and forgets it.
    pub(crate) fn finish(&self, work: Work, covered: &BTreeMap<u32, u64>) -> Result<(), LogError> {
        let Some(attempt) = lock(&self.open).remove(&work) else {
            return Ok(());
        };
        for (number, stream) in lock(&attempt.streams).iter_mut() {
            if stream.dirty && covered.get(number).is_none_or(|&len| len < stream.len) {
                stream
                    .sync()
                    .map_err(|source| LogError::Io { path: stream.path.clone(), source })?;
            }
        }
        attempt.appended.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Whether anything of the attempt is in memory: written or followed since the start.
    pub(crate) fn is_open(&self, work: Work) -> bool {
        lock(&self.open).contains_key(&work)
    }

    /// The lease was lost: forgets the attempt and wakes its followers. What was not
    /// synced is nobody's result.
    pub(crate) fn close(&self, work: Work) {
        if let Some(attempt) = lock(&self.open).remove(&work) {
            attempt.appended.send_modify(|count| *count += 1);
        }
    }

    /// The attempts that were written to since the last call.
    pub(crate) fn take_written(&self) -> BTreeSet<(RunId, Work)> {
        std::mem::take(&mut *lock(&self.written))
    }

    /// The attempts that have a log here which was not settled, whenever it was written. Runs
    /// may be retired meanwhile.
    pub(crate) fn unsettled(&self) -> io::Result<BTreeSet<(RunId, Work)>> {
        let mut found = BTreeSet::new();
        for run in self.runs()? {
            for job in entries(&self.run_dir(run))? {
                let Some(number) = job.file_name().to_str().and_then(|name| name.parse().ok())
                else {
                    continue;
                };
                let (mut attempts, mut settled) = (BTreeSet::new(), BTreeSet::new());
                for file in entries(&job.path())? {
                    let name = file.file_name();
                    let Some(name) = name.to_str() else { continue };
                    if let Some(attempt) = name.strip_suffix(SETTLED) {
                        settled.extend(attempt.parse::<u32>().ok());
                    } else if let Some((attempt, _)) = name.split_once('-') {
                        attempts.extend(attempt.parse::<u32>().ok());
                    }
                }
                let job = JobId::from_counter(number);
                let left = attempts.difference(&settled);
                found.extend(left.map(|attempt| (run, Work { job, attempt: *attempt })));
            }
        }
        Ok(found)
    }

    /// Nothing more is to be done for the log of this attempt, which is over.
    pub(crate) fn settle(&self, run: RunId, work: Work) -> io::Result<()> {
        let path = self.job_dir(run, work).join(format!("{}{SETTLED}", work.attempt));
        match File::create(path) {
            // The run was retired meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    /// Where the bytes of a stream are.
    pub(crate) fn file(&self, run: RunId, work: Work, stream: u32) -> PathBuf {
        self.stream_path(run, work, stream)
    }

    /// Removes the logs of a run that was retired.
    pub(crate) fn remove_run(&self, run: RunId) -> io::Result<()> {
        match std::fs::remove_dir_all(self.run_dir(run)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The runs that have logs here.
    pub(crate) fn runs(&self) -> io::Result<Vec<RunId>> {
        let mut runs = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            if let Some(number) = name.to_str().and_then(|name| name.parse().ok()) {
                runs.push(RunId::from_counter(number));
            }
        }
        Ok(runs)
    }

    fn attempt(&self, work: Work) -> Arc<AttemptLog> {
        let mut open = lock(&self.open);
        let attempt = open.entry(work).or_insert_with(|| {
            Arc::new(AttemptLog { streams: Mutex::default(), appended: watch::Sender::new(0) })
        });
        Arc::clone(attempt)
    }

    fn run_dir(&self, run: RunId) -> PathBuf {
        self.dir.join(run.counter().to_string())
    }

    fn job_dir(&self, run: RunId, work: Work) -> PathBuf {
        self.run_dir(run).join(work.job.counter().to_string())
    }

    fn stream_path(&self, run: RunId, work: Work, stream: u32) -> PathBuf {
        self.job_dir(run, work).join(format!("{}-{stream}", work.attempt))
    }
}

impl Stream {
    /// Writes what of `data` lies beyond the end, up to the bound. `offset` is not
    /// beyond the end. Whether anything was written.
    fn extend(&mut self, offset: u64, data: &[u8]) -> io::Result<bool> {
        let known = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let new = data.get(known..).unwrap_or_default();
        let room = usize::try_from(STEP_LOG_BYTES_MAX.saturating_sub(self.len));
        let new = &new[..new.len().min(room.unwrap_or(usize::MAX))];
        if new.is_empty() {
            return Ok(false);
        }
        if self.file.is_none() {
            self.file = Some(open_for_append(&self.path)?);
        }
        if let Some(file) = &self.file {
            file.write_all_at(new, self.len)?;
        }
        self.len += new.len() as u64;
        self.dirty = true;
        Ok(true)
    }

    fn sync(&mut self) -> io::Result<()> {
        match &self.file {
            Some(file) => file.sync_data()?,
            None => File::open(&self.path)?.sync_data()?,
        }
        self.dirty = false;
        Ok(())
    }
}

fn open_for_append(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().write(true).create(true).truncate(false).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            open()
        }
        other => other,
    }
}

/// What is in the folder: nothing where it is gone by now, or none.
fn entries(dir: &Path) -> io::Result<Vec<DirEntry>> {
    match std::fs::read_dir(dir) {
        Ok(found) => found.collect(),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn read_up_to(file: &File, offset: u64, out: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < out.len() {
        match file.read_at(&mut out[len..], offset + len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: RunId = RunId::from_counter(1);
    const WORK: Work = Work { job: JobId::from_counter(2), attempt: 1 };

    #[test]
    fn an_append_is_taken_as_far_as_it_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path()).unwrap();
        // (offset, data) -> acknowledged
        for (offset, data, want) in
            [(0, "hello ", 6), (0, "hello w", 7), (3, "lo", 7), (9, "beyond", 7), (7, "orld", 11)]
        {
            let got = logs.append(RUN, WORK, 0, offset, data.as_bytes(), false).unwrap();
            assert_eq!(got, want, "{data:?} at {offset}");
        }
        assert_eq!(logs.read(RUN, WORK, 0, 0, 100).unwrap(), b"hello world");
        assert_eq!(logs.read(RUN, WORK, 0, 6, 3).unwrap(), b"wor");
        assert_eq!(logs.read(RUN, WORK, 1, 0, 3).unwrap(), b"");
    }

    #[test]
    fn after_a_restart_the_stream_goes_on_where_the_file_ends() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path()).unwrap();
        logs.append(RUN, WORK, 3, 0, b"abc", false).unwrap();
        let logs = Logs::open(dir.path()).unwrap();
        assert_eq!(logs.append(RUN, WORK, 3, 5, b"f", false).unwrap(), 3);
        assert_eq!(logs.append(RUN, WORK, 3, 2, b"cdef", true).unwrap(), 6);
        assert_eq!(logs.read(RUN, WORK, 3, 0, 100).unwrap(), b"abcdef");
        assert_eq!(logs.streams(RUN, WORK).unwrap(), [(3, 6)]);
    }

    #[test]
    fn a_follower_hears_of_appends_and_of_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path()).unwrap();
        let mut follower = logs.follow(WORK);
        logs.append(RUN, WORK, 0, 0, b"a", false).unwrap();
        assert!(follower.has_changed().unwrap());
        follower.mark_unchanged();
        logs.finish(WORK, &BTreeMap::new()).unwrap();
        // Either a last change or a closed channel: nobody waits for ever.
        assert!(follower.has_changed().is_err() || follower.borrow_and_update().ge(&2));
    }

    #[test]
    fn only_a_steps_number_names_a_stream() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path()).unwrap();
        for (stream, good) in
            [(0, true), (999, true), (1_000, false), (JOB_LOG_STREAM, true), (u32::MAX, false)]
        {
            let taken = logs.append(RUN, WORK, stream, 0, b"x", false);
            assert_eq!(taken.is_ok(), good, "stream {stream}");
        }
    }

    #[test]
    fn who_looks_after_logs_is_told_which_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path()).unwrap();
        let next = Work { attempt: 2, ..WORK };
        for work in [WORK, next] {
            logs.append(RUN, work, 0, 0, b"x", false).unwrap();
        }
        assert_eq!(logs.take_written(), [(RUN, WORK), (RUN, next)].into());
        assert_eq!(logs.take_written(), [].into());
        logs.settle(RUN, WORK).unwrap();
        let logs = Logs::open(dir.path()).unwrap();
        assert_eq!(logs.unsettled().unwrap(), [(RUN, next)].into());
        assert_eq!(logs.streams(RUN, WORK).unwrap(), [(0, 1)]);
        logs.remove_run(RUN).unwrap();
        logs.settle(RUN, next).unwrap();
        assert_eq!(logs.unsettled().unwrap(), [].into());
    }

    #[test]
    fn the_logs_of_a_retired_run_go_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path()).unwrap();
        logs.append(RUN, WORK, 0, 0, b"x", false).unwrap();
        assert_eq!(logs.runs().unwrap(), [RUN]);
        logs.remove_run(RUN).unwrap();
        logs.remove_run(RUN).unwrap();
        assert_eq!(logs.runs().unwrap(), []);
    }
}
