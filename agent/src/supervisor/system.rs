//! What the supervisor asks of the kernel: pipes, processes, and their ends.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::clock::boottime_ms;
use super::tree::{descendants, signal_all};
use crate::process::Command;

/// How often the end of killed processes is looked for, milliseconds; their
/// parents' ends wake the loop before that.
const REAP_POLL_MS: u16 = 20;

/// How long killed processes are waited for, milliseconds. Beyond it they hang in
/// the kernel, and no signal helps.
const KILL_WAIT_MS_MAX: u64 = 30_000;

/// How many files a process may have open, at most: programs that close them all take
/// time for each.
const OPEN_FILES_MAX: u64 = 1 << 20;

/// Where programs are looked for when PATH is unset, as execvp does.
const PATH_WHEN_UNSET: &str = "/bin:/usr/bin";

pub(super) enum Piece {
    Bytes(usize),
    Nothing,
    End,
}

pub(super) fn read_some(pipe: &mut PipeReader, bytes: &mut [u8]) -> Piece {
    match pipe.read(bytes) {
        Ok(0) => Piece::End,
        Ok(len) => Piece::Bytes(len),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Piece::Nothing,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Piece::Nothing,
        Err(_) => Piece::End,
    }
}

/// `processes`: most that the user may have whom the command runs as, if that is not the
/// agent's own. (A sandbox makes its processes another user's, which all jobs share.)
pub(super) fn spawn(command: &Command, processes: Option<u64>) -> io::Result<(Pid, PipeReader)> {
    let (program, arguments) = command
        .argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program is named"))?;
    if !command.cwd.is_dir() {
        let text = format!("its working directory `{}` does not exist", command.cwd.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    let (reader, writer) = io::pipe()?;
    set_nonblocking(reader.as_fd())?;
    // Looked up here: given a path, the standard library starts it with posix_spawn,
    // which does not copy this process's page tables.
    let mut process = std::process::Command::new(look_up(program, command)?);
    process
        .args(arguments)
        .env_clear()
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&command.cwd)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    if let Some((uid, gid)) = command.user {
        process.uid(uid).gid(gid);
    }
    // Reaped by `reap_one` with everything else, so the handle is not needed.
    let child = match processes.filter(|_| command.user.is_some()) {
        Some(max) => with_processes(max, || process.spawn())?,
        None => process.spawn()?,
    };
    Ok((Pid::from_raw(child.id() as i32), reader))
}

/// Where the program is, by PATH of its own environment.
fn look_up(program: &str, command: &Command) -> io::Result<PathBuf> {
    if program.contains('/') {
        return Ok(PathBuf::from(program));
    }
    let path = command.env.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_str());
    path.unwrap_or(PATH_WHEN_UNSET)
        .split(':')
        .map(|folder| command.cwd.join(folder).join(program))
        .find(|file| file.metadata().is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0))
        .ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "no folder of PATH holds such a program")
        })
}

pub(super) fn reap_one() -> Option<WaitStatus> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) | Err(_) => None,
        Ok(status) => Some(status),
    }
}

/// Kills everything below this process and waits until it is gone. Returns how many
/// processes were killed besides `own`, and how `own` ended.
pub(super) fn kill_everything(own: Option<Pid>) -> (u32, Option<WaitStatus>) {
    let give_up_at_ms = boottime_ms() + KILL_WAIT_MS_MAX;
    let mut killed: Vec<Pid> = Vec::new();
    let mut own_status = None;
    loop {
        while let Some(status) = reap_one() {
            if own.is_some() && status.pid() == own {
                own_status = Some(status);
            }
        }
        let tree = descendants(Pid::this());
        if tree.is_empty() || boottime_ms() >= give_up_at_ms {
            break;
        }
        signal_all(&tree, Signal::SIGKILL);
        let new: Vec<Pid> =
            tree.into_iter().filter(|pid| Some(*pid) != own && !killed.contains(pid)).collect();
        if new.is_empty() {
            // All are told; wait for the kernel to end them.
            let _ = poll(&mut [], PollTimeout::from(REAP_POLL_MS));
        }
        killed.extend(new);
    }
    (killed.len() as u32, own_status)
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Bounds this process and all that it starts. The host's own limits may be lower: then
/// they stay.
pub(super) fn limit() -> io::Result<()> {
    for (resource, max) in [(Resource::RLIMIT_CORE, 0), (Resource::RLIMIT_NOFILE, OPEN_FILES_MAX)] {
        let (soft, hard) = getrlimit(resource)?;
        setrlimit(resource, soft.min(max), hard.min(max))?;
    }
    Ok(())
}

/// Starts something under a bound that this process does not keep.
fn with_processes<T>(max: u64, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NPROC)?;
    setrlimit(Resource::RLIMIT_NPROC, soft.min(max), hard.min(max))?;
    let started = start();
    // Root may raise it again, and nobody else can have started another user's process. Where
    // even root may not, cached steps are under it as well.
    let _ = setrlimit(Resource::RLIMIT_NPROC, soft, hard);
    started
}
