//! The supervisor process itself: one thread, one poll loop, no runtime.
//!
//! It stands between the agent and a job's processes. When the agent is gone it
//! kills them; when the lease is over it stops them until the agent brings a new
//! deadline; so they never outlive the right to run, whatever happens to the agent.

use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use steading_model::limits::{FROZEN_MS_MAX, KILL_GRACE_MS};

use super::clock::boottime_ms;
use super::frames::{FrameBuffer, NotStarted, OUTPUT_FRAME_BYTES_MAX, Order, Report};
use super::system::{Piece, kill_everything, limit, read_some, reap_one, set_nonblocking, spawn};
use super::tree::{descendants, signal_all, stop_all};
use crate::process::{Command, Exit};

/// Output that waits for the agent, bytes; beyond it the job's pipe is not read,
/// so that a job cannot fill the supervisor's memory.
const BACKLOG_BYTES_MAX: usize = 1 << 20;

/// How much of a pipe is read after its process has ended, bytes: what it can
/// hold. A child that it left behind may go on writing for ever.
const LAST_WORDS_BYTES_MAX: usize = 1 << 20;

/// Longest sleep while a deadline stands, milliseconds: poll's clock stands still
/// while the machine sleeps, the deadline's does not.
const DEADLINE_POLL_MS_MAX: u64 = 500;

/// By how much rather a job's process is killed for want of memory than its supervisor,
/// which is in the same control group.
const OOM_SCORE: &str = "500";

const OOM_SCORE_FILE: &str = "/proc/self/oom_score_adj";

/// What the agent wants of a supervisor from the beginning.
#[derive(Debug, Default)]
pub(super) struct Options {
    /// Nothing that it starts may gain privileges.
    pub(super) restrict: bool,
    /// `cgroup.procs` of the groups that it joins.
    pub(super) groups: Vec<PathBuf>,
    /// Most processes of the user that its processes run as.
    pub(super) processes: Option<u64>,
}

/// Runs the supervisor until the agent closes its pipe.
pub(super) fn main(options: &Options) -> ExitCode {
    match Host::prepare(options).and_then(|mut host| host.serve()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            kill_everything(None);
            eprintln!("supervisor: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Host {
    orders: File,
    inbox: FrameBuffer,
    reports: File,
    backlog: Vec<u8>,
    /// Readable once a child has ended.
    children: UnixStream,
    running: Option<Running>,
    /// Waits for the thaw.
    waiting: Option<Command>,
    /// Pipes of ended processes whose children still hold them: read and dropped,
    /// so that a server which a step left running does not die of SIGPIPE.
    strays: Vec<PipeReader>,
    /// On CLOCK_BOOTTIME; none while no lease holds the tree.
    deadline_ms: Option<u64>,
    frozen_since_ms: Option<u64>,
    /// Its own inclination to be killed for want of memory, where it shares that with jobs.
    oom_score: Option<String>,
    /// As in [`Options`].
    processes: Option<u64>,
}

struct Running {
    pid: Pid,
    pipe: Option<PipeReader>,
    timeout_at_ms: Option<u64>,
    stopping: Option<Stopping>,
    exit: Exit,
}

struct Stopping {
    kill_at_ms: u64,
    killed: bool,
}

impl Host {
    fn prepare(options: &Options) -> io::Result<Self> {
        for path in &options.groups {
            fs::write(path, "0").map_err(|error| {
                io::Error::new(error.kind(), format!("cannot join `{}`: {error}", path.display()))
            })?;
        }
        if options.processes.is_some() {
            limit()?;
        }
        let shares = !options.groups.is_empty();
        let oom_score = shares.then(|| fs::read_to_string(OOM_SCORE_FILE).ok()).flatten();
        // A session of its own: the terminal's signals are for the agent, and steps
        // have no terminal to read from.
        let _ = nix::unistd::setsid();
        prctl::set_child_subreaper(true)?;
        if options.restrict {
            prctl::set_no_new_privs()?;
        }
        // Caught and not ignored: what is ignored (or blocked) stays so in the
        // processes started here. Whoever wants the supervisor to end closes its pipe.
        let caught = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&caught))?;
        }
        let (children, wake) = UnixStream::pair()?;
        children.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(SIGCHLD, wake)?;

        let orders = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let reports = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        set_nonblocking(orders.as_fd())?;
        set_nonblocking(reports.as_fd())?;
        Ok(Self {
            orders,
            inbox: FrameBuffer::default(),
            reports,
            backlog: Vec::new(),
            children,
            running: None,
            waiting: None,
            strays: Vec::new(),
            deadline_ms: None,
            frozen_since_ms: None,
            oom_score,
            processes: options.processes,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            if ready.agent_gone || (ready.orders && !self.read_orders()?) {
                kill_everything(None);
                return Ok(());
            }
            if ready.output {
                self.read_output();
            }
            if ready.strays {
                self.drop_stray_output();
            }
            self.reap();
            self.keep_time();
            self.write_reports()?;
        }
    }

    fn wait(&mut self) -> io::Result<Ready> {
        let timeout = self.next_wake_ms();
        let mut fds = vec![
            PollFd::new(self.orders.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
        ];
        let want_write = !self.backlog.is_empty();
        let write_flags = if want_write { PollFlags::POLLOUT } else { PollFlags::empty() };
        fds.push(PollFd::new(self.reports.as_fd(), write_flags));
        let room = self.backlog.len() < BACKLOG_BYTES_MAX;
        let pipe = self.running.as_ref().and_then(|running| running.pipe.as_ref());
        let pipe = pipe.filter(|_| room);
        if let Some(pipe) = pipe {
            fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
        }
        let first_stray = fds.len();
        fds.extend(self.strays.iter().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => (),
            Err(error) => return Err(error.into()),
        }
        let any = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        Ok(Ready {
            // Nobody reads the reports any more.
            agent_gone: fds[2].revents().is_some_and(|flags| flags.contains(PollFlags::POLLERR)),
            orders: any(&fds[0]),
            output: pipe.is_some() && any(&fds[3]),
            strays: fds[first_stray..].iter().any(any),
        })
    }

    fn next_wake_ms(&self) -> PollTimeout {
        let now = boottime_ms();
        let mut wake: Option<u64> = None;
        let mut at = |when: Option<u64>| wake = wake.into_iter().chain(when).min();
        match self.frozen_since_ms {
            Some(since) => at(Some(since + FROZEN_MS_MAX)),
            None => {
                at(self.deadline_ms);
                if let Some(running) = &self.running {
                    at(running.timeout_at_ms.filter(|_| running.stopping.is_none()));
                    at(running.stopping.as_ref().filter(|s| !s.killed).map(|s| s.kill_at_ms));
                }
            }
        }
        match wake {
            None => PollTimeout::NONE,
            Some(at) => {
                let ms = at.saturating_sub(now).min(DEADLINE_POLL_MS_MAX);
                PollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX))
            }
        }
    }

    /// Takes what the agent says. False: it has closed the pipe.
    fn read_orders(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 64 << 10];
        loop {
            match self.orders.read(&mut bytes) {
                Ok(0) => return Ok(false),
                Ok(len) => self.inbox.extend(&bytes[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        while let Some(order) = self.inbox.order()? {
            self.obey(order);
        }
        Ok(true)
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Run(command) if self.frozen_since_ms.is_some() => self.waiting = Some(command),
            Order::Run(command) => self.start(&command),
            Order::Cancel => self.cancel(),
            Order::Deadline(0) => {
                self.deadline_ms = None;
                self.thaw();
            }
            Order::Deadline(at_ms) => {
                // Never shortened: an older renewal may be overtaken by a newer one.
                let at_ms = self.deadline_ms.map_or(at_ms, |old| old.max(at_ms));
                self.deadline_ms = Some(at_ms);
                if at_ms > boottime_ms() {
                    self.thaw();
                }
            }
            Order::EndJob => {
                let killed = self.end_everything();
                self.deadline_ms = None;
                self.frozen_since_ms = None;
                self.report(&Report::JobEnded(killed));
            }
            Order::Fence => self.fence(),
        }
    }

    fn start(&mut self, command: &Command) {
        // Born with it: a process that is told later may have children by then.
        if self.oom_score.is_some() {
            let _ = fs::write(OOM_SCORE_FILE, OOM_SCORE);
        }
        let spawned = spawn(command, self.processes);
        if let Some(own) = &self.oom_score {
            let _ = fs::write(OOM_SCORE_FILE, own);
        }
        match spawned {
            Ok((pid, pipe)) => {
                let timeout_ms = command.timeout.map(|timeout| timeout.as_millis() as u64);
                self.running = Some(Running {
                    pid,
                    pipe: Some(pipe),
                    timeout_at_ms: timeout_ms.map(|ms| boottime_ms().saturating_add(ms)),
                    stopping: None,
                    exit: Exit::default(),
                });
            }
            Err(error) => {
                let program = command.argv.first().cloned().unwrap_or_default();
                let reason = error.to_string();
                self.report(&Report::NotStarted(NotStarted { program, reason }));
            }
        }
    }

    fn cancel(&mut self) {
        if self.waiting.take().is_some() {
            self.report(&Report::Exited(Exit { cancelled: true, ..Exit::default() }));
        } else if let Some(running) = &mut self.running {
            running.exit.cancelled = true;
            running.stop();
        }
    }

    /// Kills everything because the lease is no more.
    fn fence(&mut self) {
        if self.waiting.take().is_some() {
            self.report(&Report::Exited(Exit { fenced: true, ..Exit::default() }));
        }
        if let Some(running) = &mut self.running {
            running.exit.fenced = true;
        }
        self.end_everything();
        self.frozen_since_ms = None;
        self.deadline_ms = None;
    }

    /// Kills the whole tree, and tells the end of the process that ran.
    fn end_everything(&mut self) -> u32 {
        let own = self.running.as_ref().map(|running| running.pid);
        let (killed, status) = kill_everything(own);
        self.strays.clear();
        if let Some(status) = status {
            self.tell_end(status);
        }
        killed
    }

    fn thaw(&mut self) {
        let Some(since) = self.frozen_since_ms.take() else {
            return;
        };
        signal_all(&descendants(Pid::this()), Signal::SIGCONT);
        let lost_ms = boottime_ms().saturating_sub(since);
        if let Some(running) = &mut self.running {
            running.timeout_at_ms = running.timeout_at_ms.map(|at| at.saturating_add(lost_ms));
            if let Some(stopping) = &mut running.stopping {
                stopping.kill_at_ms = stopping.kill_at_ms.saturating_add(lost_ms);
            }
        }
        self.report(&Report::Thawed);
        if let Some(command) = self.waiting.take() {
            self.start(&command);
        }
    }

    /// Does what is due: freezes, kills, ends the time of a process.
    fn keep_time(&mut self) {
        let now = boottime_ms();
        if let Some(since) = self.frozen_since_ms {
            if now >= since.saturating_add(FROZEN_MS_MAX) {
                self.fence();
            } else {
                // Somebody else may have let one of them go on, or one was forked too fast.
                stop_all(Pid::this());
            }
            return;
        }
        if self.deadline_ms.is_some_and(|deadline| now >= deadline) {
            stop_all(Pid::this());
            self.frozen_since_ms = Some(now);
            self.report(&Report::Frozen);
            return;
        }
        let Some(running) = &mut self.running else {
            return;
        };
        if running.stopping.is_none() && running.timeout_at_ms.is_some_and(|at| now >= at) {
            running.exit.timed_out = true;
            running.stop();
        }
        if let Some(stopping) = &mut running.stopping
            && !stopping.killed
            && now >= stopping.kill_at_ms
        {
            stopping.killed = true;
            let mut tree = descendants(running.pid);
            tree.push(running.pid);
            signal_all(&tree, Signal::SIGKILL);
        }
    }

    fn reap(&mut self) {
        let mut wakes = [0; 64];
        while self.children.read(&mut wakes).is_ok_and(|len| len > 0) {}
        while let Some(status) = reap_one() {
            if let (Some(pid), Some(running)) = (status.pid(), &self.running)
                && running.pid == pid
            {
                self.tell_end(status);
            }
        }
    }

    /// Reports the process that ran as ended, after its last output.
    fn tell_end(&mut self, status: WaitStatus) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        if let Some(mut pipe) = running.pipe.take() {
            let mut left = LAST_WORDS_BYTES_MAX;
            let mut bytes = [0; OUTPUT_FRAME_BYTES_MAX];
            let open = loop {
                match read_some(&mut pipe, &mut bytes) {
                    Piece::Bytes(len) => {
                        self.report(&Report::Output(bytes[..len].to_vec()));
                        left = left.saturating_sub(len);
                        if left == 0 {
                            break true;
                        }
                    }
                    Piece::Nothing => break true,
                    Piece::End => break false,
                }
            };
            if open {
                self.strays.push(pipe);
            }
        }
        match status {
            WaitStatus::Exited(_, code) => running.exit.code = Some(code),
            WaitStatus::Signaled(_, signal, _) => running.exit.signal = Some(signal as i32),
            _ => (),
        }
        self.report(&Report::Exited(running.exit));
    }

    fn read_output(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(pipe) = &mut running.pipe else {
            return;
        };
        let mut bytes = [0; OUTPUT_FRAME_BYTES_MAX];
        match read_some(pipe, &mut bytes) {
            Piece::Bytes(len) => self.report(&Report::Output(bytes[..len].to_vec())),
            Piece::Nothing => (),
            Piece::End => running.pipe = None,
        }
    }

    fn drop_stray_output(&mut self) {
        let mut bytes = [0; OUTPUT_FRAME_BYTES_MAX];
        self.strays.retain_mut(|pipe| !matches!(read_some(pipe, &mut bytes), Piece::End));
    }

    fn report(&mut self, report: &Report) {
        self.backlog.extend_from_slice(&report.encode());
    }

    fn write_reports(&mut self) -> io::Result<()> {
        while !self.backlog.is_empty() {
            match self.reports.write(&self.backlog) {
                Ok(len) => drop(self.backlog.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Running {
    /// TERM to the process and all below it; KILL follows after the grace.
    fn stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        let mut tree = descendants(self.pid);
        tree.push(self.pid);
        signal_all(&tree, Signal::SIGTERM);
        self.stopping = Some(Stopping { kill_at_ms: boottime_ms() + KILL_GRACE_MS, killed: false });
    }
}

/// Which of the sources have something.
struct Ready {
    agent_gone: bool,
    orders: bool,
    output: bool,
    strays: bool,
}
