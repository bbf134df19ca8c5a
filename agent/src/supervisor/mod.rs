//! The supervisor: a small process between the agent and a job's processes.
//!
//! One per slot, kept warm. It is this very program, started again under a hidden
//! sub-command ([`crate::hidden_main`]). When the pipe to the agent closes it kills
//! the job's processes; when the lease is over it stops them.

mod clock;
mod frames;
mod host;
mod system;
mod tree;

use std::io;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

pub use clock::boottime_ms;
use frames::{FrameBuffer, Order, Report};

use crate::limits::{Confinement, SlotGroup};
use crate::process::{Command, Exit, OutputSink, SupervisorError};

/// The hidden sub-command that starts the supervisor process.
pub const SUB_COMMAND: &str = "__supervisor";

/// After [`SUB_COMMAND`]: nothing that is started may gain privileges (set-uid).
const RESTRICT_FLAG: &str = "--no-new-privileges";

/// Before the path of a `cgroup.procs`: it joins that group, may be said several times.
pub(crate) const GROUP_FLAG: &str = "--group=";

/// Before a number: most processes of the user that its processes run as.
const PROCESSES_FLAG: &str = "--processes=";

/// The body of the hidden sub-command.
pub(crate) fn main(arguments: &[std::ffi::OsString]) -> ExitCode {
    let mut options = host::Options::default();
    for argument in arguments.iter().filter_map(|argument| argument.to_str()) {
        if argument == RESTRICT_FLAG {
            options.restrict = true;
        } else if let Some(path) = argument.strip_prefix(GROUP_FLAG) {
            options.groups.push(path.into());
        } else if let Some(number) = argument.strip_prefix(PROCESSES_FLAG) {
            options.processes = number.parse().ok();
        }
    }
    host::main(&options)
}

/// The agent's end of one supervisor process. Dropping it kills what runs under it.
#[derive(Debug)]
pub struct Supervisor {
    process: Child,
    lease: LeaseHandle,
    reports: ChildStdout,
    inbox: FrameBuffer,
    /// Where reports are read to.
    buffer: Vec<u8>,
    /// Something was started since the last end of a job.
    ran: bool,
    /// That its processes are in.
    group: Option<SlotGroup>,
}

/// Tells a supervisor about its lease while it runs something. Cloned freely.
#[derive(Clone, Debug)]
pub struct LeaseHandle {
    orders: Arc<Mutex<Option<ChildStdin>>>,
}

impl LeaseHandle {
    /// The lease lasts until `at_ms` on CLOCK_BOOTTIME ([`boottime_ms`]); then the
    /// tree is frozen until a later deadline comes.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Gone`]: the process is gone, and what ran under it with it.
    pub async fn deadline(&self, at_ms: u64) -> Result<(), SupervisorError> {
        self.send(&Order::Deadline(at_ms)).await
    }

    /// The lease is no more: everything is killed at once.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Gone`]: the process is gone, and what ran under it with it.
    pub async fn fence(&self) -> Result<(), SupervisorError> {
        self.send(&Order::Fence).await
    }

    async fn send(&self, order: &Order) -> Result<(), SupervisorError> {
        self.send_encoded(&order.encode()).await
    }

    async fn send_encoded(&self, order: &[u8]) -> Result<(), SupervisorError> {
        let mut orders = self.orders.lock().await;
        let pipe = orders.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
        pipe.write_all(order).await?;
        Ok(pipe.flush().await?)
    }
}

impl Supervisor {
    /// Starts the process. `program` is how to start this program again, without the
    /// sub-command; `environment` is added to the supervisor's own, to tell it apart.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Start`]: the program is not there or may not be executed.
    pub fn start(
        program: &[String],
        environment: &[(String, String)],
        confinement: &Confinement,
    ) -> Result<Self, SupervisorError> {
        let failed = |source| SupervisorError::Start { program: program.join(" "), source };
        let (name, arguments) = program
            .split_first()
            .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
        let mut process = tokio::process::Command::new(name)
            .args(arguments)
            .arg(SUB_COMMAND)
            .args(confinement.restrict.then_some(RESTRICT_FLAG))
            .args(confinement.processes.map(|number| format!("{PROCESSES_FLAG}{number}")))
            .args(confinement.group.iter().flat_map(SlotGroup::arguments))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let orders = process.stdin.take().expect("standard input was asked to be a pipe");
        let reports = process.stdout.take().expect("standard output was asked to be a pipe");
        let lease = LeaseHandle { orders: Arc::new(Mutex::new(Some(orders))) };
        let (inbox, buffer) = (FrameBuffer::default(), vec![0; frames::OUTPUT_FRAME_BYTES_MAX]);
        let group = confinement.group.clone();
        Ok(Self { process, lease, reports, inbox, buffer, ran: false, group })
    }

    /// To tell about the lease while something runs.
    pub fn lease(&self) -> LeaseHandle {
        self.lease.clone()
    }

    /// Process id of the supervisor; none once it has ended.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Runs one process to its end. Children that it leaves behind live on until
    /// [`Self::end_job`].
    ///
    /// Cancelling sends TERM, then KILL after a grace, and still waits for the end.
    /// Whoever drops this future must drop the supervisor too.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::NotStarted`]: no such program, or it may not be executed.
    /// Any other: the supervisor is of no more use, and what it ran is gone.
    pub async fn run(
        &mut self,
        command: Command,
        output: &mut dyn OutputSink,
        cancel: &CancellationToken,
    ) -> Result<Exit, SupervisorError> {
        if cancel.is_cancelled() {
            return Ok(Exit { cancelled: true, ..Exit::default() });
        }
        let program = command.argv.first().cloned().unwrap_or_default();
        let order = Order::Run(command).encode();
        if order.len() > frames::FRAME_BYTES_MAX {
            let reason = "its arguments and environment are too large".to_owned();
            return Err(SupervisorError::NotStarted { program, reason });
        }
        self.ran = true;
        let kills = self.group.as_ref().map_or(0, SlotGroup::oom_kills);
        self.lease.send_encoded(&order).await?;
        let mut told = false;
        loop {
            let report = tokio::select! {
                report = next_report(&mut self.reports, &mut self.inbox, &mut self.buffer) => report?,
                () = cancel.cancelled(), if !told => {
                    told = true;
                    self.lease.send(&Order::Cancel).await?;
                    continue;
                }
            };
            match report {
                Report::Output(bytes) => output.write(&bytes),
                Report::Exited(exit) => {
                    let group = self.group.as_ref().filter(|group| group.oom_kills() > kills);
                    let out_of_memory_mib = group.map(SlotGroup::memory_mib);
                    return Ok(Exit { out_of_memory_mib, ..exit });
                }
                Report::NotStarted(why) => {
                    let frames::NotStarted { program, reason } = why;
                    return Err(SupervisorError::NotStarted { program, reason });
                }
                Report::Frozen => tracing::warn!("lease is over: processes are frozen"),
                Report::Thawed => tracing::info!("lease goes on: processes are thawed"),
                Report::JobEnded(_) => return Err(out_of_turn("the end of a job")),
            }
        }
    }

    /// Kills what the job's processes left behind and forgets the lease. Returns how
    /// many processes that were.
    ///
    /// # Errors
    ///
    /// Those of a supervisor that is gone; then nothing is left either.
    pub async fn end_job(&mut self) -> Result<u32, SupervisorError> {
        if !self.ran {
            // Nothing is there to be killed, so no answer is worth a wait.
            self.lease.deadline(0).await?;
            return Ok(0);
        }
        self.lease.send(&Order::EndJob).await?;
        loop {
            match next_report(&mut self.reports, &mut self.inbox, &mut self.buffer).await? {
                Report::JobEnded(killed) => {
                    self.ran = false;
                    return Ok(killed);
                }
                Report::Frozen | Report::Thawed | Report::Output(_) => (),
                Report::Exited(_) | Report::NotStarted(_) => (),
            }
        }
    }

    /// Ends the supervisor and everything under it, and waits for that.
    ///
    /// # Errors
    ///
    /// [`SupervisorError::Gone`]: its end cannot be waited for.
    pub async fn stop(mut self) -> Result<(), SupervisorError> {
        self.lease.orders.lock().await.take();
        drop(self.reports);
        self.process.wait().await?;
        Ok(())
    }
}

async fn next_report(
    reports: &mut ChildStdout,
    inbox: &mut FrameBuffer,
    buffer: &mut [u8],
) -> Result<Report, SupervisorError> {
    loop {
        if let Some(report) = inbox.report()? {
            return Ok(report);
        }
        match reports.read(buffer).await? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            len => inbox.extend(&buffer[..len]),
        }
    }
}

fn out_of_turn(what: &str) -> SupervisorError {
    SupervisorError::Protocol { what: what.to_owned() }
}
