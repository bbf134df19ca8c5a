//! Stories of the supervisor, with real processes.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails its test")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use steading_agent::process::{Command, Exit, OutputSink, SupervisorError};
use steading_agent::supervisor::{Supervisor, boottime_ms};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Longest that a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let (exit, output) = run("echo out; echo err >&2; exit 7").await;
    assert_eq!(output, "out\nerr\n");
    assert_eq!(exit, Exit { code: Some(7), ..Exit::default() });
}

#[tokio::test]
async fn a_signal_is_told_as_a_signal() {
    let (exit, _) = run("kill -SEGV $$").await;
    assert_eq!(exit, Exit { signal: Some(11), ..Exit::default() });
}

#[tokio::test]
async fn more_output_than_any_pipe_holds_arrives_whole() {
    let (exit, output) = run("head -c 5000000 /dev/zero | tr '\\0' x").await;
    assert!(exit.succeeded());
    assert_eq!(output.len(), 5_000_000);
}

#[tokio::test]
async fn nothing_of_the_agents_environment_reaches_a_process() {
    let (_, output) = run("/usr/bin/env").await;
    let names: Vec<&str> = output.lines().filter_map(|line| line.split('=').next()).collect();
    assert!(names.iter().all(|name| ["PATH", "PWD", "SHLVL", "_"].contains(name)), "{names:?}");
}

#[tokio::test]
async fn a_missing_program_and_a_missing_folder_are_named() {
    let mut supervisor = start();
    let mut command = shell("true");
    command.argv = vec!["no-such-program".into()];
    let error = run_in(&mut supervisor, command).await.unwrap_err();
    assert!(
        matches!(&error, SupervisorError::NotStarted { program, .. } if program == "no-such-program")
    );

    let mut command = shell("true");
    command.cwd = PathBuf::from("/no/such/folder");
    let error = run_in(&mut supervisor, command).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/folder"), "{error}");

    let mut command = shell("true");
    command.env.push(("LARGE".into(), "\n".repeat(16 << 20)));
    let error = run_in(&mut supervisor, command).await.unwrap_err();
    assert!(matches!(error, SupervisorError::NotStarted { .. }), "{error}");

    // And it is still of use.
    assert!(run_in(&mut supervisor, shell("true")).await.unwrap().0.succeeded());
}

#[tokio::test]
async fn a_timeout_ends_a_process_that_ignores_term() {
    let mut command = shell("trap '' TERM; echo on; while :; do read -t 1 < /dev/zero; done");
    command.timeout = Some(Duration::from_secs(5));
    let (exit, output) = run_in(&mut start(), command).await.unwrap();
    assert!(exit.timed_out && !exit.succeeded());
    assert_eq!(exit.signal, Some(9));
    assert_eq!(output, "on\n", "output survives a timeout");
}

#[tokio::test]
async fn cancelling_lets_a_process_clean_up() {
    let cancel = CancellationToken::new();
    let (sender, mut lines) = mpsc::channel(16);
    let mut sink = Lines(sender);
    let mut supervisor = start();
    let script = "trap 'echo cleaned; exit 3' TERM; echo ready; while :; do sleep 0.02; done";
    let run = supervisor.run(shell(script), &mut sink, &cancel);
    let watch = async {
        assert_eq!(lines.recv().await.unwrap(), "ready");
        cancel.cancel();
        // The shell may tell of its `sleep` first, which was told to end too.
        loop {
            let line = lines.recv().await.unwrap();
            if !line.contains("Terminated") {
                return line;
            }
        }
    };
    let (exit, last) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(run, watch) }).await.unwrap();
    assert_eq!(last, "cleaned");
    let exit = exit.unwrap();
    assert!(exit.cancelled && exit.code == Some(3));
}

#[tokio::test]
async fn what_a_step_leaves_behind_lives_until_the_job_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut supervisor = start();
    let script = daemon(folder.path());
    assert!(run_in(&mut supervisor, shell(&script)).await.unwrap().0.succeeded());
    let pid = read_pid(folder.path()).await;
    assert!(alive(pid), "a server started by one step serves the next");
    assert!(supervisor.end_job().await.unwrap() >= 1);
    assert!(!alive(pid));
    assert_eq!(supervisor.end_job().await.unwrap(), 0);
}

#[tokio::test]
async fn a_closed_pipe_kills_daemons_in_other_sessions_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut supervisor = start();
    let script = daemon(folder.path());
    run_in(&mut supervisor, shell(&script)).await.unwrap();
    let pid = read_pid(folder.path()).await;
    assert!(alive(pid));
    supervisor.stop().await.unwrap();
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_dropped_supervisor_takes_its_running_process_along() {
    let folder = tempfile::tempdir().unwrap();
    let mut supervisor = start();
    let script = format!("echo $$ > {0}/p; mv {0}/p {0}/pid; sleep 1000", folder.path().display());
    let mut output = Vec::new();
    let never = CancellationToken::new();
    let pid = tokio::select! {
        end = supervisor.run(shell(&script), &mut output, &never) => panic!("ended: {end:?}"),
        pid = read_pid(folder.path()) => pid,
    };
    let _handle = supervisor.lease();
    drop(supervisor);
    eventually("the process is gone", || !alive(pid)).await;
}

#[tokio::test]
async fn a_lease_that_is_over_freezes_the_tree_and_a_new_deadline_thaws_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut supervisor = start();
    let lease = supervisor.lease();
    let script = format!(
        "echo $$ > {0}/p; mv {0}/p {0}/pid; while [ ! -e {0}/go ]; do sleep 0.01; done; echo done",
        folder.path().display()
    );
    let mut output = Vec::new();
    let never = CancellationToken::new();
    let run = supervisor.run(shell(&script), &mut output, &never);
    let watch = async {
        let pid = read_pid(folder.path()).await;
        lease.deadline(boottime_ms() + 300).await.unwrap();
        eventually("the tree is frozen", || state(pid) == Some('T')).await;
        std::fs::write(folder.path().join("go"), "").unwrap();
        assert_eq!(state(pid), Some('T'), "it does not see the file while it is frozen");
        lease.deadline(boottime_ms() + 60_000).await.unwrap();
    };
    let (exit, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(run, watch) }).await.unwrap();
    assert!(exit.unwrap().succeeded());
    assert_eq!(output, b"done\n");
}

#[tokio::test]
async fn a_frozen_tree_stays_frozen_though_somebody_else_lets_it_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut supervisor = start();
    let lease = supervisor.lease();
    let script = format!("echo $$ > {0}/p; mv {0}/p {0}/pid; sleep 1000", folder.path().display());
    let mut output = Vec::new();
    let never = CancellationToken::new();
    let run = supervisor.run(shell(&script), &mut output, &never);
    let watch = async {
        let pid = read_pid(folder.path()).await;
        lease.deadline(boottime_ms() + 300).await.unwrap();
        eventually("the tree is frozen", || state(pid) == Some('T')).await;
        for _ in 0..3 {
            signal(pid, "CONT").await;
            eventually("it is frozen again", || state(pid) == Some('T')).await;
        }
        lease.fence().await.unwrap();
    };
    let (exit, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(run, watch) }).await.unwrap();
    assert!(exit.unwrap().fenced);
}

/// As somebody else sends it.
async fn signal(pid: u32, signal: &str) {
    let words = [format!("-{signal}"), pid.to_string()];
    let sent = tokio::process::Command::new("kill").args(words).status().await.unwrap();
    assert!(sent.success());
}

#[tokio::test]
async fn a_lease_that_is_refused_kills_at_once() {
    let mut supervisor = start();
    let lease = supervisor.lease();
    let (sender, mut lines) = mpsc::channel(16);
    let mut sink = Lines(sender);
    let never = CancellationToken::new();
    let run = supervisor.run(shell("trap '' TERM; echo on; sleep 1000"), &mut sink, &never);
    let watch = async {
        lines.recv().await.unwrap();
        lease.fence().await.unwrap();
    };
    let (exit, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(run, watch) }).await.unwrap();
    let exit = exit.unwrap();
    assert!(exit.fenced && !exit.succeeded());
    assert!(run_in(&mut supervisor, shell("true")).await.unwrap().0.succeeded());
}

async fn run(script: &str) -> (Exit, String) {
    run_in(&mut start(), shell(script)).await.unwrap()
}

async fn run_in(
    supervisor: &mut Supervisor,
    command: Command,
) -> Result<(Exit, String), SupervisorError> {
    let mut output = Vec::new();
    let never = CancellationToken::new();
    let run = supervisor.run(command, &mut output, &never);
    let exit = tokio::time::timeout(PATIENCE, run).await.expect("the process ends")?;
    Ok((exit, String::from_utf8(output).unwrap()))
}

fn start() -> Supervisor {
    let program = [env!("CARGO_BIN_EXE_steading-agent").to_owned()];
    Supervisor::start(&program, &[], &Default::default()).unwrap()
}

fn shell(script: &str) -> Command {
    Command {
        argv: ["bash", "-c", script].map(str::to_owned).to_vec(),
        env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
        cwd: "/".into(),
        ..Command::default()
    }
}

/// A script that leaves a daemon behind: its own session, its parent gone, the
/// step's output held open. Its process id is in `pid`.
fn daemon(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "(setsid bash -c 'trap \"\" TERM HUP; echo $$ > {folder}/p; mv {folder}/p {folder}/pid; \
         while :; do echo noise; sleep 0.05; done' &) ; while [ ! -e {folder}/pid ]; do sleep 0.01; done"
    )
}

async fn read_pid(folder: &Path) -> u32 {
    let file = folder.join("pid");
    eventually("the process says who it is", || file.exists()).await;
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let wait = async {
        while !holds() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not yet: {what}"));
}

fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 2..].chars().next()
}

/// Passes each whole line on.
struct Lines(mpsc::Sender<String>);

impl OutputSink for Lines {
    fn write(&mut self, bytes: &[u8]) {
        for line in std::str::from_utf8(bytes).unwrap().lines() {
            self.0.try_send(line.to_owned()).unwrap();
        }
    }
}
