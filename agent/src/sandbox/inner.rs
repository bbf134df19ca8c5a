//! The inner process: process 1 of the sandbox. Makes the root, gives up every
//! right, runs the command, reaps what it leaves.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Gid, Pid, Uid, setgroups, sethostname, setresgid, setresuid};

use super::outer::{Ended, Order, map_user};
use super::spec::HOST_NAME;
use super::{OUTER_ID, SPEC_BYTES_MAX, SandboxError, Spec, USER_ID, WORKSPACE, in_one_line};
use super::{mounts, system};

/// Most files that the command may have open: what build tools ask for at most.
const OPEN_FILES_MAX: u64 = 1 << 20;

/// Most processes and threads inside: more than a build on a large machine has,
/// less than what starves the machine.
const PROCESSES_MAX: u64 = 16_384;

/// Exit code of a command that cannot be found, as shells say it.
const EXIT_NOT_FOUND: i32 = 127;

pub(super) fn main() -> ExitCode {
    // The outer process blocks what is meant for the command, which inherits from here.
    let _ = SigSet::empty().thread_set_mask();
    let stdin = io::stdin();
    let Ok(stream) = stdin.as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let mut stream = std::fs::File::from(stream);
    let ended = match run(&mut stream) {
        Ok(ended) => ended,
        Err(error) => Ended::NotMade(in_one_line(&error)),
    };
    let answer = serde_json::to_vec(&ended).expect("an enum of numbers and text is JSON");
    // Where the outer process is gone, this one is about to be killed anyway.
    let _ = stream.write_all(&answer);
    ExitCode::SUCCESS
}

fn run(stream: &mut impl io::Read) -> Result<Ended, SandboxError> {
    set_pdeathsig(Signal::SIGKILL).map_err(system("cannot ask to die with the outer process"))?;
    let Order { spec, privileged } = read_order(stream)?;
    build_root(&spec, !privileged)?;
    sethostname(HOST_NAME).map_err(system("cannot set the host's name"))?;
    umask(Mode::from_bits_truncate(0o022));
    clamp_limits();
    give_up_rights(privileged)?;
    Ok(run_command(&spec))
}

fn read_order(stream: &mut impl io::Read) -> Result<Order, SandboxError> {
    let broken = |source| SandboxError::System { what: "cannot read the order", source };
    let mut length = [0; 8];
    stream.read_exact(&mut length).map_err(broken)?;
    let length = u64::from_le_bytes(length);
    if length > SPEC_BYTES_MAX {
        return Err(broken(io::ErrorKind::InvalidData.into()));
    }
    let mut bytes = Vec::new();
    stream.take(length).read_to_end(&mut bytes).map_err(broken)?;
    serde_json::from_slice(&bytes).map_err(SandboxError::Spec)
}

fn build_root(spec: &Spec, in_user_namespace: bool) -> Result<(), SandboxError> {
    // What is made here must be passable for the command, whatever the agent's umask.
    umask(Mode::from_bits_truncate(0o022));
    let root = &spec.root;
    mounts::private()?;
    mounts::root(root)?;
    for (inside, content) in &spec.files {
        mounts::file(root, inside, content)?;
    }
    for (inside, target) in &spec.links {
        mounts::link(root, inside, target)?;
    }
    for bind in &spec.binds {
        mounts::bind(root, bind)?;
    }
    for name in ["/run", "/var/tmp"] {
        mounts::tmpfs(&mounts::folder(root, Path::new(name))?, "mode=1777")?;
    }
    mounts::workspace(root, Path::new(WORKSPACE), &spec.workspace, in_user_namespace)?;
    mounts::devices(root)?;
    mounts::proc(root)?;
    mounts::enter(root)
}

/// The host's own limits may be lower: then they stay.
fn clamp_limits() {
    for (resource, max) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NOFILE, OPEN_FILES_MAX),
        (Resource::RLIMIT_NPROC, PROCESSES_MAX),
    ] {
        if let Ok((_, hard)) = getrlimit(resource) {
            let limit = hard.min(max);
            let _ = setrlimit(resource, limit, limit);
        }
    }
}

/// Becomes `runner`. The capabilities that this process has in its last user
/// namespace end when the command is executed, because that is not root there.
fn give_up_rights(privileged: bool) -> Result<(), SandboxError> {
    let outer = if privileged {
        setgroups(&[]).map_err(system("cannot leave the groups"))?;
        let (uid, gid) = (Uid::from_raw(OUTER_ID), Gid::from_raw(OUTER_ID));
        setresgid(gid, gid, gid).map_err(system("cannot change the group"))?;
        setresuid(uid, uid, uid).map_err(system("cannot change the user"))?;
        // Both are undone by the change of user: the one would leave orphans, the
        // other makes /proc/self/uid_map root's.
        set_pdeathsig(Signal::SIGKILL).map_err(system("cannot ask to die with the outer"))?;
        set_dumpable(true).map_err(system("cannot be dumpable"))?;
        OUTER_ID
    } else {
        0
    };
    unshare(CloneFlags::CLONE_NEWUSER).map_err(system("cannot make the user namespace"))?;
    map_user(USER_ID, outer, USER_ID, outer)?;
    // The command must not look into this process, which still has capabilities.
    set_dumpable(false).map_err(system("cannot be undumpable"))?;
    set_no_new_privs().map_err(system("cannot rule out new privileges"))
}

fn run_command(spec: &Spec) -> Ended {
    let Some((program, arguments)) = spec.argv.split_first() else {
        return Ended::NotMade("no command".into());
    };
    let started = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(spec.env.iter().map(|(key, value)| (key, value)))
        .current_dir(&spec.cwd)
        .stdin(Stdio::null())
        .spawn();
    match started {
        Ok(child) => reap_until(Pid::from_raw(child.id() as i32)),
        Err(error) => {
            eprintln!("sandbox: cannot start `{program}` in `{}`: {error}", spec.cwd.display());
            Ended::Exit(EXIT_NOT_FOUND)
        }
    }
}

/// Process 1 is the parent of every orphan. What still runs when the command ends
/// ends with this process.
fn reap_until(command: Pid) -> Ended {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == command => return Ended::Exit(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == command => {
                return Ended::Signal(signal as i32);
            }
            Ok(_) | Err(Errno::EINTR) => (),
            Err(errno) => return Ended::NotMade(format!("cannot wait for the command: {errno}")),
        }
    }
}
