//! The outer process: makes the namespaces, starts the inner one, and ends as
//! the command ended.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};

use super::{
    EXIT_NOT_MADE, INNER, SPEC_BYTES_MAX, SUB_COMMAND, SandboxError, Spec, in_one_line, loopback,
    system,
};

/// What the inner process is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub spec: Spec,
    /// The mounts are made with the rights of the machine's root, not of a user namespace.
    pub privileged: bool,
}

/// How it ended, as the inner process tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ended {
    Exit(i32),
    Signal(i32),
    NotMade(String),
}

pub(super) fn main(file: &Path) -> ExitCode {
    let spec = match read_spec(file) {
        Ok(spec) => spec,
        Err(error) => {
            eprintln!("sandbox: {}", in_one_line(&error));
            return ExitCode::from(EXIT_NOT_MADE);
        }
    };
    let error_file = spec.error_file.clone();
    let ended = run(spec).unwrap_or_else(|error| Ended::NotMade(in_one_line(&error)));
    match ended {
        Ended::Exit(code) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        Ended::Signal(signal) => die_by(signal),
        Ended::NotMade(why) => {
            eprintln!("sandbox: {why}");
            // Nobody is left to tell if this fails; the exit code is then all there is.
            let _ = fs::write(&error_file, why);
            ExitCode::from(EXIT_NOT_MADE)
        }
    }
}

fn read_spec(file: &Path) -> Result<Spec, SandboxError> {
    let failed = |what, source| SandboxError::Path { what, path: file.to_owned(), source };
    let bytes = fs::read(file).map_err(|source| failed("cannot read", source))?;
    // It holds the environment, and so perhaps secrets.
    fs::remove_file(file).map_err(|source| failed("cannot remove", source))?;
    serde_json::from_slice(&bytes).map_err(SandboxError::Spec)
}

fn run(spec: Spec) -> Result<Ended, SandboxError> {
    set_pdeathsig(Signal::SIGKILL).map_err(system("cannot ask to die with the supervisor"))?;
    // A core of this process is of no use, and ending by a signal must not write one.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    // The command gets the supervisor's signals itself; what ends it ends this.
    let mut blocked = SigSet::all();
    blocked.remove(Signal::SIGCHLD);
    blocked.thread_block().map_err(system("cannot block signals"))?;

    let privileged = enter_namespaces(spec.network)?;
    if !spec.network {
        loopback::up()?;
    }
    let (ours, theirs) =
        UnixStream::pair().map_err(|source| SandboxError::System { what: "socketpair", source })?;
    let child = start_inner(theirs)?;
    let told = converse(ours, &Order { spec, privileged });
    end_of(child, told)
}

/// Makes all namespaces; as an ordinary user within a new user namespace, where
/// this process is root. Returns whether it was done without one.
fn enter_namespaces(network: bool) -> Result<bool, SandboxError> {
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if !network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    let (uid, gid) = (geteuid(), getegid());
    // Root of a container often may not; then it is treated like an ordinary user.
    let privileged = uid.is_root() && unshare(flags).is_ok();
    if !privileged {
        unshare(flags | CloneFlags::CLONE_NEWUSER).map_err(system("cannot make namespaces"))?;
        map_user(0, uid.as_raw(), 0, gid.as_raw())?;
    }
    // Not every kernel has it, and what it hides is only the name of the cgroup.
    let _ = unshare(CloneFlags::CLONE_NEWCGROUP);
    Ok(privileged)
}

/// In the user namespace just made: one user and one group exist, and are these.
pub(super) fn map_user(
    uid: u32,
    outer_uid: u32,
    gid: u32,
    outer_gid: u32,
) -> Result<(), SandboxError> {
    let write = |path: &str, text: String| {
        fs::write(path, text).map_err(|source| SandboxError::Path {
            what: "cannot write",
            path: path.into(),
            source,
        })
    };
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("{uid} {outer_uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {outer_gid} 1"))
}

fn start_inner(stdin: UnixStream) -> Result<Child, SandboxError> {
    // By what runs, not by its path: that may be another version by now.
    Command::new("/proc/self/exe")
        .args([SUB_COMMAND, INNER])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(stdin)))
        .spawn()
        .map_err(|source| SandboxError::System { what: "cannot start the inner process", source })
}

/// Sends the order, waits for the answer. None where the inner process died first.
fn converse(mut stream: UnixStream, order: &Order) -> io::Result<Option<Ended>> {
    let bytes = serde_json::to_vec(order)?;
    stream.write_all(&(bytes.len() as u64).to_le_bytes())?;
    stream.write_all(&bytes)?;
    let mut answer = Vec::new();
    stream.take(SPEC_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(serde_json::from_slice(&answer).ok())
}

fn end_of(mut child: Child, told: io::Result<Option<Ended>>) -> Result<Ended, SandboxError> {
    let status =
        child.wait().map_err(|source| SandboxError::System { what: "cannot wait", source })?;
    match (told, status.signal()) {
        (Ok(Some(ended)), _) => Ok(ended),
        // Somebody killed process 1 of the sandbox, and with it everything inside.
        (_, Some(signal)) => Ok(Ended::Signal(signal)),
        (Ok(None), None) => Err(SandboxError::Inner(format!("the inner process ended: {status}"))),
        (Err(source), None) => {
            Err(SandboxError::System { what: "cannot talk to the inner process", source })
        }
    }
}

/// Ends this process by `signal`, as the command was, so that whoever waits sees the same.
fn die_by(signal: i32) -> ExitCode {
    if let Ok(signal) = Signal::try_from(signal) {
        let mut one = SigSet::empty();
        one.add(signal);
        let _ = one.thread_unblock();
        // Twice: the runtime's handler for stack overflows takes the first SIGSEGV or
        // SIGBUS, and puts the default action back.
        let _ = raise(signal);
        let _ = raise(signal);
    }
    // Reached for signals that do not end a process. Shells say it like this.
    ExitCode::from(u8::try_from(128 + (signal & 0x7f)).unwrap_or(u8::MAX))
}
