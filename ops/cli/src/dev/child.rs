//! A process of the local farm: this program, started again for a part of it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child as Process, ChildStdin, Command};
use tokio::task::JoinSet;

use crate::signals::END_WITH_STDIN;

/// How long a part may take to say where it listens: one that joins waits for the others.
const LISTENING_MAX: Duration = Duration::from_secs(60);

/// Holds a token, for whoever joins.
const TOKEN: &str = "STEADING_TOKEN";

/// What a coordinator prints before its address.
const LISTENING: &str = "listening on ";

/// What a part is started with.
#[derive(Clone, Debug)]
pub struct Start {
    /// Names it, its log and its folder.
    pub name: String,
    pub program: String,
    pub arguments: Vec<String>,
    /// Where it says what it does.
    pub log: PathBuf,
}

/// A part that runs. Killed when dropped; it also ends when this process does.
#[derive(Debug)]
pub struct Child {
    pub name: String,
    process: Process,
    /// Open as long as this process lives.
    _stdin: Option<ChildStdin>,
    /// Copies what it prints into its log.
    copying: JoinSet<()>,
    lines: tokio::sync::mpsc::Receiver<String>,
}

/// Lines of a part's output that wait to be read; those after them are in the log only.
const LINES_MAX: usize = 16;

impl Start {
    /// Starts the part, with a token if it needs one: in its environment, for what a
    /// process is called with is shown to every user of the machine.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn start(&self, token: Option<&str>) -> anyhow::Result<Child> {
        let failed = || format!("start {}", self.name);
        let log = open(&self.log).with_context(failed)?;
        let copy = tokio::fs::File::from_std(log.try_clone().with_context(failed)?);
        let mut command = Command::new(&self.program);
        match token {
            Some(token) => command.env(TOKEN, token),
            None => command.env_remove(TOKEN),
        };
        let mut process = command
            .args(&self.arguments)
            .env(END_WITH_STDIN, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // A ctrl-c is for this process, which stops its parts in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(failed)?;
        let (said, lines) = tokio::sync::mpsc::channel(LINES_MAX);
        let mut copying = JoinSet::new();
        if let Some(out) = process.stdout.take() {
            copying.spawn(async move {
                let (mut out, mut copy) = (BufReader::new(out).lines(), copy);
                while let Ok(Some(line)) = out.next_line().await {
                    // Best effort: a log that cannot be written stops nothing.
                    let _ = copy.write_all(format!("{line}\n").as_bytes()).await;
                    let _ = said.try_send(line);
                }
            });
        }
        let stdin = process.stdin.take();
        Ok(Child { name: self.name.clone(), process, _stdin: stdin, copying, lines })
    }
}

impl Child {
    /// Its process id; none once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// The first `count` addresses at which it says that it listens.
    ///
    /// # Errors
    ///
    /// It ended, or took too long.
    pub async fn listening(&mut self, count: usize) -> anyhow::Result<Vec<String>> {
        let (mut addresses, lines) = (Vec::new(), &mut self.lines);
        let read = async {
            while addresses.len() < count {
                let line = lines.recv().await?;
                addresses.extend(line.strip_prefix(LISTENING).map(str::to_owned));
            }
            Some(())
        };
        match tokio::time::timeout(LISTENING_MAX, read).await {
            Ok(Some(())) => Ok(addresses),
            Ok(None) => bail!("{} ended before it listened", self.name),
            Err(_) => bail!("{} does not listen", self.name),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }

    /// Asks it to stop, and kills it where it does not within `patience`.
    pub async fn stop(mut self, patience: Duration) -> bool {
        let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) else { return true };
        let pid = Pid::from_raw(pid);
        // One that was stopped (SIGSTOP) hears of nothing else. Gone: fine.
        let _ = kill(pid, Signal::SIGTERM);
        let _ = kill(pid, Signal::SIGCONT);
        let stopped = tokio::time::timeout(patience, self.process.wait()).await.is_ok();
        if !stopped {
            // Gone meanwhile: fine.
            let _ = self.process.kill().await;
        }
        self.copying.shutdown().await;
        stopped
    }
}

fn open(log: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(log)
}
