//! The processes below this one, and signals to all of them.
//!
//! The supervisor is the sub-reaper of what it starts, so a process whose parent
//! has ended becomes its child and is still found here.

use std::fs;
use std::io;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Most passes over the tree in which it is stopped: processes that fork while
/// they are being stopped are found in the next pass.
const STOP_PASSES_MAX: usize = 100;

/// All processes below `root`, in no order. What starts or ends meanwhile may be
/// missing or in it: callers that must be sure repeat until nothing changes.
pub(crate) fn descendants(root: Pid) -> Vec<Pid> {
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        for child in children(parent) {
            if !found.contains(&child) {
                found.push(child);
                open.push(child);
            }
        }
    }
    found
}

/// Sends `signal` to all; those that have ended meanwhile are no error.
pub(crate) fn signal_all(pids: &[Pid], signal: Signal) {
    for &pid in pids {
        // ESRCH: it has ended. EPERM: it switched to a user that this one may not
        // signal, which needs a set-uid program; the kill at the end reports it.
        let _ = kill(pid, signal);
    }
}

/// Stops everything below `root`, until a pass finds nothing new.
pub(crate) fn stop_all(root: Pid) {
    let mut stopped: Vec<Pid> = Vec::new();
    for _ in 0..STOP_PASSES_MAX {
        let new: Vec<Pid> =
            descendants(root).into_iter().filter(|pid| !stopped.contains(pid)).collect();
        if new.is_empty() {
            return;
        }
        signal_all(&new, Signal::SIGSTOP);
        stopped.extend(new);
    }
}

fn children(parent: Pid) -> Vec<Pid> {
    // Children belong to the thread that started them.
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(text) => {
                found.extend(text.split_ascii_whitespace().filter_map(parse_pid));
            }
            // A kernel without CONFIG_PROC_CHILDREN has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return children_by_scan(parent);
            }
            Err(_) => (),
        }
    }
    found
}

/// The same from every process's own word on its parent: slower, but works everywhere.
fn children_by_scan(parent: Pid) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| parse_pid(entry.file_name().to_str()?))
        .filter(|&pid| parent_of(pid) == Some(parent))
        .collect()
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `PID (NAME) STATE PARENT …`, where NAME may hold anything, brackets too.
    let after_name = &stat[stat.rfind(')')? + 1..];
    parse_pid(after_name.split_ascii_whitespace().nth(1)?)
}

fn parse_pid(text: &str) -> Option<Pid> {
    text.parse().ok().map(Pid::from_raw)
}
